//! One call of a model, over whatever its provider speaks: always as a stream, so that a long answer keeps the
//! connection alive and its words can be heard at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use genai::{
    Client, ModelIden, ServiceTarget,
    adapter::AdapterKind,
    chat::{
        ChatMessage, ChatOptions, ChatRequest, ChatResponseFormat, ChatStreamEvent, ContentPart, JsonSpec,
        MessageContent, StopReason, StreamEnd, Tool, ToolResponse,
    },
    resolver::{AuthData, Endpoint},
};
use reqwest::{StatusCode, header::HeaderMap};
use secrecy::{ExposeSecret, SecretString};
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Message, Prompt, Stop, ToolCall, Usage, provider::Target};
use crate::{
    config::Api,
    http::{self, Refusal},
    kernel::Timestamp,
};

/// What came of a call.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) reasoning: Option<String>,
    pub(super) calls: Vec<ToolCall>,
    pub(super) stop: Stop,
    pub(super) usage: Usage,
}

/// Why nothing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    /// For a person; no key is in it.
    pub(super) message: String,
    /// How long the provider asks to be left alone.
    pub(super) retry_after: Option<Duration>,
}

/// What kind of a fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// The provider is asked too much.
    Limited,
    /// It is away, or fails.
    Away,
    /// It broke off in the middle, or spoke in a way that cannot be read.
    Broken,
    /// It took too long.
    TimedOut,
    /// It refuses the key.
    Unauthorised,
    /// It refuses what it is asked.
    Refused,
    /// It is not to be reached from here.
    Unreachable,
    /// It failed too often, and is not called for a while.
    LeftAlone,
}

impl FaultKind {
    /// A stable word.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Limited => "model_rate_limited",
            Self::Away => "model_unavailable",
            Self::Broken => "model_broke_off",
            Self::TimedOut => "model_timeout",
            Self::Unauthorised => "model_key_refused",
            Self::Refused => "model_refused",
            Self::Unreachable => "address_refused",
            Self::LeftAlone => "model_left_alone",
        }
    }

    /// Whether the same call may be answered later.
    pub(super) const fn passes(self) -> bool {
        matches!(self, Self::Limited | Self::Away | Self::Broken | Self::TimedOut)
    }
}

/// The most an answer may have, in bytes, its thoughts counted.
const LONGEST: usize = 2 * 1024 * 1024;
/// The longest message of a provider that is passed on, in characters.
const MESSAGE: usize = 500;

/// Calls the model at `now`; `hear` has the words as they come, and the thoughts.
pub(super) async fn call<F>(
    target: &Target,
    prompt: &Prompt,
    now: Timestamp,
    mut hear: impl FnMut(Heard) -> F,
) -> Result<Said, Fault>
where
    F: Future<Output = ()>,
{
    let client = Client::builder().with_reqwest(target.client.clone()).build();
    let client = client.map_err(|error| fault(target, &error, now))?;
    // Not every adapter minds a frame that it cannot read, and words that are missing are not seen to be.
    let garbled = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&garbled);
    let options = options(target, prompt).with_raw_frame_fn(move |_, frame| {
        if !frame.data.is_empty() && frame.data != "[DONE]" && serde_json::from_str::<IgnoredAny>(frame.data).is_err() {
            seen.store(true, Ordering::Relaxed);
        }
    });
    let streaming = client.exec_chat_stream(service(target), request(prompt), Some(&options)).await;
    let mut stream = streaming.map_err(|error| fault(target, &error, now))?.stream;
    let mut bytes = 0;
    while let Some(event) = stream.next().await {
        let heard = match event.map_err(|error| fault(target, &error, now))? {
            ChatStreamEvent::Chunk(chunk) => Heard::Words(chunk.content),
            ChatStreamEvent::ReasoningChunk(chunk) => Heard::Thoughts(chunk.content),
            ChatStreamEvent::ToolCallChunk(chunk) => {
                bytes += chunk.tool_call.size();
                continue;
            }
            ChatStreamEvent::End(_) if garbled.load(Ordering::Relaxed) => break,
            ChatStreamEvent::End(end) => return said(end).ok_or_else(|| broken(target, "the answer broke off")),
            ChatStreamEvent::Start | ChatStreamEvent::ThoughtSignatureChunk(_) | ChatStreamEvent::Heartbeat => continue,
        };
        bytes += heard.len();
        if bytes > LONGEST {
            return Err(broken(target, &format!("its answer has more than {LONGEST} bytes")));
        }
        if heard.len() > 0 {
            hear(heard).await;
        }
    }
    let garbled = garbled.load(Ordering::Relaxed);
    Err(broken(target, if garbled { "a part of the answer cannot be read" } else { "the answer broke off" }))
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// What it says.
    Words(String),
    /// What it thinks.
    Thoughts(String),
}

impl Heard {
    fn len(&self) -> usize {
        match self {
            Self::Words(text) | Self::Thoughts(text) => text.len(),
        }
    }
}

fn service(target: &Target) -> ServiceTarget {
    let adapter = match target.api {
        Api::Openai => AdapterKind::OpenAI,
        Api::OpenaiResponses => AdapterKind::OpenAIResp,
        Api::Anthropic => AdapterKind::Anthropic,
        Api::Gemini => AdapterKind::Gemini,
    };
    let key = target.key.as_ref().map_or("none", ExposeSecret::expose_secret);
    ServiceTarget {
        endpoint: Endpoint::from_owned(target.url.as_str()),
        auth: AuthData::from_single(key),
        model: ModelIden::new(adapter, target.config.body.model.clone()),
    }
}

fn options(target: &Target, prompt: &Prompt) -> ChatOptions {
    let config = &target.config.body;
    // Not every provider takes both; with tools the schema is said in words, and the answer is looked at all the same.
    let schema = prompt
        .schema
        .as_ref()
        .filter(|_| prompt.tools.is_empty())
        .map(|schema| JsonSpec::new("answer", Value::clone(schema)));
    ChatOptions {
        temperature: config.temperature,
        max_tokens: prompt.max_tokens.or(config.max_tokens),
        capture_usage: Some(true),
        capture_content: Some(true),
        capture_reasoning_content: Some(true),
        capture_tool_calls: Some(true),
        normalize_reasoning_content: Some(true),
        response_format: schema.map(ChatResponseFormat::JsonSpec),
        ..ChatOptions::default()
    }
}

fn request(prompt: &Prompt) -> ChatRequest {
    let tools: Vec<_> = prompt
        .tools
        .iter()
        .map(|tool| {
            let described = Tool::new(tool.name.as_str()).with_description(tool.description.as_str());
            described.with_schema(Value::clone(&tool.arguments))
        })
        .collect();
    ChatRequest {
        system: prompt.system.clone(),
        messages: prompt.messages.iter().map(message).collect(),
        tools: (!tools.is_empty()).then_some(tools),
        ..ChatRequest::default()
    }
}

fn message(message: &Message) -> ChatMessage {
    match message {
        Message::User { text, images } => {
            let shown = images.iter().map(|image| match (&image.data, &image.url) {
                (Some(data), _) => ContentPart::from_binary_base64(image.media_type.as_str(), data.clone(), None),
                (None, url) => {
                    ContentPart::from_binary_url(image.media_type.as_str(), url.clone().unwrap_or_default(), None)
                }
            });
            let parts: Vec<_> = [ContentPart::from(text.as_str())].into_iter().chain(shown).collect();
            ChatMessage::user(MessageContent::from_parts(parts))
        }
        Message::Assistant { text, calls } => {
            let words = (!text.is_empty()).then(|| ContentPart::from(text.as_str()));
            let calls = calls.iter().map(|call| {
                ContentPart::ToolCall(genai::chat::ToolCall {
                    call_id: call.id.clone(),
                    fn_name: call.name.clone(),
                    fn_arguments: call.arguments.clone(),
                    thought_signatures: call.signatures.clone(),
                })
            });
            ChatMessage::assistant(MessageContent::from_parts(words.into_iter().chain(calls).collect::<Vec<_>>()))
        }
        Message::Tool { call_id, name, output } => {
            ToolResponse::new(call_id.as_str(), output.as_str()).with_fn_name(name.as_str()).into()
        }
    }
}

/// None where the provider did not say why it ended: some adapters make an end of a connection's.
fn said(end: StreamEnd) -> Option<Said> {
    let reason = end.captured_stop_reason?;
    let tokens = |count: Option<i32>| u64::try_from(count.unwrap_or_default()).unwrap_or_default();
    let usage = end.captured_usage.unwrap_or_default();
    let cached = usage.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens);
    let content = end.captured_content.unwrap_or_default();
    let calls: Vec<_> = content
        .tool_calls()
        .into_iter()
        .map(|call| ToolCall {
            id: call.call_id.clone(),
            name: call.fn_name.clone(),
            // A tool that takes nothing is often called with nothing.
            arguments: match &call.fn_arguments {
                Value::Null => Value::Object(Default::default()),
                Value::String(text) if text.trim().is_empty() => Value::Object(Default::default()),
                other => other.clone(),
            },
            signatures: call.thought_signatures.clone(),
        })
        .collect();
    let stop = match reason {
        StopReason::MaxTokens(_) => Stop::Length,
        StopReason::ContentFilter(_) => Stop::Filtered,
        _ if calls.is_empty() => Stop::Done,
        _ => Stop::Calls,
    };
    Some(Said {
        text: content.texts().concat(),
        reasoning: end.captured_reasoning_content,
        calls,
        stop,
        usage: Usage {
            input_tokens: tokens(usage.prompt_tokens),
            cached_tokens: tokens(cached),
            output_tokens: tokens(usage.completion_tokens),
        },
    })
}

fn broken(target: &Target, why: &str) -> Fault {
    Fault { kind: FaultKind::Broken, message: format!("{}: {why}", place(target)), retry_after: None }
}

/// Whom it was that was asked.
pub(super) fn place(target: &Target) -> String {
    format!("`{}` of {}", target.config.body.model, target.config.body.provider)
}

fn fault(target: &Target, error: &genai::Error, now: Timestamp) -> Fault {
    use genai::{Error as E, webc};
    let host = target.url.host_str().unwrap_or_default();
    let source: &(dyn std::error::Error + 'static) = match error {
        E::WebStream { error, .. } => &**error,
        E::WebModelCall { webc_error, .. } | E::WebAdapterCall { webc_error, .. } => webc_error,
        other => other,
    };
    // The status of a stream that never began is found inside.
    let inner = source.downcast_ref::<genai::Error>().unwrap_or(error);
    if let Some(refusal) = Refusal::behind(source, host) {
        return Fault { kind: FaultKind::Unreachable, message: refusal.to_string(), retry_after: None };
    }
    let (kind, why) = match (inner.status(), inner) {
        (Some(status), _) => (of_status(status), format!("answered {}", status.as_u16())),
        (None, E::ChatResponse { .. }) => (FaultKind::Away, "failed in the middle".to_owned()),
        (None, E::StreamParse { .. } | E::SerdeJson(_)) => {
            (FaultKind::Broken, "said something that cannot be read".to_owned())
        }
        (None, E::WebStream { .. } | E::WebModelCall { .. } | E::WebAdapterCall { .. }) => {
            (FaultKind::Away, "cannot be reached, or hung up".to_owned())
        }
        (None, _) => (FaultKind::Refused, "cannot be asked this".to_owned()),
    };
    let told = match inner {
        E::HttpError { body, .. }
        | E::WebModelCall { webc_error: webc::Error::ResponseFailedStatus { body, .. }, .. } => reason(body),
        E::ChatResponse { body, .. } => reason(&body.to_string()),
        E::WebStream { .. } | E::WebModelCall { .. } | E::WebAdapterCall { .. } => innermost(source),
        other => brief(&other.to_string()),
    };
    let message = without_key(format!("{} {why}: {told}", place(target)), target.key.as_ref());
    let retry_after = inner.headers().and_then(|headers| retry_after(headers, now));
    Fault { kind, message, retry_after }
}

fn of_status(status: StatusCode) -> FaultKind {
    match status.as_u16() {
        429 => FaultKind::Limited,
        401 | 403 => FaultKind::Unauthorised,
        408 | 409 | 425 | 500.. => FaultKind::Away,
        _ => FaultKind::Refused,
    }
}

/// How long to wait, in the milliseconds that some providers give, or by `Retry-After`.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let millis = || headers.get("retry-after-ms")?.to_str().ok()?.trim().parse().ok().map(Duration::from_millis);
    let seconds = || http::retry_after(headers, now).map(|seconds| Duration::from_secs(u64::from(seconds.get())));
    millis().or_else(seconds)
}

/// What a provider says of itself: the message in its JSON, or the beginning of whatever it sent.
fn reason(body: &str) -> String {
    let json = serde_json::from_str::<Value>(body).ok();
    let message = json.as_ref().and_then(|json| {
        let first = json.get(0).unwrap_or(json);
        first.pointer("/error/message").or_else(|| first.get("message")).or_else(|| first.get("error"))?.as_str()
    });
    brief(message.unwrap_or(body))
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let last = std::iter::successors(Some(error), |&e| e.source()).last();
    brief(&last.map_or_else(String::new, ToString::to_string))
}

fn brief(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MESSAGE) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

fn without_key(text: String, key: Option<&SecretString>) -> String {
    match key.map(ExposeSecret::expose_secret).filter(|key| !key.is_empty()) {
        Some(key) => text.replace(key, "[the key]"),
        None => text,
    }
}
