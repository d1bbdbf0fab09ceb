use async_trait::async_trait;
use chrono::{Datelike, TimeDelta};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Outcome, Tool, ToolError};
use crate::{
    journal::{Effect, Wait},
    kernel::{Span, Timestamp, wire_time},
};

/// `time.wait`: the step waits, holding nothing, and is done at an instant.
#[derive(Debug)]
pub(super) struct TimeWait;

/// The output of a step that waited until `until`.
#[must_use]
pub fn waited(until: &Timestamp) -> Value {
    json!({ "waitedUntil": wire_time::format(until) })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    #[serde(default, rename = "for")]
    span: Option<Span>,
    #[serde(default, with = "wire_time::option")]
    until: Option<Timestamp>,
}

impl Arguments {
    fn until(&self, now: Timestamp) -> Result<Timestamp, ToolError> {
        let invalid = |message: &str| ToolError::failed("invalid_arguments", message);
        let until = match (self.span, self.until) {
            (Some(span), None) => TimeDelta::from_std(span.0).ok().and_then(|span| now.checked_add_signed(span)),
            (None, Some(until)) => Some(until),
            _ => return Err(invalid("give one of `for` and `until`")),
        };
        // The wire's form of time has four digits for the year.
        until.filter(|until| until.year() <= 9999).ok_or_else(|| invalid("wait until the year 9999 at the latest"))
    }
}

#[async_trait]
impl Tool for TimeWait {
    fn name(&self) -> &str {
        "time.wait"
    }

    fn description(&self) -> &str {
        "Waits for a length of time or until an instant, for as long as it takes, at no cost."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "for": { "type": "string", "description": "A length of time: `90s`, `2h`, `3days`." },
                "until": { "type": "string", "description": "An RFC 3339 time; one in the past is over at once." }
            },
            "oneOf": [{ "required": ["for"] }, { "required": ["until"] }]
        })
    }

    fn output(&self) -> Value {
        json!({
            "type": "object",
            "required": ["waitedUntil"],
            "properties": { "waitedUntil": { "type": "string", "format": "date-time" } }
        })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Pure
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let until = call.read::<Arguments>()?.until(call.now)?;
        if until <= call.now {
            return Ok(Outcome::done(waited(&until)));
        }
        Ok(Outcome::Wait(Wait::Until { until }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::tests::call;

    async fn wait(arguments: Value) -> Result<Outcome, ToolError> {
        TimeWait.call(call(arguments)).await
    }

    #[tokio::test]
    async fn a_span_counts_from_the_call() {
        let until = call(json!({})).now + TimeDelta::hours(2);
        assert_eq!(wait(json!({"for": "2h"})).await, Ok(Outcome::Wait(Wait::Until { until })));
    }

    #[tokio::test]
    async fn the_past_is_over_at_once() {
        let output = json!({"waitedUntil": "1969-12-31T22:00:00.000Z"});
        assert_eq!(wait(json!({"until": "1970-01-01T00:00:00+02:00"})).await, Ok(Outcome::done(output)));
    }

    #[tokio::test]
    async fn what_is_no_time_is_refused() {
        for arguments in [
            json!({}),
            json!({"for": "1h", "until": "2030-01-01T00:00:00Z"}),
            json!({"for": "soon"}),
            json!({"for": "9000000years"}),
            json!({"for": "9999years"}),
            json!({"until": "tomorrow"}),
            json!({"until": "+12000-01-01T00:00:00Z"}),
        ] {
            let refused = wait(arguments.clone()).await;
            assert!(matches!(&refused, Err(ToolError::Failed(f)) if f.code == "invalid_arguments"), "{arguments}");
        }
    }
}
