//! One line per event, for pipes and logs. Pure.

use serde_json::Value;

use super::{text, timeline::Record};
use crate::{
    journal::{AwaitingApproval, Body, Failure, Form, Question, SkipReason, ToolProgress, Wait},
    kernel::wire_time,
};

/// Arguments and outputs longer than this are cut; the API has them whole.
const MOST: usize = 2000;
/// Of outcomes that a fork has from the run it comes from.
const CARRIED: &str = "taken over";

/// `2026-11-21T09:00:00.123Z  evt_5  step.started  sync  crm.sync {"contacts":[]}`
pub(super) fn line(record: &Record) -> String {
    let mut parts = vec![wire_time::format(&record.at), format!("evt_{}", record.seq), text::safe(&record.name)];
    if let Some(step) = &record.step {
        parts.push(match record.attempt {
            Some(attempt) if attempt > 1 => format!("{step} (attempt {attempt})"),
            _ => step.to_string(),
        });
    }
    parts.extend(record.body.as_ref().map(said).filter(|said| !said.is_empty()));
    parts.join("  ")
}

fn said(body: &Body) -> String {
    let said = match body {
        Body::Idle(idle) => {
            let forked = idle.forked_from.as_ref().map(|from| format!("from {} at {}", from.run_id, from.event_id));
            words([idle.workflow.clone(), idle.goal.clone(), forked, Some(format!("by {}", idle.created_by))])
        }
        Body::Planning(_) => String::new(),
        Body::PlanRefused(refused) => refused.mistakes.join("; "),
        Body::PlanReady(ready) => format!("{} steps", ready.plan.steps.len()),
        Body::PlanExtended(extended) => {
            let ids: Vec<_> = extended.steps.iter().map(|step| step.id.as_str()).collect();
            format!("by {}", ids.join(", "))
        }
        Body::Executing(executing) if executing.retried.is_empty() => format!("by {}", executing.by),
        Body::Executing(executing) => {
            let again: Vec<String> = executing.retried.iter().map(ToString::to_string).collect();
            format!("by {}, again: {}", executing.by, again.join(", "))
        }
        Body::StepExpanded(expanded) => format!("{} items", expanded.items),
        Body::StepStarted(started) => format!("{} {}", started.tool, json(&started.arguments)),
        Body::StepWaiting(waiting) => match waiting.wait {
            Wait::Until { until } => format!("until {}", wire_time::format(&until)),
            Wait::Child { child_run_id } => format!("for {child_run_id}"),
        },
        Body::ToolProgress(progress) => progress_words(progress),
        Body::MessageDelta(delta) => delta.text.clone(),
        Body::MessageCompleted(message) => words([
            Some(format!("{} of {}", message.model, message.provider)),
            Some(format!("{} tokens asked, {} said", message.input_tokens, message.output_tokens)),
        ]),
        Body::StepCompleted(done) if done.carried => {
            words([Some(CARRIED.to_owned()), output(done.output.as_deref(), done.output_bytes)])
        }
        Body::StepCompleted(done) => {
            let length =
                text::duration(chrono::TimeDelta::milliseconds(i64::try_from(done.duration_ms).unwrap_or_default()));
            words([Some(length), output(done.output.as_deref(), done.output_bytes)])
        }
        Body::StepRetrying(retrying) => {
            format!("{}; again at {}", failure(&retrying.error), wire_time::format(&retrying.retry_at))
        }
        Body::StepFailed(failed) if failed.carried => format!("{CARRIED} · {}", failure(&failed.error)),
        Body::StepFailed(failed) if failed.continued => format!("{}; the run goes on", failure(&failed.error)),
        Body::StepFailed(failed) => failure(&failed.error),
        Body::StepSkipped(skipped) if skipped.carried => format!("{CARRIED} · {}", skip(skipped.reason)),
        Body::StepSkipped(skipped) => skip(skipped.reason).to_owned(),
        Body::AwaitingApproval(hold) => asked(hold),
        Body::Approved(yes) => {
            let changed = yes.arguments.as_ref().map(|arguments| format!("with {}", json(arguments)));
            words([Some(yes.approval_id.to_string()), Some(format!("by {}", yes.by)), yes.reason.clone(), changed])
        }
        Body::Denied(no) => words([Some(no.approval_id.to_string()), Some(format!("by {}", no.by)), no.reason.clone()]),
        Body::ApprovalExpired(late) => late.approval_id.to_string(),
        Body::ApprovalCancelled(moot) => moot.approval_id.to_string(),
        Body::RunCancelling(cancel) => words([Some(format!("by {}", cancel.by)), cancel.reason.clone()]),
        Body::Completed(done) => output(done.output.as_deref(), done.output_bytes).unwrap_or_default(),
        Body::Failed(failed) => failure(&failed.error),
        Body::Cancelled(cancelled) => words([Some(format!("by {}", cancelled.by)), cancelled.reason.clone()]),
    };
    text::safe(&said)
}

fn asked(hold: &AwaitingApproval) -> String {
    let repeat = (hold.question == Question::Repeat).then(|| "its outcome is unknown: act again?".to_owned());
    let call = format!("{} {}", hold.action, json(&hold.arguments));
    let form = hold.form.as_ref().map(|form| format!("asks: {}", form.message));
    words([
        Some(hold.approval_id.to_string()),
        repeat,
        form,
        Some(call),
        hold.reason.clone(),
        Some(hold.digest.clone()),
    ])
}

/// A form: what is said, and the schema of what is to be filled in.
pub(super) fn form(form: &Form) -> Vec<String> {
    let mut lines = vec!["it asks:".to_owned()];
    lines.extend(form.message.lines().map(|line| format!("  {}", text::safe(line))));
    lines.push("to be filled in:".to_owned());
    lines.extend(text::json_lines(&form.schema));
    lines
}

fn words<const N: usize>(parts: [Option<String>; N]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

fn json(value: &Value) -> String {
    text::json_line(value, MOST)
}

fn output(output: Option<&Value>, bytes: Option<u64>) -> Option<String> {
    match (output, bytes) {
        (Some(output), _) => Some(json(output)),
        (None, bytes) => bytes.map(left_out),
    }
}

/// What stands in for an output that was too large to come along.
pub(super) fn left_out(bytes: u64) -> String {
    format!("an output of {bytes} bytes, left out here")
}

/// `42 % uploading`.
pub(super) fn progress_words(progress: &ToolProgress) -> String {
    let percent = progress.fraction.map(|fraction| format!("{:.0} %", fraction * 100.0));
    let message = progress.message.clone().or_else(|| progress.data.as_ref().map(|data| text::json_line(data, 80)));
    [percent, message].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// `timeout: the tool took longer than 20 s`.
pub(super) fn failure(failure: &Failure) -> String {
    match &failure.step_id {
        Some(step) => format!("{step}: {}: {}", failure.code, failure.message),
        None => format!("{}: {}", failure.code, failure.message),
    }
}

/// Why a step did not run, for a person.
pub(super) const fn skip(reason: SkipReason) -> &'static str {
    match reason {
        SkipReason::Condition => "its condition is false",
        SkipReason::Upstream => "a step it needs was skipped",
        SkipReason::Denied => "denied",
        SkipReason::TakenAsDone => "taken as done",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(name: &str, step: Option<&str>, payload: Value) -> String {
        let mut event = json!({
            "eventId": "evt_5", "runId": "run_01k0000000e00000000000000a", "tenantId": "tnt_01k0000000e00000000000000c",
            "ts": "2026-11-21T09:00:00.123Z", "step": name, "level": "info", "payload": payload,
        });
        if let Some(step) = step {
            event["stepId"] = json!(step);
            event["attempt"] = json!(2);
        }
        line(&Record::parse(event.to_string()).unwrap())
    }

    #[test]
    fn an_event_is_one_line_whatever_its_arguments_hold() {
        let started =
            json!({"tool": "debug.echo", "toolVersion": "1", "effect": "pure", "arguments": {"a": "x\ny\u{202e}"}});
        assert_eq!(
            shown("step.started", Some("sync"), started),
            "2026-11-21T09:00:00.123Z  evt_5  step.started  sync (attempt 2)  debug.echo {\"a\":\"x\\ny\\u{202e}\"}"
        );
    }

    #[test]
    fn an_unknown_event_shows_its_name() {
        assert_eq!(shown("step.dreamt", None, json!({"of": 1})), "2026-11-21T09:00:00.123Z  evt_5  step.dreamt");
    }

    #[test]
    fn a_hold_says_what_to_decide_on() {
        let hold = json!({"approvalId": "apr_01k0000000e00000000000000b", "question": "repeat", "action": "crm.sync",
            "toolVersion": "1", "arguments": {"a": 1}, "digest": "sha256:00", "scope": [], "requires": []});
        assert!(shown("awaiting_approval", None, hold).ends_with(
            "apr_01k0000000e00000000000000b · its outcome is unknown: act again? · crm.sync {\"a\":1} · sha256:00"
        ));
    }
}
