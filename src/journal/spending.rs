//! What events mean for the books: what was spent on what, and which reservations are over.

use super::{Body, Event, MessageCompleted, Raise, RunState, StepKey, is_terminal, planning_key};

/// An entry of the books of a run's tenant.
#[derive(Clone, Debug, PartialEq)]
pub enum Spending {
    /// Something was taken.
    Spent {
        /// The step and its attempt; none for what was taken before there were any.
        by: Option<(StepKey, u32)>,
        /// The model it was spent on, where it was one.
        model: Option<ModelUse>,
        /// Money.
        cost: f64,
    },
    /// An attempt is over, and with it what was reserved for it.
    Over {
        /// The step.
        step: StepKey,
        /// Its attempt.
        attempt: u32,
        /// Whether a call was made.
        called: bool,
    },
    /// An attempt waits for a person from now on, which takes none of the time that is capped.
    Held {
        /// The step.
        step: StepKey,
        /// Its attempt.
        attempt: u32,
    },
    /// The run is over, and with it all that was reserved for it.
    Ended,
    /// A budget was raised that is not the run's own.
    Raised(Raise),
}

/// Which model was asked, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelUse {
    /// The model configuration, as `name@version`.
    pub config: String,
    /// Who serves the model.
    pub provider: String,
    /// The model.
    pub model: String,
    /// Tokens asked.
    pub input_tokens: u64,
    /// Those of them that the provider had in its cache.
    pub cached_tokens: u64,
    /// Tokens said.
    pub output_tokens: u64,
}

impl From<&MessageCompleted> for ModelUse {
    fn from(said: &MessageCompleted) -> Self {
        Self {
            config: said.config.clone(),
            provider: said.provider.clone(),
            model: said.model.clone(),
            input_tokens: said.input_tokens,
            cached_tokens: said.cached_tokens,
            output_tokens: said.output_tokens,
        }
    }
}

impl Spending {
    /// What the last events of a run mean, `state` being what they made of it. Nothing, of most.
    pub(super) fn of(state: &RunState, events: &[Event]) -> Vec<Self> {
        events.iter().flat_map(|event| Self::of_one(state, event)).flatten().collect()
    }

    fn of_one(state: &RunState, event: &Event) -> [Option<Self>; 2] {
        let reserves = state.purse.reserves || state.planner.is_some();
        let step = || event.step.clone().zip(event.attempt);
        // A model that makes the plan has no step: its drafts are the attempts.
        let draft = match &event.body {
            Body::PlanRefused(_) => state.next_draft() - 1,
            _ => state.next_draft(),
        };
        let draft = || (planning_key(), draft);
        let attempt = || step().or_else(|| state.planner.is_some().then(draft));
        let spent = |model, cost| Self::Spent { by: step(), model, cost };
        let over = |called| {
            let (step, attempt) = attempt().filter(|_| reserves)?;
            Some(Self::Over { step, attempt, called })
        };
        match &event.body {
            Body::MessageCompleted(said) => {
                let took = said.cost > 0.0 || said.input_tokens + said.output_tokens > 0;
                [took.then(|| spent(Some(said.into()), said.cost)), None]
            }
            Body::StepCompleted(completed) => {
                let told = event.step.as_ref().and_then(|key| state.steps.get(key)).map_or(0.0, |step| step.told);
                let cost = completed.cost.unwrap_or_default() - told;
                [(cost > 0.0).then(|| spent(None, cost)), over(true)]
            }
            Body::StepFailed(_) | Body::StepRetrying(_) => [None, over(true)],
            Body::StepSkipped(_) | Body::PlanRefused(_) | Body::PlanReady(_) => [None, over(false)],
            Body::AwaitingApproval(_) if reserves => [step().map(|(step, attempt)| Self::Held { step, attempt }), None],
            Body::Approved(approved) => {
                let hold = state.holds.get(&approved.approval_id);
                let raise = hold.and_then(|hold| Raise::asked(&hold.asked)).filter(|raise| raise.day.is_some());
                [raise.map(Self::Raised), None]
            }
            body if reserves && is_terminal(body) => [Some(Self::Ended), None],
            _ => [None, None],
        }
    }
}
