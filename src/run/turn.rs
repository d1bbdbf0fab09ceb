//! A turn: from the claim on a run until it waits or ends. Decide, commit, then act: nothing that reaches
//! outside is called before its intent is journaled, nothing is told before its outcome is.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::TimeDelta;
use futures_util::FutureExt;
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    budget::Want,
    call::{self, Ended},
    perform::Launch,
    scheduler::{self, Move},
    shared::{Life, Shared, Slot},
    store,
    waker::News,
};
use crate::{
    journal::{
        self, Append, AppendError, Body, Claim, Command, Effect, Estimate, Event, Loaded, Lock, ModelPins, Raise,
        Refusal, Report, RunHead, RunState, Shown, Stage, StepKey,
    },
    kernel::{Result, RunId, TenantId, Timestamp},
    tool::{self, Call, Registry, Told},
};

/// A run that has nothing to do for this long is let go; below it, keeping the state is cheaper.
const PATIENCE: TimeDelta = TimeDelta::seconds(2);
/// Events decided before they are committed; more wait for the next append.
const EVENTS: usize = 256;
/// Past so many decided events no step goes on before they are committed: whoever watches hears of a chain as it goes.
const AT_FIRST: usize = 32;
/// An append of more bytes than this is waited for, so that those of a run with large outputs do not grow.
const AHEAD: usize = 256 * 1024;
const LITTLE: usize = AHEAD / AT_FIRST;
/// Reports of progress that may wait for the journal.
const REPORTS: usize = 64;

/// One run in the hands of a worker.
pub(super) struct Turn {
    pub(super) shared: Arc<Shared>,
    life: Life,
    pub(super) head: RunHead,
    pub(super) state: RunState,
    /// The server's tools, and the tenant's where the plan uses any.
    pub(super) tools: Registry,
    pub(super) stocked: bool,
    /// What the run's head shows since the last append.
    shown: Shown,
    pub(super) news: Arc<News>,
    pub(super) calls: JoinSet<Ended>,
    /// The calls that are out, or about to be, and how to call them off.
    pub(super) in_flight: HashMap<StepKey, CancellationToken>,
    pub(super) reports: (mpsc::Sender<Told>, mpsc::Receiver<Told>),
    /// What was heard and is not journaled yet: decided again when the journal refuses.
    pub(super) heard: Vec<Command>,
    /// What models have said of which the call has not ended yet.
    pub(super) last_words: Vec<(StepKey, u32, Report)>,
    /// Calls that will take more than they were expected to, and wait for a word.
    pub(super) wants: Vec<Want>,
    /// What the budget lacked for calls that had to stop.
    pub(super) short: HashMap<StepKey, Raise>,
    /// What was decided and is not journaled yet.
    events: Vec<Event>,
    /// When that was, if it was while the journal took in what came before.
    ahead_at: Option<Timestamp>,
    /// What is to be called once its intent is journaled.
    pub(super) launches: Vec<Launch>,
    /// The state holds what the journal may not have taken: it has to be read again before it is used.
    pub(super) unsure: bool,
    /// A child may have ended.
    pub(super) look: bool,
    /// What was due by then has been tried.
    pub(super) passed_at: Timestamp,
    /// The right to carry out a step, waited for and not used yet.
    pub(super) slot: Option<Slot>,
    /// A step is ready and there is no slot for it.
    pub(super) starved: bool,
    /// Calls have been made whose outcomes this very pass decides on.
    pub(super) acted: bool,
    /// A step is ready and begins after those outcomes, or a child is to be cancelled once they are journaled.
    pub(super) deferred: bool,
    pub(super) told_children: HashSet<RunId>,
    /// When something is tried again that no event will announce.
    pub(super) again_at: Option<Timestamp>,
    /// What the calls that began in this turn were expected to take, where a budget asked.
    pub(super) estimates: HashMap<StepKey, Estimate>,
    /// The evaluated lists of `forEach` steps.
    pub(super) lists: HashMap<String, Arc<Vec<Value>>>,
}

/// Whether the turn goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Wait,
    Again,
    Over,
}

impl Turn {
    pub(super) fn new(shared: Arc<Shared>, life: Life, run: Loaded, news: Arc<News>) -> Self {
        Self {
            life,
            shown: Shown::of(&run.state),
            tools: shared.tools.server().clone(),
            stocked: false,
            shared,
            head: run.head,
            state: run.state,
            news,
            calls: JoinSet::new(),
            in_flight: HashMap::new(),
            reports: mpsc::channel(REPORTS),
            heard: Vec::new(),
            last_words: Vec::new(),
            wants: Vec::new(),
            short: HashMap::new(),
            events: Vec::new(),
            ahead_at: None,
            launches: Vec::new(),
            unsure: false,
            look: true,
            passed_at: Timestamp::MIN_UTC,
            slot: None,
            starved: false,
            acted: false,
            deferred: false,
            told_children: HashSet::new(),
            again_at: None,
            estimates: HashMap::new(),
            lists: HashMap::new(),
        }
    }

    /// Whose turn it is.
    pub(super) fn run_key(&self) -> (TenantId, RunId) {
        (self.state.tenant_id, self.state.run_id)
    }

    /// Carries the run as far as it goes now.
    pub(super) async fn run(mut self) {
        let (shared, news, run_id) = (Arc::clone(&self.shared), Arc::clone(&self.news), self.state.run_id);
        let lost = self.life.lost.clone();
        let turn = async {
            let (mut next, mut failures) = (Next::Again, 0);
            while next != Next::Over {
                if next == Next::Wait {
                    self.wait().await;
                }
                next = match self.pass().await {
                    Ok(next) => {
                        failures = 0;
                        next
                    }
                    Err(error) => {
                        failures += 1;
                        // What was decided by then was decided for another moment.
                        self.unsure = true;
                        tracing::warn!(?error, run = %run_id, "a turn could not be recorded; trying again");
                        tokio::time::sleep(Duration::from_millis(50) * 2_u32.pow(failures.min(5))).await;
                        Next::Again
                    }
                };
            }
        };
        tokio::select! {
            () = turn => {}
            () = lost.cancelled() => {}
        }
        shared.waker.end(run_id, &news);
    }

    /// Decides everything that can be decided now, commits it, and then makes the calls.
    async fn pass(&mut self) -> Result<Next> {
        if self.news.take(self.state.seq) || self.unsure {
            // The news is taken: should the load fail, nothing else would ask for it again.
            self.unsure = true;
            if self.reload().await? == Next::Over {
                return Ok(Next::Over);
            }
            self.look = true;
        }
        let now = self.ahead_at.take().unwrap_or_else(|| self.shared.clock.now());
        self.passed_at = now;
        self.stock().await?;
        self.hear_reports();
        self.grant(now).await?;
        self.pin_drafts(now).await?;
        for command in self.heard.clone() {
            self.decide_heard(command, now);
        }
        if self.look {
            for command in self.hear_children().await? {
                self.decide_heard(command, now);
            }
        }
        let stopping = self.shared.stop.is_cancelled();
        if !stopping {
            self.advance(now).await;
            self.go_on(now).await;
        }
        self.tell_calls();
        let resting = self.in_flight.is_empty() && (stopping || !(self.starved || self.deferred));
        let wake_at = self.wake_at();
        let more = self.events.len() >= EVENTS;
        let claim = if resting && !more && (stopping || wake_at.is_none_or(|at| at - now > PATIENCE)) {
            let due_at = if stopping { Some(now) } else { wake_at };
            Claim::Release { worker: self.life.worker, due_at }
        } else {
            Claim::Keep
        };
        self.commit(claim, now, more).await
    }

    /// Journals what was decided; only then is anything called.
    async fn commit(&mut self, claim: Claim, now: Timestamp, more: bool) -> Result<Next> {
        if self.events.is_empty() {
            // What was heard is no news any more.
            self.heard.clear();
            if claim == Claim::Keep {
                // What was not announced can be asked for again: a draft of a plan.
                self.go(self.launches.len(), now).await;
                return Ok(if self.heard.is_empty() { Next::Wait } else { Next::Again });
            }
        }
        let events = std::mem::take(&mut self.events);
        self.news.stand_at(self.state.seq);
        self.unsure = true;
        let append = Append::new(&self.state, events, self.head.parent.as_ref(), claim, now)?.after(&self.shown);
        let shown = Shown::of(&self.state);
        let (over, intended) = (self.state.status().is_terminal() || claim != Claim::Keep, self.launches.len());
        match self.append(append).await {
            Ok(()) => (self.unsure, self.shown) = (false, shown),
            Err(AppendError::Conflict) => return Ok(Next::Again),
            Err(AppendError::Failed(error)) => return Err(error),
        }
        self.heard.clear();
        if over {
            return Ok(Next::Over);
        }
        self.go(intended, now).await;
        let more = more || self.deferred || !self.events.is_empty() || !self.heard.is_empty();
        Ok(if more { Next::Again } else { Next::Wait })
    }

    /// Makes the first calls of those that are prepared.
    async fn go(&mut self, intended: usize, now: Timestamp) {
        if intended > 0 {
            // A process that was frozen, or lost its lock, may hold the run no more. Then its life ends here.
            self.life.safe(&self.shared.clock).await;
        }
        for launch in self.launches.drain(..intended).collect::<Vec<_>>() {
            self.launch(launch, now);
        }
    }

    /// Lets steps that touch nothing go on, each with what the one before gave: nobody hears of them, and nothing acts
    /// on them, until they are journaled together; should the journal refuse, they are carried out again.
    async fn go_on(&mut self, now: Timestamp) {
        let mut known = 0;
        while self.deferred && self.events.len() < AT_FIRST && self.events.iter().skip(known).all(is_little) {
            known = self.events.len();
            self.unsure = true;
            if !self.advance(now).await {
                break;
            }
        }
    }

    /// Waits for the journal to take it in. Steps that touch nothing go on meanwhile, and share the append after it.
    async fn append(&mut self, append: Append) -> Result<(), AppendError> {
        let (journal, is_light) = (self.shared.journal.clone(), append.bytes() <= AHEAD);
        let mut appending = std::pin::pin!(journal.append(append));
        while is_light && self.deferred && self.events.len() < EVENTS && !self.shared.stop.is_cancelled() {
            if let Some(appended) = appending.as_mut().now_or_never() {
                return appended;
            }
            // The journal first: it has something to wait for.
            tokio::task::yield_now().await;
            let now = *self.ahead_at.get_or_insert_with(|| self.shared.clock.now());
            if !self.advance(now).await {
                break;
            }
        }
        appending.await
    }

    /// Decides all that can be decided, and makes the calls that touch nothing; whether anything came of it.
    async fn advance(&mut self, now: Timestamp) -> bool {
        let before = self.state.seq;
        self.acted = false;
        self.make_moves(now).await;
        if self.call_at_once(now) {
            self.make_moves(now).await;
        }
        self.state.seq > before
    }

    /// Forgets what the journal did not take and reads what is true; what was heard is decided anew.
    async fn reload(&mut self) -> Result<Next> {
        let (tenant, run) = (self.state.tenant_id, self.state.run_id);
        for launch in std::mem::take(&mut self.launches) {
            self.in_flight.remove(&launch.step);
        }
        self.events.clear();
        self.ahead_at = None;
        let mut tx = self.shared.db.tenant(tenant).await?;
        if !store::holds(&mut tx, self.life.worker, tenant, run).await? {
            return Ok(Next::Over);
        }
        let loaded = journal::load(&mut tx, &[(tenant, run)], Lock::Free).await?;
        match loaded.into_iter().next() {
            Some(loaded) => {
                self.shown = Shown::of(&loaded.state);
                self.state = loaded.state;
                self.unsure = false;
                self.news.stand_at(self.state.seq);
                Ok(Next::Again)
            }
            None => Ok(Next::Over),
        }
    }

    /// Takes in what a command makes of the state.
    pub(super) fn decide(&mut self, command: Command, now: Timestamp) -> Result<(), Refusal> {
        let events = journal::decide(&self.state, command, now)?;
        for event in &events {
            self.state.apply(now, event);
        }
        self.events.extend(events);
        Ok(())
    }

    fn decide_heard(&mut self, command: Command, now: Timestamp) {
        if let Err(refusal) = self.decide(command, now) {
            tracing::debug!(?refusal, run = %self.state.run_id, "news that is no news any more");
        }
    }

    async fn make_moves(&mut self, now: Timestamp) {
        let mut futile: HashSet<Move> = HashSet::new();
        (self.starved, self.deferred, self.again_at) = (false, false, None);
        while self.events.len() < EVENTS {
            let mut moves = scheduler::moves(&self.state, |key| self.in_flight.contains_key(key), now);
            moves.retain(|one| !futile.contains(one));
            if moves.is_empty() {
                break;
            }
            for one in moves {
                let before = self.state.seq;
                self.perform(&one, now).await;
                if self.state.seq == before {
                    futile.insert(one);
                }
            }
        }
        // A slot nobody took goes to somebody else.
        self.slot = None;
    }

    /// Makes the calls that touch nothing, so that intent and outcome share an append; whether there were any. Steps
    /// that need theirs are put off: the append comes first.
    fn call_at_once(&mut self, now: Timestamp) -> bool {
        let known = self.heard.len();
        let (at_once, launches): (Vec<_>, _) =
            std::mem::take(&mut self.launches).into_iter().partition(|launch| launch.at_once);
        self.launches = launches;
        self.acted = !at_once.is_empty();
        for launch in at_once {
            self.launch(launch, now);
        }
        // Not kept to be decided anew: should the journal refuse the intent, the call is made again.
        for command in self.heard.split_off(known) {
            self.decide_heard(command, now);
        }
        self.acted
    }

    /// Notes that a call goes out with the next commit.
    pub(super) fn prepare(&mut self, launch: Launch) {
        self.in_flight.insert(launch.step.clone(), CancellationToken::new());
        self.launches.push(launch);
    }

    fn launch(&mut self, launch: Launch, now: Timestamp) {
        let Some(cancel) = self.in_flight.get(&launch.step) else { return };
        // As it was journaled: a model's arguments do not vouch for what became of its call either.
        let effect = match self.state.stage(&launch.step) {
            Some(Stage::Running { effect, .. }) => *effect,
            // A plan that is drawn up.
            _ => Effect::Repeatable,
        };
        let retry = self.state.step(&launch.step).and_then(|step| step.retry.as_ref());
        let failures = self.state.steps.get(&launch.step).map_or(0, |step| step.failures);
        let is_retried = retry.is_some_and(|retry| failures + 1 < retry.attempts);
        let call = Call {
            tenant_id: self.state.tenant_id,
            run_id: self.state.run_id,
            step: launch.step.clone(),
            attempt: launch.attempt,
            actor: self.head.created_by.clone(),
            arguments: launch.arguments,
            effect,
            handed: launch.handed,
            models: self.models(),
            budget: launch.budget,
            bounded: self.estimates.contains_key(&launch.step),
            is_retried,
            room: self.tools.limits().payload(),
            idempotency_key: format!("{}/{}", self.state.run_id, launch.step),
            now,
            progress: crate::tool::Progress::new(self.reports.0.clone(), launch.step, launch.attempt),
            cancel: cancel.clone(),
            traces: self.shared.traces.clone(),
        };
        let (registry, clock, slot) = (self.tools.clone(), self.shared.clock.clone(), launch.slot);
        let (tool, timeout) = (launch.tool, launch.timeout);
        let mut call = Box::pin(async move {
            let ended = call::make(registry, clock, tool, timeout, call).await;
            drop(slot);
            ended
        });
        // A call that has nothing to wait for takes no task.
        match call.as_mut().now_or_never() {
            Some(ended) => {
                // What touches nothing has nothing to report, and others' reports are not to be forgotten with it.
                if !launch.at_once {
                    self.hear_reports();
                }
                self.hear(ended);
            }
            None => drop(self.calls.spawn(call)),
        }
    }

    /// The versions of models that the run stays with.
    pub(super) fn models(&self) -> Option<Arc<ModelPins>> {
        self.state.plan.as_ref().and_then(|plan| plan.models.clone())
    }

    pub(super) fn wake_at(&self) -> Option<Timestamp> {
        scheduler::wake_at(&self.state).into_iter().chain(self.again_at).min()
    }

    /// Tells the calls in flight that the run is being cancelled.
    fn tell_calls(&self) {
        if self.state.cancelling.is_some() {
            self.in_flight.values().for_each(CancellationToken::cancel);
        }
    }
}

/// Whether the event leaves room for others in a light append.
fn is_little(event: &Event) -> bool {
    match &event.body {
        Body::StepStarted(started) => tool::fits(&started.arguments, LITTLE),
        Body::StepCompleted(completed) => completed.output.as_ref().is_none_or(|output| tool::fits(output, LITTLE)),
        _ => true,
    }
}
