//! Carries out what the scheduler wants: evaluates, asks the gate, and turns it into commands.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use serde_json::Value;

use super::{budget::Room, scheduler::Move, shared::Slot, turn::Turn};
use crate::{
    agent,
    approval::{self, Verdict},
    journal::{self, Ask, Body, Budget, Command, Effect, Failure, Intent, Refusal, SkipReason, Stage, Step, StepKey},
    kernel::{
        ApprovalId, Result, Timestamp,
        template::{self, Context, RunFacts, Scope, StepFacts},
    },
    tool::{Conversation, Handed, Tool, ToolError},
};

/// A call that is to be made once its intent is journaled.
pub(super) struct Launch {
    pub(super) step: StepKey,
    pub(super) attempt: u32,
    pub(super) tool: String,
    pub(super) arguments: Arc<Value>,
    pub(super) handed: Handed,
    pub(super) timeout: Duration,
    /// What the run that it starts may take.
    pub(super) budget: Option<Budget>,
    /// It touches nothing, so it need not wait for its intent to be journaled.
    pub(super) at_once: bool,
    pub(super) slot: Slot,
}

impl Turn {
    /// Gets the tenant's own tools, once, where the plan can use any.
    pub(super) async fn stock(&mut self) -> Result<()> {
        if self.stocked {
            return Ok(());
        }
        let tenant = self.state.tenant_id;
        self.tools = match &self.state.plan {
            Some(plan) => {
                let given = plan.agent.iter().chain(&plan.agents).flat_map(|agent| &agent.tools);
                let names = plan.steps.iter().map(|step| &step.uses).chain(given).map(String::as_str);
                self.shared.tools.with(tenant, names).await?
            }
            // A model that plans is told of all there are.
            None if self.state.is_drafted() => self.shared.tools.of(tenant).await?,
            None => return Ok(()),
        };
        self.stocked = true;
        Ok(())
    }

    pub(super) async fn perform(&mut self, one: &Move, now: Timestamp) {
        let done = match one {
            Move::Expire(approval_id) => self.decide(Command::Expire { approval_id: *approval_id }, now),
            Move::Expand(key) => self.expand(key, now),
            Move::Begin(key) => self.begin(key, now).await,
            Move::SkipWithUpstream(key) => self.skip(key, SkipReason::Upstream, now),
            Move::Gather(key) => self.gather(key, now),
            Move::EndWait(key, attempt, until) => self.end_wait(key, *attempt, *until, now),
            Move::Recover(key, attempt) => self.recover(key, *attempt, now).await,
            // It acts, so it waits for what it follows from to be journaled.
            Move::CancelChild(..) if self.unsure => {
                self.deferred = true;
                Ok(())
            }
            Move::CancelChild(key, child) => {
                if self.told_children.insert(*child) {
                    let shared = Arc::clone(&self.shared);
                    if let Err(error) = shared.children.cancel(&self.state, *child).await {
                        tracing::warn!(?error, step = %key, %child, "a child could not be cancelled");
                        self.told_children.remove(child);
                        self.again_at = now.checked_add_signed(TimeDelta::seconds(1));
                    }
                }
                Ok(())
            }
            Move::Plan => self.plan(now).await,
            Move::Grow => {
                let steps = agent::grow(&self.state, &self.tools);
                self.decide(Command::Extend { steps }, now)
            }
            Move::Finish => {
                let output = self.output();
                self.decide(Command::Finish { output }, now)
            }
        };
        if let Err(refusal) = done {
            tracing::debug!(?refusal, ?one, run = %self.state.run_id, "a move came to nothing");
        }
    }

    fn skip(&mut self, key: &StepKey, reason: SkipReason, now: Timestamp) -> Result<(), Refusal> {
        self.decide(Command::Skip { step: key.clone(), reason }, now)
    }

    /// The step fails without a call having been made.
    fn fail_unmade(&mut self, key: &StepKey, error: Failure, now: Timestamp) -> Result<(), Refusal> {
        let attempt = self.state.next_attempt(key);
        self.decide(Command::Fail { step: key.clone(), attempt, error, jitter: rand::random() }, now)
    }

    fn end_wait(&mut self, key: &StepKey, attempt: u32, until: Timestamp, now: Timestamp) -> Result<(), Refusal> {
        let output = Arc::new(crate::tool::waited(&until));
        self.decide(Command::Complete { step: key.clone(), attempt, output, cost: None }, now)
    }

    fn expand(&mut self, key: &StepKey, now: Timestamp) -> Result<(), Refusal> {
        let Some(step) = self.state.step(key).cloned() else { return Err(Refusal::Stale) };
        if self.is_fresh(key) && !self.wanted(&step, key, now)? {
            return Ok(());
        }
        match self.list(&step) {
            Ok(list) => {
                let items = u32::try_from(list.len()).unwrap_or(u32::MAX);
                self.decide(Command::Expand { step: key.clone(), items }, now)
            }
            Err(error) => self.fail_unmade(key, error, now),
        }
    }

    /// Whether the step begins now, at first or again: a condition that failed is not met by a retry.
    fn is_fresh(&self, key: &StepKey) -> bool {
        matches!(self.state.stage(key), None | Some(Stage::Retrying { .. }))
    }

    /// Whether the step's condition lets it run; if not, it is skipped or, if the condition is broken, failed.
    fn wanted(&mut self, step: &Step, key: &StepKey, now: Timestamp) -> Result<bool, Refusal> {
        let Some(condition) = &step.condition else { return Ok(true) };
        match template::condition(condition, &self.context()) {
            Ok(true) => Ok(true),
            Ok(false) => self.skip(key, SkipReason::Condition, now).map(|()| false),
            Err(error) => {
                let failure = Failure::new("condition_failed", format!("`if`: {error}"));
                self.fail_unmade(key, failure, now).map(|()| false)
            }
        }
    }

    /// The outputs of the items become that of the step, unless they are too much together.
    fn gather(&mut self, key: &StepKey, now: Timestamp) -> Result<(), Refusal> {
        let events = journal::decide(&self.state, Command::Gather { step: key.clone() }, now)?;
        let mut outputs = events.iter().filter_map(|event| match &event.body {
            Body::StepCompleted(completed) => completed.output.as_deref(),
            _ => None,
        });
        let checked = outputs.try_for_each(|output| self.tools.check_output(output));
        match checked {
            Ok(()) => self.decide(Command::Gather { step: key.clone() }, now),
            Err(error) => self.fail_unmade(key, into_failure(error), now),
        }
    }

    async fn begin(&mut self, key: &StepKey, now: Timestamp) -> Result<(), Refusal> {
        let Some(step) = self.state.step(key).cloned() else { return Err(Refusal::Stale) };
        if (self.starved || self.acted) && step.approval.is_none() {
            // It could not act now, whatever came of its templates.
            self.deferred |= self.acted;
            return Ok(());
        }
        if key.item.is_none() && self.is_fresh(key) && !self.wanted(&step, key, now)? {
            return Ok(());
        }
        let arguments = match self.state.stage(key) {
            // Consent was given for these very arguments.
            Some(Stage::Cleared { arguments, .. }) => Ok(Arc::clone(arguments)),
            _ => self.arguments(&step, key),
        };
        let intent = arguments.and_then(|arguments| self.intent(&step, key, arguments));
        match intent {
            Ok(intent) => self.through_gate(&step, key, intent, now).await,
            Err(error) => self.fail_unmade(key, error, now),
        }
    }

    /// The one way to a call: the gate says allow, hold or forbid.
    async fn through_gate(
        &mut self,
        step: &Step,
        key: &StepKey,
        intent: Intent,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        match approval::verdict(&self.state, key, &intent) {
            Verdict::Hold => self.hold(key, intent, Ask::Consent, now),
            Verdict::Forbid(reason) => self.fail_unmade(key, Failure::new("forbidden", reason), now),
            Verdict::Allow => self.start(step, key, intent, now).await,
        }
    }

    async fn start(&mut self, step: &Step, key: &StepKey, intent: Intent, now: Timestamp) -> Result<(), Refusal> {
        if self.acted {
            self.deferred = true;
            return Ok(());
        }
        let Some(slot) = self.slot.take().or_else(|| self.shared.try_slot(self.state.tenant_id)) else {
            self.starved = true;
            return Ok(());
        };
        let (reserved, budget) = match self.room(step, key, &intent, now).await {
            Room::There { reserved, lent } => (reserved, lent),
            lacks => {
                // Whoever comes next may have it.
                self.slot = Some(slot);
                return match lacks {
                    Room::Lacks(raise) => self.hold(key, intent, Ask::Raise(raise), now),
                    _ => Ok(()),
                };
            }
        };
        let (tool, arguments) = (intent.tool.clone(), Arc::clone(&intent.arguments));
        let known = self.tools.tool(&tool).ok();
        let usual = known.map_or(Duration::from_secs(60), |tool| tool.timeout());
        let handed = self.handed(step, key, known.map(Arc::as_ref), &arguments);
        let (timeout, at_once) = (step.timeout.map_or(usual, |span| span.0), known.is_some_and(|tool| tool.at_once()));
        self.decide(Command::Start { step: key.clone(), intent, reserved, budget }, now)?;
        let attempt = self.state.next_attempt(key);
        let step = key.clone();
        self.prepare(Launch { step, attempt, tool, arguments, handed, timeout, budget, at_once, slot });
        Ok(())
    }

    fn hold(&mut self, key: &StepKey, intent: Intent, ask: Ask, now: Timestamp) -> Result<(), Refusal> {
        let approval_id = ApprovalId::new(now);
        self.decide(Command::Hold { step: key.clone(), intent, approval_id, ask }, now)
    }

    /// A call without an outcome: repeated where that is safe, else a question.
    async fn recover(&mut self, key: &StepKey, attempt: u32, now: Timestamp) -> Result<(), Refusal> {
        let Some(Stage::Running { effect, arguments, .. }) = self.state.stage(key) else { return Err(Refusal::Stale) };
        let (effect, arguments) = (*effect, Arc::clone(arguments));
        let Some(step) = self.state.step(key).cloned() else { return Err(Refusal::Stale) };
        let unknown = |message: &str| Failure::new(Failure::OUTCOME_UNKNOWN, message);
        if !self.state.is_advancing() {
            let error = unknown("it may have acted; the run is ending, so nobody was asked");
            return self.decide(Command::Fail { step: key.clone(), attempt, error, jitter: 0.0 }, now);
        }
        match self.intent(&step, key, arguments) {
            Ok(intent) if effect == Effect::Once => self.hold(key, intent, Ask::Repeat, now),
            Ok(intent) => self.through_gate(&step, key, intent, now).await,
            Err(error) => {
                let lost = || unknown(&format!("it may have acted, and cannot be repeated: {}", error.message));
                let error = if effect == Effect::Once { lost() } else { error };
                self.decide(Command::Fail { step: key.clone(), attempt, error, jitter: 0.0 }, now)
            }
        }
    }

    /// The exact call, with the digest that consent is bound to.
    pub(super) fn intent(&self, step: &Step, key: &StepKey, arguments: Arc<Value>) -> Result<Intent, Failure> {
        let tool = self.tools.tool(&step.uses).map_err(into_failure)?;
        // What a model's arguments say of themselves counts as little after a crash as at the gate.
        let by_a_model = self.state.planner.is_some() || self.state.agent_of(step).is_some();
        let effect = if by_a_model { tool.effect_unvouched(&arguments) } else { tool.effect(&arguments) };
        let version = tool.version().to_owned();
        self.tools.validate(&step.uses, &arguments).map_err(into_failure)?;
        let attempt = self.state.next_attempt(key);
        let digest = approval::digest(&self.state, key, attempt, (&step.uses, &version), &arguments)
            .map_err(|error| Failure::new("invalid_arguments", error.to_string()))?;
        Ok(Intent { tool: step.uses.clone(), tool_version: version, effect, arguments, digest })
    }

    /// What a call is handed besides its arguments.
    fn handed(&self, step: &Step, key: &StepKey, tool: Option<&dyn Tool>, arguments: &Value) -> Handed {
        if let Some(conversation) = self.conversation(step) {
            return Handed::Conversation(Arc::new(conversation));
        }
        let filled = self.state.filled(key);
        if !filled.is_empty() {
            return Handed::Filled(filled);
        }
        let read = tool.and_then(|tool| tool.reads(arguments));
        read.and_then(|key| self.state.stage(&key)).map_or(Handed::Nothing, |stage| Handed::Stage(stage.clone()))
    }

    /// What an agent's model is to be asked, in a turn.
    pub(super) fn conversation(&self, step: &Step) -> Option<Conversation> {
        let turn = journal::turn_of(step)?;
        let agent = self.state.agent_of(step)?;
        Some(agent::conversation(&self.state, &self.head, agent, turn, &self.tools))
    }

    fn arguments(&mut self, step: &Step, key: &StepKey) -> Result<Arc<Value>, Failure> {
        if let Some(conversation) = self.conversation(step) {
            return conversation.digest().map(Arc::new);
        }
        let with = Value::Object(step.with.clone());
        if step.verbatim || !template::is_template(&with) {
            return Ok(Arc::new(with));
        }
        let mut scope = self.scope();
        if let Some(index) = key.item {
            let list = self.list(step)?;
            let item = usize::try_from(index).ok().and_then(|index| list.get(index)).cloned().unwrap_or_default();
            scope.item = Some((Arc::new(item), index));
        }
        let rendered = template::render(&with, &Context::Run(Arc::new(scope)));
        rendered.map(Arc::new).map_err(|error| Failure::new("template_failed", format!("`with`: {error}")))
    }

    /// The items of a `forEach` step; the same at every evaluation, since what it reads has ended.
    fn list(&mut self, step: &Step) -> Result<Arc<Vec<Value>>, Failure> {
        if let Some(list) = self.lists.get(&step.id) {
            return Ok(Arc::clone(list));
        }
        let source = step.for_each.clone().unwrap_or_default();
        let value = template::render(&source, &self.context())
            .map_err(|error| Failure::new("template_failed", format!("`forEach`: {error}")))?;
        let Value::Array(items) = value else {
            return Err(Failure::new("not_a_list", "`forEach` is not a list"));
        };
        if items.len() > self.shared.items {
            let message = format!("`forEach` has {} items; {} are allowed", items.len(), self.shared.items);
            return Err(Failure::new("too_many_items", message));
        }
        let list = Arc::new(items);
        self.lists.insert(step.id.clone(), Arc::clone(&list));
        Ok(list)
    }

    fn output(&self) -> Result<Option<Arc<Value>>, Failure> {
        if self.state.plan.as_ref().is_some_and(|plan| plan.agent.is_some()) && self.state.is_advancing() {
            return agent::outcome(&self.state).map(Some);
        }
        let Some(output) = self.state.plan.as_ref().and_then(|plan| plan.output.as_ref()) else { return Ok(None) };
        if !self.state.is_advancing() {
            return Ok(None);
        }
        let rendered = template::render(output, &self.context())
            .map_err(|error| Failure::new("template_failed", format!("`output`: {error}")))?;
        self.tools.check_output(&rendered).map_err(into_failure)?;
        Ok(Some(Arc::new(rendered)))
    }

    fn context(&self) -> Context {
        Context::Run(Arc::new(self.scope()))
    }

    /// What templates see: input, and the steps that have begun.
    fn scope(&self) -> Scope {
        let steps = self.state.steps.iter().filter(|(key, _)| key.item.is_none()).map(|(key, step)| {
            let (output, error) = match &step.stage {
                Stage::Completed { output } => (output.clone(), None),
                Stage::Failed { error, .. } => (None, serde_json::to_value(error).ok().map(Arc::new)),
                _ => (None, None),
            };
            (key.id.clone(), StepFacts { status: step.stage.name(), output, error })
        });
        Scope {
            run: RunFacts {
                id: self.state.run_id.to_string(),
                goal: self.head.goal.clone(),
                created_by: self.head.created_by.to_string(),
            },
            input: Arc::clone(&self.head.input),
            metadata: Arc::clone(&self.head.metadata),
            steps: steps.collect(),
            item: None,
        }
    }
}

fn into_failure(error: ToolError) -> Failure {
    match error {
        ToolError::Failed(failure) | ToolError::Unknown(failure) => failure,
    }
}
