//! What is done about what goes wrong with providers, whatever they are asked for. From the inside out: one call with its
//! time-out, a share of its key ([`Quotas`](super::quota::Quotas)), a circuit breaker, repetitions with backoff, and the
//! configurations to fall back on.

use std::{pin::pin, time::Duration};

use chrono::TimeDelta;
use futures_util::FutureExt;
use tokio::sync::{mpsc::OwnedPermit, oneshot};

use super::{
    AskError, BUDGET_EXCEEDED, Choice, Document, Given, ModelConfig, Models, News, Turned, Usage,
    ask::Teller,
    breaker::{Line, Passage},
    fault::{Fault, FaultKind, place},
    provider::Target,
    quota::Place,
    span,
};
use crate::{
    journal::{Estimate, Retry},
    kernel::{Span, TenantId, Timestamp},
    telemetry,
};

/// What a model can be asked in one call.
pub(super) trait Question: Sync {
    /// What it gives.
    type Given: Send;

    /// What a call takes by a configuration, at most.
    fn expects(&self, config: &Document<ModelConfig>) -> Estimate;

    /// About how many tokens it asks.
    fn tokens(&self) -> u32;

    /// What a call has probably taken of which nobody said that.
    fn untold(&self) -> Usage {
        Usage::default()
    }

    /// The span of a call.
    fn span(&self, target: &Target) -> telemetry::Span;

    /// Notes what it gave.
    fn note(&self, _: &telemetry::Span, _: &Self::Given) {}

    /// Makes the call at `now`, for the so manieth reply.
    fn call(
        &self,
        target: &Target,
        reply: u32,
        now: Timestamp,
    ) -> impl Future<Output = Result<(Self::Given, Usage), Fault>> + Send;
}

/// An asking on its way: who is still to be asked, and what is counted over all replies.
pub(super) struct Asking<'a> {
    tenant: TenantId,
    teller: &'a Teller,
    left: std::vec::IntoIter<Document<ModelConfig>>,
    /// Why the model before gave nothing.
    failed: Option<AskError>,
    /// Calls that the present model failed at.
    failures: u32,
    /// The present model, what it took so far, and how many calls all have had.
    pub(super) present: Given<()>,
    /// What those before it took, as what a call is expected to take.
    before: Estimate,
    /// Whether what the next call takes was reserved before.
    pub(super) foreseen: bool,
    /// A place among the news for what was taken, should the asking be called off.
    last_word: Option<OwnedPermit<News>>,
}

impl Asking<'_> {
    pub(super) async fn tell(&self, news: News) {
        drop(self.teller.send(news).await);
    }

    /// Whether there is no other to ask.
    pub(super) fn is_last(&self) -> bool {
        self.left.len() == 0
    }

    /// The present model gives nothing, whatever it took.
    ///
    /// # Errors
    /// Where no other is asked instead, since more room in the budget is all that is missing.
    pub(super) async fn fail(&mut self, failure: AskError) -> Result<(), AskError> {
        self.leave().await;
        if failure.code == BUDGET_EXCEEDED {
            return Err(failure);
        }
        self.failed = Some(failure);
        Ok(())
    }

    /// What all that were asked have taken so far.
    fn taken(&self) -> Estimate {
        let Given { usage, cost, .. } = &self.present;
        self.before + Estimate { cost: *cost, tokens: usage.input_tokens + usage.output_tokens, tool_calls: 0 }
    }

    /// What all that were asked cost.
    pub(super) fn spent(&self) -> f64 {
        self.taken().cost
    }

    fn take(&mut self, target: &Target, usage: Usage) {
        self.present.usage += usage;
        self.present.cost += usage.cost(&target.config.body.price.unwrap_or_default());
    }

    /// What the present model took, for whoever tells it.
    pub(super) fn settle(&mut self) -> Option<Given<()>> {
        let taken = Given { spent: self.present.cost, ..self.present.clone() };
        self.before = self.taken();
        (self.present.usage, self.present.cost) = (Usage::default(), 0.0);
        (taken.usage != Usage::default()).then_some(taken)
    }

    /// The present model is done with. What it took for nothing is told, so that it gets into the books.
    async fn leave(&mut self) {
        // A place first: what is settled is told, also by whoever is called off while news wait.
        let place = self.teller.reserve().await;
        if let (Some(taken), Ok(place)) = (self.settle(), place) {
            place.send(News::Wasted(taken));
        }
    }

    /// Whether there is room in the budget for another call, after those before it.
    async fn has_room(&self, next: Estimate) -> bool {
        let taken = self.taken();
        if self.foreseen && taken == Estimate::default() {
            return true;
        }
        let (granted, answer) = oneshot::channel();
        self.tell(News::WantsMore { total: taken + next, granted }).await;
        // Where nobody listens, nobody minds.
        answer.await.unwrap_or(true)
    }

    /// Whether whoever asks waits for as long as a provider wants.
    async fn has_time(&self) -> bool {
        let (granted, answer) = oneshot::channel();
        self.tell(News::WantsTime { granted }).await;
        answer.await.unwrap_or(true)
    }

    /// What was asked for, with who gave it and what it took.
    pub(super) fn given<T>(&mut self, it: T) -> Given<T> {
        let spent = self.spent();
        let Given { usage, cost, config, provider, model, reply, .. } = self.present.clone();
        self.settle();
        Given { it, usage, cost, spent, config, provider, model, reply }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        // It was called off: what it took so far is in vain.
        if let (Some(taken), Some(place)) = (self.settle(), self.last_word.take()) {
            drop(place.send(News::Wasted(taken)));
        }
    }
}

impl Models {
    /// Begins to ask the models of the choice.
    pub(super) async fn asking<'a>(
        &self,
        tenant: TenantId,
        choice: &Choice,
        teller: &'a Teller,
    ) -> Result<Asking<'a>, AskError> {
        let left = self.chain(tenant, choice).await?.into_iter();
        let last_word = teller.clone().reserve_owned().await.ok();
        let (present, before) = (Given::default(), Estimate::default());
        Ok(Asking { tenant, teller, left, failed: None, failures: 0, present, before, foreseen: true, last_word })
    }

    /// The next model to ask.
    ///
    /// # Errors
    /// Why the last one gave nothing, when there is no other.
    pub(super) async fn next(&self, asking: &mut Asking<'_>) -> Result<Target, AskError> {
        while let Some(config) = asking.left.next() {
            if let Some(failure) = asking.failed.take() {
                metrics::counter!("fermata_llm_fallbacks_total", "to" => config.body.provider.clone()).increment(1);
                asking.tell(News::FellBack { because: failure.message, to: config.reference() }).await;
                // It may count the same words otherwise than the one that was expected to answer.
                asking.foreseen = false;
            }
            asking.failures = 0;
            let (provider, model) = (config.body.provider.clone(), config.body.model.clone());
            asking.present =
                Given { config: config.reference(), provider, model, ..std::mem::take(&mut asking.present) };
            match self.providers.target(asking.tenant, config).await {
                Ok(target) => return Ok(target),
                Err(failure) => asking.failed = Some(failure),
            }
        }
        let none = || AskError::new("model_misconfigured", "no configuration is in use".to_owned());
        Err(asking.failed.take().unwrap_or_else(none))
    }

    /// Makes a call, again where that may help and what was taken so far leaves room for it.
    pub(super) async fn insist<Q: Question>(
        &self,
        asking: &mut Asking<'_>,
        target: &Target,
        question: &Q,
    ) -> Result<Q::Given, AskError> {
        loop {
            if !asking.has_room(question.expects(&target.config)).await {
                let message = format!("the budget has no room to ask {}", place(target));
                return Err(AskError::new(BUDGET_EXCEEDED, message));
            }
            let fault = match self.call(asking, target, question).await {
                Ok(given) => return Ok(given),
                Err(fault) => fault,
            };
            if !fault.kind.passes() || !self.bears_waiting(asking, &fault).await {
                return Err(fault.into());
            }
            asking.failures += 1;
            self.wait(asking, fault).await;
        }
    }

    /// Whether the same model is asked again: not without end, nor where it wants to be left alone for longer than anybody
    /// waits of himself and there is another, or the whole question comes again later.
    async fn bears_waiting(&self, asking: &Asking<'_>, fault: &Fault) -> bool {
        let asked = fault.retry_after.unwrap_or_default().as_secs_f64();
        let is_long = asked > self.settings.retry_max_delay;
        asking.failures < self.settings.max_retries && (!is_long || asking.is_last() && asking.has_time().await)
    }

    /// Lets some time pass before a call is made again.
    async fn wait(&self, asking: &Asking<'_>, fault: Fault) {
        let span = |seconds: f64| Some(Span(Duration::try_from_secs_f64(seconds).unwrap_or_default()));
        let (backoff, max_backoff) = (span(self.settings.retry_initial_delay), span(self.settings.retry_max_delay));
        let retry = Retry { attempts: self.settings.max_retries, backoff, max_backoff, min_backoff: None };
        let delay = retry.delay(asking.failures, rand::random(), fault.retry_after.unwrap_or_default());
        let at = self.clock.now() + TimeDelta::from_std(delay).unwrap_or_default();
        metrics::counter!("fermata_llm_retries_total", "why" => fault.kind.code()).increment(1);
        asking.tell(News::Retrying { because: fault.message, at }).await;
        self.clock.sleep_until(at).await;
    }

    /// One call, if the model is not to be left alone.
    async fn call<Q: Question>(
        &self,
        asking: &mut Asking<'_>,
        target: &Target,
        question: &Q,
    ) -> Result<Q::Given, Fault> {
        let (share, passage) = self.enter(asking, target, question.tokens()).await?;
        let begun = self.clock.now();
        if passage.probes() {
            asking.tell(News::Circuit { of: place(target), turned: Turned::HalfOpen }).await;
        }
        asking.present.reply += 1;
        let reply = asking.present.reply;
        let span = question.span(target);
        let flight = Flight { models: self, asking, target, question, share: Some(share), begun };
        let deadline = begun + TimeDelta::from_std(target.timeout.0).unwrap_or_default();
        let result = tokio::select! {
            given = question.call(target, reply, begun) => given,
            () = self.clock.sleep_until(deadline) => {
                let message = format!("{} gave no answer within {}", place(target), target.timeout);
                Err(Fault::plain(FaultKind::TimedOut, message))
            }
        };
        match &result {
            Ok((given, usage)) => {
                span::took(&span, *usage);
                question.note(&span, given);
                flight.land("answered", *usage);
            }
            Err(fault) => {
                span.fail(fault.kind.code());
                flight.land(fault.kind.code(), fault.took.unwrap_or_else(|| question.untold()));
            }
        }
        if let Some(turned) = passage.settle(self.trust(target, &result), self.clock.now()) {
            asking.tell(News::Circuit { of: place(target), turned }).await;
        }
        result.map(|(given, _)| given)
    }

    /// A share of the key for a call, and the breaker's leave to make it. While another call tries the model, what comes
    /// of that is waited for, unless somebody else can be asked.
    async fn enter(&self, asking: &Asking<'_>, target: &Target, tokens: u32) -> Result<(Place, Passage), Fault> {
        let line = line(target);
        let late = self.clock.now() + TimeDelta::from_std(target.timeout.0).unwrap_or_default();
        let mut share = None;
        loop {
            if asking.is_last() {
                // At first without a share, which is of use to others meanwhile.
                self.untried(asking, target, &line, late).await;
            }
            let place = match share.take() {
                Some(place) => place,
                None => self.share(asking, target, tokens).await,
            };
            let now = self.clock.now();
            match self.breakers.admit(&line, now) {
                Ok(passage) => return Ok((place, passage)),
                Err(None) if asking.is_last() && now < late => share = Some(place),
                Err(until) => {
                    let fault = left_alone(target, until, now);
                    count(target, fault.kind.code());
                    return Err(fault);
                }
            }
        }
    }

    /// Waits until no other call tries the model, though no longer than for an answer, and says so where that takes time.
    async fn untried(&self, asking: &Asking<'_>, target: &Target, line: &Line, late: Timestamp) {
        let mut untried = pin!(self.breakers.untried(line));
        if untried.as_mut().now_or_never().is_none() {
            asking.tell(News::Queued { of: place(target) }).await;
            tokio::select! {
                () = untried => {}
                () = self.clock.sleep_until(late) => {}
            }
        }
    }

    /// Waits for the key's share of calls and tokens, and says so where that takes time.
    async fn share(&self, asking: &Asking<'_>, target: &Target, tokens: u32) -> Place {
        let mut entering = pin!(self.quotas.enter(&target.key_id, tokens));
        if let Some(place) = entering.as_mut().now_or_never() {
            return place;
        }
        let begun = self.clock.now();
        asking.tell(News::Queued { of: place(target) }).await;
        let place = entering.await;
        let provider = target.config.body.provider.clone();
        let seconds = (self.clock.now() - begun).to_std().unwrap_or_default().as_secs_f64();
        metrics::histogram!("fermata_llm_share_wait_seconds", "provider" => provider).record(seconds);
        place
    }

    /// What a call says about the provider: that it refuses a request says nothing, nor that it is slower than a tenant
    /// likes.
    fn trust<T>(&self, target: &Target, result: &Result<T, Fault>) -> Option<bool> {
        let usual = Span::seconds(u64::from(self.settings.default_timeout_seconds));
        match result {
            Ok(_) => Some(true),
            Err(fault) if fault.kind == FaultKind::TimedOut && target.timeout < usual => None,
            Err(fault) if fault.kind.passes() => Some(false),
            Err(_) => None,
        }
    }
}

/// A call under way. What it took is counted however it ends, also where it is called off in the middle.
struct Flight<'c, 'a, Q: Question> {
    models: &'c Models,
    asking: &'c mut Asking<'a>,
    target: &'c Target,
    question: &'c Q,
    /// None once it is counted.
    share: Option<Place>,
    begun: Timestamp,
}

impl<Q: Question> Flight<'_, '_, Q> {
    /// It ended so, and took so much.
    fn land(mut self, outcome: &'static str, taken: Usage) {
        self.count(outcome, taken);
    }

    fn count(&mut self, outcome: &'static str, taken: Usage) {
        let Some(share) = self.share.take() else { return };
        share.took(taken.input_tokens + taken.output_tokens);
        self.asking.take(self.target, taken);
        count(self.target, outcome);
        measure(self.target, taken, self.models.clock.now() - self.begun);
    }
}

impl<Q: Question> Drop for Flight<'_, '_, Q> {
    fn drop(&mut self) {
        self.count("called_off", self.question.untold());
    }
}

/// What a breaker is about: with keys of their own, tenants are apart.
fn line(target: &Target) -> Line {
    let ModelConfig { provider, model, .. } = &target.config.body;
    Line {
        key_id: target.key_id.clone(),
        url: target.url.to_string(),
        model: model.clone(),
        shown: (provider.clone(), target.shown.clone()),
    }
}

fn left_alone(target: &Target, until: Option<Timestamp>, now: Timestamp) -> Fault {
    let rest = until.and_then(|until| (until - now).to_std().ok()).unwrap_or(Duration::from_secs(1));
    let message = format!("{} failed too often and is left alone for now", place(target));
    Fault { retry_after: Some(rest), ..Fault::plain(FaultKind::LeftAlone, message) }
}

fn count(target: &Target, outcome: &'static str) {
    let provider = target.config.body.provider.clone();
    let labels = [("provider", provider), ("model", target.shown.clone()), ("outcome", outcome.to_owned())];
    metrics::counter!("fermata_llm_calls_total", &labels).increment(1);
}

fn measure(target: &Target, usage: Usage, took: TimeDelta) {
    let (provider, model) = (&target.config.body.provider, &target.shown);
    let seconds = took.to_std().unwrap_or_default().as_secs_f64();
    metrics::histogram!("fermata_llm_call_seconds", "provider" => provider.clone()).record(seconds);
    for (kind, tokens) in [
        ("input", usage.input_tokens.saturating_sub(usage.cached_tokens)),
        ("cached", usage.cached_tokens),
        ("output", usage.output_tokens),
    ] {
        let labels = [("provider", provider.clone()), ("model", model.clone()), ("kind", kind.to_owned())];
        metrics::counter!("fermata_llm_tokens_total", &labels).increment(tokens);
    }
}
