//! What a step uses. A tool says what it takes and gives, what repeating it would do to the world, and
//! acts; the engine does everything else (gate, journal, retries, time-outs).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    db,
    journal::{ApprovalRule, Budget, Effect, Estimate, Failure, Filled, Form, ModelPins, Stage, StepKey, Wait},
    kernel::{Actor, Error, Problem, Result, RunId, TenantId, Timestamp},
    telemetry::{Trace, Traces},
};

mod child;
mod data;
mod debug;
#[cfg(test)]
pub(crate) mod fixture;
mod handoff;
mod http;
mod mcp;
mod model;
mod output;
mod progress;
mod registry;
mod routes;
mod sealed;
mod size;
mod time;
mod toolbox;

pub use child::{AGENT, ChildRequest, ChildRuns, ChildSource, child_output, child_run_id};
pub use http::{HttpTool, HttpTools};
pub use mcp::{Credentials, McpEntry, McpRoutes, McpServer, Question, Questions, Servers, routes as mcp_routes};
pub use model::{Asked, Compacted, Conversation, TurnCall, TurnOutput, named};
pub use output::{OUTPUT_READ, text};
pub use progress::{Progress, Said, Told};
pub use registry::{Described, Ports, Registry};
pub use routes::routes;
pub use size::fits;
pub use time::waited;
pub use toolbox::{Source, Toolbox};

/// Something a step can do.
#[async_trait]
pub trait Tool: Send + Sync + 'static {
    /// Its name in `uses`, e.g. `http.request`.
    fn name(&self) -> &str;

    /// Changes whenever the meaning of the arguments does; part of what an approver consents to.
    fn version(&self) -> &str {
        "1"
    }

    /// What it does, for a person or a model.
    fn description(&self) -> &str;

    /// JSON Schema of `with` after templates are rendered.
    fn arguments(&self) -> Value;

    /// JSON Schema of its output.
    fn output(&self) -> Value;

    /// What repeating a call with these arguments does to the world.
    fn effect(&self, arguments: &Value) -> Effect;

    /// The same where nobody vouches for what the arguments say of it, since a model wrote them.
    fn effect_unvouched(&self, arguments: &Value) -> Effect {
        self.effect(arguments)
    }

    /// Every effect that a call of it can have: one, unless that depends on the arguments.
    fn effects(&self) -> Vec<Effect> {
        vec![self.effect(&Value::Null)]
    }

    /// What consent to a call is asked with, where the tool itself has a word on it: whether it is held when a model
    /// wants it, what it costs and touches.
    fn rule(&self) -> Option<&ApprovalRule> {
        None
    }

    /// The time-out of one attempt where the step names none.
    fn timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// Whether a call touches nothing but its arguments, is over as soon as it is made and reports no progress. Then it
    /// may be made before its intent is journaled, and on outputs that are not yet: they share an append, or the next.
    fn at_once(&self) -> bool {
        false
    }

    /// The step of its own run whose end it reads, if it reads one: the engine hands that over.
    fn reads(&self, _arguments: &Value) -> Option<StepKey> {
        None
    }

    /// Why it is out of use, where somebody has to do something first.
    fn out_of_use(&self) -> Option<String> {
        None
    }

    /// Whether only the engine puts it into plans.
    fn internal(&self) -> bool {
        false
    }

    /// What a call with these arguments is expected to take, where the tool can tell beforehand, in a run that stays with
    /// those models; asked where a budget depends on it.
    async fn expects(&self, tenant: TenantId, arguments: &Value, models: Option<&ModelPins>) -> Estimate {
        self.expects_each(tenant, &[arguments], models).await.pop().unwrap_or_default()
    }

    /// The same of many calls at once, in their order: what it has to look up is looked up for all of them together.
    async fn expects_each(&self, _: TenantId, calls: &[&Value], _: Option<&ModelPins>) -> Vec<Estimate> {
        vec![Estimate::default(); calls.len()]
    }

    /// Whom a call with these arguments would reach, where they tell; templates in them are not rendered.
    fn touches(&self, _arguments: &Value) -> Option<String> {
        None
    }

    /// What the run may take that a call with these arguments starts, as they ask for; none where it starts none.
    fn starts(&self, _arguments: &Value) -> Option<Budget> {
        None
    }

    /// Acts. Called outside any transaction, and, unless it is done [`at_once`](Tool::at_once), after the intent is
    /// journaled.
    ///
    /// # Errors
    /// [`ToolError`] says whether it is certain that nothing happened.
    async fn call(&self, call: Call) -> Result<Outcome, ToolError>;
}

/// What the engine hands a tool besides arguments: too much for them, and in the journal already.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Handed {
    /// Nothing: most have all they need in their arguments.
    #[default]
    Nothing,
    /// What a model is to be asked, in a turn of an agent.
    Conversation(Arc<Conversation>),
    /// What this attempt has asked for and was given, in order.
    Filled(Vec<Filled>),
    /// Where the step of this run stands that the tool [reads](Tool::reads).
    Stage(Stage),
}

/// One call of a tool.
#[derive(Clone, Debug)]
pub struct Call {
    /// The tenant acted for.
    pub tenant_id: TenantId,
    /// The run.
    pub run_id: RunId,
    /// The step.
    pub step: StepKey,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Who started the run: the tool acts with their rights.
    pub actor: Actor,
    /// The exact arguments, after the gate.
    pub arguments: Arc<Value>,
    /// What repeating it would do, as it was journaled.
    pub effect: Effect,
    /// The same for every attempt of this step of this run.
    pub idempotency_key: String,
    /// What the engine hands over besides.
    pub handed: Handed,
    /// The versions that the names of model configurations and templates mean in this run.
    pub models: Option<Arc<ModelPins>>,
    /// What the run that it starts may take of its own run's budget.
    pub budget: Option<Budget>,
    /// Whether a budget bounds what it takes.
    pub bounded: bool,
    /// Whether its step has attempts after one that fails in a way which may pass.
    pub is_retried: bool,
    /// The most bytes of JSON that what it reports may have: an event has no more room.
    pub room: usize,
    /// When the call was decided.
    pub now: Timestamp,
    /// Reports how far it is.
    pub progress: Progress,
    /// Fires when the run is cancelled or the process stops; the outcome is recorded all the same.
    pub cancel: CancellationToken,
    /// Where its span goes.
    pub traces: Traces,
}

impl Call {
    /// Where it stands in its run's trace.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.traces.attempt(self.run_id, &self.step, self.attempt)
    }

    /// The arguments as the tool's own type.
    ///
    /// # Errors
    /// `invalid_arguments`, naming the path, where they do not fit it.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ToolError> {
        read(&self.arguments)
    }

    /// Asks our own database, again and again while it is away: that is no failure of the step. Gives up when the
    /// call's time is up or it is called off. What is asked must bear asking twice.
    ///
    /// # Errors
    /// Those of `ask`.
    pub async fn patiently<T, F: Future<Output = Result<T>>>(&self, ask: impl Fn() -> F) -> Result<T> {
        tokio::select! {
            biased;
            answered = db::patiently(ask) => answered,
            () = self.cancel.cancelled() => Err(Error::unavailable("called off while the database was away")),
        }
    }
}

fn read<T: DeserializeOwned>(arguments: &Value) -> Result<T, ToolError> {
    serde_path_to_error::deserialize(arguments)
        .map_err(|e| ToolError::failed("invalid_arguments", format!("`{}`: {}", e.path(), e.inner())))
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is done.
    Done {
        /// The output.
        output: Value,
        /// What it cost, in the tenant's unit.
        cost: Option<f64>,
    },
    /// The step waits, holding nothing.
    Wait(Wait),
    /// Nothing is done: it is called again once somebody has filled in the form.
    Ask(Form),
}

impl Outcome {
    /// Done, at no cost.
    #[must_use]
    pub fn done(output: Value) -> Self {
        Self::Done { output, cost: None }
    }
}

/// Why a call did not come to an outcome.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolError {
    /// It failed, and the tool knows it. `Failure::retryable` says whether trying again may help.
    Failed(Failure),
    /// It may have happened: the connection died after the request was sent, or the like.
    Unknown(Failure),
}

impl ToolError {
    /// A failure that no repetition mends.
    pub fn failed(code: &str, message: impl Into<String>) -> Self {
        Self::Failed(Failure::new(code, message))
    }

    /// A failure that may pass.
    pub fn retryable(code: &str, message: impl Into<String>) -> Self {
        Self::Failed(Failure { retryable: true, ..Failure::new(code, message) })
    }

    /// The call was called off before it had done anything.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::retryable("cancelled", "called off before anything was done")
    }

    /// Why something of our own could not be done that may be done again without harm: an unknown outcome is as good as a
    /// failure that passes.
    #[must_use]
    pub fn idempotent(error: &Error) -> Self {
        let code = error.problem().slug().replace('-', "_");
        match error.problem() {
            Problem::Unavailable | Problem::Internal | Problem::TooManyRuns => Self::retryable(&code, error.detail()),
            _ => Self::failed(&code, error.detail()),
        }
    }

    /// The same with more for a program.
    #[must_use]
    pub fn with(mut self, detail: Value) -> Self {
        let (Self::Failed(failure) | Self::Unknown(failure)) = &mut self;
        failure.detail = Some(Box::new(detail));
        self
    }

    /// It may have happened.
    pub fn unknown(code: &str, message: impl Into<String>) -> Self {
        Self::Unknown(Failure { retryable: true, ..Failure::new(code, message) })
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::kernel::Id;

    /// A call for the tests of the tools.
    pub(super) fn call(arguments: Value) -> Call {
        let step = StepKey::whole("step");
        let (sender, _) = tokio::sync::mpsc::channel(1);
        Call {
            tenant_id: Id::new(DateTime::UNIX_EPOCH),
            run_id: Id::new(DateTime::UNIX_EPOCH),
            step: step.clone(),
            attempt: 1,
            actor: Actor::System,
            arguments: Arc::new(arguments),
            effect: Effect::Pure,
            idempotency_key: "run_1/step".to_owned(),
            handed: Handed::Nothing,
            models: None,
            budget: None,
            bounded: false,
            is_retried: false,
            room: 1000,
            now: DateTime::UNIX_EPOCH,
            progress: Progress::new(sender, step, 1),
            cancel: CancellationToken::new(),
            traces: Traces::default(),
        }
    }
}
