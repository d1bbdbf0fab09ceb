use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Limited};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanProcessor},
};
use tokio::runtime::Handle;

use super::{Span, SpanKind, Trace};
use crate::{
    config::TelemetrySettings,
    kernel::{Clock, RunId},
};

/// The longest one delivery may take, and the last one at the end.
const DELIVERY: Duration = Duration::from_secs(10);
const LAST: Duration = Duration::from_secs(5);
/// The longest answer of a collector that is read, in bytes.
const ANSWER: usize = 64 * 1024;
/// Spans that wait to be exported, without what was said and with it; more are dropped.
const QUEUE: (usize, usize) = (4096, 256);

/// Where spans go: nowhere, unless the settings name a collector. Cheap to clone.
#[derive(Clone, Default)]
pub struct Traces {
    exporter: Option<Arc<Exporter>>,
}

pub(super) struct Exporter {
    pub(super) processor: BatchSpanProcessor,
    pub(super) scope: InstrumentationScope,
    pub(super) clock: Clock,
    pub(super) record_content: bool,
    ratio: f64,
}

impl Traces {
    /// To the collector of the settings. A thread of its own exports what is queued, on the runtime that this is called on.
    ///
    /// # Errors
    /// When the address is no URL, or no HTTP client can be made.
    pub fn new(settings: &TelemetrySettings, clock: Clock) -> Result<Self, String> {
        let Some(endpoint) = &settings.endpoint else { return Ok(Self::default()) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Post::new(endpoint)?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|error| format!("telemetry.endpoint: {error}"))?;
        let queue = if settings.record_content { QUEUE.1 } else { QUEUE.0 };
        let batches = BatchConfigBuilder::default().with_max_queue_size(queue).with_max_export_batch_size(queue / 8);
        let mut processor = BatchSpanProcessor::new(exporter, batches.build());
        let resource = Resource::builder()
            .with_service_name(settings.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        processor.set_resource(&resource.build());
        let scope = InstrumentationScope::builder("fermata").with_version(env!("CARGO_PKG_VERSION")).build();
        let (record_content, ratio) = (settings.record_content, settings.sample_ratio);
        Ok(Self { exporter: Some(Arc::new(Exporter { processor, scope, clock, record_content, ratio })) })
    }

    /// Whether spans go anywhere.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.exporter.is_some()
    }

    /// Our place in the caller's trace, or at the start of one of our own.
    #[must_use]
    pub fn arrive(&self, caller: Option<Trace>) -> Trace {
        caller.map_or_else(|| self.sample(Trace { sampled: false, ..Trace::start() }), |caller| caller.child())
    }

    /// The place of an attempt of a step in its run's trace: the run's id is the trace's, and each attempt is a span, the
    /// same for every repetition.
    #[must_use]
    pub fn attempt(&self, run: RunId, step: &dyn fmt::Display, attempt: u32) -> Trace {
        self.sample(Trace::named(run.uuid().as_u128(), &format!("{step}/{attempt}")))
    }

    /// Where nothing is exported nothing is decided.
    fn sample(&self, trace: Trace) -> Trace {
        let sampled = self.exporter.as_ref().map_or(trace.sampled, |exporter| trace.is_among(exporter.ratio));
        Trace { sampled, ..trace }
    }

    /// Begins the span at that place.
    #[must_use]
    pub fn begin(&self, trace: Trace, kind: SpanKind, name: impl FnOnce() -> String) -> Span {
        match &self.exporter {
            Some(exporter) if trace.sampled => Span::new(Arc::clone(exporter), trace, kind, name()),
            _ => Span::default(),
        }
    }

    /// Exports what is queued, for a few seconds at most; spans that end later go nowhere.
    pub async fn close(&self) {
        let Some(exporter) = self.exporter.clone() else { return };
        let closed = tokio::task::spawn_blocking(move || exporter.processor.shutdown_with_timeout(LAST)).await;
        if !matches!(closed, Ok(Ok(()))) {
            tracing::warn!("the last spans could not be exported");
        }
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("on", &self.is_on()).finish_non_exhaustive()
    }
}

/// The way to the collector.
#[derive(Debug)]
struct Post {
    client: reqwest::Client,
    runtime: Handle,
    collector: String,
    failing: AtomicBool,
}

impl Post {
    fn new(collector: &str) -> Result<Self, String> {
        let url = reqwest::Url::parse(collector).map_err(|error| format!("telemetry.endpoint: {error}"))?;
        // It is an error only where a provider is installed already, and then that one serves.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("fermata/", env!("CARGO_PKG_VERSION")))
            .timeout(DELIVERY)
            .build()
            .map_err(|error| format!("no HTTP client could be made for telemetry.endpoint: {error}"))?;
        let collector = url.host_str().unwrap_or_default().to_owned();
        Ok(Self { client, runtime: Handle::current(), collector, failing: AtomicBool::new(false) })
    }

    /// Says once that the collector fails, and once that it does no more.
    fn tell(&self, why: Option<String>) {
        let collector = &self.collector;
        match (why, self.failing.swap(false, Ordering::Relaxed)) {
            (Some(why), before) => {
                self.failing.store(true, Ordering::Relaxed);
                if !before {
                    tracing::warn!(collector, why, "spans cannot be exported, and are dropped for now");
                }
            }
            (None, true) => tracing::info!(collector, "spans are exported again"),
            (None, false) => {}
        }
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |&error| error.source()).last().map(ToString::to_string).unwrap_or_default()
}

#[async_trait]
impl HttpClient for Post {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        // Whoever exports does so on a thread that is none of the runtime's.
        let sending = self.runtime.spawn(async move {
            let answer = client.execute(request.try_into()?).await?;
            let (parts, body) = Response::<reqwest::Body>::from(answer).into_parts();
            let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(parts, body))
        });
        let sent = sending.await.map_err(HttpError::from).flatten();
        self.tell(match &sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status().as_u16())),
            Err(error) => Some(innermost(&**error)),
        });
        sent
    }
}
