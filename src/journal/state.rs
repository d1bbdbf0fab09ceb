//! What a run is, as a pure value: the fold of its events. No I/O, no clock, no randomness; `decide.rs`
//! says which events may come next.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::{
    AwaitingApproval, Body, Denial, Effect, Event, Failure, MessageCompleted, OnDenied, Plan, PlanRefused, Planner,
    Purse, Question, Raise, RunCancelling, SkipReason, Status, StepKey, Wait, frontier::Frontier,
};
use crate::kernel::{Actor, ApprovalId, RunId, TenantId, Timestamp};

/// The part of the status that events set directly.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Accepted.
    Idle,
    /// The plan is being made or waits to be carried out.
    Planning,
    /// Being carried out.
    Executing,
    /// Over, with its output.
    Completed,
    /// Over, for this reason.
    Failed(Failure),
    /// Over, because somebody said so.
    Cancelled,
}

/// The exact call that is asked about or made.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// The tool.
    pub tool: String,
    /// Its version.
    pub tool_version: String,
    /// What repeating it would do.
    pub effect: Effect,
    /// The exact arguments.
    pub arguments: Arc<Value>,
    /// Over all of the above but the effect, and run, step, attempt, tenant.
    pub digest: String,
}

/// Where a step that has begun stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// A `forEach` step, spread over its items.
    Expanded {
        /// How many.
        items: u32,
        /// Since when.
        since: Timestamp,
    },
    /// Its tool's call is in flight, or was when a process died.
    Running {
        /// The tool's version.
        tool_version: String,
        /// What repeating it would do.
        effect: Effect,
        /// The arguments of the call.
        arguments: Arc<Value>,
        /// When the intent was journaled.
        since: Timestamp,
    },
    /// It waits, holding nothing.
    Waiting {
        /// What for.
        wait: Wait,
        /// Since when the attempt is under way.
        since: Timestamp,
    },
    /// Another attempt follows.
    Retrying {
        /// Not before.
        at: Timestamp,
    },
    /// It waits for a decision.
    Held {
        /// Which.
        approval_id: ApprovalId,
    },
    /// Consent is given; the call has not been made.
    Cleared {
        /// The hold it was given on.
        approval_id: ApprovalId,
        /// The arguments consent was given for.
        arguments: Arc<Value>,
        /// The call consent was given for.
        digest: String,
    },
    /// It has its output; `None` until a loader has fetched one that was too large for its event.
    Completed {
        /// The output.
        output: Option<Arc<Value>>,
    },
    /// It failed for good.
    Failed {
        /// Why.
        error: Failure,
        /// The run goes on all the same.
        continued: bool,
        /// A call that may have acted and is not repeated unasked, should the run be retried: the tool's
        /// version and the arguments.
        unknown: Option<(String, Arc<Value>)>,
    },
    /// It will not run.
    Skipped {
        /// Why.
        reason: SkipReason,
        /// How it was denied, in a run that had it from another.
        denial: Option<Denial>,
    },
}

impl Stage {
    /// A call of a process that is gone, of which nobody knows whether it acted.
    fn unknown(tool_version: &str, arguments: &Arc<Value>, since: Timestamp) -> Self {
        let (tool_version, arguments) = (tool_version.to_owned(), Arc::clone(arguments));
        Self::Running { tool_version, effect: Effect::Once, arguments, since }
    }

    fn cleared(approval_id: ApprovalId, arguments: &Arc<Value>, digest: &str) -> Self {
        Self::Cleared { approval_id, arguments: Arc::clone(arguments), digest: digest.to_owned() }
    }

    /// Whether nothing more will come of it.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        matches!(self, Self::Completed { .. } | Self::Failed { .. } | Self::Skipped { .. })
    }

    /// Its name on the wire and in the table.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Expanded { .. } | Self::Running { .. } | Self::Cleared { .. } => "running",
            Self::Waiting { .. } => "waiting",
            Self::Retrying { .. } => "retrying",
            Self::Held { .. } => "awaiting_approval",
            Self::Completed { .. } => "completed",
            Self::Failed { .. } => "failed",
            Self::Skipped { .. } => "skipped",
        }
    }
}

/// A step that has begun.
#[derive(Clone, Debug, PartialEq)]
pub struct StepState {
    /// Where it stands.
    pub stage: Stage,
    /// The attempt it is at, from 1.
    pub attempt: u32,
    /// Failures since it first began or the run was last retried.
    pub failures: u32,
    /// The attempt whose call was journaled last; 0 before the first.
    pub called: u32,
    /// What of its cost is told apart from its outcome: by the messages of a model, or as that of its child run.
    pub told: f64,
}

/// How a hold came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// By a person.
    Approved {
        /// Who.
        by: Actor,
        /// The call it was given for.
        digest: String,
        /// What was filled into its form.
        input: Option<Arc<Value>>,
    },
    /// By a person.
    Denied {
        /// Who.
        by: Actor,
        /// Why.
        reason: Option<String>,
    },
    /// By the clock.
    Expired,
    /// By the end of the run.
    Cancelled,
}

/// A question and its outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Hold {
    /// The step that waits.
    pub step: StepKey,
    /// Its attempt.
    pub attempt: u32,
    /// What was asked, word for word.
    pub asked: AwaitingApproval,
    /// The outcome, once there is one.
    pub ruling: Option<Ruling>,
}

/// A run, folded from its events.
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    /// Its tenant.
    pub tenant_id: TenantId,
    /// The run.
    pub run_id: RunId,
    /// The number of its last event.
    pub seq: u64,
    /// Who started it.
    pub created_by: Actor,
    /// What a denial means where the step does not say.
    pub on_denied: OnDenied,
    /// The part of the status that events set directly.
    pub phase: Phase,
    /// The model that makes its plan, where one does.
    pub planner: Option<Planner>,
    /// What that drew up in vain.
    pub refused: Vec<PlanRefused>,
    /// The steps, once they stand.
    pub plan: Option<Arc<Plan>>,
    /// The steps that have begun.
    pub steps: BTreeMap<StepKey, StepState>,
    /// Every question asked.
    pub holds: BTreeMap<ApprovalId, Hold>,
    /// Set while a cancelled run waits for its steps in flight.
    pub cancelling: Option<RunCancelling>,
    /// What it has cost so far.
    pub cost: f64,
    /// What it may take, and has.
    pub purse: Purse,
    pub(super) frontier: Frontier,
}

impl RunState {
    /// A run before its first event.
    #[must_use]
    pub fn new(tenant_id: TenantId, run_id: RunId, created_by: Actor, on_denied: OnDenied) -> Self {
        Self {
            tenant_id,
            run_id,
            seq: 0,
            created_by,
            on_denied,
            phase: Phase::Idle,
            planner: None,
            refused: vec![],
            plan: None,
            steps: BTreeMap::new(),
            holds: BTreeMap::new(),
            cancelling: None,
            cost: 0.0,
            purse: Purse::default(),
            frontier: Frontier::default(),
        }
    }

    /// Takes in what happened at `ts`. Events come in order and only from the journal, so none is refused.
    pub fn apply(&mut self, ts: Timestamp, event: &Event) {
        self.seq += 1;
        self.take_in(ts, event);
        if self.purse.budget.wall_time.is_some() {
            let carried_out = self.status() == Status::Executing;
            self.purse.watch(carried_out, ts);
        }
    }

    fn take_in(&mut self, ts: Timestamp, event: &Event) {
        match &event.body {
            Body::Idle(idle) => {
                self.phase = Phase::Idle;
                // Events of earlier versions do not say; the run's row does.
                self.purse.budget = if idle.budget.is_empty() { self.purse.budget } else { idle.budget };
            }
            Body::Planning(planning) => {
                self.phase = Phase::Planning;
                self.planner = planning.planner.clone();
                self.refused.clear();
                self.steps.clear();
                self.frontier = Frontier::default();
            }
            Body::PlanRefused(refused) => self.refused.push(refused.clone()),
            Body::MessageCompleted(said) => self.hear(event.step.as_ref(), said),
            Body::PlanReady(ready) => {
                self.plan = Some(Arc::clone(&ready.plan));
                // What was asked about the drafts is over.
                self.steps.clear();
                self.frontier = Frontier::of(&ready.plan);
            }
            Body::PlanExtended(extended) => {
                let Some(plan) = &mut self.plan else { return };
                Arc::make_mut(plan).steps.extend(extended.steps.iter().cloned());
                let ended = |id: &str| self.steps.get(&StepKey::whole(id)).is_some_and(|step| step.stage.is_ended());
                self.frontier.extend(&extended.steps, ended);
            }
            Body::Executing(executing) => {
                self.phase = Phase::Executing;
                for key in &executing.retried {
                    let Some(step) = self.steps.get(key) else { continue };
                    let stage = match &step.stage {
                        Stage::Failed { unknown: Some((version, arguments)), .. } => {
                            Stage::unknown(version, arguments, ts)
                        }
                        _ => Stage::Retrying { at: ts },
                    };
                    let (attempt, called, told) = (step.attempt, step.called, step.told);
                    self.put(key, StepState { stage, attempt, failures: 0, called, told });
                }
            }
            Body::RunCancelling(cancelling) => self.cancelling = Some(cancelling.clone()),
            Body::Completed(_) => self.end(Phase::Completed),
            Body::Failed(failed) => self.end(Phase::Failed(failed.error.clone())),
            Body::Cancelled(_) => self.end(Phase::Cancelled),
            Body::Approved(approved) => {
                let (by, digest, input) = (approved.by.clone(), approved.digest.clone(), approved.input.clone());
                let raise = self.holds.get(&approved.approval_id).and_then(|hold| Raise::asked(&hold.asked));
                raise.into_iter().for_each(|raise| self.purse.raise(raise));
                self.rule(approved.approval_id, Ruling::Approved { by, digest, input }, |hold| {
                    let arguments = approved.arguments.as_ref().unwrap_or(&hold.asked.arguments);
                    Stage::cleared(approved.approval_id, arguments, &approved.digest)
                });
            }
            Body::Denied(denied) => {
                let (by, reason) = (denied.by.clone(), denied.reason.clone());
                self.rule(denied.approval_id, Ruling::Denied { by, reason }, |_| Stage::Retrying { at: ts });
            }
            Body::ApprovalExpired(expired) => {
                self.rule(expired.approval_id, Ruling::Expired, |_| Stage::Retrying { at: ts });
            }
            Body::ApprovalCancelled(gone) => {
                self.rule(gone.approval_id, Ruling::Cancelled, |hold| match hold.asked.question {
                    // Another day has room of its own, and the call had all else that it needs.
                    Question::Budget if hold.asked.day.is_some() => {
                        Stage::cleared(gone.approval_id, &hold.asked.arguments, &hold.asked.digest)
                    }
                    Question::Consent | Question::Budget | Question::Input => Stage::Retrying { at: ts },
                    // Nobody answered, so it may still have acted.
                    Question::Repeat => Stage::unknown(&hold.asked.tool_version, &hold.asked.arguments, ts),
                });
            }
            Body::StepExpanded(_)
            | Body::StepStarted(_)
            | Body::StepWaiting(_)
            | Body::ToolProgress(_)
            | Body::MessageDelta(_)
            | Body::StepCompleted(_)
            | Body::StepRetrying(_)
            | Body::StepFailed(_)
            | Body::StepSkipped(_)
            | Body::AwaitingApproval(_) => self.apply_step(ts, event),
        }
    }

    fn apply_step(&mut self, ts: Timestamp, event: &Event) {
        let (Some(key), Some(attempt)) = (&event.step, event.attempt) else { return };
        self.purse.note(key, &event.body);
        let before = self.steps.get(key);
        let (failures, mut called) = before.map_or((0, 0), |step| (step.failures, step.called));
        let mut told = before.map_or(0.0, |step| step.told);
        let since = match before.map(|step| &step.stage) {
            Some(Stage::Running { since, .. } | Stage::Waiting { since, .. }) => *since,
            _ => ts,
        };
        let mut failed = 0;
        let stage = match &event.body {
            Body::StepExpanded(expanded) => Stage::Expanded { items: expanded.items, since: ts },
            Body::StepStarted(started) => {
                (called, told) = (attempt, 0.0);
                Stage::Running {
                    tool_version: started.tool_version.clone(),
                    effect: started.effect,
                    arguments: Arc::clone(&started.arguments),
                    since: ts,
                }
            }
            Body::StepWaiting(waiting) => Stage::Waiting { wait: waiting.wait.clone(), since },
            Body::StepCompleted(completed) => {
                let cost = completed.cost.unwrap_or_default();
                self.cost += (cost - told).max(0.0);
                if matches!(before.map(|step| &step.stage), Some(Stage::Waiting { wait: Wait::Child { .. }, .. })) {
                    told = cost;
                }
                Stage::Completed { output: completed.output.clone() }
            }
            Body::StepRetrying(retrying) => {
                failed = 1;
                Stage::Retrying { at: retrying.retry_at }
            }
            Body::StepFailed(step_failed) => {
                failed = 1;
                self.cost += step_failed.taken.unwrap_or_default().cost;
                let unknown = match before.map(|step| &step.stage) {
                    Some(Stage::Running { tool_version, effect: Effect::Once, arguments, .. })
                        if step_failed.error.code == Failure::OUTCOME_UNKNOWN =>
                    {
                        Some((tool_version.clone(), Arc::clone(arguments)))
                    }
                    _ => None,
                };
                Stage::Failed { error: step_failed.error.clone(), continued: step_failed.continued, unknown }
            }
            Body::StepSkipped(skipped) => Stage::Skipped { reason: skipped.reason, denial: skipped.denial.clone() },
            Body::AwaitingApproval(asked) => {
                let hold = Hold { step: key.clone(), attempt, asked: asked.clone(), ruling: None };
                self.holds.insert(asked.approval_id, hold);
                Stage::Held { approval_id: asked.approval_id }
            }
            _ => return,
        };
        self.put(key, StepState { stage, attempt, failures: failures + failed, called, told });
    }

    /// What a model has said is paid for, whatever comes of it.
    fn hear(&mut self, key: Option<&StepKey>, said: &MessageCompleted) {
        self.cost += said.cost;
        self.purse.hear(said);
        // Of a model that makes the plan, there is no step.
        if let Some(step) = key.and_then(|key| self.steps.get_mut(key)) {
            step.told += said.cost;
        }
    }

    fn rule(&mut self, approval_id: ApprovalId, ruling: Ruling, stage: impl FnOnce(&Hold) -> Stage) {
        let Some(hold) = self.holds.get_mut(&approval_id) else { return };
        hold.ruling = Some(ruling);
        let (key, stage) = (hold.step.clone(), stage(hold));
        if let Some(step) = self.steps.get(&key).cloned() {
            self.put(&key, StepState { stage, ..step });
        }
    }

    /// The only place where a step changes.
    fn put(&mut self, key: &StepKey, step: StepState) {
        let before = self.steps.get(key).map(|step| &step.stage);
        self.frontier.moved(key, before, &step.stage);
        self.steps.insert(key.clone(), step);
    }

    fn end(&mut self, phase: Phase) {
        self.phase = phase;
        self.cancelling = None;
    }
}
