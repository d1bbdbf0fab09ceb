use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::{
    KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanProcessor};

use super::{Trace, export::Exporter};
use crate::kernel::Timestamp;

/// The most of what was said that one attribute carries, in bytes.
const CONTENT: usize = 128 * 1024;

tokio::task_local! {
    static CURRENT: Span;
}

/// A span under way, exported when its last clone goes. Where it would go nowhere it is inert, and costs nothing.
#[derive(Clone, Default)]
pub struct Span(Option<Arc<Live>>);

struct Live {
    exporter: Arc<Exporter>,
    trace: Trace,
    kind: SpanKind,
    name: String,
    begun: Timestamp,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    attributes: Vec<KeyValue>,
    failed: bool,
}

impl Span {
    pub(super) fn new(exporter: Arc<Exporter>, trace: Trace, kind: SpanKind, name: String) -> Self {
        let begun = exporter.clock.now();
        Self(Some(Arc::new(Live { exporter, trace, kind, name, begun, noted: Mutex::default() })))
    }

    /// The span that this task works in.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }

    /// Works in this span.
    pub fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self.clone(), work)
    }

    /// Begins a span below this one. Whose work it is, its `fermata.*` and its conversation, it says too.
    #[must_use]
    pub fn child(&self, kind: SpanKind, name: impl FnOnce() -> String) -> Self {
        let Some(live) = &self.0 else { return Self::default() };
        let child = Self::new(Arc::clone(&live.exporter), live.trace.child(), kind, name());
        let owner = live.with(|noted| {
            let owner = noted.attributes.iter().filter(|fact| is_shared(fact.key.as_str()));
            owner.cloned().collect::<Vec<_>>()
        });
        child.note(|| owner);
        child
    }

    /// Notes attributes, which are only made if somebody gets them.
    pub fn note<I: IntoIterator<Item = KeyValue>>(&self, facts: impl FnOnce() -> I) {
        if let Some(live) = &self.0 {
            live.with(|noted| noted.attributes.extend(facts()));
        }
    }

    /// Notes what was said, as JSON, where that is recorded at all.
    pub fn note_content<T: serde::Serialize>(&self, key: &'static str, content: impl FnOnce() -> T) {
        let Some(live) = self.0.as_ref().filter(|live| live.exporter.record_content) else { return };
        let text = serde_json::to_string(&content()).unwrap_or_default();
        let fact = match text.len() {
            0..=CONTENT => KeyValue::new(key, text),
            _ => KeyValue::new(format!("{key}.omitted"), true),
        };
        live.with(|noted| noted.attributes.push(fact));
    }

    /// Notes that it failed, and with what stable word.
    pub fn fail(&self, code: impl Into<opentelemetry::Value>) {
        if let Some(live) = &self.0 {
            live.with(|noted| {
                noted.failed = true;
                noted.attributes.push(KeyValue::new("error.type", code));
            });
        }
    }
}

impl Live {
    fn with<T>(&self, change: impl FnOnce(&mut Noted) -> T) -> T {
        change(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let Noted { attributes, failed } = std::mem::take(self.noted.get_mut().unwrap_or_else(PoisonError::into_inner));
        let Trace { trace_id, span_id, parent_id, .. } = self.trace;
        let (trace_id, span_id) = (TraceId::from(trace_id), SpanId::from(span_id));
        self.exporter.processor.on_end(SpanData {
            span_context: SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: parent_id.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: parent_id.is_some() && self.kind == SpanKind::Server,
            span_kind: self.kind.clone(),
            name: std::mem::take(&mut self.name).into(),
            start_time: self.begun.into(),
            end_time: self.exporter.clock.now().max(self.begun).into(),
            attributes,
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: if failed { Status::error("") } else { Status::Unset },
            instrumentation_scope: self.exporter.scope.clone(),
        });
    }
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Span").field(&self.0.as_ref().map(|live| live.trace)).finish()
    }
}

/// What every span of one work says.
fn is_shared(key: &str) -> bool {
    key.starts_with("fermata.") || key == "gen_ai.conversation.id"
}
