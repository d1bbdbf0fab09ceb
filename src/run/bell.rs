use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::store;
use crate::{
    db::Database,
    journal::{Commit, Follower, Status},
    kernel::{Result, RunId, TenantId},
};

/// Another process's news may be missed, so the table is looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// Rings when runs settle, for callers who said `Prefer: wait`.
#[derive(Debug, Default)]
pub struct Bell {
    waited_for: Mutex<HashMap<RunId, Arc<Notify>>>,
}

/// Somebody who waits for a run.
struct Waiter<'a> {
    bell: &'a Bell,
    run: RunId,
    rung: Arc<Notify>,
}

impl Bell {
    /// Returns when the run has ended, waits for a decision or has its plan and is to be begun, or when `patience` is over.
    ///
    /// # Errors
    /// When the database is away.
    pub(super) async fn settled(&self, db: &Database, tenant: TenantId, run: RunId, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let waiter = self.wait_for(run);
        loop {
            // Heard from here on, so that nothing is missed between the look and the wait.
            let mut rung = std::pin::pin!(waiter.rung.notified());
            rung.as_mut().enable();
            let mut tx = db.tenant(tenant).await?;
            let standing = store::standing(&mut tx, tenant, run).await?;
            drop(tx);
            let waits =
                standing.is_none_or(|(status, planned)| is_settled(status) || status == Status::Planning && planned);
            if waits || Instant::now() >= until {
                return Ok(());
            }
            tokio::select! {
                () = rung => {}
                () = tokio::time::sleep_until(until.min(Instant::now() + LOOK)) => {}
            }
        }
    }

    fn wait_for(&self, run: RunId) -> Waiter<'_> {
        let rung = Arc::clone(self.waited_for().entry(run).or_default());
        Waiter { bell: self, run, rung }
    }

    fn ring(&self, runs: impl Iterator<Item = RunId>) {
        let waited_for = self.waited_for();
        runs.filter_map(|run| waited_for.get(&run)).for_each(|rung| rung.notify_waiters());
    }

    fn waited_for(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Notify>>> {
        self.waited_for.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waited_for = self.bell.waited_for();
        // The map's own and this one: nobody else waits.
        if Arc::strong_count(&self.rung) == 2 {
            waited_for.remove(&self.run);
        }
    }
}

impl Follower for Bell {
    fn committed(&self, commits: &[Commit]) {
        // One that is being planned may have its plan now: whoever waits looks.
        let may_be = |status| is_settled(status) || status == Status::Planning;
        let settled = commits.iter().filter(|commit| commit.status.is_some_and(may_be));
        self.ring(settled.map(|commit| commit.run_id));
    }

    fn signalled(&self, runs: &[(TenantId, RunId)]) {
        self.ring(runs.iter().map(|(_, run)| *run));
    }
}

fn is_settled(status: Status) -> bool {
    status.is_terminal() || status == Status::AwaitingApproval
}
