//! What follows from a run's state: its status, what may begin, what it waits for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AgentPin, ApprovalTerms, Denial, Failure, Hold, Phase, RunState, Stage, Step, StepKey, StepState, Wait, call_of,
    turn_id, turn_of,
};
use crate::kernel::ApprovalId;

/// Where a run stands, as callers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted.
    Idle,
    /// Its plan is being made, or stands and waits to be carried out.
    Planning,
    /// Something can proceed.
    Executing,
    /// Nothing can proceed until somebody has decided.
    AwaitingApproval,
    /// It has its output.
    Completed,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl Status {
    /// Every status.
    pub const ALL: &'static [Self] = &[
        Self::Idle,
        Self::Planning,
        Self::Executing,
        Self::AwaitingApproval,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its name on the wire and in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Planning => "planning",
            Self::Executing => "executing",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The status of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.name() == name)
    }

    /// Whether the run is over (a failed one may be retried).
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl RunState {
    /// Where it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        match self.phase {
            Phase::Idle => Status::Idle,
            Phase::Planning if self.open_holds().next().is_some() => Status::AwaitingApproval,
            Phase::Planning => Status::Planning,
            Phase::Completed => Status::Completed,
            Phase::Failed(_) => Status::Failed,
            Phase::Cancelled => Status::Cancelled,
            Phase::Executing if self.open_holds().next().is_some() && !self.can_proceed() => Status::AwaitingApproval,
            Phase::Executing => Status::Executing,
        }
    }

    /// Whether a model is to make its plan.
    #[must_use]
    pub fn is_drafted(&self) -> bool {
        self.phase == Phase::Planning && self.planner.is_some() && self.plan.is_none()
    }

    /// Whether a model may be at its plan this moment: that one is asked is journaled only with what it answers.
    #[must_use]
    pub fn is_drafting(&self) -> bool {
        self.is_drafted() && self.open_holds().next().is_none()
    }

    /// Whether its plan stands and it has not begun.
    #[must_use]
    pub fn is_planned(&self) -> bool {
        self.phase == Phase::Planning && self.plan.is_some()
    }

    /// The questions that stand, in the order of their steps.
    pub fn open_holds(&self) -> impl Iterator<Item = (ApprovalId, &Hold)> {
        self.frontier.open().iter().filter_map(|key| self.hold_of(key))
    }

    /// The steps and items that have begun and not ended.
    pub fn open_steps(&self) -> impl Iterator<Item = (&StepKey, &StepState)> {
        self.frontier.open().iter().filter_map(|key| self.steps.get_key_value(key))
    }

    /// The steps of the plan that have not begun and wait for no other.
    pub fn ready_steps(&self) -> impl Iterator<Item = &Arc<Step>> {
        let plan = self.plan.as_deref();
        self.frontier.ready().filter_map(move |at| plan.and_then(|plan| plan.steps.get(at)))
    }

    /// The stage of a step that has begun.
    #[must_use]
    pub fn stage(&self, key: &StepKey) -> Option<&Stage> {
        self.steps.get(key).map(|step| &step.stage)
    }

    /// The step of the plan that `key` belongs to.
    #[must_use]
    pub fn step(&self, key: &StepKey) -> Option<&Arc<Step>> {
        self.frontier.place(&key.id).and_then(|at| self.plan.as_deref()?.steps.get(at))
    }

    /// The agent whose turn a step is, or the one whose answer wanted the call that it is.
    #[must_use]
    pub fn agent_of(&self, step: &Step) -> Option<&Arc<AgentPin>> {
        let turn = match call_of(step) {
            Some(turn) => self.step(&StepKey::whole(&turn_id(turn)))?,
            None => step,
        };
        turn_of(turn).and_then(|_| self.plan.as_deref()?.speaker(turn))
    }

    /// What an approver of this step is shown, where it asks for consent.
    #[must_use]
    pub fn terms(&self, key: &StepKey) -> Option<&ApprovalTerms> {
        self.step(key).and_then(|step| step.approval.as_ref())
    }

    /// The attempt a call made now would be; of a plan that is drawn up, the draft.
    #[must_use]
    pub fn next_attempt(&self, key: &StepKey) -> u32 {
        if self.is_drafted() {
            return self.next_draft();
        }
        self.steps.get(key).map_or(1, |step| match step.stage {
            Stage::Retrying { .. } => step.attempt + 1,
            _ => step.attempt,
        })
    }

    /// Whether every step it needs has ended.
    #[must_use]
    pub fn needs_ended(&self, step: &Step) -> bool {
        self.frontier.place(&step.id).is_some_and(|at| self.frontier.needs_ended(at))
    }

    /// The failure that dooms the run, if there is one.
    #[must_use]
    pub fn doom(&self) -> Option<(&StepKey, &Failure)> {
        let key = self.frontier.doomed()?;
        match self.stage(key)? {
            Stage::Failed { error, .. } => Some((key, error)),
            _ => None,
        }
    }

    /// Whether new steps may begin.
    #[must_use]
    pub fn is_advancing(&self) -> bool {
        self.phase == Phase::Executing && self.cancelling.is_none() && self.frontier.doomed().is_none()
    }

    /// Whether a call is out whose outcome the run has to hear before it may end.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.open_steps().any(|(_, step)| {
            matches!(step.stage, Stage::Running { .. } | Stage::Waiting { wait: Wait::Child { .. }, .. })
        })
    }

    /// Whether every step of the plan has ended.
    #[must_use]
    pub fn all_ended(&self) -> bool {
        self.plan.is_some() && self.frontier.all_ended()
    }

    fn can_proceed(&self) -> bool {
        let moving = self.open_steps().any(|(key, step)| match step.stage {
            Stage::Running { .. } | Stage::Waiting { .. } | Stage::Retrying { .. } | Stage::Cleared { .. } => true,
            Stage::Expanded { items, .. } => self.expansion_moves(key, items),
            _ => false,
        });
        moving || !self.is_advancing() || self.ready_steps().next().is_some() || self.all_ended()
    }

    /// Whether a `forEach` step can begin another item, or is done with all of them.
    fn expansion_moves(&self, key: &StepKey, items: u32) -> bool {
        let limit = self.step(key).map_or(1, |step| step.concurrency_limit());
        let (begun, open) = self.item_counts(&key.id);
        if begun < items { open < limit } else { open == 0 }
    }

    /// How many items of a `forEach` step have begun, and how many of these have not ended.
    #[must_use]
    pub fn item_counts(&self, id: &str) -> (u32, u32) {
        self.frontier.items(id)
    }

    /// The item of a `forEach` step that may begin next: they begin in order, within the step's bound.
    #[must_use]
    pub fn next_item(&self, step: &Step) -> Option<u32> {
        let (begun, open) = self.item_counts(&step.id);
        (open < step.concurrency_limit()).then_some(begun)
    }

    /// The items of a `forEach` step that have begun, in order.
    pub fn items(&self, id: &str) -> impl Iterator<Item = (&StepKey, &StepState)> {
        self.steps.range(StepKey::item(id, 0)..=StepKey::item(id, u32::MAX))
    }

    /// How the last call of a step was denied that was.
    #[must_use]
    pub fn denial(&self, step: &StepKey) -> Option<Denial> {
        if let Some(Stage::Skipped { denial: Some(denial), .. }) = self.stage(step) {
            return Some(denial.clone());
        }
        let rulings =
            self.holds.values().rev().filter(|hold| hold.step == *step).filter_map(|hold| hold.ruling.as_ref());
        rulings.filter_map(Denial::of).next()
    }

    /// The hold of that id, if it asks about this step's present attempt.
    #[must_use]
    pub fn hold_of(&self, step: &StepKey) -> Option<(ApprovalId, &Hold)> {
        match self.stage(step) {
            Some(Stage::Held { approval_id }) => self.holds.get(approval_id).map(|hold| (*approval_id, hold)),
            _ => None,
        }
    }
}
