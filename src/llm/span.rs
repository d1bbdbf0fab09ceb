//! The span of a call of a model, by OpenTelemetry's conventions for generative AI.

use opentelemetry::{Array, StringValue, Value as Fact};
use serde_json::{Value, json};

use super::{Message, Prompt, Stop, ToolCall, Usage, provider::Target, wire::Said};
use crate::{
    config::Api,
    telemetry::{KeyValue, Span, SpanKind},
};

/// Begins one of that operation, below the span that this task works in.
pub(super) fn of(target: &Target, operation: &'static str) -> Span {
    let config = &target.config.body;
    let span = Span::current().child(SpanKind::Client, || format!("{operation} {}", config.model));
    span.note(|| {
        let known = [
            ("gen_ai.operation.name", Some(operation.into())),
            ("gen_ai.provider.name", Some(provider(target.api, &config.provider).into())),
            ("gen_ai.request.model", Some(config.model.clone().into())),
            ("server.address", target.url.host_str().map(|host| host.to_owned().into())),
            ("server.port", target.url.port_or_known_default().map(|port| i64::from(port).into())),
            ("fermata.model.config", Some(target.config.reference().into())),
        ];
        known.into_iter().filter_map(|(key, fact): (_, Option<Fact>)| Some(KeyValue::new(key, fact?)))
    });
    span
}

/// Says on the span that this task works in who it was that answered, or was the last that did not.
pub(super) fn by(target: &Target) {
    let config = &target.config.body;
    Span::current().note(|| {
        [
            KeyValue::new("gen_ai.provider.name", provider(target.api, &config.provider)),
            KeyValue::new("gen_ai.request.model", config.model.clone()),
        ]
    });
}

/// Begins that of a question for words.
pub(super) fn of_chat(target: &Target, prompt: &Prompt) -> Span {
    let (span, config) = (of(target, "chat"), &target.config.body);
    span.note(|| {
        let count = |count: Option<u32>| count.map(|count| Fact::I64(i64::from(count)));
        let asks_json = prompt.schema.is_some() && prompt.tools.is_empty();
        let known = [
            ("gen_ai.request.stream", Some(true.into())),
            ("gen_ai.request.temperature", config.temperature.map(Fact::F64)),
            ("gen_ai.request.max_tokens", count(prompt.max_tokens.or(config.max_tokens))),
            ("gen_ai.output.type", asks_json.then(|| "json".into())),
        ];
        known.into_iter().filter_map(|(key, fact): (_, Option<Fact>)| Some(KeyValue::new(key, fact?)))
    });
    if let Some(system) = &prompt.system {
        span.note_content("gen_ai.system_instructions", || [text(system)]);
    }
    span.note_content("gen_ai.input.messages", || prompt.messages.iter().map(message).collect::<Vec<_>>());
    span
}

/// Notes what a call took.
pub(super) fn took(span: &Span, usage: Usage) {
    span.note(|| {
        let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        [
            KeyValue::new("gen_ai.usage.input_tokens", tokens(usage.input_tokens)),
            KeyValue::new("gen_ai.usage.cache_read.input_tokens", tokens(usage.cached_tokens)),
            KeyValue::new("gen_ai.usage.output_tokens", tokens(usage.output_tokens)),
        ]
    });
}

/// Notes what a model said.
pub(super) fn said(span: &Span, said: &Said) {
    span.note(|| {
        let reasons = Array::String(vec![StringValue::from(reason(said.stop))]);
        [KeyValue::new("gen_ai.response.finish_reasons", Fact::Array(reasons))]
    });
    span.note_content("gen_ai.output.messages", || {
        let thought = said.reasoning.iter().map(|thought| json!({ "type": "reasoning", "content": thought }));
        let parts: Vec<_> = thought.chain(spoken(&said.text, &said.calls)).collect();
        json!([{ "role": "assistant", "parts": parts, "finish_reason": reason(said.stop) }])
    });
}

/// Whose protocol it is; where that is OpenAI's, which others speak too, what the operator calls the provider.
fn provider(api: Api, name: &str) -> String {
    match api {
        Api::Openai | Api::OpenaiResponses => name.to_owned(),
        Api::Anthropic => "anthropic".to_owned(),
        Api::Gemini => "gcp.gemini".to_owned(),
    }
}

const fn reason(stop: Stop) -> &'static str {
    match stop {
        Stop::Done => "stop",
        Stop::Calls => "tool_call",
        Stop::Length => "length",
        Stop::Filtered => "content_filter",
    }
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "content": text })
}

fn spoken(words: &str, calls: &[ToolCall]) -> Vec<Value> {
    let words = (!words.is_empty()).then(|| text(words));
    let call =
        |call: &ToolCall| json!({ "type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments });
    words.into_iter().chain(calls.iter().map(call)).collect()
}

fn message(message: &Message) -> Value {
    let (role, parts) = match message {
        Message::User { text: words, images } => {
            let shown = images.iter().map(|image| match &image.url {
                Some(url) => json!({ "type": "uri", "modality": "image", "mime_type": image.media_type, "uri": url }),
                // Its bytes would be all of the span.
                None => json!({ "type": "image", "mime_type": image.media_type }),
            });
            ("user", std::iter::once(text(words)).chain(shown).collect())
        }
        Message::Assistant { text, calls, .. } => ("assistant", spoken(text, calls)),
        Message::Tool { call_id, output, .. } => {
            ("tool", vec![json!({ "type": "tool_call_response", "id": call_id, "response": output })])
        }
    };
    json!({ "role": role, "parts": parts })
}
