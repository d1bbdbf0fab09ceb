use std::time::Duration;

use tokio::{sync::broadcast, time::Instant};

use super::store;
use crate::{
    db::Database,
    journal::{Commit, Follower, Status},
    kernel::{Result, RunId, TenantId},
};

/// Runs whose news may be on its way to those who wait; who falls behind looks at the table instead.
const QUEUE: usize = 1024;

/// Rings when runs end or are held, for callers who said `Prefer: wait`.
#[derive(Clone, Debug)]
pub struct Bell {
    moved: broadcast::Sender<RunId>,
}

impl Default for Bell {
    fn default() -> Self {
        Self { moved: broadcast::channel(QUEUE).0 }
    }
}

impl Bell {
    /// Returns when the run has ended or waits for a decision, or when `patience` is over.
    ///
    /// # Errors
    /// When the database is away.
    pub(super) async fn settled(&self, db: &Database, tenant: TenantId, run: RunId, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let mut moved = self.moved.subscribe();
        loop {
            let mut tx = db.tenant(tenant).await?;
            let status = store::status(&mut tx, tenant, run).await?;
            drop(tx);
            if status.is_none_or(|status| status.is_terminal() || status == Status::AwaitingApproval) {
                return Ok(());
            }
            // Another process's news may be missed, so the table is looked at every second.
            let look = Instant::now() + Duration::from_secs(1);
            loop {
                tokio::select! {
                    heard = moved.recv() => if !matches!(heard, Ok(other) if other != run) { break },
                    () = tokio::time::sleep_until(look.min(until)) => break,
                }
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }
}

impl Follower for Bell {
    fn committed(&self, commits: &[Commit]) {
        // Steps on the way to an end are no news to those who wait for it, and each would have them look.
        for commit in commits.iter().filter(|commit| settles(commit)) {
            // Nobody listens most of the time.
            let _ = self.moved.send(commit.run_id);
        }
    }

    fn signalled(&self, runs: &[(TenantId, RunId)]) {
        for (_, run) in runs {
            let _ = self.moved.send(*run);
        }
    }
}

fn settles(commit: &Commit) -> bool {
    commit.ended || commit.frames.iter().any(|frame| frame.name == Status::AwaitingApproval.name())
}
