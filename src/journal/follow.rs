use bytes::Bytes;

use super::Status;
use crate::kernel::{RunId, TenantId};

/// One committed event, encoded once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its place in the run: 1, 2, 3 …
    pub seq: u64,
    /// Its name.
    pub name: &'static str,
    /// Its JSON, byte for byte as in the table.
    pub data: Bytes,
}

/// What one commit added to one run.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The run's tenant.
    pub tenant_id: TenantId,
    /// The run.
    pub run_id: RunId,
    /// The new events, in order, without a gap.
    pub frames: Vec<Frame>,
    /// Where the run stands now; none for a parent that is only to look after its children.
    pub status: Option<Status>,
}

impl Commit {
    /// Whether the last of the events ends the run.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.status.is_some_and(Status::is_terminal)
    }
}

/// Hears of commits. Must not block: it is called between two commits.
pub trait Follower: Send + Sync + 'static {
    /// This process committed.
    fn committed(&self, commits: &[Commit]);

    /// Another process committed to these runs; what exactly is in the table.
    fn signalled(&self, runs: &[(TenantId, RunId)]);

    /// Signals may have been lost: look for yourself.
    fn resync(&self) {}
}
