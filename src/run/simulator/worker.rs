//! A worker's turn without I/O: the same order of decide, commit and act as the real one.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    database::Database,
    script::{Death, How},
};
use crate::{
    approval::{self, Verdict},
    journal::{
        self, Ask, Command, Effect, Estimate, Event, Failure, Intent, Refusal, RunState, SkipReason, Stage, Step,
        StepKey, Taken, Wait,
    },
    kernel::{
        ApprovalId, RunId, Timestamp,
        template::{self, Context, Scope},
    },
    run::scheduler::{self, Move},
};

/// What a process has in memory and loses when it dies.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) epoch: u32,
    pub(super) state: RunState,
    pub(super) in_flight: BTreeMap<StepKey, Flight>,
    pub(super) heard: Vec<Command>,
    version: u32,
    events: Vec<Event>,
    launches: Vec<(StepKey, Flight)>,
}

/// A call that is out.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) attempt: u32,
    pub(super) tool: String,
    pub(super) arguments: Arc<Value>,
    /// It has reached the outside world.
    pub(super) acted: bool,
}

/// What a pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// It goes on.
    Kept,
    /// It let the run go, or had lost it.
    Over,
    /// Its process died.
    Dead,
}

/// What repeating a call of the model's tools would do.
pub(super) fn effect(tool: &str) -> Effect {
    match tool {
        "once" => Effect::Once,
        "repeatable" | "child" => Effect::Repeatable,
        _ => Effect::Pure,
    }
}

impl Worker {
    pub(super) fn claim(db: &Database, version: u32) -> Self {
        let state = db.fold();
        assert_eq!(state, db.head, "the fold of all events is not the state that grew with them");
        let (in_flight, heard, events, launches) = Default::default();
        Self { epoch: db.epoch, state, in_flight, heard, version, events, launches }
    }

    /// One pass of a turn.
    pub(super) fn pass(
        &mut self,
        db: &mut Database,
        children: &mut BTreeMap<RunId, Option<bool>>,
        now: Timestamp,
        How { death, deaf, ahead }: How,
    ) -> Passed {
        if !deaf && db.head.seq != self.state.seq && !self.reload(db) {
            return Passed::Over;
        }
        for command in self.heard.clone() {
            // News that is no news any more.
            let _ = self.decide(command, now);
        }
        for command in self.ends_of(children) {
            self.decide(command.clone(), now).unwrap();
            self.heard.push(command);
        }
        let ended = |children: &BTreeMap<_, Option<bool>>| children.values().flatten().count();
        let before = ended(children);
        self.make_moves(children, now);
        while ahead.is_some_and(|completed| self.call_ahead(completed, now)) {
            self.make_moves(children, now);
        }
        if ended(children) > before {
            // The end of a child makes its parent due.
            db.due = Some(now);
        }
        if death == Some(Death::BeforeCommit) {
            return Passed::Dead;
        }
        let events = std::mem::take(&mut self.events);
        if !events.is_empty() && !db.append(&self.state, events, now) {
            return if self.reload(db) { Passed::Kept } else { Passed::Over };
        }
        self.heard.clear();
        if death == Some(Death::AfterCommit) {
            return Passed::Dead;
        }
        if self.state.status().is_terminal() {
            return Passed::Over;
        }
        for (key, flight) in std::mem::take(&mut self.launches) {
            let condition = self.step(&key).condition;
            assert!(matches!(condition.as_deref(), None | Some("true")), "{key} acts against its condition");
            db.auditor.may_call(&key, flight.attempt, &flight.arguments);
            self.in_flight.insert(key, flight);
        }
        if self.in_flight.is_empty() {
            // A wake-up that came while the run was claimed outlives the release.
            let due = db.due.into_iter().chain(scheduler::wake_at(&self.state)).min();
            db.due = if db.epoch == self.epoch { due } else { db.due };
            return Passed::Over;
        }
        Passed::Kept
    }

    fn reload(&mut self, db: &Database) -> bool {
        self.events.clear();
        self.launches.clear();
        self.state = db.fold();
        db.epoch == self.epoch
    }

    fn decide(&mut self, command: Command, now: Timestamp) -> Result<(), Refusal> {
        let events = journal::decide(&self.state, command, now)?;
        events.iter().for_each(|event| self.state.apply(now, event));
        self.events.extend(events);
        Ok(())
    }

    /// What became of the children that steps wait for.
    fn ends_of(&self, children: &BTreeMap<RunId, Option<bool>>) -> Vec<Command> {
        let ended = self.state.steps.iter().filter_map(|(key, step)| {
            let Stage::Waiting { wait: Wait::Child { child_run_id }, .. } = &step.stage else { return None };
            let (step, attempt) = (key.clone(), step.attempt);
            let taken = Taken { cost: 0.25, tokens: 3, ..Taken::default() };
            children[child_run_id].map(|completed| {
                let end =
                    if completed { Ok(Arc::new(json!("child"))) } else { Err(Failure::new("child", "it failed")) };
                Command::Return { step, attempt, end, taken }
            })
        });
        ended.collect()
    }

    fn make_moves(&mut self, children: &mut BTreeMap<RunId, Option<bool>>, now: Timestamp) {
        let mut futile: Vec<Move> = Vec::new();
        loop {
            let flying = self.in_flight.keys().chain(self.launches.iter().map(|(key, _)| key));
            let in_flight: HashSet<_> = flying.cloned().collect();
            let mut moves = scheduler::moves(&self.state, |key| in_flight.contains(key), now);
            moves.retain(|one| !futile.contains(one));
            if moves.is_empty() {
                return;
            }
            for one in moves {
                let before = self.state.seq;
                // A refusal is an answer too; whether anything stands still is seen at the end.
                let _ = self.perform(&one, children, now);
                if self.state.seq == before {
                    futile.push(one);
                }
            }
        }
    }

    fn perform(
        &mut self,
        one: &Move,
        children: &mut BTreeMap<RunId, Option<bool>>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        match one.clone() {
            Move::Plan | Move::Grow => panic!("no model plans here"),
            Move::Expire(approval_id) => self.decide(Command::Expire { approval_id }, now),
            Move::Expand(step) => {
                if self.wanted(&step, now)? {
                    let list = self.step(&step).for_each.unwrap();
                    let items = u32::try_from(list.as_array().unwrap().len()).unwrap();
                    self.decide(Command::Expand { step, items }, now)?;
                }
                Ok(())
            }
            Move::Begin(key) => self.begin(&key, now),
            Move::SkipWithUpstream(step) => self.decide(Command::Skip { step, reason: SkipReason::Upstream }, now),
            Move::Gather(step) => self.decide(Command::Gather { step }, now),
            Move::EndWait(step, attempt, _) => {
                self.decide(Command::Complete { step, attempt, output: Arc::new(json!("waited")), cost: None }, now)
            }
            Move::Recover(key, attempt) => self.recover(&key, attempt, now),
            Move::CancelChild(_, child) => {
                children.get_mut(&child).unwrap().get_or_insert(false);
                Ok(())
            }
            Move::Finish => self.decide(Command::Finish { output: Ok(Some(Arc::new(json!(0.1)))) }, now),
        }
    }

    /// The calls that touch nothing are made and over; whether there were any.
    fn call_ahead(&mut self, completed: bool, now: Timestamp) -> bool {
        let (calls, launches): (Vec<_>, _) =
            std::mem::take(&mut self.launches).into_iter().partition(|(_, flight)| flight.tool == "pure");
        self.launches = launches;
        for (step, Flight { attempt, .. }) in &calls {
            let (step, attempt) = (step.clone(), *attempt);
            let command = match completed {
                true => Command::Complete { step, attempt, output: Arc::new(json!("ahead")), cost: None },
                false => Command::Fail { step, attempt, error: Failure::new("ahead", "it failed"), jitter: 0.5 },
            };
            self.decide(command, now).unwrap();
        }
        !calls.is_empty()
    }

    fn step(&self, key: &StepKey) -> Step {
        Step::clone(self.state.step(key).unwrap())
    }

    fn wanted(&mut self, key: &StepKey, now: Timestamp) -> Result<bool, Refusal> {
        let Some(condition) = self.step(key).condition else { return Ok(true) };
        match template::condition(&condition, &Context::Run(Arc::new(Scope::default()))) {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.decide(Command::Skip { step: key.clone(), reason: SkipReason::Condition }, now).map(|()| false)
            }
            Err(error) => {
                let (attempt, error) = (self.state.next_attempt(key), Failure::new("condition", error.to_string()));
                self.decide(Command::Fail { step: key.clone(), attempt, error, jitter: 0.0 }, now).map(|()| false)
            }
        }
    }

    fn intent(&self, key: &StepKey, arguments: Arc<Value>) -> Intent {
        let (tool, tool_version) = (self.step(key).uses, self.version.to_string());
        let attempt = self.state.next_attempt(key);
        let digest = approval::digest(&self.state, key, attempt, (&tool, &tool_version), &arguments).unwrap();
        Intent { effect: effect(&tool), tool, tool_version, arguments, digest }
    }

    fn begin(&mut self, key: &StepKey, now: Timestamp) -> Result<(), Refusal> {
        let fresh = matches!(self.state.stage(key), None | Some(Stage::Retrying { .. }));
        if key.item.is_none() && fresh && !self.wanted(key, now)? {
            return Ok(());
        }
        let arguments = match self.state.stage(key) {
            Some(Stage::Cleared { arguments, .. }) => Arc::clone(arguments),
            _ => Arc::new(Value::Object(self.step(key).with)),
        };
        let intent = self.intent(key, arguments);
        self.through_gate(key, intent, now)
    }

    fn through_gate(&mut self, key: &StepKey, intent: Intent, now: Timestamp) -> Result<(), Refusal> {
        match approval::verdict(&self.state, key, &intent) {
            Verdict::Hold => self.hold(key, intent, Ask::Consent, now),
            Verdict::Forbid(reason) => {
                let (attempt, error) = (self.state.next_attempt(key), Failure::new("forbidden", reason));
                self.decide(Command::Fail { step: key.clone(), attempt, error, jitter: 0.0 }, now)
            }
            Verdict::Allow => {
                let call = Estimate { cost: 0.1, tokens: 10, tool_calls: 1 };
                let again = matches!(self.state.stage(key), Some(Stage::Running { .. }));
                if let Some(raise) = self.state.lacks(call, Estimate::default(), now).filter(|_| !again) {
                    return self.hold(key, intent, Ask::Raise(raise), now);
                }
                let (tool, arguments) = (intent.tool.clone(), Arc::clone(&intent.arguments));
                self.decide(Command::Start { step: key.clone(), intent, reserved: true, budget: None }, now)?;
                let attempt = self.state.next_attempt(key);
                self.launches.push((key.clone(), Flight { attempt, tool, arguments, acted: false }));
                Ok(())
            }
        }
    }

    fn hold(&mut self, key: &StepKey, intent: Intent, ask: Ask, now: Timestamp) -> Result<(), Refusal> {
        self.decide(Command::Hold { step: key.clone(), intent, approval_id: ApprovalId::new(now), ask }, now)
    }

    fn recover(&mut self, key: &StepKey, attempt: u32, now: Timestamp) -> Result<(), Refusal> {
        let Some(Stage::Running { effect, arguments, .. }) = self.state.stage(key) else { return Err(Refusal::Stale) };
        let (effect, intent) = (*effect, self.intent(key, Arc::clone(arguments)));
        if !self.state.is_advancing() {
            let error = Failure::new(Failure::OUTCOME_UNKNOWN, "it may have acted");
            return self.decide(Command::Fail { step: key.clone(), attempt, error, jitter: 0.0 }, now);
        }
        match effect {
            Effect::Once => self.hold(key, intent, Ask::Repeat, now),
            _ => self.through_gate(key, intent, now),
        }
    }
}
