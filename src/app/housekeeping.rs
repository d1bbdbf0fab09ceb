//! What is done now and then: forgetting what has expired, and the numbers that are sampled.

use std::time::Duration;

use super::store;
use crate::{
    db::Database,
    journal::Status,
    kernel::{Clock, Result},
};

/// Between two samples.
const SAMPLE: Duration = Duration::from_secs(5);
/// Samples between two clean-ups.
const CLEAN: u32 = 12;

/// Keeps house; never returns.
pub(super) async fn keep(db: Database, clock: Clock) {
    let mut ticks = tokio::time::interval(SAMPLE);
    let mut count = 0_u32;
    loop {
        ticks.tick().await;
        if let Err(error) = sample(&db, &clock).await {
            tracing::debug!(?error, "no sample could be taken");
        }
        count = count.wrapping_add(1);
        if count.is_multiple_of(CLEAN)
            && let Err(error) = store::forget_expired(&db, clock.now()).await
        {
            tracing::warn!(?error, "expired keys and tickets could not be deleted");
        }
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
