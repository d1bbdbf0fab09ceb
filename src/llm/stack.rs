//! What is done about what goes wrong with providers, whatever they are asked for. From the inside out: one call with its
//! time-out, a share of its key ([`Quotas`](super::quota::Quotas)), a circuit breaker, repetitions with backoff, and the
//! configurations to fall back on.

use std::time::Duration;

use chrono::TimeDelta;

use super::{
    AskError, Choice, Document, Given, ModelConfig, Models, News, Usage,
    ask::Teller,
    breaker::Line,
    fault::{Fault, FaultKind, place},
    provider::Target,
    span,
};
use crate::{
    journal::Retry,
    kernel::{Clock, Span, TenantId, Timestamp},
    telemetry,
};

/// What a model can be asked in one call.
pub(super) trait Question: Sync {
    /// What it gives.
    type Given: Send;

    /// About how many tokens a call has.
    fn tokens(&self) -> u32;

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
    /// All calls so far.
    pub(super) reply: u32,
    pub(super) usage: Usage,
    pub(super) cost: f64,
}

impl Asking<'_> {
    pub(super) async fn tell(&self, news: News) {
        drop(self.teller.send(news).await);
    }

    /// The present model gives nothing.
    pub(super) fn fail(&mut self, failure: AskError) {
        self.failed = Some(failure);
    }

    /// What was asked for, with who gave it and what it took.
    pub(super) fn given<T>(&self, target: &Target, it: T) -> Given<T> {
        let config = &target.config;
        Given {
            it,
            usage: self.usage,
            cost: self.cost,
            config: config.reference(),
            provider: config.body.provider.clone(),
            model: config.body.model.clone(),
            reply: self.reply,
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
        let (usage, cost) = (Usage::default(), 0.0);
        Ok(Asking { tenant, teller, left, failed: None, failures: 0, reply: 0, usage, cost })
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
            }
            asking.failures = 0;
            match self.providers.target(asking.tenant, config).await {
                Ok(target) => return Ok(target),
                Err(failure) => asking.fail(failure),
            }
        }
        let none = || AskError::new("model_misconfigured", "no configuration is in use".to_owned());
        Err(asking.failed.take().unwrap_or_else(none))
    }

    /// Makes a call, again where that may help.
    pub(super) async fn insist<Q: Question>(
        &self,
        asking: &mut Asking<'_>,
        target: &Target,
        question: &Q,
    ) -> Result<Q::Given, AskError> {
        loop {
            match self.call(asking, target, question).await {
                Ok((given, usage)) => {
                    asking.usage += usage;
                    asking.cost += usage.cost(&target.config.body.price.unwrap_or_default());
                    return Ok(given);
                }
                Err(fault) if fault.kind.passes() && asking.failures < self.settings.max_retries => {
                    asking.failures += 1;
                    self.wait(asking, fault).await;
                }
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// Lets some time pass before a call is made again.
    async fn wait(&self, asking: &Asking<'_>, fault: Fault) {
        let span = |seconds: f64| Some(Span(Duration::try_from_secs_f64(seconds).unwrap_or_default()));
        let (backoff, max_backoff) = (span(self.settings.retry_initial_delay), span(self.settings.retry_max_delay));
        let retry = Retry { attempts: self.settings.max_retries, backoff, max_backoff };
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
    ) -> Result<(Q::Given, Usage), Fault> {
        let line: Line = (target.url.to_string(), target.config.body.model.clone());
        let _place = self.quotas.enter(&target.key_id, question.tokens()).await;
        let passage =
            self.breakers.admit(&line, self.clock.now()).map_err(|until| left_alone(target, until, &self.clock))?;
        asking.reply += 1;
        let (begun, span) = (self.clock.now(), question.span(target));
        let deadline = begun + TimeDelta::from_std(target.timeout.0).unwrap_or_default();
        let result = tokio::select! {
            given = question.call(target, asking.reply, begun) => given,
            () = self.clock.sleep_until(deadline) => {
                let message = format!("{} gave no answer within {}", place(target), target.timeout);
                Err(Fault::plain(FaultKind::TimedOut, message))
            }
        };
        let now = self.clock.now();
        passage.settle(trust(&result), now);
        match &result {
            Ok((given, usage)) => {
                span::took(&span, *usage);
                question.note(&span, given);
            }
            Err(fault) => span.fail(fault.kind.code()),
        }
        measure(target, &result, now - begun);
        result
    }
}

/// What a call says about the provider: that it refuses a request says nothing.
fn trust<T>(result: &Result<T, Fault>) -> Option<bool> {
    match result {
        Ok(_) => Some(true),
        Err(fault) if fault.kind.passes() => Some(false),
        Err(_) => None,
    }
}

fn left_alone(target: &Target, until: Option<Timestamp>, clock: &Clock) -> Fault {
    let rest = until.and_then(|until| (until - clock.now()).to_std().ok()).unwrap_or(Duration::from_secs(1));
    let message = format!("{} failed too often and is left alone for now", place(target));
    Fault { retry_after: Some(rest), ..Fault::plain(FaultKind::LeftAlone, message) }
}

fn measure<T>(target: &Target, result: &Result<(T, Usage), Fault>, took: TimeDelta) {
    let config = &target.config.body;
    let (provider, model) = (config.provider.clone(), config.model.clone());
    let outcome = result.as_ref().map_or_else(|fault| fault.kind.code(), |_| "answered");
    let labels = [("provider", provider.clone()), ("model", model.clone()), ("outcome", outcome.to_owned())];
    metrics::counter!("fermata_llm_calls_total", &labels).increment(1);
    let seconds = took.to_std().unwrap_or_default().as_secs_f64();
    metrics::histogram!("fermata_llm_call_seconds", "provider" => provider.clone()).record(seconds);
    let Ok((_, usage)) = result else { return };
    for (kind, tokens) in [
        ("input", usage.input_tokens.saturating_sub(usage.cached_tokens)),
        ("cached", usage.cached_tokens),
        ("output", usage.output_tokens),
    ] {
        let labels = [("provider", provider.clone()), ("model", model.clone()), ("kind", kind.to_owned())];
        metrics::counter!("fermata_llm_tokens_total", &labels).increment(tokens);
    }
}
