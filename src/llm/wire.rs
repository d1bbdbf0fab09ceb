//! One call of a model, over whatever its provider speaks: always as a stream, so that a long answer keeps the
//! connection alive and its words can be heard at once.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures_util::StreamExt;
use genai::{
    Client, ModelIden, ServiceTarget,
    adapter::AdapterKind,
    chat::{
        ChatMessage, ChatOptions, ChatRequest, ChatResponseFormat, ChatStreamEvent, ContentPart, JsonSpec,
        MessageContent, ReasoningEffort, StopReason, StreamEnd, Tool, ToolResponse,
    },
    resolver::{AuthData, Endpoint},
};
use secrecy::ExposeSecret;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::{
    Message, Prompt, Reasoning, Stop, Thoughts, ToolCall, ToolSpec, Usage,
    fault::{Fault, FaultKind},
    parameters::Parameters,
    prompt,
    provider::Target,
    thoughts::Trail,
};
use crate::{
    config::Api,
    kernel::{
        Timestamp,
        crash::{self, Side},
    },
};

/// What came of a call.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) reasoning: Option<String>,
    pub(super) calls: Vec<ToolCall>,
    pub(super) thoughts: Option<Thoughts>,
    pub(super) stop: Stop,
    pub(super) usage: Usage,
}

/// The most an answer may have, in bytes, its thoughts counted.
const LONGEST: usize = 2 * 1024 * 1024;

/// How far an answer is, also for whoever calls it off.
#[derive(Debug, Default)]
pub(super) struct Tally {
    begun: AtomicBool,
    garbled: AtomicBool,
    said: AtomicUsize,
}

impl Tally {
    /// How many bytes were said and thought, the names and arguments of calls among them. None before it began.
    pub(super) fn said(&self) -> Option<usize> {
        self.begun.load(Ordering::Relaxed).then(|| self.said.load(Ordering::Relaxed))
    }

    fn clear(&self) {
        self.begun.store(false, Ordering::Relaxed);
        self.garbled.store(false, Ordering::Relaxed);
        self.said.store(0, Ordering::Relaxed);
    }

    /// Looks at a frame as it came: not every adapter minds one that it cannot read, and words that are missing are not
    /// seen to be.
    fn look_at(&self, frame: &str) {
        if !self.begun.load(Ordering::Relaxed) && is_of_an_answer(frame) {
            self.begun.store(true, Ordering::Relaxed);
        }
        if !frame.is_empty() && frame != "[DONE]" && serde_json::from_str::<IgnoredAny>(frame).is_err() {
            self.garbled.store(true, Ordering::Relaxed);
        }
    }

    fn is_garbled(&self) -> bool {
        self.garbled.load(Ordering::Relaxed)
    }
}

/// Whether a frame shows that an answer has begun: an error or a sign of life does not.
fn is_of_an_answer(frame: &str) -> bool {
    #[derive(Deserialize)]
    struct Glance {
        error: Option<IgnoredAny>,
        r#type: Option<String>,
    }
    let is_none = |glance: Glance| glance.error.is_some() || matches!(glance.r#type.as_deref(), Some("ping" | "error"));
    !serde_json::from_str(frame).is_ok_and(is_none)
}

/// Calls the model at `now`; `hear` has the words as they come, and the thoughts.
pub(super) async fn call<F>(
    target: &Target,
    prompt: &Prompt,
    now: Timestamp,
    tally: &Arc<Tally>,
    mut hear: impl FnMut(Heard) -> F,
) -> Result<Said, Fault>
where
    F: Future<Output = ()>,
{
    let calls = |message: &Message| matches!(message, Message::Assistant { calls, .. } if !calls.is_empty());
    match attempt(target, (prompt, true), now, tally, &mut hear).await {
        // Some models do not go on thinking where a thought of before is missing, as when another had that turn.
        Err(fault) if prompt.messages.iter().any(calls) && fault.is_about_thoughts(target.api) => {
            metrics::counter!("fermata_llm_retries_total", "why" => "thoughts").increment(1);
            attempt(target, (prompt, false), now, tally, &mut hear).await
        }
        said => said,
    }
}

/// One call, in which the model is to think or not.
async fn attempt<F>(
    target: &Target,
    (prompt, thinks): (&Prompt, bool),
    now: Timestamp,
    tally: &Arc<Tally>,
    hear: &mut impl FnMut(Heard) -> F,
) -> Result<Said, Fault>
where
    F: Future<Output = ()>,
{
    let client = client(target, now)?;
    let trail = if thinks { Trail::of(target, prompt) } else { None };
    tally.clear();
    let seen = Arc::clone(tally);
    let options = options(target, prompt, thinks).with_raw_frame_fn(move |_, frame| seen.look_at(frame.data));
    crash::point("model", Side::Before, &"asked");
    let request = request(target, prompt, trail.as_ref());
    let streaming = client.exec_chat_stream(service(target, adapter(target.api)), request, Some(&options)).await;
    let mut stream = streaming.map_err(|error| Fault::of(target, &error, now))?.stream;
    let (mut words, mut calls) = (0, HashMap::<String, usize>::new());
    while let Some(event) = stream.next().await {
        let heard = match event.map_err(|error| Fault::of(target, &error, now))? {
            ChatStreamEvent::Chunk(chunk) => Some(Heard::Words(chunk.content)),
            ChatStreamEvent::ReasoningChunk(chunk) => Some(Heard::Thoughts(chunk.content)),
            ChatStreamEvent::ToolCallChunk(chunk) => {
                // Each chunk has all that was said of its call so far.
                calls.insert(chunk.tool_call.call_id.clone(), bytes_of(&chunk.tool_call));
                None
            }
            ChatStreamEvent::End(end) => {
                return ended(target.api, end, trail, tally)
                    .map_err(|(why, took)| Fault { took, ..Fault::broken(target, why) });
            }
            ChatStreamEvent::Start | ChatStreamEvent::ThoughtSignatureChunk(_) | ChatStreamEvent::Heartbeat => continue,
        };
        words += heard.as_ref().map_or(0, Heard::len);
        let so_far = words + calls.values().sum::<usize>();
        tally.said.store(so_far, Ordering::Relaxed);
        if so_far > LONGEST {
            let message = format!("the answer of `{}` has more than {LONGEST} bytes", target.config.body.model);
            return Err(Fault::plain(FaultKind::TooLarge, message));
        }
        if let Some(heard) = heard.filter(|heard| heard.len() > 0) {
            hear(heard).await;
            crash::point("model", Side::After, &"heard");
        }
    }
    Err(Fault::broken(target, if tally.is_garbled() { GARBLED } else { BROKE_OFF }))
}

const GARBLED: &str = "a part of the answer cannot be read";
const BROKE_OFF: &str = "the answer broke off";

/// What a call of a tool has, with what seals the thoughts before it.
fn bytes_of(call: &genai::chat::ToolCall) -> usize {
    let arguments = match &call.fn_arguments {
        // As far as they have come.
        Value::String(text) => text.len(),
        whole => whole.to_string().len(),
    };
    let signatures = call.thought_signatures.iter().flatten().map(String::len).sum::<usize>();
    call.fn_name.len() + arguments + signatures
}

/// About how many tokens so many bytes of an answer are.
pub(super) fn tokens(said: usize) -> u64 {
    if said == 0 { 0 } else { prompt::tokens(said).into() }
}

/// What the end of a stream makes of it; else why it is none, and what was taken where it says so.
fn ended(api: Api, end: StreamEnd, trail: Option<Trail>, tally: &Tally) -> Result<Said, (&'static str, Option<Usage>)> {
    let reason = end.captured_stop_reason.as_ref();
    let mut took = end.captured_usage.as_ref().map(usage).filter(|usage| *usage != Usage::default());
    if let (None, Some(took)) = (reason, &mut took) {
        // Some tell from the beginning what there was by then.
        took.output_tokens = took.output_tokens.max(tokens(tally.said().unwrap_or_default()));
    }
    let why = match reason {
        _ if tally.is_garbled() => GARBLED,
        // The call itself is not in the answer, which without it would pass for a whole one.
        Some(reason) if is_malformed(reason) => "the answer calls a tool in a way that cannot be read",
        // Some adapters make an end of a connection's.
        None => BROKE_OFF,
        Some(reason) => return Ok(said(api, reason.clone(), end, trail)),
    };
    Err((why, took))
}

/// Whether it ended since the model made a call that is none, as Gemini says.
fn is_malformed(reason: &StopReason) -> bool {
    matches!(reason.raw(), "MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL")
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
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Words(text) | Self::Thoughts(text) => text.len(),
        }
    }
}

fn adapter(api: Api) -> AdapterKind {
    match api {
        Api::Openai => AdapterKind::OpenAI,
        Api::OpenaiResponses => AdapterKind::OpenAIResp,
        Api::Anthropic => AdapterKind::Anthropic,
        Api::Gemini => AdapterKind::Gemini,
    }
}

/// A client that goes out through the target's door.
pub(super) fn client(target: &Target, now: Timestamp) -> Result<Client, Fault> {
    let client = Client::builder().with_reqwest(target.client.clone()).build();
    client.map_err(|error| Fault::of(target, &error, now))
}

/// The model at its place, as `adapter` speaks to it.
pub(super) fn service(target: &Target, adapter: AdapterKind) -> ServiceTarget {
    let key = target.key.as_ref().map_or("none", ExposeSecret::expose_secret);
    ServiceTarget {
        endpoint: Endpoint::from_owned(target.url.as_str()),
        auth: AuthData::from_single(key),
        model: ModelIden::new(adapter, target.config.body.model.clone()),
    }
}

fn options(target: &Target, prompt: &Prompt, thinks: bool) -> ChatOptions {
    let config = &target.config.body;
    // What is to go back with calls comes only to those who ask to hear it.
    let goes_back = match target.api {
        Api::OpenaiResponses => config.reasoning.is_some(),
        Api::Anthropic => thinks && !prompt.tools.is_empty(),
        Api::Openai | Api::Gemini => false,
    };
    // Not every provider takes both; with tools the schema is said in words, and the answer is looked at all the same.
    let schema = prompt
        .schema
        .as_ref()
        .filter(|_| prompt.tools.is_empty())
        .map(|schema| JsonSpec::new("answer", Value::clone(schema)));
    ChatOptions {
        temperature: config.temperature,
        max_tokens: match prompt.bounded {
            true => Some(prompt.max_tokens.unwrap_or_else(|| config.longest_answer())),
            false => prompt.max_tokens.or(config.max_tokens),
        },
        capture_usage: Some(true),
        capture_content: Some(true),
        // Not every model takes the question.
        capture_reasoning_content: Some(prompt.reasoning || goes_back),
        capture_tool_calls: Some(true),
        reasoning_effort: config.reasoning.filter(|_| thinks).map(|effort| match effort {
            Reasoning::Low => ReasoningEffort::Low,
            Reasoning::Medium => ReasoningEffort::Medium,
            Reasoning::High => ReasoningEffort::High,
        }),
        response_format: schema.map(ChatResponseFormat::JsonSpec),
        ..ChatOptions::default()
    }
}

fn request(target: &Target, prompt: &Prompt, trail: Option<&Trail>) -> ChatRequest {
    let config = target.config.reference();
    let tool = |tool: &ToolSpec| {
        let Parameters { schema, description } = Parameters::of(tool, target.api);
        Tool::new(tool.name.as_str()).with_description(description).with_schema(schema)
    };
    let tools: Vec<_> = prompt.tools.iter().map(tool).collect();
    let told = |(place, of): (usize, &Message)| {
        let blocks = trail.map_or(&[][..], |trail| trail.blocks(place, of));
        message(of, blocks, |by| signs_calls(target.api) && by.is_none_or(|by| *by == config))
    };
    ChatRequest {
        system: prompt.system.clone(),
        messages: prompt.messages.iter().enumerate().map(told).collect(),
        tools: (!tools.is_empty()).then_some(tools),
        ..ChatRequest::default()
    }
}

/// Whether what a provider wants to see again is with the calls.
fn signs_calls(api: Api) -> bool {
    api != Api::Anthropic
}

/// A message with what its provider wants to see again of the thoughts before it, and of its calls where they are that
/// provider's.
fn message(message: &Message, thoughts: &[Value], is_its: impl Fn(Option<&String>) -> bool) -> ChatMessage {
    match message {
        Message::User { text, images } => {
            // Never by address: some adapters leave such an image out without a word. By now it was fetched.
            let shown = images.iter().map(|image| {
                ContentPart::from_binary_base64(image.media_type.as_str(), image.data.clone().unwrap_or_default(), None)
            });
            let parts: Vec<_> = [ContentPart::from(text.as_str())].into_iter().chain(shown).collect();
            ChatMessage::user(MessageContent::from_parts(parts))
        }
        Message::Assistant { text, calls, by, .. } => {
            let is_its = is_its(by.as_ref());
            let thoughts = thoughts.iter().map(|block| ContentPart::from_custom(block.clone(), None));
            let words = (!text.is_empty()).then(|| ContentPart::from(text.as_str()));
            let calls = calls.iter().map(|call| {
                ContentPart::ToolCall(genai::chat::ToolCall {
                    call_id: call.id.clone(),
                    fn_name: call.name.clone(),
                    fn_arguments: call.arguments.clone(),
                    thought_signatures: call.signatures.clone().filter(|_| is_its),
                })
            });
            ChatMessage::assistant(MessageContent::from_parts(thoughts.chain(words).chain(calls).collect::<Vec<_>>()))
        }
        Message::Tool { call_id, name, output } => {
            ToolResponse::new(call_id.as_str(), output.as_str()).with_fn_name(name.as_str()).into()
        }
    }
}

/// What a provider tells that a call has taken.
fn usage(told: &genai::chat::Usage) -> Usage {
    let tokens = |count: Option<i32>| u64::try_from(count.unwrap_or_default()).unwrap_or_default();
    let thoughts = told.completion_tokens_details.as_ref().and_then(|details| details.reasoning_tokens);
    let besides = told.prompt_tokens.zip(told.total_tokens).map(|(asked, all)| all.saturating_sub(asked));
    Usage {
        input_tokens: tokens(told.prompt_tokens),
        cached_tokens: tokens(told.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens)),
        // Where a model has only thought, some tell the thoughts and the sum, and no words.
        output_tokens: tokens(told.completion_tokens.max(besides).max(thoughts)),
    }
}

fn said(api: Api, reason: StopReason, end: StreamEnd, trail: Option<Trail>) -> Said {
    let usage = end.captured_usage.as_ref().map(usage).unwrap_or_default();
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
            signatures: call.thought_signatures.clone().filter(|_| signs_calls(api)),
        })
        .collect();
    let stop = match reason {
        StopReason::MaxTokens(_) => Stop::Length,
        StopReason::ContentFilter(_) => Stop::Filtered,
        _ if calls.is_empty() => Stop::Done,
        _ => Stop::Calls,
    };
    let thoughts = trail.filter(|_| !calls.is_empty()).and_then(|trail| trail.keep(blocks(&content)));
    Said { text: content.texts().concat(), reasoning: end.captured_reasoning_content, calls, thoughts, stop, usage }
}

/// The blocks of thought of an answer, as Anthropic sent them: each signature comes before what it signs.
fn blocks(content: &MessageContent) -> Vec<Value> {
    let mut blocks: Vec<Value> = vec![];
    for part in content.parts() {
        match (part, blocks.last_mut()) {
            (ContentPart::ThoughtSignature(signature), _) => {
                blocks.push(json!({ "type": "thinking", "thinking": "", "signature": signature }));
            }
            (ContentPart::ReasoningContent(text), Some(last)) => last["thinking"] = json!(text),
            (ContentPart::Custom(part), _) => blocks.push(part.data.clone()),
            _ => {}
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    #[test]
    fn what_is_only_thought_is_paid_for_as_what_is_said() {
        for (told, output) in [
            (json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15 }), 5),
            // Gemini, where there are no candidates.
            (
                json!({ "prompt_tokens": 10, "total_tokens": 40, "completion_tokens_details": { "reasoning_tokens": 30 } }),
                30,
            ),
            (json!({ "prompt_tokens": 10, "completion_tokens_details": { "reasoning_tokens": 30 } }), 30),
            // Thoughts are beside the words, and only the sum has them.
            (json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 45 }), 35),
            (json!({ "completion_tokens": 5, "total_tokens": 45 }), 5),
        ] {
            let told = from_value::<genai::chat::Usage>(told).unwrap();
            assert_eq!(usage(&told).output_tokens, output, "{told:?}");
        }
    }
}
