//! The span of a call of a tool, by OpenTelemetry's conventions for generative AI.

use crate::{
    journal::PLANNING,
    telemetry::{KeyValue, Span, SpanKind},
    tool::{Call, Handed, Outcome, ToolError},
};

/// Begins it: `execute_tool`, or `invoke_agent` where it is a turn of one.
pub(super) fn begin(tool: &str, call: &Call) -> Span {
    if !call.traces.is_on() {
        return Span::default();
    }
    let agent = match &call.handed {
        Handed::Conversation(conversation) => Some(conversation.agent.as_str()),
        _ => None,
    };
    let (operation, subject) = match agent {
        Some(PLANNING) => ("plan", ""),
        Some(agent) => ("invoke_agent", agent.split('@').next().unwrap_or_default()),
        None => ("execute_tool", tool),
    };
    let span =
        call.traces.begin(call.trace(), SpanKind::Internal, || format!("{operation} {subject}").trim_end().to_owned());
    span.note(|| {
        [
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("fermata.tenant.id", call.tenant_id.to_string()),
            KeyValue::new("fermata.run.id", call.run_id.to_string()),
            KeyValue::new("fermata.step.id", call.step.to_string()),
            KeyValue::new("fermata.step.attempt", i64::from(call.attempt)),
        ]
    });
    match agent {
        Some(agent) => {
            span.note(|| [KeyValue::new("gen_ai.conversation.id", call.run_id.to_string())]);
            if let Some((name, version)) = agent.split_once('@') {
                span.note(|| {
                    [
                        KeyValue::new("gen_ai.agent.name", name.to_owned()),
                        KeyValue::new("gen_ai.agent.version", version.to_owned()),
                    ]
                });
            }
        }
        None => {
            span.note(|| {
                [
                    KeyValue::new("gen_ai.tool.name", tool.to_owned()),
                    KeyValue::new("gen_ai.tool.type", "function"),
                    KeyValue::new("gen_ai.tool.call.id", call.step.to_string()),
                ]
            });
            span.note_content("gen_ai.tool.call.arguments", || &*call.arguments);
        }
    }
    span
}

/// Notes what became of it.
pub(super) fn note(span: &Span, result: &Result<Outcome, ToolError>) {
    match result {
        Ok(Outcome::Done { output, .. }) => span.note_content("gen_ai.tool.call.result", || output),
        Ok(Outcome::Wait(_) | Outcome::Ask(_)) => {}
        Err(ToolError::Failed(failure) | ToolError::Unknown(failure)) => span.fail(failure.code.clone()),
    }
}
