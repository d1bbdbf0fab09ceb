//! The two doors of the journal over the same SQL: [`Journal::append_in`] for a command that holds a
//! transaction, and [`Journal::append`] for workers, whose appends gather while a commit is in flight and
//! share the next one.

use std::{
    sync::{Arc, PoisonError},
    time::Instant,
};

use sqlx::{Postgres, postgres::PgArguments, query::Query};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::{
    Claim, Commit, Follower, Loaded,
    append::{Append, OpeningRow},
    store::{self, Written},
};
use crate::{
    db::{Database, Lane, Rider, Stale, TenantTx},
    kernel::{Error, Problem, Result, RunId, TenantId, WorkerId},
};

/// How many runs one commit may carry.
const BATCH: usize = 64;
/// How many commits may be in flight: one gathers while the other works and waits for the disk.
const COMMITTERS: usize = 2;
/// How many appends may wait; past it, workers wait in turn.
const QUEUE: usize = 1024;

/// A table that follows the events in the same commit (the inbox of approvals).
pub trait Projection: Send + Sync + 'static {
    /// What the appends mean for its table.
    ///
    /// # Errors
    /// Any error undoes the commit.
    fn riders(&self, appends: &[&Append]) -> Result<Vec<Rider>>;
}

/// Where a worker of this process takes runs over in the very commit that makes them due.
pub trait Desk: Send + Sync + 'static {
    /// Keeps a place for the run; none where there is no room, or it has its turn already.
    fn offer(&self, tenant: TenantId, run: RunId) -> Option<Box<dyn Place>>;
}

/// A place kept for a run; given up when it is dropped.
pub trait Place: Send + Sync {
    /// The worker.
    fn worker(&self) -> WorkerId;

    /// The claim is the worker's, and this is the run: its turn begins.
    fn take(self: Box<Self>, run: Loaded);
}

/// Why a worker's append did not happen.
#[derive(Debug)]
pub enum AppendError {
    /// The run is not where it was expected: somebody else wrote, and this worker has to load again.
    Conflict,
    /// The database is away or refused.
    Failed(Error),
}

/// The only writer of `runs`, `run_events` and `run_steps`.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Waiting>,
}

struct Shared {
    db: Database,
    /// Ways to the database for shared appends, the one that was used last on top: its server is the warmest.
    lanes: std::sync::Mutex<Vec<Lane>>,
    followers: Vec<Arc<dyn Follower>>,
    projections: Vec<Arc<dyn Projection>>,
    desk: Arc<dyn Desk>,
}

/// An append with all that becomes true with it.
struct Share {
    append: Append,
    riders: Vec<Rider>,
    seat: Option<Seat>,
}

/// A place kept for the run as it is after the append.
struct Seat {
    place: Box<dyn Place>,
    run: Loaded,
}

struct Waiting {
    share: Share,
    reply: oneshot::Sender<Result<(), AppendError>>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Journal {
    /// Starts the committers on `tracker`; they end when the last `Journal` is dropped.
    #[must_use]
    pub fn start(
        db: Database,
        followers: Vec<Arc<dyn Follower>>,
        projections: Vec<Arc<dyn Projection>>,
        desk: Arc<dyn Desk>,
        tracker: &TaskTracker,
    ) -> Self {
        let shared = Arc::new(Shared { db, lanes: std::sync::Mutex::default(), followers, projections, desk });
        let (queue, waiting) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..COMMITTERS {
            tracker.spawn(commit_batches(Arc::clone(&shared), Arc::clone(&waiting)));
        }
        Self { shared, queue }
    }

    /// Opens a run with a command's transaction, as [`Journal::append_in`] appends; false when one of that id is there
    /// already, and then nothing is written.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn open_in(
        &self,
        tx: &mut TenantTx,
        run: Loaded,
        mut append: Append,
        riders: Vec<Rider>,
    ) -> Result<bool> {
        append.opening = Some(OpeningRow::of(&run)?);
        self.move_in(tx, run, append, riders).await
    }

    /// Appends with a command's transaction: within it, whose load holds the run's lock; or, where it only reads, in
    /// the next shared commit once it is over.
    ///
    /// # Errors
    /// When the run moved under the lock all the same (503: try again) or the database refuses. That it moved under a
    /// transaction that only reads is known, as [`Stale`], when that is committed.
    pub async fn append_in(&self, tx: &mut TenantTx, run: Loaded, append: Append, riders: Vec<Rider>) -> Result<()> {
        self.move_in(tx, run, append, riders).await.map(drop)
    }

    /// Others hear of it once the transaction has committed. A run that is due by then goes straight to a worker
    /// of this process, where there is one with room.
    async fn move_in(&self, tx: &mut TenantTx, run: Loaded, mut append: Append, riders: Vec<Rider>) -> Result<bool> {
        let wanted = append.claim == Claim::Due && !append.status.is_terminal();
        let place = if wanted { self.shared.desk.offer(append.tenant_id, append.run_id) } else { None };
        let seat = place.map(|place| {
            append.claim = Claim::Take(place.worker());
            Seat { place, run }
        });
        let mut share = Share { append, riders, seat };
        if tx.only_reads() {
            let journal = self.clone();
            tx.follow_with(|| async move {
                journal.share(share).await.map_err(|error| match error {
                    AppendError::Conflict => Error::unavailable(Stale),
                    AppendError::Failed(error) => error,
                })
            });
            return Ok(true);
        }
        let row = self.shared.statement(None, &[&share])?.fetch_one(tx.conn()).await.map_err(|error| {
            let error = Error::from(error);
            let unlocked = || Error::unavailable("the run moved under a command that did not hold its lock");
            if store::is_overtaken(&error) { unlocked() } else { error }
        })?;
        let written = store::written(&row)?;
        if written.moved.is_empty() {
            return Ok(false);
        }
        let shared = Arc::clone(&self.shared);
        tx.after_commit(move || {
            share.begin(&written);
            shared.announce(&commits_of(&share.append).collect::<Vec<_>>());
        });
        Ok(true)
    }

    /// Appends in the next shared commit.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] when the run has gone on without it.
    pub async fn append(&self, append: Append) -> Result<(), AppendError> {
        self.share(Share { append, riders: Vec::new(), seat: None }).await
    }

    async fn share(&self, share: Share) -> Result<(), AppendError> {
        let (reply, answer) = oneshot::channel();
        let gone = || AppendError::Failed(Error::unavailable("the journal has stopped"));
        self.queue.send(Waiting { share, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Share {
    /// Where the worker was given the claim, the run's turn begins.
    fn begin(&mut self, written: &Written) {
        if let Some(seat) = self.seat.take_if(|_| written.taken.contains(&self.append.run_id)) {
            seat.place.take(seat.run);
        }
    }
}

async fn commit_batches(shared: Arc<Shared>, waiting: Arc<Mutex<mpsc::Receiver<Waiting>>>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut answered = 0;
    loop {
        // The lock is the queue's: whoever holds it gathers, the other one commits.
        let mut queue = waiting.lock().await;
        if queue.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        // Those that were answered by the commit before decide first, and come along; a single one is here by now.
        if answered > 1 {
            tokio::task::yield_now().await;
            batch.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(BATCH - batch.len()));
        }
        drop(queue);
        answered = batch.len();
        metrics::histogram!("fermata_journal_batch_runs").record(as_f64(batch.len()));
        let (mut shares, replies): (Vec<_>, Vec<_>) = batch.drain(..).map(|w| (w.share, w.reply)).unzip();
        let mut lane = shared.lane();
        let outcomes = shared.commit_shared(&mut lane, &mut shares).await;
        // Before anybody is answered: the next append of whoever is comes at once, and finds it warm.
        shared.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
        for (outcome, reply) in outcomes.into_iter().zip(replies) {
            drop(reply.send(outcome));
        }
    }
}

impl Shared {
    /// The way that was used last, of those that nobody is using.
    fn lane(&self) -> Lane {
        let warm = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).pop();
        warm.unwrap_or_else(|| self.db.lane())
    }

    /// All appends in one commit; each alone where the database refuses them together, so that a bad append, or one
    /// whose run has gone on, cannot hold up its neighbours.
    async fn commit_shared(&self, lane: &mut Lane, shares: &mut [Share]) -> Vec<Result<(), AppendError>> {
        if let [share] = shares {
            return vec![self.commit_alone(lane, share).await];
        }
        match self.commit(lane, &mut shares.iter_mut().collect::<Vec<_>>()).await {
            Ok(outcomes) => outcomes,
            Err(error) if error.problem() == Problem::Internal => {
                if !store::is_overtaken(&error) {
                    tracing::warn!(
                        ?error,
                        runs = shares.len(),
                        "a shared commit was refused; trying each append alone"
                    );
                }
                let mut outcomes = Vec::with_capacity(shares.len());
                for share in shares {
                    outcomes.push(self.commit_alone(lane, share).await);
                }
                outcomes
            }
            Err(error) => {
                has_failed(&error, shares.len());
                let shown = error.to_string();
                let failed = || AppendError::Failed(Error::unavailable(shown.clone()));
                shares.iter().map(|_| Err(failed())).collect()
            }
        }
    }

    /// One append in a commit of its own, which fails for its own reason.
    async fn commit_alone(&self, lane: &mut Lane, share: &mut Share) -> Result<(), AppendError> {
        match self.commit(lane, &mut [share]).await {
            Ok(outcomes) => outcomes.into_iter().collect(),
            Err(error) if store::is_overtaken(&error) => Err(AppendError::Conflict),
            Err(error) => {
                has_failed(&error, 1);
                Err(AppendError::Failed(error))
            }
        }
    }

    async fn commit(&self, lane: &mut Lane, shares: &mut [&mut Share]) -> Result<Vec<Result<(), AppendError>>> {
        let begun = Instant::now();
        let mut tenants: Vec<_> = shares.iter().map(|share| share.append.tenant_id).collect();
        tenants.sort_unstable();
        tenants.dedup();
        let shown: Vec<&Share> = shares.iter().map(|share| &**share).collect();
        let row = lane.at_once(&tenants, |named| self.statement(Some(named), &shown)).await?;
        let written = store::written(&row)?;
        metrics::histogram!("fermata_journal_commit_seconds").record(begun.elapsed().as_secs_f64());
        let has_moved = |share: &Share| written.moved.contains(&share.append.run_id);
        shares.iter_mut().for_each(|share| share.begin(&written));
        let moved = shares.iter().filter(|share| has_moved(share));
        self.announce(&moved.flat_map(|share| commits_of(&share.append)).collect::<Vec<_>>());
        Ok(shares.iter().map(|share| has_moved(share).then_some(()).ok_or(AppendError::Conflict)).collect())
    }

    /// Writes the appends and all that rides along: what they bring, and what follows from their events.
    fn statement(&self, named: Option<&str>, shares: &[&Share]) -> Result<Query<'static, Postgres, PgArguments>> {
        let appends: Vec<_> = shares.iter().map(|share| &share.append).collect();
        let projected = self.projections.iter().map(|projection| projection.riders(&appends));
        let projected = projected.collect::<Result<Vec<_>>>()?;
        let brought = shares.iter().flat_map(|share| &share.riders);
        store::append(named, &appends, &Rider::gather(projected.iter().flatten().chain(brought))?)
    }

    fn announce(&self, commits: &[Commit]) {
        for follower in &self.followers {
            follower.committed(commits);
        }
        let ends = commits.iter().filter(|commit| commit.ended()).filter_map(|commit| commit.frames.last());
        for end in ends {
            metrics::counter!("fermata_runs_ended_total", "status" => end.name).increment(1);
        }
    }
}

fn has_failed(error: &Error, runs: usize) {
    metrics::counter!("fermata_journal_failed_commits_total").increment(1);
    tracing::warn!(?error, runs, "a commit failed");
}

/// The run's own news and, when it ended, a nudge without frames for the parent that waits for it.
fn commits_of(append: &Append) -> impl Iterator<Item = Commit> {
    let (tenant_id, status) = (append.tenant_id, append.status);
    let own = Commit { tenant_id, run_id: append.run_id, frames: append.frames.clone(), status: Some(status) };
    let nudge = append.parent.filter(|_| status.is_terminal());
    let nudge = nudge.map(|run_id| Commit { tenant_id, run_id, frames: vec![], status: None });
    [own].into_iter().chain(nudge)
}

#[expect(clippy::cast_precision_loss, reason = "a batch has 64 runs at most")]
fn as_f64(count: usize) -> f64 {
    count as f64
}
