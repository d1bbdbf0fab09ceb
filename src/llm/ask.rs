//! Asking a model, against all that may go wrong. From the inside out: one call with its time-out ([`wire`]), a share of
//! its key ([`Quotas`]), a circuit breaker, repetitions with backoff, answers that will not do asked for again, and the
//! configurations to fall back on.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{
    Answer, Document, Keys, Message, ModelConfig, Prompt, PromptTemplate, Usage,
    breaker::{Breakers, Line},
    examine::Examiner,
    provider::{Providers, Target},
    quota::Quotas,
    span, store, usual,
    wire::{self, Fault, FaultKind, Heard, Said},
};
use crate::{
    config::{CircuitBreakerSettings, LlmSettings},
    db::{self, Database},
    http::Outbound,
    journal::Retry,
    kernel::{Clock, Error, Problem, Reference, Result, Span, TenantId, Timestamp},
};

/// Asks models. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Models {
    db: Database,
    clock: Clock,
    settings: Arc<LlmSettings>,
    providers: Providers,
    breakers: Breakers,
    quotas: Quotas,
}

/// Why no model answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskError {
    /// A stable word.
    pub code: String,
    /// A sentence for a person.
    pub message: String,
    /// Whether asking again later may help.
    pub retryable: bool,
    /// How long the provider asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// What happens while a model is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// It says something, in its so manieth reply.
    Words {
        /// From 1; words of the replies before it do not count any more.
        reply: u32,
        /// What.
        text: String,
    },
    /// It thinks something.
    Thoughts {
        /// As with words.
        reply: u32,
        /// What.
        text: String,
    },
    /// A call failed, and is made again.
    Retrying {
        /// Why, and whom it was made to.
        because: String,
        /// Not before.
        at: Timestamp,
    },
    /// An answer will not do, and is asked for again.
    AskedAgain {
        /// Why.
        because: String,
    },
    /// The configuration gives no answer, and the next one is asked.
    FellBack {
        /// Why.
        because: String,
        /// To which, as `name@version`.
        to: String,
    },
}

/// What is told while a model is asked. A slow listener slows the asking down; one that is gone does not hold it up.
pub type Teller = mpsc::Sender<News>;

impl AskError {
    fn new(code: &str, message: String) -> Self {
        Self { code: code.to_owned(), message, retryable: false, retry_after: None }
    }

    pub(super) fn misconfigured(config: &Document<ModelConfig>, why: String) -> Self {
        Self::new("model_misconfigured", format!("model configuration `{}`: {why}", config.reference()))
    }
}

impl From<Error> for AskError {
    fn from(error: Error) -> Self {
        let passes = matches!(error.problem(), Problem::Unavailable | Problem::Internal);
        if error.problem() == Problem::Internal {
            tracing::error!(?error, "a model cannot be asked");
        }
        let code = error.problem().slug().replace('-', "_");
        Self { retryable: passes, ..Self::new(&code, error.detail().to_owned()) }
    }
}

impl From<Fault> for AskError {
    fn from(fault: Fault) -> Self {
        let Fault { kind, message, retry_after } = fault;
        let retryable = kind.passes() || kind == FaultKind::LeftAlone;
        Self { retryable, retry_after, ..Self::new(kind.code(), message) }
    }
}

/// One question on its way: what is counted over all replies.
struct Asking<'a> {
    tenant: TenantId,
    teller: &'a Teller,
    reply: u32,
    usage: Usage,
    cost: f64,
}

impl Asking<'_> {
    async fn tell(&self, news: News) {
        drop(self.teller.send(news).await);
    }
}

impl Models {
    /// Over the configurations in `db` and the providers of the settings.
    #[must_use]
    pub fn new(
        (db, clock): (Database, Clock),
        settings: &LlmSettings,
        breaker: &CircuitBreakerSettings,
        keys: Keys,
        outbound: Arc<Outbound>,
    ) -> Self {
        let (breakers, quotas) = (Breakers::new(*breaker), Quotas::new(settings));
        let settings = Arc::new(settings.clone());
        let providers = Providers::new(db.clone(), Arc::clone(&settings), keys, outbound);
        Self { db, clock, settings, providers, breakers, quotas }
    }

    /// Asks the model of a configuration, or those it falls back on, until one answers.
    ///
    /// # Errors
    /// Why none did: of the last that was asked.
    pub async fn ask(
        &self,
        tenant: TenantId,
        config: &Reference,
        prompt: &Prompt,
        teller: &Teller,
    ) -> Result<Answer, AskError> {
        let mut asking = Asking { tenant, teller, reply: 0, usage: Usage::default(), cost: 0.0 };
        let mut failed: Option<AskError> = None;
        for config in self.chain(tenant, config).await? {
            if let Some(failure) = failed.take() {
                metrics::counter!("fermata_llm_fallbacks_total", "to" => config.body.provider.clone()).increment(1);
                asking.tell(News::FellBack { because: failure.message, to: config.reference() }).await;
            }
            match self.ask_one(&mut asking, config, prompt.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failed = Some(failure),
            }
        }
        Err(failed.unwrap_or_else(|| AskError::new("model_misconfigured", "no configuration is in use".to_owned())))
    }

    /// The words of a template with these variables in their places, and the template as `name@version`.
    ///
    /// # Errors
    /// When there is no such template, or it fails over them.
    pub async fn render(
        &self,
        tenant: TenantId,
        template: &Reference,
        variables: &Map<String, Value>,
    ) -> Result<(String, String), AskError> {
        let found = db::patiently(|| async {
            let mut tx = self.db.tenant(tenant).await?;
            store::get::<PromptTemplate>(&mut tx, std::slice::from_ref(template)).await
        });
        let found = found.await?.pop().flatten().or_else(|| usual::meant(&usual::templates(), template).cloned());
        let found = found
            .ok_or_else(|| AskError::new("unknown_template", format!("there is no prompt template `{template}`")))?;
        let text = found.body.render(variables)?;
        Ok((text, found.reference()))
    }

    /// The version of a configuration that is meant now.
    ///
    /// # Errors
    /// When there is none of that name, or it is not in use.
    pub async fn pin(&self, tenant: TenantId, config: &Reference) -> Result<Document<ModelConfig>, AskError> {
        let first = self.chain(tenant, config).await?.into_iter().next();
        first.ok_or_else(|| AskError::new("unknown_model_config", config.name.clone()))
    }

    /// The configuration and, after it, those it falls back on which are there and in use.
    async fn chain(&self, tenant: TenantId, wanted: &Reference) -> Result<Vec<Document<ModelConfig>>, AskError> {
        let found = self.configs(tenant, std::slice::from_ref(wanted)).await?.pop().flatten();
        let first = found.ok_or_else(|| {
            AskError::new("unknown_model_config", format!("there is no model configuration `{wanted}`"))
        })?;
        if !first.body.is_active() {
            return Err(AskError::misconfigured(&first, "it is not in use".to_owned()));
        }
        let named = first.body.fallback.iter().flatten().map(|name| Reference { name: name.clone(), version: None });
        let others = self.configs(tenant, &named.collect::<Vec<_>>()).await?;
        let others = others.into_iter().flatten().filter(|config| config.body.is_active());
        Ok([first].into_iter().chain(others).collect())
    }

    async fn configs(&self, tenant: TenantId, wanted: &[Reference]) -> Result<Vec<Option<Document<ModelConfig>>>> {
        if wanted.is_empty() {
            return Ok(vec![]);
        }
        let found = db::patiently(|| async {
            let mut tx = self.db.tenant(tenant).await?;
            store::get::<ModelConfig>(&mut tx, wanted).await
        })
        .await?;
        let brought = usual::configs(&self.settings);
        let or_usual =
            |(found, reference): (Option<_>, _)| found.or_else(|| usual::meant(&brought, reference).cloned());
        Ok(found.into_iter().zip(wanted).map(or_usual).collect())
    }

    /// Asks one configuration's model, again where that may help.
    async fn ask_one(
        &self,
        asking: &mut Asking<'_>,
        config: Document<ModelConfig>,
        mut prompt: Prompt,
    ) -> Result<Answer, AskError> {
        let target = self.providers.target(asking.tenant, config).await?;
        let expected = target.config.body.expect.clone().unwrap_or_default();
        let asked = prompt.clone();
        let examiner = Examiner::new(&expected, &asked).map_err(|why| AskError::new("invalid_schema", why))?;
        let (mut failures, mut objections) = (0, 0);
        loop {
            let said = match self.call(asking, &target, &prompt).await {
                Ok(said) => said,
                Err(fault) if fault.kind.passes() && failures < self.settings.max_retries => {
                    failures += 1;
                    self.wait(asking, fault, failures).await;
                    continue;
                }
                Err(fault) => return Err(fault.into()),
            };
            let mut answer = answer(asking, &target, said);
            let Err(objection) = examiner.examine(&mut answer) else { return Ok(answer) };
            if objections == self.settings.max_retries {
                let message = format!("{} gave no answer that will do: {}", wire::place(&target), objection.0);
                return Err(AskError { retryable: true, ..AskError::new("model_answer_invalid", message) });
            }
            objections += 1;
            metrics::counter!("fermata_llm_retries_total", "why" => "answer").increment(1);
            asking.tell(News::AskedAgain { because: objection.0.clone() }).await;
            let text = format!("Your last answer cannot be used: {}. Answer again.", objection.0);
            // What it called was not done, so the calls are not repeated to it: each would want an output.
            let words = Message::Assistant { text: answer.text, calls: vec![] };
            prompt.messages.extend((!is_silent(&words)).then_some(words));
            prompt.messages.push(Message::User { text, images: vec![] });
        }
    }

    /// Lets some time pass before a call is made again.
    async fn wait(&self, asking: &Asking<'_>, fault: Fault, failures: u32) {
        let span = |seconds: f64| Some(Span(Duration::try_from_secs_f64(seconds).unwrap_or_default()));
        let (backoff, max_backoff) = (span(self.settings.retry_initial_delay), span(self.settings.retry_max_delay));
        let retry = Retry { attempts: self.settings.max_retries, backoff, max_backoff };
        let delay = retry.delay(failures, rand::random(), fault.retry_after.unwrap_or_default());
        let at = self.clock.now() + TimeDelta::from_std(delay).unwrap_or_default();
        metrics::counter!("fermata_llm_retries_total", "why" => fault.kind.code()).increment(1);
        asking.tell(News::Retrying { because: fault.message, at }).await;
        self.clock.sleep_until(at).await;
    }

    /// One call, if the model is not to be left alone.
    async fn call(&self, asking: &mut Asking<'_>, target: &Target, prompt: &Prompt) -> Result<Said, Fault> {
        let line: Line = (target.url.to_string(), target.config.body.model.clone());
        let _place = self.quotas.enter(&target.key_id, prompt.tokens()).await;
        let passage =
            self.breakers.admit(&line, self.clock.now()).map_err(|until| left_alone(target, until, &self.clock))?;
        asking.reply += 1;
        let (begun, span) = (self.clock.now(), span::begin(target, prompt));
        let (reply, teller) = (asking.reply, asking.teller);
        let calling = wire::call(target, prompt, begun, |heard| {
            let news = match heard {
                Heard::Words(text) => News::Words { reply, text },
                Heard::Thoughts(text) => News::Thoughts { reply, text },
            };
            async move { drop(teller.send(news).await) }
        });
        let deadline = begun + TimeDelta::from_std(target.timeout.0).unwrap_or_default();
        let result = tokio::select! {
            said = calling => said,
            () = self.clock.sleep_until(deadline) => Err(Fault {
                kind: FaultKind::TimedOut,
                message: format!("{} gave no answer within {}", wire::place(target), target.timeout),
                retry_after: None,
            }),
        };
        let now = self.clock.now();
        passage.settle(trust(&result), now);
        span::note(&span, &result);
        measure(target, &result, now - begun);
        result
    }
}

fn is_silent(message: &Message) -> bool {
    matches!(message, Message::Assistant { text, .. } if text.trim().is_empty())
}

/// What a call says about the provider: that it refuses a request says nothing.
fn trust(result: &Result<Said, Fault>) -> Option<bool> {
    match result {
        Ok(_) => Some(true),
        Err(fault) if fault.kind.passes() => Some(false),
        Err(_) => None,
    }
}

fn left_alone(target: &Target, until: Option<Timestamp>, clock: &Clock) -> Fault {
    let rest = until.and_then(|until| (until - clock.now()).to_std().ok()).unwrap_or(Duration::from_secs(1));
    let message = format!("{} failed too often and is left alone for now", wire::place(target));
    Fault { kind: FaultKind::LeftAlone, message, retry_after: Some(rest) }
}

fn answer(asking: &mut Asking<'_>, target: &Target, said: Said) -> Answer {
    let Said { text, reasoning, calls, stop, usage } = said;
    let config = &target.config.body;
    asking.usage += usage;
    asking.cost += usage.cost(&config.price.unwrap_or_default());
    Answer {
        text,
        json: None,
        reasoning,
        calls,
        stop,
        usage: asking.usage,
        cost: asking.cost,
        config: target.config.reference(),
        provider: config.provider.clone(),
        model: config.model.clone(),
        reply: asking.reply,
    }
}

fn measure(target: &Target, result: &Result<Said, Fault>, took: TimeDelta) {
    let config = &target.config.body;
    let (provider, model) = (config.provider.clone(), config.model.clone());
    let outcome = result.as_ref().map_or_else(|fault| fault.kind.code(), |_| "answered");
    let labels = [("provider", provider.clone()), ("model", model.clone()), ("outcome", outcome.to_owned())];
    metrics::counter!("fermata_llm_calls_total", &labels).increment(1);
    let seconds = took.to_std().unwrap_or_default().as_secs_f64();
    metrics::histogram!("fermata_llm_call_seconds", "provider" => provider.clone()).record(seconds);
    let Ok(said) = result else { return };
    for (kind, tokens) in [
        ("input", said.usage.input_tokens.saturating_sub(said.usage.cached_tokens)),
        ("cached", said.usage.cached_tokens),
        ("output", said.usage.output_tokens),
    ] {
        let labels = [("provider", provider.clone()), ("model", model.clone()), ("kind", kind.to_owned())];
        metrics::counter!("fermata_llm_tokens_total", &labels).increment(tokens);
    }
}
