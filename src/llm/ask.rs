//! Asking a model for words. An answer that will not do is asked for again; the rest of what may go wrong is the
//! business of the [stack](super::stack).

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use super::{
    Answer, Choice, Document, Given, Keys, Message, ModelConfig, Prompt, Turned, Usage,
    breaker::Breakers,
    examine::Examiner,
    fault::{self, Fault, FaultKind},
    provider::{Providers, Target},
    quota::Quotas,
    span,
    stack::{Asking, Question},
    wire::{self, Heard, Said, Tally},
};
use crate::{
    config::{CircuitBreakerSettings, LlmSettings},
    db::Database,
    http::Outbound,
    journal::Estimate,
    kernel::{Clock, Error, Problem, Result, TenantId, Timestamp},
    telemetry::Span,
};

/// Asks models. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Models {
    pub(super) db: Database,
    pub(super) clock: Clock,
    pub(super) settings: Arc<LlmSettings>,
    pub(super) providers: Providers,
    pub(super) breakers: Breakers,
    pub(super) quotas: Quotas,
    /// Where images and recordings are fetched.
    pub(super) outbound: Arc<Outbound>,
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

/// The code of an asking that stops because there is no room in a budget to ask, or to ask again.
pub const BUDGET_EXCEEDED: &str = "budget_exceeded";

/// What happens while a model is asked.
#[derive(Debug)]
pub enum News {
    /// It says something, in its so manieth reply.
    Words {
        /// From 1; words of the replies before it do not count any more.
        reply: u32,
        /// What.
        text: String,
    },
    /// It thinks something, where that is wanted.
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
    /// The call waits: the key's share of calls at once or of tokens is used up, or another call tries the model first.
    Queued {
        /// Whom it is made to.
        of: String,
    },
    /// A circuit breaker changed.
    Circuit {
        /// Whom it is about.
        of: String,
        /// How it stands now.
        turned: Turned,
    },
    /// The configuration gave nothing of use, or was called off, and this is what it took all the same.
    Wasted(Given<()>),
    /// A reply was paid for and is of no use; the answer says whether there is room for another.
    WantsMore {
        /// What the whole asking is expected to take then.
        total: Estimate,
        /// The answer.
        granted: oneshot::Sender<bool>,
    },
    /// The provider asks for more time than anybody waits of himself, and there is nobody else to ask; the answer says
    /// whether that is waited for here, since the question is not asked again later.
    WantsTime {
        /// The answer.
        granted: oneshot::Sender<bool>,
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
    pub(super) fn new(code: &str, message: String) -> Self {
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
        let Fault { kind, message, retry_after, .. } = fault;
        let retryable = kind.passes() || kind == FaultKind::LeftAlone;
        Self { retryable, retry_after, ..Self::new(kind.code(), message) }
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
        let providers = Providers::new(db.clone(), Arc::clone(&settings), keys, Arc::clone(&outbound));
        Self { db, clock, settings, providers, breakers, quotas, outbound }
    }

    /// Asks the models of the choice, one after another, until one answers. Images that the question names by address are
    /// fetched first.
    ///
    /// # Errors
    /// Why none did: of the last that was asked. Why an image is not to be had, and then nobody is asked.
    pub async fn ask(
        &self,
        tenant: TenantId,
        choice: &Choice,
        prompt: &Prompt,
        teller: &Teller,
    ) -> Result<Answer, AskError> {
        let mut asking = self.asking(tenant, choice, teller).await?;
        let prompt = self.see(tenant, prompt.clone()).await?;
        loop {
            let target = self.next(&mut asking).await?;
            let answered = self.ask_one(&mut asking, &target, prompt.clone(), teller).await;
            if answered.is_ok() || asking.is_last() {
                span::by(&target);
            }
            match answered {
                Ok(answer) => {
                    asking.settle();
                    let reasoning = answer.reasoning.filter(|_| prompt.reasoning);
                    return Ok(Answer { reasoning, ..answer });
                }
                Err(failure) => asking.fail(failure).await?,
            }
        }
    }

    /// Asks one model, again where its answer will not do.
    async fn ask_one(
        &self,
        asking: &mut Asking<'_>,
        target: &Target,
        mut prompt: Prompt,
        teller: &Teller,
    ) -> Result<Answer, AskError> {
        let expected = target.config.body.expect.clone().unwrap_or_default();
        let asked = prompt.clone();
        let examiner = Examiner::new(&expected, &asked).map_err(|why| AskError::new("invalid_schema", why))?;
        let mut objections = 0;
        loop {
            let said = self.insist(asking, target, &Chat { prompt: &prompt, teller, tally: Arc::default() }).await?;
            let mut answer = answer(asking, said);
            let Err(objection) = examiner.examine(&mut answer) else { return Ok(answer) };
            let provider = target.config.body.provider.clone();
            metrics::counter!("fermata_llm_objections_total", "provider" => provider).increment(1);
            if objections == self.settings.max_retries {
                let message = format!("{} gave no answer that will do: {}", fault::place(target), objection.0);
                return Err(AskError { retryable: true, ..AskError::new("model_answer_invalid", message) });
            }
            objections += 1;
            metrics::counter!("fermata_llm_retries_total", "why" => "answer").increment(1);
            asking.tell(News::AskedAgain { because: objection.0.clone() }).await;
            let text = format!("Your last answer cannot be used: {}. Answer again.", objection.0);
            // What it called was not done, so the calls are not repeated to it: each would want an output.
            let words = Message::said(answer.text, vec![]);
            prompt.messages.extend((!is_silent(&words)).then_some(words));
            prompt.messages.push(Message::User { text, images: vec![] });
        }
    }
}

fn is_silent(message: &Message) -> bool {
    matches!(message, Message::Assistant { text, .. } if text.trim().is_empty())
}

/// A question in words, and who hears the answer as it comes.
struct Chat<'a> {
    prompt: &'a Prompt,
    teller: &'a Teller,
    /// How far the answer is.
    tally: Arc<Tally>,
}

impl Question for Chat<'_> {
    type Given = Said;

    fn expects(&self, config: &Document<ModelConfig>) -> Estimate {
        config.estimate(self.prompt)
    }

    fn untold(&self) -> Usage {
        // Providers bill what they have begun to answer, but only tell at the end how much it was, and some not even then.
        self.tally.said().map_or_else(Usage::default, |said| Usage {
            input_tokens: self.tokens().into(),
            output_tokens: wire::tokens(said),
            ..Usage::default()
        })
    }

    fn tokens(&self) -> u32 {
        self.prompt.tokens()
    }

    fn span(&self, target: &Target) -> Span {
        span::of_chat(target, self.prompt)
    }

    fn note(&self, span: &Span, said: &Said) {
        span::said(span, said);
    }

    async fn call(&self, target: &Target, reply: u32, now: Timestamp) -> Result<(Said, Usage), Fault> {
        let hear = |heard: Heard| {
            let news = match heard {
                Heard::Words(text) => Some(News::Words { reply, text }),
                // Some providers tell them though nobody asked.
                Heard::Thoughts(text) => self.prompt.reasoning.then_some(News::Thoughts { reply, text }),
            };
            async move {
                if let Some(news) = news {
                    drop(self.teller.send(news).await);
                }
            }
        };
        let said = wire::call(target, self.prompt, now, &self.tally, hear).await?;
        let usage = if said.usage == Usage::default() { self.untold() } else { said.usage };
        Ok((Said { usage, ..said }, usage))
    }
}

fn answer(asking: &Asking<'_>, said: Said) -> Answer {
    let Said { text, reasoning, calls, thoughts, stop, usage: Usage { input_tokens: asked, .. } } = said;
    let Given { usage, cost, config, provider, model, reply, .. } = asking.present.clone();
    let spent = asking.spent();
    let json = None;
    Answer { text, json, reasoning, calls, thoughts, stop, usage, cost, spent, asked, config, provider, model, reply }
}
