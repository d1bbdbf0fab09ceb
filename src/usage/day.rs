use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::TimeDelta;

use super::{budget, store};
use crate::{
    db::Database,
    journal::{Budget, Estimate, Raise, StepKey},
    kernel::{Result, RunId, TenantId, Timestamp},
};

/// For so long is it remembered which budget a tenant's day has. The memory only says whether to ask the database, which
/// alone says whether there is room: a budget that is put counts everywhere after this time at the latest, and what was
/// spent until then is in its book.
const MEMORY: TimeDelta = TimeDelta::seconds(5);
/// Tenants that are remembered before those of long ago are forgotten.
const REMEMBERED: usize = 1024;

/// The budgets of tenants' days, as calls reserve from them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Days {
    db: Database,
    known: Arc<Mutex<Known>>,
}

/// The budgets of tenants, and as of when.
type Known = HashMap<TenantId, (Timestamp, Option<Budget>)>;

/// What came of a reservation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// Nothing bounds the call.
    Unbounded,
    /// It has what it is expected to take.
    Reserved,
    /// There is no room, unless the day's budget is raised.
    Lacks(Raise),
}

impl Days {
    /// Over the budgets in `db`.
    #[must_use]
    pub fn new(db: Database) -> Self {
        Self { db, known: Arc::default() }
    }

    /// The budget of the tenant's days, where there is one; as it was a moment ago.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn budget(&self, tenant: TenantId, now: Timestamp) -> Result<Option<Budget>> {
        if let Some((at, known)) = self.known().get(&tenant).copied()
            && (now - at).abs() < MEMORY
        {
            return Ok(known);
        }
        let mut tx = self.db.tenant(tenant).await?;
        let found = store::budget(&mut tx, tenant).await?;
        let mut known = self.known();
        if known.len() >= REMEMBERED {
            known.retain(|_, (at, _)| (now - *at).abs() < MEMORY);
        }
        known.insert(tenant, (now, found));
        Ok(found)
    }

    /// Forgets what was known of a tenant, whose budget is another now.
    pub(super) fn forget(&self, tenant: TenantId) {
        self.known().remove(&tenant);
    }

    /// Reserves what an attempt of a step is expected to take of today, once however often it is asked for: the journal's
    /// commit of its outcome gives it back ([`Ledger`](super::Ledger)). Where it wants more than it had (`is_more`) and there is
    /// no room for that, what it had stays its own.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn reserve(
        &self,
        (tenant, run): (TenantId, RunId),
        (step, attempt): (&StepKey, u32),
        call: &Estimate,
        is_more: bool,
        now: Timestamp,
    ) -> Result<Share> {
        match self.budget(tenant, now).await? {
            Some(of_day) if budget::bounds(&of_day, call) => {}
            _ => return Ok(Share::Unbounded),
        }
        let mut tx = self.db.tenant(tenant).await?;
        let since = if is_more { store::since(&mut tx, (tenant, run), (step, attempt)).await? } else { None };
        let share = store::reserve(&mut tx, (tenant, run), (step, attempt), call, now).await?;
        if is_more && matches!(share, Share::Lacks(_)) {
            // Uncommitted, so that it keeps what it had.
            return Ok(share);
        }
        if let Some(since) = since {
            // The time that it has taken already is not forgotten.
            store::begun(&mut tx, (tenant, run), (step, attempt), since).await?;
        }
        // The day's book may have been opened, whatever came of it.
        tx.commit().await?;
        Ok(share)
    }

    /// What is left of the tenant's day, of each thing that its budget bounds.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn left(&self, tenant: TenantId, now: Timestamp) -> Result<Budget> {
        budget::left_of_day(&mut self.db.tenant(tenant).await?, tenant, now).await
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
