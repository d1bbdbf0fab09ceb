//! Tools for trying the engine out. Registered only where the settings say so.

use std::{num::NonZeroU32, time::Duration};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Call, Outcome, Tool, ToolError};
use crate::journal::{Effect, ToolProgress};

/// Long enough for any experiment; a step's own time-out still holds.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// `debug.echo`: the value comes back.
#[derive(Debug)]
pub(super) struct Echo;

#[async_trait]
impl Tool for Echo {
    fn name(&self) -> &str {
        "debug.echo"
    }

    fn description(&self) -> &str {
        "Gives back its value."
    }

    fn arguments(&self) -> Value {
        json!({ "type": "object", "additionalProperties": false, "properties": { "value": {} } })
    }

    fn output(&self) -> Value {
        json!({ "description": "The value." })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Pure
    }

    fn at_once(&self) -> bool {
        true
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        Ok(Outcome::done(call.arguments.get("value").cloned().unwrap_or_default()))
    }
}

/// `debug.sleep`: takes its time, and lets itself be called off.
#[derive(Debug)]
pub(super) struct Sleep;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SleepArguments {
    ms: u64,
}

#[async_trait]
impl Tool for Sleep {
    fn name(&self) -> &str {
        "debug.sleep"
    }

    fn description(&self) -> &str {
        "Keeps a worker's slot for a while."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "required": ["ms"],
            "additionalProperties": false,
            "properties": { "ms": { "type": "integer", "minimum": 0, "maximum": 86_400_000 } }
        })
    }

    fn output(&self) -> Value {
        json!({ "type": "object", "required": ["sleptMs"], "properties": { "sleptMs": { "type": "integer" } } })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Pure
    }

    fn timeout(&self) -> Duration {
        PATIENCE
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let SleepArguments { ms } = call.read()?;
        // Even a sleep of no time takes until the timer's next tick.
        if ms == 0 {
            return Ok(Outcome::done(json!({ "sleptMs": ms })));
        }
        tokio::select! {
            () = call.cancel.cancelled() => Err(ToolError::cancelled()),
            () = sleep(Duration::from_millis(ms)) => Ok(Outcome::done(json!({ "sleptMs": ms }))),
        }
    }
}

/// `debug.fail`: fails its first attempts.
#[derive(Debug)]
pub(super) struct Fail;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FailArguments {
    times: u32,
    #[serde(default = "yes")]
    retryable: bool,
}

fn yes() -> bool {
    true
}

#[async_trait]
impl Tool for Fail {
    fn name(&self) -> &str {
        "debug.fail"
    }

    fn description(&self) -> &str {
        "Fails its first attempts, `times` of them, and then succeeds."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "required": ["times"],
            "additionalProperties": false,
            "properties": {
                "times": { "type": "integer", "minimum": 0, "maximum": u32::MAX },
                "retryable": { "type": "boolean", "default": true }
            }
        })
    }

    fn output(&self) -> Value {
        json!({ "type": "object", "required": ["attempt"], "properties": { "attempt": { "type": "integer" } } })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Pure
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let FailArguments { times, retryable } = call.read()?;
        if call.attempt > times {
            return Ok(Outcome::done(json!({ "attempt": call.attempt })));
        }
        let message = format!("attempt {} of {times} that fail", call.attempt);
        Err(if retryable { ToolError::retryable("debug", message) } else { ToolError::failed("debug", message) })
    }
}

/// `debug.emit`: reports progress at a steady pace.
#[derive(Debug)]
pub(super) struct Emit;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EmitArguments {
    count: u32,
    #[serde(default)]
    per_second: Option<NonZeroU32>,
    #[serde(default)]
    bytes: usize,
}

impl EmitArguments {
    async fn emit(&self, call: &Call) {
        let mut pace = self.per_second.map(|rate| {
            let mut pace = interval(Duration::from_secs(1) / rate.get());
            // A late report does not push back those after it.
            pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
            pace
        });
        let pad = "x".repeat(self.bytes);
        for number in 1..=self.count {
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            let data = if pad.is_empty() { json!({ "n": number }) } else { json!({ "n": number, "pad": pad }) };
            let fraction = f64::from(number) / f64::from(self.count);
            call.progress.report(ToolProgress { message: None, fraction: Some(fraction), data: Some(data) }).await;
        }
    }
}

#[async_trait]
impl Tool for Emit {
    fn name(&self) -> &str {
        "debug.emit"
    }

    fn description(&self) -> &str {
        "Reports progress `count` times, `perSecond` a second or as fast as it goes, with `bytes` of payload."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "required": ["count"],
            "additionalProperties": false,
            "properties": {
                "count": { "type": "integer", "minimum": 0, "maximum": 1_000_000 },
                "perSecond": { "type": "integer", "minimum": 1, "maximum": 100_000 },
                "bytes": { "type": "integer", "minimum": 0, "maximum": 131_072, "default": 0 }
            }
        })
    }

    fn output(&self) -> Value {
        json!({ "type": "object", "required": ["emitted"], "properties": { "emitted": { "type": "integer" } } })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Pure
    }

    fn timeout(&self) -> Duration {
        PATIENCE
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let arguments: EmitArguments = call.read()?;
        tokio::select! {
            () = call.cancel.cancelled() => Err(ToolError::cancelled()),
            () = arguments.emit(&call) => Ok(Outcome::done(json!({ "emitted": arguments.count }))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::mpsc, time::Instant};

    use super::*;
    use crate::tool::Said;
    use crate::{
        journal::{Report, StepKey},
        tool::{Progress, tests::call},
    };

    #[tokio::test]
    async fn a_sleeper_can_be_called_off() {
        let call = call(json!({"ms": 86_400_000}));
        call.cancel.cancel();
        assert_eq!(Sleep.call(call).await, Err(ToolError::cancelled()));
    }

    #[tokio::test]
    async fn the_first_attempts_fail() {
        let at = |attempt, arguments| Fail.call(Call { attempt, ..call(arguments) });
        let failure = |result| match result {
            Err(ToolError::Failed(failure)) => Some(failure.retryable),
            _ => None,
        };
        assert_eq!(failure(at(2, json!({"times": 2})).await), Some(true));
        assert_eq!(failure(at(1, json!({"times": 2, "retryable": false})).await), Some(false));
        assert_eq!(at(3, json!({"times": 2})).await, Ok(Outcome::done(json!({"attempt": 3}))));
    }

    #[tokio::test]
    async fn reports_keep_their_pace_and_carry_their_payload() {
        let (sender, mut reports) = mpsc::channel(1000);
        let progress = Progress::new(sender, StepKey::whole("s"), 1);
        let begin = Instant::now();
        let call = Call { progress, ..call(json!({"count": 51, "perSecond": 1000, "bytes": 10})) };
        assert_eq!(Emit.call(call).await, Ok(Outcome::done(json!({"emitted": 51}))));
        assert!(begin.elapsed().as_millis() >= 50);
        let mut numbers = Vec::new();
        while let Ok((_, _, report)) = reports.try_recv() {
            let Said::Report(Report::Progress(ToolProgress { data: Some(data), .. })) = report else {
                panic!("{report:?}")
            };
            assert_eq!(data["pad"], "xxxxxxxxxx");
            numbers.push(data["n"].as_u64().unwrap());
        }
        assert_eq!(numbers, (1..=51).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_reporter_can_be_called_off_while_nobody_listens() {
        let (sender, _reports) = mpsc::channel(1);
        let call = Call { progress: Progress::new(sender, StepKey::whole("s"), 1), ..call(json!({"count": 5})) };
        call.cancel.cancel();
        assert_eq!(Emit.call(call).await, Err(ToolError::cancelled()));
    }
}
