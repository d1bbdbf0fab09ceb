//! One history: the database, the processes, the people and the outside world.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, SubsecRound, TimeDelta};
use serde_json::{Value, json};

use super::{
    database::Database,
    script::{How, Return, Scene, Script},
    worker::{Flight, Passed, Worker, effect},
};
use crate::{
    approval,
    journal::{
        self, Ask, Budget, Cap, Command, Draft, Effect, Failure, Form, Intent, MessageCompleted, OnDenied, Plan,
        Question, Raise, Refusal, Ruling, RunState, SkipReason, Stage, Status, StepKey, ToolProgress, Wait,
    },
    kernel::{Actor, ApprovalId, Id, RunId, Timestamp},
    run::scheduler,
};

/// Everything there is.
#[derive(Debug)]
pub(super) struct History {
    pub(super) db: Database,
    workers: Vec<Worker>,
    /// Acts by idempotency key, which is the step's.
    pub(super) acts: BTreeMap<StepKey, usize>,
    /// Child runs: whether they ended, and how.
    children: BTreeMap<RunId, Option<bool>>,
    pub(super) now: Timestamp,
    version: u32,
    cancelled: bool,
}

pub(super) fn person(number: u8) -> Actor {
    format!("user_{number}").parse().unwrap()
}

/// What a model says, at a cost.
fn said() -> MessageCompleted {
    MessageCompleted {
        reply: 1,
        text: None,
        text_bytes: 3,
        config: "c@1".to_owned(),
        provider: "p".to_owned(),
        model: "m".to_owned(),
        input_tokens: 7,
        cached_tokens: 0,
        output_tokens: 3,
        cost: 0.05,
    }
}

impl History {
    pub(super) fn begin(script: &Script) -> Self {
        Self::with(script.plan.clone(), script.on_denied, script.budget)
    }

    pub(super) fn of(plan: Plan) -> Self {
        Self::with(plan, OnDenied::Fail, Budget::default())
    }

    fn with(plan: Plan, on_denied: OnDenied, budget: Budget) -> Self {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let blank = RunState::new(Id::new(now), Id::new(now), person(0), on_denied);
        let mut this = Self::taken_up(Database::new(blank), now);
        this.command(Command::Open { goal: None, workflow: None, parent: None, planner: None, budget }).unwrap();
        this.command(Command::Draft(Draft::Ready { plan: Arc::new(plan), forecast: vec![] })).unwrap();
        this.command(Command::Execute { by: person(0) }).unwrap();
        this
    }

    /// A run that is there, and that nobody works on.
    pub(super) fn taken_up(db: Database, now: Timestamp) -> Self {
        let (acts, children) = Default::default();
        Self { db, workers: vec![], acts, children, now, version: 1, cancelled: false }
    }

    fn command(&mut self, command: Command) -> Result<(), Refusal> {
        self.db.command(command, self.now)
    }

    pub(super) fn expand(&mut self, step: &str, items: u32) {
        self.command(Command::Expand { step: StepKey::whole(step), items }).unwrap();
    }

    pub(super) fn play(&mut self, scene: &Scene) {
        match *scene {
            Scene::Pass { worker, how } => {
                self.claim();
                if let Some(at) = pick(worker, self.workers.len()) {
                    self.pass(at, how);
                }
            }
            Scene::Act { call } => self.with_call(call, |history, worker, key| history.act(worker, &key)),
            Scene::Return { call, how } => {
                self.with_call(call, |history, worker, key| history.come_back(worker, &key, how));
            }
            Scene::Report { call } => self.with_call(call, |history, worker, key| {
                let attempt = history.workers[worker].in_flight[&key].attempt;
                let report = if attempt % 2 == 0 { said().into() } else { ToolProgress::default().into() };
                history.workers[worker].heard.push(Command::Report { step: key, attempt, report });
            }),
            Scene::Crash => self.crash(),
            Scene::TakeOver if !self.workers.is_empty() && !self.db.head.status().is_terminal() => {
                self.take_over();
            }
            Scene::TakeOver => {}
            Scene::Advance { seconds } => self.now += TimeDelta::seconds(i64::from(seconds)),
            Scene::Decide { hold, by, approve, instead } => self.decide(hold, by, approve, instead),
            Scene::Expire { hold } => self.expire(hold),
            Scene::Cancel => self.cancel(),
            Scene::Retry => self.retry(),
            Scene::EndChild { child, completed } => {
                if let Some(at) = pick(child, self.children.len()) {
                    self.children.values_mut().nth(at).unwrap().get_or_insert(completed);
                    self.nudge();
                }
            }
            Scene::Nonsense { command, step, item, attempt } => self.talk_nonsense(command, step, item, attempt),
            Scene::Upgrade => self.version += 1,
        }
    }

    /// A parent hears of its child's end: it is due.
    fn nudge(&mut self) {
        if !self.db.head.status().is_terminal() {
            self.db.due = Some(self.now);
        }
    }

    fn crash(&mut self) {
        if !self.workers.is_empty() {
            self.workers.clear();
            self.nudge();
        }
    }

    fn take_over(&mut self) {
        self.db.epoch += 1;
        self.db.due = None;
        self.workers.truncate(1);
        self.workers.push(Worker::claim(&self.db, self.version));
    }

    /// A worker claims the run if it is due and nobody has it.
    fn claim(&mut self) -> bool {
        let held = self.workers.iter().any(|worker| worker.epoch == self.db.epoch);
        let due = self.db.due.is_some_and(|due| due <= self.now) && !self.db.head.status().is_terminal();
        if !held && due {
            self.take_over();
        }
        !held && due
    }

    fn pass(&mut self, at: usize, how: How) {
        let worker = &mut self.workers[at];
        let passed = worker.pass(&mut self.db, &mut self.children, self.now, how);
        if passed != Passed::Kept {
            let gone = self.workers.remove(at);
            if passed == Passed::Dead && gone.epoch == self.db.epoch {
                self.nudge();
            }
        }
        self.weigh();
    }

    /// The status says that nothing can proceed exactly when nothing can.
    fn weigh(&self) {
        let state = &self.db.head;
        let moves = scheduler::moves(state, |_| false, self.now + TimeDelta::days(100_000));
        let idle = moves.iter().all(|one| matches!(one, scheduler::Move::Expire(_)));
        let waits_for_child = state
            .steps
            .values()
            .any(|step| matches!(step.stage, journal::Stage::Waiting { wait: Wait::Child { .. }, .. }));
        match state.status() {
            Status::AwaitingApproval => assert!(idle && !waits_for_child, "{moves:?} is possible"),
            Status::Executing => assert!(!idle || waits_for_child, "it executes, and nothing is possible"),
            _ => {}
        }
    }

    fn with_call(&mut self, call: u8, then: impl FnOnce(&mut Self, usize, StepKey)) {
        let flying =
            |(at, worker): (usize, &Worker)| worker.in_flight.keys().map(move |key| (at, key.clone())).collect();
        let calls: Vec<(usize, StepKey)> = self.workers.iter().enumerate().flat_map::<Vec<_>, _>(flying).collect();
        if let Some(at) = pick(call, calls.len()) {
            let (worker, key) = calls[at].clone();
            then(self, worker, key);
        }
    }

    /// A call reaches the outside world.
    fn act(&mut self, worker: usize, key: &StepKey) {
        let flight = self.workers[worker].in_flight.get_mut(key).unwrap();
        if flight.acted {
            return;
        }
        flight.acted = true;
        self.db.auditor.may_call(key, flight.attempt, &flight.arguments);
        let acts = self.acts.entry(key.clone()).or_default();
        *acts += 1;
        if effect(&flight.tool) == Effect::Once {
            let allowed = 1 + self.db.auditor.words(key);
            assert!(*acts <= allowed, "{key} acts {acts} times, {allowed} were allowed");
        }
    }

    fn come_back(&mut self, worker: usize, key: &StepKey, how: Return) {
        let acted = self.workers[worker].in_flight[key].acted;
        // What has happened cannot be denied any more.
        let how = if acted && matches!(how, Return::Failed { .. } | Return::Asks) { Return::Unknown } else { how };
        if how == Return::Done {
            self.act(worker, key);
        }
        let Flight { attempt, tool, .. } = self.workers[worker].in_flight.remove(key).unwrap();
        let step = key.clone();
        let failed = |code: &str, retryable| Failure { retryable, ..Failure::new(code, "it failed") };
        let heard = match (how, tool.as_str()) {
            (Return::Done, "wait") => {
                let until = self.now + TimeDelta::microseconds(90_000_000_001);
                Command::Wait { step, attempt, wait: Wait::Until { until } }
            }
            (Return::Done, "child") => {
                let child_run_id = crate::tool::child_run_id(self.db.head.tenant_id, self.db.head.run_id, key, attempt);
                self.children.entry(child_run_id).or_default();
                Command::Wait { step, attempt, wait: Wait::Child { child_run_id } }
            }
            (Return::Done, _) => {
                let output = Arc::new(json!({ "number": 0.1 + f64::from(attempt), "text": "\u{2028}" }));
                Command::Complete { step, attempt, output, cost: Some(0.1) }
            }
            (Return::Failed { retryable }, _) => {
                Command::Fail { step, attempt, error: failed("failed", retryable), jitter: 0.123_456_789 }
            }
            (Return::Asks, _) => asks(&self.workers[worker].state, step, attempt, self.now),
            (Return::Unknown, tool) if effect(tool) == Effect::Once => return,
            (Return::Unknown, _) => Command::Fail { step, attempt, error: failed("timeout", true), jitter: 1.0 },
        };
        self.workers[worker].heard.push(heard);
    }

    fn decide(&mut self, hold: u8, by: u8, approve: bool, instead: bool) {
        let Some((approval_id, hold)) = self.hold(hold) else { return };
        let by = person(by);
        let instead = (instead && approve && hold.asked.question == Question::Consent).then(|| {
            let arguments = json!({ "number": 1e300, "instead": true });
            let tool = (hold.asked.action.as_str(), hold.asked.tool_version.as_str());
            let digest = approval::digest(&self.db.head, &hold.step, hold.attempt, tool, &arguments).unwrap();
            (Arc::new(arguments), digest)
        });
        let input = fill(&hold, approve);
        let late = hold.asked.expires_at.is_some_and(|at| at <= self.now);
        let wanted = instead.as_ref().map_or(&hold.asked.digest, |(_, digest)| digest).clone();
        let (own, ruling) = (by == person(0) && !hold.asked.self_approval, hold.ruling.clone());
        let reason = Some("because".to_owned());
        let (known_as, who) = (vec![], by.clone());
        let answer = self.command(Command::Decide { approval_id, approve, by: who, known_as, reason, instead, input });
        match (own, ruling) {
            (true, _) => assert_eq!(answer, Err(Refusal::OwnRun)),
            (_, None) if late => assert_eq!(answer, Err(Refusal::Ruled(Ruling::Expired))),
            (_, None) => assert_eq!(answer, Ok(())),
            (_, Some(Ruling::Approved { digest, .. })) if approve && digest == wanted => {
                assert_eq!(answer, Err(Refusal::AlreadySo));
            }
            (_, Some(Ruling::Denied { .. })) if !approve => assert_eq!(answer, Err(Refusal::AlreadySo)),
            (_, Some(ruling)) => assert_eq!(answer, Err(Refusal::Ruled(ruling))),
        }
    }

    fn hold(&self, number: u8) -> Option<(ApprovalId, journal::Hold)> {
        let at = pick(number, self.db.head.holds.len())?;
        self.db.head.holds.iter().nth(at).map(|(id, hold)| (*id, hold.clone()))
    }

    fn expire(&mut self, hold: u8) {
        let Some((approval_id, hold)) = self.hold(hold) else { return };
        let answer = self.command(Command::Expire { approval_id });
        match (hold.ruling, hold.asked.expires_at) {
            (Some(ruling), _) => assert_eq!(answer, Err(Refusal::Ruled(ruling))),
            (None, Some(at)) if at <= self.now => assert_eq!(answer, Ok(())),
            (None, _) => assert_eq!(answer, Err(Refusal::TooEarly)),
        }
    }

    fn cancel(&mut self) {
        let (before, cancelling) = (self.db.head.status(), self.db.head.cancelling.is_some());
        let answer = self.command(Command::Cancel { by: person(1), reason: None });
        match before {
            Status::Cancelled => assert_eq!(answer, Err(Refusal::AlreadySo)),
            Status::Completed | Status::Failed => assert_eq!(answer, Err(Refusal::Status(before))),
            _ if cancelling => assert_eq!(answer, Err(Refusal::AlreadySo)),
            _ => assert_eq!(answer, Ok(())),
        }
        self.cancelled |= answer.is_ok();
    }

    fn retry(&mut self) {
        let before = self.db.head.status();
        let answer = self.command(Command::Retry { by: person(2) });
        assert_eq!(answer.is_ok(), before == Status::Failed, "{answer:?} from {before:?}");
    }

    /// Commands that nobody sends, at moments when nobody would: refused, or as good as any.
    fn talk_nonsense(&mut self, command: u8, step: u8, item: Option<u8>, attempt: u8) {
        let key = StepKey { id: format!("s{}", step % 7), item: item.map(u32::from) };
        let (step, attempt, now) = (key.clone(), u32::from(attempt), self.now);
        let arguments = Arc::new(Value::Null);
        let intent = Intent {
            tool: "once".to_owned(),
            tool_version: "0".to_owned(),
            effect: Effect::Once,
            digest: {
                let attempt = self.db.head.next_attempt(&key);
                approval::digest(&self.db.head, &key, attempt, ("once", "0"), &arguments).unwrap()
            },
            arguments,
        };
        let error = Failure::new("nonsense", "nonsense");
        let output = Arc::new(Value::Null);
        let command = match command % 18 {
            0 => Command::Open { goal: None, workflow: None, parent: None, planner: None, budget: Budget::default() },
            1 => Command::Draft(Draft::Ready { plan: Arc::new(Plan::default()), forecast: vec![] }),
            2 => Command::Execute { by: person(3) },
            3 => Command::Expand { step, items: 2 },
            4 => Command::Gather { step },
            5 => Command::Start { step, intent, reserved: false, budget: None },
            6 => Command::Hold { step, intent, approval_id: ApprovalId::new(now), ask: Ask::Consent },
            7 => Command::Hold { step, intent, approval_id: ApprovalId::new(now), ask: Ask::Repeat },
            13 => Command::Hold {
                step,
                intent,
                approval_id: ApprovalId::new(now),
                ask: Ask::Raise(Raise { cap: Cap::Cost, by: 0.5, day: None }),
            },
            17 => asks(&self.db.head, step, attempt, now),
            8 => Command::Wait { step, attempt, wait: Wait::Until { until: now } },
            9 => Command::Complete { step, attempt, output, cost: None },
            10 => Command::Fail { step, attempt, error, jitter: f64::NAN },
            11 => Command::Skip { step, reason: SkipReason::Condition },
            15 => Command::Draft(Draft::Failed(error)),
            16 => Command::Draft(Draft::Edited { plan: Arc::new(Plan::default()), forecast: vec![], by: person(1) }),
            12 => Command::Finish { output: Err(error) },
            _ => Command::Decide {
                approval_id: ApprovalId::new(now),
                approve: true,
                by: person(3),
                known_as: vec![],
                reason: None,
                instead: None,
                input: None,
            },
        };
        // Where it is not refused, the auditor judges what comes of it, on a copy of the world.
        let mut copy = self.db.fold();
        if let Ok(events) = journal::decide(&copy, command, now) {
            let mut auditor = self.db.auditor.clone();
            for event in &events {
                auditor.hear(&copy, event);
                copy.apply(now.trunc_subsecs(3), event);
            }
            auditor.weigh(&copy);
        }
    }

    /// Nothing new happens any more: the run ends, or waits for people; and once they have spoken, it ends.
    pub(super) fn play_out(&mut self) {
        for round in 0.. {
            assert!(round < 100, "people are asked for ever");
            self.settle();
            let status = self.db.head.status();
            if status.is_terminal() {
                break;
            }
            assert_eq!(status, Status::AwaitingApproval, "it stands still");
            assert!(!self.cancelled, "it was cancelled and did not end");
            let open: Vec<_> = self.db.head.open_holds().map(|(id, hold)| (id, hold.clone())).collect();
            for (number, (approval_id, hold)) in open.into_iter().enumerate() {
                let approve = (round + number) % 3 != 0;
                let (by, known_as, input) = (person(3), vec![], fill(&hold, approve));
                let answer = Command::Decide { approval_id, approve, by, known_as, reason: None, instead: None, input };
                self.command(answer).unwrap();
            }
        }
        assert!(!self.cancelled || self.db.head.status() == Status::Cancelled);
        assert_eq!(self.db.fold(), self.db.head);
    }

    /// Plays until nothing moves by itself: calls come back, children end, time passes.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.claim();
            // Whoever has lost the run finds out first.
            for at in (0..self.workers.len()).rev() {
                while let Some(key) = self.workers[at].in_flight.keys().next().cloned() {
                    self.come_back(at, &key, Return::Done);
                }
                self.pass(at, How::default());
            }
            if !self.workers.is_empty() {
                continue;
            }
            let unended = self.children.values_mut().find(|ended| ended.is_none());
            if let Some(ended) = unended {
                *ended = Some(true);
                self.nudge();
                continue;
            }
            match self.db.due {
                _ if self.db.head.status().is_terminal() => return,
                // Questions with a deadline are answered before it.
                _ if self.db.head.status() == Status::AwaitingApproval && !self.overdue() => return,
                Some(due) => self.now = self.now.max(due),
                None => return,
            }
        }
        panic!("it never comes to rest: {:#?}", self.db.head);
    }

    /// The run waits for a worker to take note of something.
    fn overdue(&self) -> bool {
        self.db.due.is_some_and(|due| due <= self.now)
    }
}

/// A call comes back for something.
fn asks(state: &RunState, step: StepKey, attempt: u32, now: Timestamp) -> Command {
    let (version, arguments) = match state.stage(&step) {
        Some(Stage::Running { tool_version, arguments, .. }) => (tool_version.as_str(), Arc::clone(arguments)),
        _ => ("0", Arc::default()),
    };
    let tool = state.step(&step).map_or("once", |step| step.uses.as_str());
    let digest = approval::digest(state, &step, attempt, (tool, version), &arguments).unwrap();
    let form =
        Form { message: "Which?".to_owned(), schema: Arc::new(json!({})), resume: Some(Arc::new(json!("here"))) };
    Command::Ask { step, attempt, approval_id: ApprovalId::new(now), digest, form }
}

/// What is filled in, where a form is approved.
fn fill(hold: &journal::Hold, approve: bool) -> Option<Arc<Value>> {
    (approve && hold.asked.question == Question::Input).then(|| Arc::new(json!({ "which": 1.5 })))
}

fn pick(number: u8, of: usize) -> Option<usize> {
    (of > 0).then(|| usize::from(number) % of)
}
