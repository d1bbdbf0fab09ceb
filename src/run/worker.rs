//! A process's share of the work: it enters itself, claims runs that are due, gives each a turn, and gives
//! up its claims when it stops or is given up for dead.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use chrono::TimeDelta;
use futures_util::FutureExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    child::Children,
    desk::Desk,
    shared::{Life, Shared, Slots},
    store,
    turn::Turn,
    waker::Waker,
};
use crate::{
    config::WorkerSettings,
    db::{Database, SessionLock},
    journal::{self, Follower, Journal, Lock},
    kernel::{Clock, Error, Problem, Result, RunId, TenantId, Timestamp},
    telemetry::Traces,
    tool::Toolbox,
    usage::Days,
};

/// Everything a worker needs.
#[derive(Debug)]
pub struct WorkerParts {
    /// The database.
    pub db: Database,
    /// Where outcomes go.
    pub journal: Journal,
    /// The tools.
    pub tools: Toolbox,
    /// How child runs are looked after.
    pub children: Children,
    /// The budgets of tenants' days.
    pub days: Days,
    /// Time.
    pub clock: Clock,
    /// Where spans go.
    pub traces: Traces,
    /// Who brings the news.
    pub waker: Arc<Waker>,
    /// Where commands hand it their runs.
    pub desk: Arc<Desk>,
    /// How much at once.
    pub settings: WorkerSettings,
    /// The most items a `forEach` may have.
    pub items: usize,
    /// Fires when the process is asked to stop: no new claims, no new steps.
    pub stop: CancellationToken,
    /// Fires when steps in flight have had their grace.
    pub abandon: CancellationToken,
}

/// Finds work and has it done.
pub struct Worker {
    shared: Arc<Shared>,
    lock: SessionLockOptions,
}

/// How the worker reaches the server for the lock that proves it alive.
pub type SessionLockOptions = sqlx::postgres::PgConnectOptions;

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker that has not begun.
    #[must_use]
    pub fn new(parts: WorkerParts, lock: SessionLockOptions) -> Self {
        let slots = Slots::new(&parts.settings);
        let WorkerParts {
            db,
            journal,
            tools,
            children,
            days,
            clock,
            traces,
            waker,
            desk,
            settings,
            items,
            stop,
            abandon,
        } = parts;
        let shared = Shared {
            db,
            journal,
            tools,
            children,
            days,
            clock,
            traces,
            waker,
            desk,
            items,
            settings,
            stop,
            abandon,
            slots,
        };
        Self { shared: Arc::new(shared), lock }
    }

    /// Works until it is told to stop and every turn has ended.
    pub async fn run(self) {
        while !self.shared.stop.is_cancelled() {
            if let Err(error) = self.live().await {
                tracing::warn!(?error, "the worker lost its footing and starts over");
            }
            tokio::select! {
                () = self.shared.stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    /// One life: from entering the table of workers to leaving it, or to being given up for dead.
    async fn live(&self) -> Result<()> {
        let shared = &self.shared;
        let now = shared.clock.now();
        let life = Life::new(now, now + self.lease());
        let taken = SessionLock::take(self.lock.clone(), life.lock_key).await?;
        let mut lock = taken.ok_or_else(|| Error::unavailable("another session holds this worker's lock"))?;
        store::beat(&shared.db, life.worker, life.lock_key, now + self.lease(), true).await?;
        tracing::info!(worker = %life.worker, "working");
        let turns = TaskTracker::new();
        shared.desk.open(shared, &life, &turns);
        let outcome = tokio::select! {
            outcome = self.keep_alive(&life) => outcome,
            outcome = self.keep_lock(&life, &mut lock) => outcome,
            outcome = self.claim_and_turn(&life, &turns) => outcome,
        };
        shared.desk.close();
        let stopping = shared.stop.is_cancelled() && outcome.is_ok();
        if !stopping {
            life.lost.cancel();
        }
        turns.close();
        let ended = async {
            tokio::select! {
                () = turns.wait() => true,
                _ = self.keep_alive(&life), if stopping => false,
                _ = self.keep_lock(&life, &mut lock), if stopping => false,
            }
        };
        if !ended.await {
            life.lost.cancel();
        }
        if stopping {
            store::leave(&shared.db, life.worker).await?;
        }
        lock.release().await;
        outcome
    }

    fn lease(&self) -> TimeDelta {
        TimeDelta::from_std(self.shared.settings.lease.0).unwrap_or(TimeDelta::seconds(15))
    }

    /// Says at a third of the lease that it lives; returns when it is not believed any more.
    async fn keep_alive(&self, life: &Life) -> Result<()> {
        loop {
            // By either clock: one that was set forward may have ended the lease.
            tokio::select! {
                () = self.shared.clock.sleep_until(self.shared.clock.now() + self.lease() / 3) => {}
                () = tokio::time::sleep(self.shared.settings.lease.0 / 3) => {}
            }
            match self.beat(life).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if !life.is_believed(self.shared.clock.now()) => return Err(error),
                Err(error) => tracing::warn!(?error, "no sign of life could be given"),
            }
        }
    }

    /// Holds the lock. One that went with its connection is taken again while there is time; returns when others
    /// were quicker, or the time is up.
    async fn keep_lock(&self, life: &Life, lock: &mut SessionLock) -> Result<()> {
        loop {
            let lost = lock.lost();
            lost.cancelled().await;
            life.locked(false);
            tracing::warn!(worker = %life.worker, "the worker's lock was lost with its connection");
            *lock = loop {
                match self.take_again(life).await {
                    Ok(Some(taken)) => break taken,
                    Ok(None) => return Ok(()),
                    Err(error) if !life.is_believed(self.shared.clock.now()) => return Err(error),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            };
            life.locked(true);
            // Each turn looks whether its run is still its own before it goes on.
            self.shared.waker.resync();
        }
    }

    /// The lock once more; none when this worker was given up for dead meanwhile. Whoever frees a worker's runs
    /// makes an end of it in the same transaction, so a sign of life that is taken, under the lock, means that
    /// every run is where it was.
    async fn take_again(&self, life: &Life) -> Result<Option<SessionLock>> {
        let taken = SessionLock::take(self.lock.clone(), life.lock_key).await?;
        let lock = taken.ok_or_else(|| Error::unavailable("the former session still holds the lock"))?;
        Ok(self.beat(life).await?.then_some(lock))
    }

    /// One sign of life; false when it had been given up for dead meanwhile.
    async fn beat(&self, life: &Life) -> Result<bool> {
        let until = self.shared.clock.now() + self.lease();
        let believed = store::beat(&self.shared.db, life.worker, life.lock_key, until, false).await?;
        if believed {
            life.believe(until);
        }
        Ok(believed)
    }

    /// Claims what is due whenever there may be something, until told to stop.
    async fn claim_and_turn(&self, life: &Life, turns: &TaskTracker) -> Result<()> {
        let shared = &self.shared;
        let mut failures = 0_u32;
        let mut swept_at = None;
        loop {
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return Ok(()),
                // Or it might find itself among the dead, after a leap of the clock or of the database.
                () = life.safe(&shared.clock) => {}
            }
            let now = shared.clock.now();
            // Once a poll, and not on every wake-up, the dead are looked for.
            let sweep = swept_at.is_none_or(|at| now - at >= self.poll());
            if sweep {
                swept_at = Some(now);
            }
            let next = match self.claim(life, turns, sweep).await {
                Ok(next) => {
                    failures = 0;
                    next
                }
                Err(error) if failures < 10 => {
                    failures += 1;
                    tracing::warn!(?error, "no work could be claimed");
                    Some(now + TimeDelta::milliseconds(100 * i64::from(failures)))
                }
                Err(error) => return Err(error),
            };
            // What is due already waits for room, and is woken for it.
            let until = next.filter(|due| *due > now).map_or(now + self.poll(), |due| due.min(now + self.poll()));
            tokio::select! {
                () = shared.waker.work(), if failures == 0 => {}
                () = shared.clock.sleep_until(until) => {}
                () = tokio::time::sleep(shared.settings.poll.0) => {}
                () = shared.stop.cancelled() => {}
            }
        }
    }

    fn poll(&self) -> TimeDelta {
        TimeDelta::from_std(self.shared.settings.poll.0).unwrap_or(TimeDelta::seconds(1))
    }

    /// Claims once and starts the turns; returns when the next unclaimed run is due.
    async fn claim(&self, life: &Life, turns: &TaskTracker, sweep: bool) -> Result<Option<Timestamp>> {
        let shared = &self.shared;
        let now = shared.clock.now();
        if sweep {
            // Nobody comes in by the desk meanwhile, who might be taken for a stray.
            shared.desk.queue(true);
            self.sweep(life, now).await?;
        }
        let ended = shared.waker.turns_ended();
        let next = self.claim_all(life, turns, now).await?;
        // While somebody waits in the table, everybody waits there.
        let waiting = next.is_some_and(|due| due <= now);
        shared.desk.queue(waiting);
        if waiting && shared.waker.turns_ended() > ended {
            // Who made room meanwhile did not know that it is wanted.
            shared.waker.wake();
        }
        Ok(next)
    }

    async fn claim_all(&self, life: &Life, turns: &TaskTracker, now: Timestamp) -> Result<Option<Timestamp>> {
        let shared = &self.shared;
        loop {
            let room = shared.waker.room(shared.settings.runs);
            if room.runs == 0 {
                return store::next_due(&shared.db).await;
            }
            let claimed =
                store::claim(&shared.db, life.worker, room.runs, shared.settings.runs_per_tenant, now).await?;
            metrics::counter!("fermata_runs_claimed_total").increment(u64::try_from(claimed.len()).unwrap_or_default());
            if claimed.is_empty() {
                return store::next_due(&shared.db).await;
            }
            self.begin_turns(life, turns, &claimed).await?;
            if claimed.len() < room.runs {
                return store::next_due(&shared.db).await;
            }
        }
    }

    /// Frees the runs of workers that are gone, and those that this one was given without hearing of it.
    async fn sweep(&self, life: &Life, now: Timestamp) -> Result<()> {
        let db = &self.shared.db;
        if store::release_dead(db, now).await? > 0 {
            tracing::info!("took over the runs of a worker that is gone");
        }
        // Claims are made by this very task, or by the desk, which is closed: whatever has no turn was never heard of.
        if store::release_strays(db, life.worker, &self.shared.waker.having_turns(), now).await? > 0 {
            tracing::warn!("gave back runs whose claim was not heard of");
        }
        Ok(())
    }

    /// Lets each of the claimed runs have its turn. Where they cannot be read together each is read alone, so
    /// that one of them cannot keep the others from theirs.
    async fn begin_turns(&self, life: &Life, turns: &TaskTracker, claimed: &[(TenantId, RunId)]) -> Result<()> {
        let put_aside = |delay| turns.spawn(put_aside(Arc::clone(&self.shared), life.clone(), claimed.to_vec(), delay));
        match self.load_and_begin(life, turns, claimed).await {
            Ok(()) => Ok(()),
            Err(error) if !matches!(error.problem(), Problem::Internal | Problem::UnreadableRun) => {
                put_aside(TimeDelta::seconds(1));
                Err(error)
            }
            Err(error) if claimed.len() <= 1 => {
                tracing::error!(?error, ?claimed, "the run cannot be read; it is put aside for a minute");
                put_aside(TimeDelta::minutes(1));
                Ok(())
            }
            Err(_) => {
                let mut outcome = Ok(());
                for one in claimed.chunks(1) {
                    outcome = outcome.and(Box::pin(self.begin_turns(life, turns, one)).await);
                }
                outcome
            }
        }
    }

    /// Loads what was claimed, all at once, and begins the turns.
    async fn load_and_begin(&self, life: &Life, turns: &TaskTracker, claimed: &[(TenantId, RunId)]) -> Result<()> {
        let shared = &self.shared;
        let mut tenants: Vec<_> = claimed.iter().map(|(tenant, _)| *tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        // The news is subscribed to before the state is read, so nothing falls between.
        let news: HashMap<_, _> =
            claimed.iter().map(|(tenant, run)| (*run, shared.waker.begin(*tenant, *run))).collect();
        let loaded = async {
            let mut tx = shared.db.tenants(&tenants).await?;
            journal::load(&mut tx, claimed, Lock::Free).await
        };
        let loaded = loaded.await.inspect_err(|_| news.iter().for_each(|(run, news)| shared.waker.end(*run, news)))?;
        for run in loaded {
            if let Some(news) = news.get(&run.state.run_id) {
                let turn = Turn::new(Arc::clone(shared), life.clone(), run, Arc::clone(news));
                turns.spawn(have_turn(Arc::clone(shared), life.clone(), turn));
            }
        }
        Ok(())
    }
}

/// Lets a run have its turn. One that breaks the turn is put aside for a while, so that it is neither lost
/// nor tried without end.
pub(super) async fn have_turn(shared: Arc<Shared>, life: Life, turn: Turn) {
    let run = turn.run_key();
    if AssertUnwindSafe(turn.run()).catch_unwind().await.is_err() {
        tracing::error!(run = %run.1, "a turn panicked; the run is put aside for a minute");
        put_aside(Arc::clone(&shared), life, vec![run], TimeDelta::minutes(1)).await;
    }
    // There is room for another run.
    if shared.desk.has_queue() {
        shared.waker.wake();
    }
}

/// Gives claims back, due again after `delay`; goes on until that is recorded, since a claim that nobody works
/// on would hold its run for as long as this worker lives.
async fn put_aside(shared: Arc<Shared>, life: Life, runs: Vec<(TenantId, RunId)>, delay: TimeDelta) {
    let due_at = shared.clock.now() + delay;
    let given_back = async {
        while let Err(error) = store::give_back(&shared.db, life.worker, &runs, due_at).await {
            tracing::warn!(?error, runs = runs.len(), "claims could not be given back; trying again");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = given_back => {}
        () = life.lost.cancelled() => {}
    }
}
