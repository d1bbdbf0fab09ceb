//! What the turns of a worker have in common.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{child::Children, desk::Desk, waker::Waker};
use crate::{
    config::WorkerSettings,
    db::Database,
    journal::Journal,
    kernel::{Clock, TenantId, Timestamp, WorkerId},
    telemetry::Traces,
    tool::Toolbox,
    usage::Days,
};

/// What every turn of a worker shares.
pub(super) struct Shared {
    pub(super) db: Database,
    pub(super) journal: Journal,
    pub(super) tools: Toolbox,
    pub(super) children: Children,
    pub(super) days: Days,
    pub(super) clock: Clock,
    pub(super) traces: Traces,
    pub(super) waker: Arc<Waker>,
    pub(super) desk: Arc<Desk>,
    pub(super) items: usize,
    pub(super) settings: WorkerSettings,
    /// Fires when the process is asked to stop.
    pub(super) stop: CancellationToken,
    /// Fires when steps in flight have had their grace.
    pub(super) abandon: CancellationToken,
    pub(super) slots: Slots,
}

/// The shares of tenants in the steps this worker carries out at once.
pub(super) struct Slots {
    all: Arc<Semaphore>,
    per_tenant: usize,
    tenants: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

/// The right to carry out one step.
#[derive(Debug)]
pub(super) struct Slot {
    _tenant: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// One life of a worker: ends when the process stops or the database gives it up for dead.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) worker: WorkerId,
    /// The session's lock that proves it alive.
    pub(super) lock_key: i64,
    /// Fires when the claims are lost: turns drop everything and write nothing.
    pub(super) lost: CancellationToken,
    standing: Arc<watch::Sender<Standing>>,
}

/// What the others go by.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// Until when they take it for alive.
    until: Timestamp,
    /// Whether its session holds the lock.
    locked: bool,
}

impl Life {
    /// A life that begins.
    pub(super) fn new(now: Timestamp, until: Timestamp) -> Self {
        let worker = WorkerId::new(now);
        let lock_key = i64::from_be_bytes(worker.uuid().as_u64_pair().1.to_be_bytes());
        let standing = Arc::new(watch::Sender::new(Standing { until, locked: true }));
        Self { worker, lock_key, lost: CancellationToken::new(), standing }
    }

    /// It gave a sign of life.
    pub(super) fn believe(&self, until: Timestamp) {
        self.standing.send_modify(|standing| standing.until = until);
    }

    /// Its session has the lock, or lost it.
    pub(super) fn locked(&self, locked: bool) {
        self.standing.send_modify(|standing| standing.locked = locked);
    }

    /// Whether its time has not run out.
    pub(super) fn is_believed(&self, now: Timestamp) -> bool {
        now < self.standing.borrow().until
    }

    /// Whether nobody can take it for dead.
    pub(super) fn is_safe(&self, now: Timestamp) -> bool {
        let standing = self.standing.borrow();
        standing.locked && now < standing.until
    }

    /// Waits until nobody can take it for dead: only then may it claim, and call.
    pub(super) async fn safe(&self, clock: &Clock) {
        let mut standing = self.standing.subscribe();
        // The sender is part of this life, so there is always more to wait for.
        let _ = standing.wait_for(|standing| standing.locked && clock.now() < standing.until).await;
    }
}

impl Shared {
    /// The right to carry out a step for `tenant`, if there is one to be had now.
    pub(super) fn try_slot(&self, tenant: TenantId) -> Option<Slot> {
        let share = self.slots.share(tenant);
        let tenant = share.try_acquire_owned().ok()?;
        let all = Arc::clone(&self.slots.all).try_acquire_owned().ok()?;
        Some(Slot { _tenant: tenant, _all: all })
    }

    /// Waits for it. The tenant's own share comes first, so that a crowd of one tenant never stands in
    /// line for the common one.
    pub(super) async fn slot(&self, tenant: TenantId) -> Option<Slot> {
        let tenant = self.slots.share(tenant).acquire_owned().await.ok()?;
        let all = Arc::clone(&self.slots.all).acquire_owned().await.ok()?;
        Some(Slot { _tenant: tenant, _all: all })
    }
}

impl Slots {
    pub(super) fn new(settings: &WorkerSettings) -> Self {
        Self {
            all: Arc::new(Semaphore::new(settings.steps)),
            per_tenant: settings.steps_per_tenant,
            tenants: Mutex::default(),
        }
    }

    fn share(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        // Tenants at rest are forgotten, so the map is bounded by those at work.
        if tenants.len() > 1024 {
            tenants.retain(|_, share| Arc::strong_count(share) > 1 || share.available_permits() < self.per_tenant);
        }
        Arc::clone(tenants.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(self.per_tenant))))
    }
}
