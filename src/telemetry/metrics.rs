use std::{sync::OnceLock, time::Duration};

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// How a metric is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often it was how much.
    Histogram,
}

/// Every metric there is and what it says; `docs/operations.md` lists the same.
pub const CATALOGUE: &[(Kind, &str, &str)] = &[
    (
        Kind::Histogram,
        "fermata_http_request_duration_seconds",
        "Time to answer a request, or to open a stream, by method, route and status",
    ),
    (Kind::Gauge, "fermata_http_requests_in_flight", "Requests being answered"),
    (Kind::Gauge, "fermata_runs", "Live runs of all tenants, by status"),
    (Kind::Gauge, "fermata_queue_age_seconds", "For how long the run that is due longest has waited for a worker"),
    (Kind::Counter, "fermata_runs_claimed_total", "Runs taken up by this worker"),
    (Kind::Counter, "fermata_runs_ended_total", "Runs whose end this process journaled, by status"),
    (Kind::Counter, "fermata_steps_total", "Calls of tools that ended here, by tool and outcome"),
    (Kind::Counter, "fermata_llm_calls_total", "Calls of models, by provider, model and outcome"),
    (Kind::Histogram, "fermata_llm_call_seconds", "Time of a call of a model, to the last word, by provider"),
    (
        Kind::Counter,
        "fermata_llm_tokens_total",
        "Tokens by provider, model and kind (input that no cache knew, cached, output)",
    ),
    (
        Kind::Counter,
        "fermata_llm_retries_total",
        "Repetitions of questions to models, by why: the fault, an answer that will not do, or thoughts that are missing",
    ),
    (Kind::Counter, "fermata_llm_objections_total", "Answers of models that would not do, by provider"),
    (Kind::Counter, "fermata_llm_fallbacks_total", "Questions that went on to the next configuration, by its provider"),
    (
        Kind::Gauge,
        "fermata_llm_circuit",
        "Circuit breakers by provider and model, of many the worst: 0 closed, 1 half open, 2 open",
    ),
    (
        Kind::Counter,
        "fermata_llm_circuit_changes_total",
        "Turns of circuit breakers, by provider, model and to what (open, half_open, closed)",
    ),
    (
        Kind::Histogram,
        "fermata_llm_share_wait_seconds",
        "Time that calls waited for their key's share of calls or tokens, by provider",
    ),
    (Kind::Histogram, "fermata_journal_batch_runs", "Runs whose events shared one commit"),
    (
        Kind::Histogram,
        "fermata_journal_commit_seconds",
        "Time of a shared commit, from its first statement to the disk",
    ),
    (
        Kind::Counter,
        "fermata_journal_failed_commits_total",
        "Commits of appends that failed; runs try theirs again, commands say so",
    ),
    (Kind::Gauge, "fermata_streams_open", "Open streams, by kind (run or tenant)"),
    (Kind::Gauge, "fermata_streams_followed", "Runs followed by at least one stream"),
    (Kind::Gauge, "fermata_stream_lag_events", "Events the slowest subscriber has yet to get"),
    (Kind::Counter, "fermata_stream_events_sent_total", "Events sent to subscribers"),
    (
        Kind::Counter,
        "fermata_stream_reads_total",
        "Reads of the events' table for streams, by what for (news, page, tenant, heads)",
    ),
    (
        Kind::Gauge,
        "fermata_stream_horizon_age_seconds",
        "For how long committed events have been held back from tenants' streams by an open transaction",
    ),
    (Kind::Counter, "fermata_signals_sent_total", "Notifications sent to other processes"),
    (Kind::Counter, "fermata_retention_rows_total", "Rows of runs past retention that this process dropped"),
    (Kind::Gauge, "fermata_database_connections", "Connections of the pool, by state (used or idle)"),
    (Kind::Gauge, "fermata_build_info", "1, with the version"),
];

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

/// The recorder behind the `metrics` macros, installed at the first call. What was measured before counts
/// for nothing, so this comes first.
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
    for &(kind, name, text) in CATALOGUE {
        match kind {
            Kind::Counter => describe_counter!(name, text),
            Kind::Gauge => describe_gauge!(name, text),
            Kind::Histogram => describe_histogram!(name, text),
        }
    }
    metrics::gauge!("fermata_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(Metrics { handle })
}
