use sqlx::Row;

use crate::{
    db::Database,
    kernel::{Result, Timestamp},
};

/// Deletes idempotency keys and tickets whose time is up.
pub(super) async fn forget_expired(db: &Database, at: Timestamp) -> Result<()> {
    let mut tx = db.system().await?;
    sqlx::query("select forget_expired($1)").bind(at).execute(tx.conn()).await?;
    tx.commit().await
}

/// Drops about `most` rows of runs that ended before `horizon`; how many it was. 0 when nothing is left, or another
/// process is at it.
pub(super) async fn forget_runs(db: &Database, horizon: Timestamp, most: i64) -> Result<u64> {
    let mut tx = db.system().await?;
    let query = sqlx::query("select forget_runs($1, $2)").bind(horizon).bind(most);
    let rows: i64 = query.fetch_one(tx.conn()).await?.try_get(0)?;
    tx.commit().await?;
    Ok(u64::try_from(rows).unwrap_or_default())
}

/// Live runs by status, and when the next unclaimed run was or will be due.
pub(super) async fn sample(db: &Database) -> Result<(Vec<(String, i64)>, Option<Timestamp>)> {
    let mut tx = db.system().await?;
    let counts = sqlx::query_as("select status, runs from count_runs()").fetch_all(tx.conn()).await?;
    let due = sqlx::query("select next_due()").fetch_one(tx.conn()).await?.try_get(0)?;
    tx.commit().await?;
    Ok((counts, due))
}
