//! What is done now and then: forgetting what has expired or is past retention, and the numbers that are sampled.

use std::time::{Duration, Instant};

use chrono::TimeDelta;

use super::store;
use crate::{
    config::RetentionSettings,
    db::Database,
    journal::Status,
    kernel::{Clock, Result, Timestamp},
};

/// Between two samples.
const SAMPLE: Duration = Duration::from_secs(5);
/// Between two clean-ups.
const CLEAN: TimeDelta = TimeDelta::seconds(60);
/// Rows dropped in one transaction: few enough that nobody waits for it, and tenants' streams neither.
const BATCH: i64 = 1_000;

/// Keeps house; never returns.
pub(super) async fn keep(db: Database, clock: Clock, retention: RetentionSettings) {
    tokio::join!(measure(&db, &clock), clean(&db, &clock, &retention));
}

async fn measure(db: &Database, clock: &Clock) {
    let mut ticks = tokio::time::interval(SAMPLE);
    loop {
        ticks.tick().await;
        if let Err(error) = sample(db, clock).await {
            tracing::debug!(?error, "no sample could be taken");
        }
    }
}

async fn clean(db: &Database, clock: &Clock, retention: &RetentionSettings) {
    loop {
        clock.sleep_until(clock.now() + CLEAN).await;
        let now = clock.now();
        if let Err(error) = store::forget_expired(db, now).await {
            tracing::warn!(?error, "expired keys and tickets could not be deleted");
        }
        if let Some(horizon) = horizon(now, retention)
            && let Err(error) = forget_runs(db, horizon).await
        {
            tracing::warn!(?error, "runs past retention could not be dropped");
        }
    }
}

/// The runs that ended before then are past retention; none when runs are kept.
fn horizon(now: Timestamp, retention: &RetentionSettings) -> Option<Timestamp> {
    now.checked_sub_signed(TimeDelta::from_std(retention.runs?.0).ok()?)
}

/// Drops what is past retention, however much there is, half of the time; the other half is everybody else's.
async fn forget_runs(db: &Database, horizon: Timestamp) -> Result<()> {
    loop {
        let begun = Instant::now();
        let rows = store::forget_runs(db, horizon, BATCH).await?;
        if rows == 0 {
            return Ok(());
        }
        metrics::counter!("fermata_retention_rows_total").increment(rows);
        tokio::time::sleep(begun.elapsed()).await;
    }
}

async fn sample(db: &Database, clock: &Clock) -> Result<()> {
    let (used, open) = db.pool_use();
    metrics::gauge!("fermata_database_connections", "state" => "used").set(f64::from(used));
    metrics::gauge!("fermata_database_connections", "state" => "idle").set(f64::from(open.saturating_sub(used)));
    let (counts, due) = store::sample(db).await?;
    for status in Status::ALL.iter().filter(|status| !status.is_terminal()) {
        let runs = counts.iter().find(|(name, _)| name == status.name()).map_or(0, |(_, runs)| *runs);
        metrics::gauge!("fermata_runs", "status" => status.name()).set(as_f64(runs));
    }
    let age = due.map_or(0, |due| (clock.now() - due).num_milliseconds().max(0));
    metrics::gauge!("fermata_queue_age_seconds").set(as_f64(age) / 1000.0);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts and milliseconds far below 2^53")]
fn as_f64(number: i64) -> f64 {
    number as f64
}
