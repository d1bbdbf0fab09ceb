//! What operators see of a running process: logs, metrics and traces.

mod export;
mod logs;
mod metrics;
mod span;
mod trace;

pub use export::Traces;
pub use logs::{LogFormat, init};
pub use metrics::{CATALOGUE, Kind, Metrics, metrics};
pub use opentelemetry::{KeyValue, trace::SpanKind};
pub use span::Span;
pub use trace::Trace;
