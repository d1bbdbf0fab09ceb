//! The campaign: real server processes over a PostgreSQL of their own, killed, frozen and cut off under load.
//!
//! `FERMATA_CAMPAIGN=full` asks for all of it (`docs/reliability.md` has the command and the figures); without, a
//! tenth or less of each test runs, as is fit for every change. Every test prints a line with its figures.

mod audit;
mod conversations;
mod crash_points;
mod frozen;
mod keys;
mod kills;
mod load;
mod patient;
mod readers;
mod replicas;
mod site;
mod soak;
mod stalled;

use std::time::Duration;

use crate::world::campaign::scale;

/// Median, 99th percentile and maximum, for a line of figures.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: f64| times.get(((times.len() as f64 - 1.0) * part).round() as usize).copied().unwrap_or_default();
    format!("p50 {:.0?}, p99 {:.0?}, max {:.0?} of {}", at(0.5), at(0.99), at(1.0), times.len())
}
