use std::{fmt, sync::Arc, time::Duration};

use axum::{extract::State, http::header, response::IntoResponse};
use futures_util::future::{BoxFuture, join_all};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Json;
use crate::{
    kernel::{Error, Problem, Result},
    telemetry::Metrics,
};

/// The longest a probe may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something readiness depends on, and how to find out whether it is there.
#[derive(Clone)]
pub struct Probe {
    name: &'static str,
    check: Arc<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>,
}

impl Probe {
    /// A probe; `name` is public.
    pub fn new<F>(name: &'static str, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        Self { name, check: Arc::new(move || Box::pin(check())) }
    }

    async fn passes(&self) -> bool {
        match tokio::time::timeout(PATIENCE, (self.check)()).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(probe = self.name, error = ?error, "not ready");
                false
            }
            Err(_) => {
                tracing::warn!(probe = self.name, "not ready: no answer within 2 s");
                false
            }
        }
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Vitals {
    probes: Arc<[Probe]>,
    metrics: Metrics,
    stopping: CancellationToken,
}

/// `/health`, `/health/ready` and `/metrics`, for those who run the server.
pub fn vitals(probes: Vec<Probe>, metrics: Metrics, stopping: CancellationToken) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(ready))
        .routes(routes!(measurements))
        .with_state(Vitals { probes: probes.into(), metrics, stopping })
}

/// That the server answers.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    #[schema(example = "ok")]
    status: &'static str,
    /// The server's version.
    version: &'static str,
}

/// That everything the server depends on answers.
#[derive(Debug, Serialize, ToSchema)]
struct Ready {
    #[schema(example = "ready")]
    status: &'static str,
    /// What was asked.
    #[schema(example = json!(["database", "schema"]))]
    checks: Vec<&'static str>,
}

/// Whether the process is alive
#[utoipa::path(get, path = "/health", tag = "operations",
    responses((status = 200, description = "It is", body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Whether the server can do its work
///
/// A 503 lists in `failing` what is away, or says that the server is stopping.
#[utoipa::path(get, path = "/health/ready", tag = "operations",
    responses((status = 200, description = "It can", body = Ready)))]
async fn ready(State(vitals): State<Vitals>) -> Result<Json<Ready>> {
    if vitals.stopping.is_cancelled() {
        return Err(Error::new(Problem::Unavailable, "the server is stopping"));
    }
    let verdicts = join_all(vitals.probes.iter().map(Probe::passes)).await;
    let named = vitals.probes.iter().map(|probe| probe.name).zip(verdicts);
    let (passing, failing): (Vec<_>, Vec<_>) = named.partition(|(_, passes)| *passes);
    if failing.is_empty() {
        return Ok(Json(Ready { status: "ready", checks: passing.into_iter().map(|(name, _)| name).collect() }));
    }
    let failing = failing.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    Err(Error::new(Problem::Unavailable, format!("not ready: {}", failing.join(", "))).with("failing", failing))
}

/// Measurements in Prometheus' text form
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "Every metric", body = String, content_type = "text/plain; version=0.0.4"))
)]
async fn measurements(State(vitals): State<Vitals>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], vitals.metrics.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readiness_names_what_is_away() {
        let probes = vec![
            Probe::new("database", async || Ok(())),
            Probe::new("worker", async || Err(Error::internal("private"))),
        ];
        let metrics = crate::telemetry::metrics().expect("metrics");
        let stopping = CancellationToken::new();
        let state =
            |probes: &[Probe]| Vitals { probes: probes.into(), metrics: metrics.clone(), stopping: stopping.clone() };
        let error = ready(State(state(&probes))).await.expect_err("one is away");
        assert_eq!(error.members()["failing"], serde_json::json!(["worker"]));
        assert!(ready(State(state(&probes[..1]))).await.is_ok());
        stopping.cancel();
        assert!(ready(State(state(&probes[..1]))).await.is_err());
    }
}
