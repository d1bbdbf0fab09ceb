//! The rows of `idempotency_keys`.

use crate::{
    db::TenantTx,
    kernel::{Error, Result, TenantId, Timestamp},
};

/// How long a second request with a key waits for the first one to finish.
const PATIENCE: &str = "2s";

/// What a key is unique within.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<'a> {
    pub(super) tenant_id: TenantId,
    pub(super) route: &'a str,
    pub(super) key: &'a str,
}

/// What came of reserving a key.
#[derive(Debug)]
pub(super) enum Reservation {
    /// It is new; its row is locked until this transaction ends.
    Ours,
    /// A request with it is done.
    Done { print: Vec<u8>, status: u16, body: String },
    /// A request with it is at work and did not finish in time.
    InFlight,
}

/// Reserves the key, waiting a little for another transaction that has reserved it.
pub(super) async fn reserve(
    tx: &mut TenantTx,
    slot: Slot<'_>,
    print: &[u8; 32],
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<Reservation> {
    // Twice, because a row found may have expired: it is then removed, and the key is free again.
    for _ in 0..2 {
        match insert(tx, slot, print, now, expires_at).await {
            Ok(true) => return Ok(Reservation::Ours),
            Ok(false) => {}
            Err(error) if waited_in_vain(&error) => return Ok(Reservation::InFlight),
            Err(error) => return Err(error.into()),
        }
        if let Some(done) = find(tx, slot, now).await? {
            return Ok(done);
        }
        remove_expired(tx, slot, now).await?;
    }
    Ok(Reservation::InFlight)
}

/// The lock's time-out binds the insert only: `returning` puts the former value back.
async fn insert(
    tx: &mut TenantTx,
    slot: Slot<'_>,
    print: &[u8; 32],
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "with patience as materialized
           (select current_setting('lock_timeout') as former, set_config('lock_timeout', $7, true) as now)
         insert into idempotency_keys (tenant_id, route, key, body_hash, created_at, expires_at)
         select $1, $2, $3, $4, $5, $6 from patience where patience.now is not null
         on conflict (tenant_id, route, key) do nothing
         returning set_config('lock_timeout', (select former from patience), true)",
    )
    .bind(slot.tenant_id.uuid())
    .bind(slot.route)
    .bind(slot.key)
    .bind(&print[..])
    .bind(now)
    .bind(expires_at)
    .bind(PATIENCE)
    .fetch_optional(tx.conn())
    .await?;
    Ok(inserted.is_some())
}

pub(super) async fn find(tx: &mut TenantTx, slot: Slot<'_>, now: Timestamp) -> Result<Option<Reservation>> {
    let row: Option<(Vec<u8>, Option<i16>, Option<String>)> = sqlx::query_as(
        "select body_hash, status, response from idempotency_keys
         where tenant_id = $1 and route = $2 and key = $3 and expires_at > $4",
    )
    .bind(slot.tenant_id.uuid())
    .bind(slot.route)
    .bind(slot.key)
    .bind(now)
    .fetch_optional(tx.conn())
    .await?;
    let Some((print, status, body)) = row else { return Ok(None) };
    let (Some(status), Some(body)) = (status.and_then(|s| u16::try_from(s).ok()), body) else {
        return Err(Error::internal("an idempotency key was committed without its answer"));
    };
    Ok(Some(Reservation::Done { print, status, body }))
}

async fn remove_expired(tx: &mut TenantTx, slot: Slot<'_>, now: Timestamp) -> Result<()> {
    sqlx::query("delete from idempotency_keys where tenant_id = $1 and route = $2 and key = $3 and expires_at <= $4")
        .bind(slot.tenant_id.uuid())
        .bind(slot.route)
        .bind(slot.key)
        .bind(now)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Keeps the answer with the key.
pub(super) async fn keep(tx: &mut TenantTx, slot: Slot<'_>, status: u16, body: &str) -> Result<()> {
    sqlx::query(
        "update idempotency_keys set status = $4, response = $5 where tenant_id = $1 and route = $2 and key = $3",
    )
    .bind(slot.tenant_id.uuid())
    .bind(slot.route)
    .bind(slot.key)
    .bind(i16::try_from(status).map_err(Error::internal)?)
    .bind(body)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Lock not available (55P03).
fn waited_in_vain(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(e) if e.code().is_some_and(|code| code == "55P03"))
}
