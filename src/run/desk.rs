//! The short way to a turn: a command that makes a run due hands it to this process's worker in the same commit,
//! with its state, where there is room and nobody waits for it. The long way is the table of leases.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::task::TaskTracker;

use super::{
    shared::{Life, Shared},
    turn::Turn,
    waker::News,
    worker::have_turn,
};
use crate::{
    journal::{self, Loaded},
    kernel::{RunId, TenantId, WorkerId},
};

/// Where commands find the worker, while it works.
#[derive(Default)]
pub struct Desk {
    staff: Mutex<Option<Staff>>,
    /// Runs are due that nobody has claimed: then the new ones wait with them, as fairness has it.
    queue: AtomicBool,
}

/// A worker in one of its lives.
#[derive(Clone)]
struct Staff {
    shared: Arc<Shared>,
    life: Life,
    turns: TaskTracker,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    /// The worker takes runs from here on.
    pub(super) fn open(&self, shared: &Arc<Shared>, life: &Life, turns: &TaskTracker) {
        let staff = Staff { shared: Arc::clone(shared), life: life.clone(), turns: turns.clone() };
        *self.staff.lock().unwrap_or_else(PoisonError::into_inner) = Some(staff);
    }

    /// It takes no more.
    pub(super) fn close(&self) {
        *self.staff.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether runs that are due wait to be claimed.
    pub(super) fn queue(&self, waiting: bool) {
        self.queue.store(waiting, Ordering::SeqCst);
    }

    /// The same, asked.
    pub(super) fn has_queue(&self) -> bool {
        self.queue.load(Ordering::SeqCst)
    }
}

impl journal::Desk for Desk {
    fn offer(&self, tenant: TenantId, run: RunId) -> Option<Box<dyn journal::Place>> {
        let staff = self.staff.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let Staff { shared, life, .. } = &staff;
        if shared.stop.is_cancelled() || !life.is_safe(shared.clock.now()) {
            return None;
        }
        let bounds = (shared.settings.runs, shared.settings.runs_per_tenant);
        let news = shared.waker.begin_within(tenant, run, bounds)?;
        let place = Place { staff, run, news: Some(news) };
        // Asked last: whoever sets it afterwards sees the place.
        if self.has_queue() { None } else { Some(Box::new(place)) }
    }
}

/// Room for one run.
struct Place {
    staff: Staff,
    run: RunId,
    /// Until the turn has it: heard from here on, so that nothing falls between the commit and the turn.
    news: Option<Arc<News>>,
}

impl journal::Place for Place {
    fn worker(&self) -> WorkerId {
        self.staff.life.worker
    }

    fn take(mut self: Box<Self>, run: Loaded) {
        let Some(news) = self.news.take() else { return };
        let Staff { shared, life, turns } = &self.staff;
        metrics::counter!("fermata_runs_claimed_total").increment(1);
        let turn = Turn::new(Arc::clone(shared), life.clone(), run, news);
        turns.spawn(have_turn(Arc::clone(shared), life.clone(), turn));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(news) = &self.news {
            self.staff.shared.waker.end(self.run, news);
        }
    }
}
