use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Bounds of every histogram whose name ends in `_seconds`.
const SECONDS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Bounds of every other histogram: counts and bytes.
const SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0, 16_384.0, 262_144.0];

/// The process's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Everything measured, in Prometheus' text form.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Keeps the memory of histograms bounded while nobody scrapes; never returns.
    pub async fn upkeep(&self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        loop {
            ticks.tick().await;
            self.handle.run_upkeep();
        }
    }
}

/// The recorder behind the `metrics` macros, installed at the first call.
///
/// # Errors
/// When another recorder is installed, or the bounds above are refused.
pub fn metrics() -> Result<Metrics, String> {
    static INSTALLED: OnceLock<Result<Metrics, String>> = OnceLock::new();
    INSTALLED.get_or_init(|| install().map_err(|error| error.to_string())).clone()
}

fn install() -> Result<Metrics, metrics_exporter_prometheus::BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets(&SIZES)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    Ok(Metrics { handle })
}
