//! What operators see of a running process: logs and metrics.

mod logs;
mod metrics;

pub use logs::{LogFormat, init};
pub use metrics::{CATALOGUE, Kind, Metrics, metrics};
