//! What can be asked of a run, and why it may be refused.

use std::{fmt, sync::Arc};

use chrono::SubsecRound;
use serde_json::Value;

use super::{
    Budget, Draft, Failure, ForkedFrom, Form, Intent, Parent, Past, Planner, Question, Raise, Report, Ruling, RunState,
    SkipReason, Stage, Status, Step, StepKey, Taken, Wait,
};
use crate::kernel::{Actor, ApprovalId, Timestamp};

/// Something that is to happen to a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Accept it.
    Open {
        /// What was asked for.
        goal: Option<String>,
        /// `name@version`.
        workflow: Option<String>,
        /// The run and step that start it.
        parent: Option<Parent>,
        /// The model that makes its plan, where none is brought along.
        planner: Option<Planner>,
        /// What it may take.
        budget: Budget,
    },
    /// Accept it with the past of another run, and go on from there.
    Fork {
        /// What is asked for.
        goal: Option<String>,
        /// `name@version`.
        workflow: Option<String>,
        /// The other run.
        from: ForkedFrom,
        /// What is taken over of it.
        past: Past,
        /// What it may take.
        budget: Budget,
    },
    /// Give it its steps, or say what stands in the way of that.
    Draft(Draft),
    /// Carry the plan out.
    Execute {
        /// Who says so.
        by: Actor,
    },
    /// Let the plan grow.
    Extend {
        /// What comes to it.
        steps: Vec<Arc<Step>>,
    },
    /// Spread a `forEach` step over its items.
    Expand {
        /// The step.
        step: StepKey,
        /// How many items.
        items: u32,
    },
    /// End a `forEach` step whose items have all ended.
    Gather {
        /// The step.
        step: StepKey,
    },
    /// Make a call; or make it again, when it may be repeated and its outcome is unknown.
    Start {
        /// The step.
        step: StepKey,
        /// The exact call.
        intent: Intent,
        /// Whether its share of the tenant's day is reserved.
        reserved: bool,
        /// What of the run's budget the run that it starts may take.
        budget: Option<Budget>,
    },
    /// Ask first.
    Hold {
        /// The step.
        step: StepKey,
        /// The exact call.
        intent: Intent,
        /// The id of the question.
        approval_id: ApprovalId,
        /// What is asked.
        ask: Ask,
    },
    /// A call came back: the step waits.
    Wait {
        /// The step.
        step: StepKey,
        /// The attempt that came back.
        attempt: u32,
        /// What for.
        wait: Wait,
    },
    /// A call came back with nothing done: it needs something first.
    Ask {
        /// The step.
        step: StepKey,
        /// The attempt that came back.
        attempt: u32,
        /// The id of the question.
        approval_id: ApprovalId,
        /// The digest of the call.
        digest: String,
        /// What it needs.
        form: Form,
    },
    /// A call, or a wait, came to its end.
    Complete {
        /// The step.
        step: StepKey,
        /// The attempt that came back.
        attempt: u32,
        /// Its output.
        output: Arc<Value>,
        /// What it cost.
        cost: Option<f64>,
    },
    /// A call failed, or could not be made.
    Fail {
        /// The step.
        step: StepKey,
        /// The attempt that failed.
        attempt: u32,
        /// Why.
        error: Failure,
        /// A random number from 0 to 1, for the backoff.
        jitter: f64,
    },
    /// The child run that a step waits for has ended.
    Return {
        /// The step.
        step: StepKey,
        /// The attempt that started it.
        attempt: u32,
        /// What it came to.
        end: Result<Arc<Value>, Failure>,
        /// What it took.
        taken: Taken,
    },
    /// A step will not run.
    Skip {
        /// The step.
        step: StepKey,
        /// Why.
        reason: SkipReason,
    },
    /// A tool says something while it is at work.
    Report {
        /// The step.
        step: StepKey,
        /// The attempt that reports.
        attempt: u32,
        /// What it says.
        report: Report,
    },
    /// Somebody decides on a hold.
    Decide {
        /// Which.
        approval_id: ApprovalId,
        /// Yes or no.
        approve: bool,
        /// Who, from the verified token.
        by: Actor,
        /// What else they are known as there: their roles and groups.
        known_as: Vec<String>,
        /// Why.
        reason: Option<String>,
        /// Arguments in place of the held ones, with the digest of that call.
        instead: Option<(Arc<Value>, String)>,
        /// What is filled into the form, where one is asked about.
        input: Option<Arc<Value>>,
    },
    /// A hold's time is up.
    Expire {
        /// Which.
        approval_id: ApprovalId,
    },
    /// Stop.
    Cancel {
        /// Who says so.
        by: Actor,
        /// Why.
        reason: Option<String>,
    },
    /// Go on from the failed steps.
    Retry {
        /// Who says so.
        by: Actor,
    },
    /// Nothing is left to do: end with the output, or with the reason why there is none.
    Finish {
        /// The rendered output.
        output: Result<Option<Arc<Value>>, Failure>,
    },
}

/// What is to be asked of a person.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ask {
    /// Consent to the call.
    Consent,
    /// Whether a call that may have been made is made again.
    Repeat,
    /// Whether a budget is raised by what the call needs.
    Raise(Raise),
}

impl Ask {
    /// What the approver reads it as.
    #[must_use]
    pub const fn question(self) -> Question {
        match self {
            Self::Consent => Question::Consent,
            Self::Repeat => Question::Repeat,
            Self::Raise(_) => Question::Budget,
        }
    }
}

/// Why a command changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The run's status does not allow it.
    Status(Status),
    /// The plan has no such step, or it is not at this attempt or stage: the news is stale.
    Stale,
    /// The step asks for consent and has none for exactly this call.
    NeedsConsent,
    /// It may have acted already and must not be repeated unasked.
    MayHaveActed,
    /// It is too early for this.
    TooEarly,
    /// There is no such hold.
    UnknownHold,
    /// It is approved by filling in its form, and nothing else has one.
    Form,
    /// Whoever started the run may not decide on it.
    OwnRun,
    /// Only these decide.
    NotApprover(Vec<String>),
    /// The very same was done before; nothing to do.
    AlreadySo,
    /// It was decided otherwise.
    Ruled(Ruling),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self {
            Self::Status(status) => return write!(f, "the run is {}", status.name()),
            Self::Stale => "the run has moved on: look at it again",
            Self::NeedsConsent => "the step needs consent for exactly this call",
            Self::MayHaveActed => "the call may have been made already",
            Self::TooEarly => "it is too early for this",
            Self::UnknownHold => "nothing of that id waits for a decision",
            Self::Form => "a form is filled in, and nothing else is",
            Self::OwnRun => "whoever started the run does not decide on it",
            Self::NotApprover(approvers) => return write!(f, "only {} may decide on it", approvers.join(" or ")),
            Self::AlreadySo => "it is so already",
            Self::Ruled(_) => "it is decided already",
        };
        f.write_str(reason)
    }
}

/// Refuses what begins something in a run that is not, or no longer, going on.
pub(super) fn advancing(state: &RunState) -> Result<(), Refusal> {
    if state.is_advancing() { Ok(()) } else { Err(Refusal::Status(state.status())) }
}

/// Whether the step may begin at all: it is in the plan, in the right form, and what it needs has ended.
pub(super) fn beginnable(state: &RunState, key: &StepKey) -> Result<(), Refusal> {
    let step = state.step(key).ok_or(Refusal::Stale)?;
    let in_form = match (key.item, &step.for_each) {
        (None, None) => true,
        (Some(item), Some(_)) => match state.stage(&StepKey::whole(&key.id)) {
            Some(Stage::Expanded { items, .. }) => {
                item < *items && (state.stage(key).is_some() || state.next_item(step) == Some(item))
            }
            _ => false,
        },
        _ => false,
    };
    if in_form && state.needs_ended(step) { Ok(()) } else { Err(Refusal::Stale) }
}

/// The same for a step as a whole, be it spread over items or not.
pub(super) fn reachable(state: &RunState, key: &StepKey) -> Result<(), Refusal> {
    let step = state.step(key).ok_or(Refusal::Stale)?;
    let spread = key.item.is_none() && step.for_each.is_some();
    if spread && state.needs_ended(step) { Ok(()) } else { beginnable(state, key) }
}

/// The instant as the journal keeps it, so that the state that was lived is the one its events give.
pub(super) fn kept(at: Timestamp) -> Timestamp {
    at.trunc_subsecs(3)
}
