//! What can happen to a run. One list gives the enum, the names on the wire and the payloads' schemas;
//! `docs/events.md` says the same in prose. The journal stores an event exactly as it is sent.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    message::*,
    payload::*,
    plan::StepKey,
    planning::{PlanReady, PlanRefused, Planning},
};
use crate::kernel::{Error, Problem, Result, RunId, TenantId, Timestamp, wire_time};

/// How loudly a timeline should show an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The ordinary course.
    Info,
    /// Something to look at: a retry, a denial, a hold over an unknown outcome.
    Warn,
    /// A failure.
    Error,
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $wire:literal, $level:ident;)*) => {
        /// What happened, with its payload.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Body { $($(#[$doc])* $name($name),)* }

        impl Body {
            /// Every name an event can have on the wire, in the order of the documentation.
            pub const NAMES: &'static [&'static str] = &[$($wire,)*];

            /// The event's name: `step` on the wire.
            #[must_use]
            pub const fn name(&self) -> &'static str { match self { $(Self::$name(_) => $wire,)* } }

            /// How loud it is.
            #[must_use]
            pub const fn level(&self) -> Level { match self { $(Self::$name(_) => Level::$level,)* } }

            fn payload(&self) -> serde_json::Result<Box<RawValue>> {
                match self { $(Self::$name(payload) => serde_json::value::to_raw_value(payload),)* }
            }

            fn decode(name: &str, payload: &RawValue) -> serde_json::Result<Self> {
                match name {
                    $($wire => serde_json::from_str(payload.get()).map(Self::$name),)*
                    other => Err(serde::de::Error::custom(format!("no event is called {other}"))),
                }
            }
        }

        $(impl From<$name> for Body {
            fn from(payload: $name) -> Self { Self::$name(payload) }
        })*

        /// Name and payload schema of every event, for the OpenAPI document.
        #[must_use]
        pub fn payload_schemas() -> Vec<(&'static str, String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)> {
            vec![$(($wire, <$name as ToSchema>::name().into_owned(), <$name as utoipa::PartialSchema>::schema()),)*]
        }

        /// The schemas that the payloads' schemas refer to.
        #[must_use]
        pub fn payload_parts() -> Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)> {
            let mut parts = Vec::new();
            $(<$name as ToSchema>::schemas(&mut parts);)*
            parts
        }
    };
}

events! {
    /// The run was accepted.
    Idle = "idle", Info;
    /// A plan is being made.
    Planning = "planning", Info;
    /// What a model drew up will not do, and it is asked again.
    PlanRefused = "plan.refused", Warn;
    /// The plan stands.
    PlanReady = "plan.ready", Info;
    /// The plan has grown by what an agent answered.
    PlanExtended = "plan.extended", Info;
    /// The plan is being carried out, at first or again after a retry.
    Executing = "executing", Info;
    /// A `forEach` step was spread over its items.
    StepExpanded = "step.expanded", Info;
    /// The call of a step's tool is about to be made.
    StepStarted = "step.started", Info;
    /// The step waits, holding nothing, for an instant or for a child run.
    StepWaiting = "step.waiting", Info;
    /// The tool reported how far it is.
    ToolProgress = "tool.progress", Info;
    /// A model says something.
    MessageDelta = "message.delta", Info;
    /// A model has said all.
    MessageCompleted = "message.completed", Info;
    /// The step has its output.
    StepCompleted = "step.completed", Info;
    /// An attempt failed and another follows.
    StepRetrying = "step.retrying", Warn;
    /// The step failed for good.
    StepFailed = "step.failed", Error;
    /// The step will not run.
    StepSkipped = "step.skipped", Info;
    /// A call waits for somebody's decision.
    AwaitingApproval = "awaiting_approval", Info;
    /// Consent was given.
    Approved = "approved", Info;
    /// Consent was refused.
    Denied = "denied", Warn;
    /// Nobody decided in time; it counts as denied.
    ApprovalExpired = "approval.expired", Warn;
    /// The question no longer stands, because the run ended.
    ApprovalCancelled = "approval.cancelled", Info;
    /// Somebody cancelled the run; steps in flight are being told.
    RunCancelling = "run.cancelling", Warn;
    /// The run has its output.
    Completed = "completed", Info;
    /// The run failed.
    Failed = "failed", Error;
    /// The run was cancelled.
    Cancelled = "cancelled", Warn;
}

/// One thing that happened, before it has a number.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The step it is about.
    pub step: Option<StepKey>,
    /// That step's attempt, from 1.
    pub attempt: Option<u32>,
    /// What happened.
    pub body: Body,
}

impl Event {
    /// About the run.
    pub fn run(body: impl Into<Body>) -> Self {
        Self { step: None, attempt: None, body: body.into() }
    }

    /// About an attempt of a step.
    pub fn step(step: &StepKey, attempt: u32, body: impl Into<Body>) -> Self {
        Self { step: Some(step.clone()), attempt: Some(attempt), body: body.into() }
    }
}

/// An event's JSON, as it is stored and sent.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Event)]
pub struct Envelope {
    /// `evt_` and the run's own sequence number: 1, 2, 3 … without a gap.
    pub event_id: String,
    /// The run.
    pub run_id: RunId,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// When it was journaled.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub ts: Timestamp,
    /// The event's name.
    pub step: String,
    /// How loud it is.
    pub level: Level,
    /// The step it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub step_id: Option<StepKey>,
    /// That step's attempt, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// What the event says; its schema depends on `step`.
    #[schema(value_type = Object)]
    pub payload: Box<RawValue>,
}

/// `evt_7` for 7.
#[must_use]
pub fn event_id(seq: u64) -> String {
    format!("evt_{seq}")
}

/// 7 for `evt_7`, and nothing for what is written otherwise.
#[must_use]
pub fn event_number(id: &str) -> Option<u64> {
    let digits = id.strip_prefix("evt_")?;
    let is_number = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    // The table counts in signed numbers.
    is_number.then(|| digits.parse().ok())?.filter(|seq| i64::try_from(*seq).is_ok())
}

/// Encodes an event once, for the table and for every stream.
///
/// # Errors
/// When a payload cannot be written as JSON, which is a fault of ours.
pub fn encode(tenant_id: TenantId, run_id: RunId, seq: u64, ts: Timestamp, event: &Event) -> Result<Bytes> {
    let envelope = Envelope {
        event_id: event_id(seq),
        run_id,
        tenant_id,
        ts,
        step: event.body.name().to_owned(),
        level: event.body.level(),
        step_id: event.step.clone(),
        attempt: event.attempt,
        payload: event.body.payload().map_err(Error::internal)?,
    };
    serde_json::to_vec(&envelope).map(Bytes::from).map_err(Error::internal)
}

/// Reads what [`encode`] wrote: the event's number, the time it happened, and what happened.
///
/// # Errors
/// When the stored event is not of a form this version knows: a newer one may have written it.
pub fn decode(data: &str) -> Result<(u64, Timestamp, Event)> {
    let unknown = |error| {
        let detail = "one of its events is of a form this server does not know: is there a newer version at work?";
        Error::new(Problem::UnreadableRun, detail).because(error)
    };
    let envelope: Envelope = serde_json::from_str(data).map_err(unknown)?;
    let body = Body::decode(&envelope.step, &envelope.payload).map_err(unknown)?;
    let seq = event_number(&envelope.event_id);
    let seq = seq.ok_or_else(|| unknown(serde::de::Error::custom("an event's id is written `evt_7`")))?;
    Ok((seq, envelope.ts, Event { step: envelope.step_id, attempt: envelope.attempt, body }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::DateTime;

    use super::*;
    use crate::kernel::Id;

    #[test]
    fn an_output_of_null_is_one_and_not_one_that_is_kept_apart() {
        let now = DateTime::UNIX_EPOCH;
        let completed = |output, output_bytes| StepCompleted {
            output,
            output_bytes,
            duration_ms: 1,
            cost: None,
            taken: None,
            carried: false,
        };
        for body in [completed(Some(Arc::default()), None), completed(None, Some(200_000))] {
            let event = Event::step(&StepKey::whole("a"), 1, body);
            let data = encode(Id::new(now), Id::new(now), 1, now, &event).unwrap();
            assert_eq!(decode(std::str::from_utf8(&data).unwrap()).unwrap(), (1, now, event));
        }
    }
}
