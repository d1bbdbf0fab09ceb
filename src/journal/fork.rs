//! Forks: runs that begin with another run's past. Outcomes are taken over and nothing else, since approvals, digests and
//! idempotency keys are bound to the run they were made for.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Budget, Event, Executing, Idle, Plan, PlanExtended, PlanReady, Planner, Planning, Refusal, Ruling, RunState,
    SkipReason, Stage, StepCompleted, StepFailed, StepKey, StepSkipped, turn_of,
};
use crate::kernel::{Actor, RunId, Timestamp};

/// The run whose past a run has, and how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForkedFrom {
    /// The other run.
    pub run_id: RunId,
    /// Its last event that belongs to the past of both.
    #[schema(example = "evt_7")]
    pub event_id: String,
    /// The step before which the past ends, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    /// What was changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edited: Vec<Edited>,
}

/// What a fork may have otherwise than the run it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Edited {
    /// The goal.
    Goal,
    /// The input.
    Input,
    /// The steps that had not ended.
    Plan,
    /// The output of the step before which the past ends: it was given by whoever forked the run.
    Output,
}

/// How a call was denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// Who denied it; nobody decided in time when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Denial {
    /// What a ruling denied, if it did.
    pub(super) fn of(ruling: &Ruling) -> Option<Self> {
        match ruling {
            Ruling::Denied { by, reason } => Some(Self { by: Some(by.clone()), reason: reason.clone() }),
            Ruling::Expired => Some(Self { by: None, reason: None }),
            Ruling::Approved { .. } | Ruling::Cancelled => None,
        }
    }
}

/// What a run can take over of another: its plan, and how those of its steps came out that had ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// The model that made the plan, where one did: its word on its own calls counts no more here than there.
    planner: Option<Planner>,
    plan: Arc<Plan>,
    outcomes: BTreeMap<String, Event>,
}

impl Past {
    /// Of a run as it stood; none before it had a plan.
    #[must_use]
    pub fn of(state: &RunState) -> Option<Self> {
        let plan = Arc::clone(state.plan.as_ref()?);
        let outcomes = plan.steps.iter().filter_map(|step| Some((step.id.clone(), outcome(state, &step.id)?)));
        Some(Self { planner: state.planner.clone(), outcomes: outcomes.collect(), plan })
    }

    /// The steps as they stood.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Takes the step to have given that output.
    pub fn give(&mut self, step: &str, output: Value) {
        let completed = StepCompleted {
            output: Some(Arc::new(output)),
            output_bytes: None,
            duration_ms: 0,
            cost: None,
            taken: None,
            carried: true,
        };
        self.outcomes.insert(step.to_owned(), Event::step(&StepKey::whole(step), 1, completed));
    }

    /// Has another plan instead, provided that the steps of the past are the same in it.
    ///
    /// # Errors
    /// The id of a step that is not.
    pub fn replan(&mut self, plan: Plan) -> Result<(), String> {
        let changed = self.outcomes.keys().find(|id| plan.step(id) != self.plan.step(id));
        match changed.cloned() {
            Some(id) => Err(id),
            None => {
                self.plan = Arc::new(plan);
                Ok(())
            }
        }
    }
}

/// How a step had come out, if it had for good. What failed so that the run could not go on is tried again, as by a retry.
fn outcome(state: &RunState, id: &str) -> Option<Event> {
    let key = StepKey::whole(id);
    let step = state.steps.get(&key)?;
    let event = |body: super::Body| Some(Event::step(&key, step.attempt, body));
    match &step.stage {
        Stage::Completed { output } => {
            let output = output.clone();
            event(
                StepCompleted { output, output_bytes: None, duration_ms: 0, cost: None, taken: None, carried: true }
                    .into(),
            )
        }
        Stage::Failed { error, continued: true, .. } => {
            event(StepFailed { error: error.clone(), continued: true, taken: None, carried: true }.into())
        }
        Stage::Skipped { reason, .. } => {
            let denial = if *reason == SkipReason::Denied { state.denial(&key) } else { None };
            event(StepSkipped { reason: *reason, denial, carried: true }.into())
        }
        _ => None,
    }
}

/// A run that begins with the past of another, and goes on.
pub(super) fn fork(
    state: &RunState,
    (goal, workflow): (Option<String>, Option<String>),
    from: ForkedFrom,
    past: &Past,
    budget: Budget,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    if state.seq > 0 {
        return Err(Refusal::Status(state.status()));
    }
    let by = state.created_by.clone();
    // An agent's plan grows again as it grew, so that no event is larger than it was.
    let mut growth = past.plan.steps.split_inclusive(|step| turn_of(step).is_some());
    let first = growth.next().unwrap_or_default().to_vec();
    let plan = Arc::new(Plan { steps: first, ..Plan::clone(&past.plan) });
    let mut events = vec![
        Event::run(Idle { goal, workflow, created_by: by.clone(), parent: None, forked_from: Some(from), budget }),
        Event::run(Planning { planner: past.planner.clone() }),
        Event::run(PlanReady { plan, forecast: vec![], edited_by: None }),
        Event::run(Executing { by, retried: vec![] }),
    ];
    let mut fork = state.clone();
    events.iter().for_each(|event| fork.apply(now, event));
    // In the order of the steps' needs, as it happened.
    loop {
        let next = fork.ready_steps().filter_map(|step| past.outcomes.get(&step.id).cloned());
        let mut next: Vec<_> = next.collect();
        if next.is_empty() {
            let Some(steps) = growth.next() else { return Ok(events) };
            next.push(Event::run(PlanExtended { steps: steps.to_vec() }));
        }
        next.iter().for_each(|event| fork.apply(now, event));
        events.extend(next);
    }
}
