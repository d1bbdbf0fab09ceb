//! The steps of one run as the journal and its state machine understand them. How a person writes them
//! (YAML, checks, positions) is the business of `run::definition`.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{AgentPin, Effect, ModelPins};
use crate::kernel::{Error, Span};

/// The steps of a run and the expression of its output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plan {
    /// The nodes; order carries no meaning, `needs` does.
    #[schema(value_type = Vec<Step>)]
    pub steps: Vec<Arc<Step>>,
    /// A template (or any JSON with templates in it) for the run's output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// The agent by whose answers it grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<AgentPin>)]
    pub agent: Option<Arc<AgentPin>>,
    /// Those that the conversation can be handed to besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<AgentPin>)]
    pub agents: Vec<Arc<AgentPin>>,
    /// The versions that the model configurations and templates in the steps stay at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ModelPins>)]
    pub models: Option<Arc<ModelPins>>,
}

impl Plan {
    /// The step of that id.
    #[must_use]
    pub fn step(&self, id: &str) -> Option<&Arc<Step>> {
        self.steps.iter().find(|step| step.id == id)
    }

    /// The same, where steps that do not say how they are tried again are tried again like this.
    #[must_use]
    pub fn retried(mut self, retry: Option<&Retry>) -> Self {
        let silent = self.steps.iter_mut().filter(|step| retry.is_some() && step.retry.is_none());
        silent.for_each(|step| Arc::make_mut(step).retry = retry.cloned());
        self
    }

    /// The agent that is pinned as `name@version`.
    #[must_use]
    pub fn pin(&self, agent: &str) -> Option<&Arc<AgentPin>> {
        self.agent.iter().chain(&self.agents).find(|pin| pin.agent == agent)
    }

    /// The agent whose turn a step is: it says so, or it is the run's own.
    #[must_use]
    pub fn speaker(&self, turn: &Step) -> Option<&Arc<AgentPin>> {
        match turn.with.get("agent").and_then(Value::as_str) {
            Some(agent) => self.pin(agent),
            None => self.agent.as_ref(),
        }
    }
}

/// One node of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// Unique in the plan: `[a-z][a-z0-9_-]{0,62}`.
    #[schema(pattern = "^[a-z][a-z0-9_-]{0,62}$")]
    pub id: String,
    /// What a person reads in a timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Steps that must have ended before this one begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// The tool.
    pub uses: String,
    /// The tool's arguments; strings are templates.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub with: Map<String, Value>,
    /// The step runs only where this is true.
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// A list, or a template of one: the step runs once for each `item`, with its `index`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_each: Option<Value>,
    /// How many items of a `forEach` run at once (10 when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub concurrency: Option<u32>,
    /// What to do when the tool says that trying again may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// The longest one attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Hold this step until somebody has decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalTerms>,
    /// What a denial means for the run; the run's own setting when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_denied: Option<OnDenied>,
    /// What a failure means for the run.
    #[serde(default, skip_serializing_if = "OnError::is_fail")]
    pub on_error: OnError,
    /// The arguments are a model's, and taken as they stand: nothing in them is a template.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verbatim: bool,
    /// What the gate said when an agent's model wanted the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateWord>,
}

/// What the gate said of a call, and whose word that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GateWord {
    /// What it said.
    pub verdict: Outlook,
    /// By whose word.
    pub by: WordOf,
}

/// Whose word counts at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WordOf {
    /// The agent's: by a rule of its own, or since it was not given the tool.
    Agent,
    /// The tool's own rule.
    Tool,
    /// Nobody's: what repeating the call would do.
    Effect,
}

impl Step {
    /// A call of a tool and no more.
    #[must_use]
    pub fn of(id: &str, uses: &str) -> Self {
        Self {
            id: id.to_owned(),
            name: None,
            needs: vec![],
            uses: uses.to_owned(),
            with: Map::new(),
            condition: None,
            for_each: None,
            concurrency: None,
            retry: None,
            timeout: None,
            approval: None,
            on_denied: None,
            on_error: OnError::Fail,
            verbatim: false,
            gate: None,
        }
    }

    /// How many items of a `forEach` run at once.
    #[must_use]
    pub fn concurrency_limit(&self) -> u32 {
        self.concurrency.unwrap_or(10).max(1)
    }
}

/// What would become of a step, as things stand before the run begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// The step.
    pub step_id: String,
    /// What the gate would say.
    pub verdict: Outlook,
    /// Why, where it would not simply let it pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What repeating it would do; absent where that hangs on values that are not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// What it is expected to cost: what its approval or its tool says, else, of a model, the question and the longest
    /// answer; of a `forEach` step, all items as far as they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Whom it would reach, where its arguments tell: `POST https://shop.example/refunds`. Templates of more than the input
    /// stand as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub touches: Option<String>,
    /// What it would touch, as its approval or its tool says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scope: Vec<String>,
    /// Rights it would use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
}

/// What the gate would say of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outlook {
    /// It would pass.
    Allow,
    /// Somebody would have to consent.
    Hold,
    /// It would not pass.
    Forbid,
}

/// Exponential backoff with full jitter between attempts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// Attempts in all, the first included.
    #[schema(minimum = 1, maximum = 100)]
    pub attempts: u32,
    /// The first delay's upper bound; it doubles with each failure (1 s when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Span>,
    /// The upper bound never grows past this (5 min when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff: Option<Span>,
    /// No delay is shorter, the upper bound permitting (0 s when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_backoff: Option<Span>,
}

/// No attempt is put off for longer, whatever a plan says.
const LONGEST_DELAY: Duration = Duration::from_secs(365 * 24 * 3600);
/// Nor for longer than this because the other side asks for it.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);

impl Retry {
    /// The delay after `failures` failures; `jitter` is a random number from 0 to 1 (full jitter). It is no shorter
    /// than the other side `asked` for, as far as that is within reason.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: f64, asked: Duration) -> Duration {
        let base = self.backoff.map_or(Duration::from_secs(1), |span| span.0);
        let most = self.max_backoff.map_or(Duration::from_secs(300), |span| span.0);
        let bound = base.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(most).min(LONGEST_DELAY);
        let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
        let least = self.min_backoff.map_or(Duration::ZERO, |span| span.0);
        // Rounding must not pass the bound.
        bound.mul_f64(jitter).max(least).min(bound).max(asked.min(LONGEST_ASKED))
    }
}

/// What the approver is shown, and until when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalTerms {
    /// Why consent is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whom it would reach, where its arguments tell: `POST https://shop.example/refunds`. Templates stand as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub touches: Option<String>,
    /// What it would touch, as its approval or its tool says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scope: Vec<String>,
    /// Rights it would use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// What it is expected to cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// How long the question stands; then it counts as denied. For ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Span>,
    /// Who may decide, by subject, role or group; anybody with the permission when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<String>,
    /// Whether the run's creator may decide.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub self_approval: bool,
}

/// What a denial (or an expiry) means for the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnDenied {
    /// The run fails.
    #[default]
    Fail,
    /// The step is skipped and the run goes on.
    Skip,
}

/// What a step's failure means for the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnError {
    /// The run fails.
    #[default]
    Fail,
    /// The run goes on; `steps.<id>.error` tells the steps after it.
    Continue,
}

impl OnError {
    /// Whether it is the default, which is not written out.
    #[must_use]
    pub fn is_fail(&self) -> bool {
        *self == Self::Fail
    }
}

/// A step, or one item of a `forEach` step: `sync` or `sync[2]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepKey {
    /// The step's id in the plan.
    pub id: String,
    /// The item's place, for one item of a `forEach`.
    pub item: Option<u32>,
}

impl StepKey {
    /// The step as a whole.
    #[must_use]
    pub fn whole(id: &str) -> Self {
        Self { id: id.to_owned(), item: None }
    }

    /// One item of it.
    #[must_use]
    pub fn item(id: &str, item: u32) -> Self {
        Self { id: id.to_owned(), item: Some(item) }
    }
}

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item {
            Some(item) => write!(f, "{}[{item}]", self.id),
            None => f.write_str(&self.id),
        }
    }
}

impl FromStr for StepKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::malformed("a step id is written `sync`, or `sync[2]` for an item");
        let (id, item) = match text.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
            Some((id, item)) => (id, Some(item.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        if is_step_id(id) { Ok(Self { id: id.to_owned(), item }) } else { Err(wrong()) }
    }
}

impl Serialize for StepKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StepKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|e: Error| de::Error::custom(e.detail()))
    }
}

/// Whether `text` may be a step's id: `[a-z][a-z0-9_-]{0,62}`.
#[must_use]
pub fn is_step_id(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && text.len() <= 63
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(millis: u64) -> Option<Span> {
        Some(Span(Duration::from_millis(millis)))
    }

    #[test]
    fn the_bound_of_a_delay_doubles_up_to_the_most() {
        let retry = Retry { attempts: 9, backoff: millis(100), max_backoff: millis(500), min_backoff: None };
        let bounds: Vec<_> = (1..6).map(|failures| retry.delay(failures, 1.0, Duration::ZERO).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 500, 500]);
        let usual = Retry { attempts: 9, backoff: None, max_backoff: None, min_backoff: None };
        assert_eq!(usual.delay(1, 1.0, Duration::ZERO), Duration::from_secs(1));
        assert_eq!(usual.delay(u32::MAX, 1.0, Duration::ZERO), Duration::from_secs(300));
    }

    #[test]
    fn jitter_is_full() {
        let retry = Retry { attempts: 9, backoff: millis(100), max_backoff: None, min_backoff: None };
        assert_eq!(retry.delay(2, 0.0, Duration::ZERO), Duration::ZERO);
        assert_eq!(retry.delay(2, 0.5, Duration::ZERO), Duration::from_millis(100));
    }

    #[test]
    fn what_the_other_side_asks_for_is_heeded_for_an_hour_at_most() {
        let retry = Retry { attempts: 9, backoff: millis(100), max_backoff: millis(500), min_backoff: None };
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        assert_eq!(retry.delay(1, 0.5, minutes(7)), minutes(7));
        assert_eq!(retry.delay(1, 0.5, minutes(90)), minutes(60));
        assert_eq!(retry.delay(3, 1.0, Duration::from_millis(1)), Duration::from_millis(400));
    }

    #[test]
    fn a_delay_is_no_shorter_than_the_least_and_no_longer_than_the_bound() {
        let retry = Retry { attempts: 9, backoff: millis(100), max_backoff: millis(500), min_backoff: millis(100) };
        let delay = |failures, jitter| retry.delay(failures, jitter, Duration::ZERO).as_millis();
        assert_eq!(
            [delay(1, 0.0), delay(1, 1.0), delay(3, 0.0), delay(3, 0.5), delay(9, 1.0)],
            [100, 100, 100, 200, 500]
        );
        let wide = Retry { min_backoff: millis(900), ..retry };
        assert_eq!(wide.delay(9, 0.5, Duration::ZERO).as_millis(), 500);
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_bounds(
            failures in any::<u32>(), jitter in proptest::num::f64::ANY, backoff in any::<u64>(), most in any::<u64>(),
            asked in any::<u64>(),
        ) {
            let asked = Duration::from_millis(asked);
            let (backoff, most) = (millis(backoff), millis(most));
            let retry = Retry { attempts: 1, backoff, max_backoff: most, min_backoff: None };
            let delay = retry.delay(failures, jitter, asked);
            prop_assert!(delay >= asked.min(LONGEST_ASKED));
            prop_assert!(delay <= most.unwrap().0.max(asked.min(LONGEST_ASKED)));
        }

        #[test]
        fn a_step_key_reads_back(id in "[a-z][a-z0-9_-]{0,62}", item in proptest::option::of(any::<u32>())) {
            let key = StepKey { id, item };
            prop_assert_eq!(key.to_string().parse::<StepKey>().ok(), Some(key));
        }
    }
}
