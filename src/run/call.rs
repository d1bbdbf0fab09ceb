//! One call of a tool: its time-out, its cancellation, and what became of it.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use serde_json::Value;

use super::span;
use crate::{
    journal::{Effect, Failure, Form, StepKey, ToolProgress, Wait},
    kernel::{
        Clock,
        crash::{self, Side},
    },
    telemetry::KeyValue,
    tool::{Call, Outcome, Registry, ToolError},
};

/// How long a tool that was told to stop may take to come back.
const CANCEL_GRACE: Duration = Duration::from_secs(10);

/// How long a tool whose time is up has for a last word.
pub(super) const LAST_WORD: Duration = Duration::from_millis(500);

/// A call that is over.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) step: StepKey,
    pub(super) attempt: u32,
    pub(super) end: End,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum End {
    /// With an output.
    Done { output: Arc<Value>, cost: Option<f64> },
    /// The step waits.
    Wait(Wait),
    /// Somebody is asked to fill in a form.
    Ask(Form),
    /// Certainly without effect, or with one that may be repeated.
    Failed(Failure),
    /// It may have acted, and must not act again unasked.
    Unknown,
}

impl End {
    /// For metrics and spans.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Done { .. } => "completed",
            Self::Wait(_) => "waiting",
            Self::Ask(_) => "asking",
            Self::Failed(_) => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// Makes the call of a tool; comes back even when the tool does not.
pub(super) async fn make(registry: Registry, clock: Clock, tool: String, timeout: Duration, call: Call) -> Ended {
    let (step, attempt, effect) = (call.step.clone(), call.attempt, call.effect);
    let (cancel, progress) = (call.cancel.clone(), call.progress.clone());
    let deadline = call.now + chrono::TimeDelta::from_std(timeout).unwrap_or(chrono::TimeDelta::MAX);
    let span = span::begin(&tool, &call);
    let mut acting = std::pin::pin!(span.around(act(&registry, &tool, call)));
    let result = tokio::select! {
        // A call that has nothing to wait for sets no clock.
        biased;
        result = &mut acting => result,
        () = clock.sleep_until(deadline) => {
            // Told to stop, a tool may still know that nothing happened.
            cancel.cancel();
            match tokio::time::timeout(LAST_WORD, acting).await {
                Ok(Ok(outcome)) => Ok(outcome),
                Ok(Err(ToolError::Failed(_))) => Err(ToolError::retryable("timeout", late(timeout))),
                Ok(Err(ToolError::Unknown(_))) | Err(_) => Err(ToolError::unknown("timeout", late(timeout))),
            }
        }
        () = unresponsive(&cancel) => {
            Err(ToolError::unknown("cancelled", "the tool did not stop when it was told to"))
        }
    };
    span::note(&span, &result);
    let end = match result {
        Ok(Outcome::Done { output, cost }) => End::Done { output: Arc::new(output), cost },
        Ok(Outcome::Wait(wait)) => End::Wait(wait),
        Ok(Outcome::Ask(form)) => End::Ask(form),
        Err(ToolError::Unknown(failure)) if effect == Effect::Once => {
            tracing::info!(%step, attempt, code = failure.code, reason = failure.message, "a call may have acted");
            // Whoever is asked whether to repeat it is to know what is known.
            if let Failure { message, detail: Some(detail), .. } = failure {
                progress.report(ToolProgress { message: Some(message), fraction: None, data: Some(*detail) }).await;
            }
            End::Unknown
        }
        Err(ToolError::Failed(failure) | ToolError::Unknown(failure)) => End::Failed(failure),
    };
    span.note(|| [KeyValue::new("fermata.step.outcome", end.word())]);
    Ended { step, attempt, end }
}

/// The call itself. A tool that panics has come to an unknown end, as one that lost its connection has.
async fn act(registry: &Registry, tool: &str, call: Call) -> Result<Outcome, ToolError> {
    crash::point("call", Side::Before, &tool);
    let outcome = AssertUnwindSafe(registry.call(tool, call)).catch_unwind().await;
    crash::point("call", Side::After, &tool);
    outcome.unwrap_or_else(|_| Err(ToolError::unknown("tool_panicked", "the tool failed in a way it should not")))
}

fn late(timeout: Duration) -> String {
    format!("no outcome within {}", humantime::format_duration(timeout))
}

async fn unresponsive(cancel: &tokio_util::sync::CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(CANCEL_GRACE).await;
}
