//! What each of the real wire protocols of models has on the wire: answers as frames of a stream, whole and broken, and how
//! questions show calls and their outputs.

use std::collections::HashMap;

use fermata::config::Api;
use serde_json::{Value, json};

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn event(value: &Value) -> String {
    format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap())
}

/// The beginning of an answer and its words.
pub(super) fn words_of(api: Api, words: &[String]) -> Vec<String> {
    let begin = match api {
        Api::Openai => data(&json!({ "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "" } }] })),
        Api::OpenaiResponses => event(&json!({ "type": "response.created", "response": response_of("in_progress") })),
        Api::Anthropic => [
            event(&json!({ "type": "message_start", "message": { "role": "assistant",
                "usage": { "input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 1 } } })),
            event(
                &json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
            ),
        ]
        .concat(),
        Api::Gemini => data(&json!({ "candidates": [{ "content": { "role": "model", "parts": [{ "text": "" }] } }] })),
    };
    let word = |word: &String| match api {
        Api::Openai => data(&json!({ "choices": [{ "index": 0, "delta": { "content": word } }] })),
        Api::OpenaiResponses => event(&json!({ "type": "response.output_text.delta", "output_index": 0,
            "content_index": 0, "item_id": "msg_1", "delta": word })),
        Api::Anthropic => event(&json!({ "type": "content_block_delta", "index": 0,
            "delta": { "type": "text_delta", "text": word } })),
        Api::Gemini => {
            data(&json!({ "candidates": [{ "content": { "role": "model", "parts": [{ "text": word }] } }] }))
        }
    };
    [begin].into_iter().chain(words.iter().map(word)).collect()
}

/// The end of an answer: ten tokens asked, four of them known, and one for each word said.
pub(super) fn end_of(api: Api, words: &[String], stop: bool) -> String {
    let said = words.len();
    match api {
        Api::Openai => [
            data(&json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": if stop { "stop" } else { "length" } }] })),
            data(&json!({ "choices": [], "usage": { "prompt_tokens": 10, "completion_tokens": said,
                "total_tokens": 10 + said, "prompt_tokens_details": { "cached_tokens": 4 } } })),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat(),
        Api::OpenaiResponses => {
            let status = if stop { "completed" } else { "incomplete" };
            let mut response = response_of(status);
            response["usage"] = json!({ "input_tokens": 10, "output_tokens": said, "total_tokens": 10 + said,
                "input_tokens_details": { "cached_tokens": 4 } });
            event(&json!({ "type": format!("response.{status}"), "response": response }))
        }
        Api::Anthropic => [
            event(&json!({ "type": "content_block_stop", "index": 0 })),
            event(&json!({ "type": "message_delta", "usage": { "output_tokens": said },
                "delta": { "stop_reason": if stop { "end_turn" } else { "max_tokens" } } })),
            event(&json!({ "type": "message_stop" })),
        ]
        .concat(),
        Api::Gemini => data(&json!({
            "candidates": [{ "content": { "role": "model", "parts": [{ "text": "" }] },
                "finishReason": if stop { "STOP" } else { "MAX_TOKENS" } }],
            "usageMetadata": { "promptTokenCount": 10, "cachedContentTokenCount": 4, "candidatesTokenCount": said,
                "totalTokenCount": 10 + said },
        })),
    }
}

/// The frames of an answer that was thought about first.
pub(super) fn thoughtful(api: Api, thoughts: &[String], mut frames: Vec<String>) -> Vec<String> {
    let begin = std::mem::take(&mut frames[0]);
    let thought: String = thoughts.iter().map(|thought| thinking(api, thought)).collect();
    frames[0] = match api {
        Api::Openai | Api::Gemini => begin + &thought,
        Api::OpenaiResponses => {
            let item = |more: Value| {
                let mut item = json!({ "type": "reasoning", "id": "rs_1", "summary": [] });
                item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                item
            };
            let summary = json!([{ "type": "summary_text", "text": thoughts.concat() }]);
            let done = item(json!({ "summary": summary, "encrypted_content": SEALED }));
            begin
                + &event(&json!({ "type": "response.output_item.added", "output_index": 0, "item": item(json!({})) }))
                + &thought
                + &event(&json!({ "type": "response.output_item.done", "output_index": 0, "item": done }))
        }
        Api::Anthropic => {
            let (started, text) = begin.split_at(begin.find("event: content_block_start").unwrap());
            let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
            let signed = json!({ "type": "signature_delta", "signature": SEALED });
            started.to_owned()
                + &event(&json!({ "type": "content_block_start", "index": 0, "content_block": block }))
                + &thought
                + &event(&json!({ "type": "content_block_delta", "index": 0, "delta": signed }))
                + &event(&json!({ "type": "content_block_stop", "index": 0 }))
                + &one_later(text)
        }
    };
    if api == Api::Anthropic {
        frames[1..].iter_mut().for_each(|frame| *frame = one_later(frame));
    }
    frames
}

/// What a provider wants to see again with what came of a thought.
pub const SEALED: &str = "c2VhbGVk";

/// Why a question to a model that is to think is refused, where the turn that it goes on with does not begin with a
/// thought, or one of its calls has no signature.
pub(super) fn lacks_thought(api: Api, body: &Value) -> Option<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let of = |parts: &Value, kind: &str| list(parts).iter().any(|part| part["type"] == kind);
    match api {
        Api::Anthropic if body["thinking"]["type"] == "enabled" => {
            let messages = list(&body["messages"]);
            let is_asked = |message: &Value| message["role"] == "user" && !of(&message["content"], "tool_result");
            let at = messages.iter().rposition(is_asked)? + 1;
            let found = messages.get(at)?["content"][0].clone();
            let is_thought = found["type"] == "thinking" && found["signature"] == SEALED;
            let found = found["type"].as_str().unwrap_or("text");
            (!is_thought).then(|| {
                format!(
                    "messages.{at}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{found}`."
                )
            })
        }
        Api::Gemini if body["generationConfig"]["thinkingConfig"].is_object() => {
            let first =
                |content: &Value| list(&content["parts"]).into_iter().find(|part| part["functionCall"].is_object());
            // The second is for calls of others.
            let unsigned = |part: Value| {
                ![json!(SEALED), json!("skip_thought_signature_validator")].contains(&part["thoughtSignature"])
            };
            let lacks = list(&body["contents"]).iter().filter_map(first).any(unsigned);
            lacks.then(|| "Function call is missing a thought_signature in functionCall parts.".to_owned())
        }
        _ => None,
    }
}

/// A piece of a thought.
fn thinking(api: Api, thought: &str) -> String {
    match api {
        Api::Openai => data(&json!({ "choices": [{ "index": 0, "delta": { "reasoning_content": thought } }] })),
        Api::OpenaiResponses => event(&json!({ "type": "response.reasoning_summary_text.delta", "item_id": "rs_1",
            "output_index": 0, "summary_index": 0, "delta": thought })),
        Api::Anthropic => event(&json!({ "type": "content_block_delta", "index": 0,
            "delta": { "type": "thinking_delta", "thinking": thought } })),
        Api::Gemini => data(&json!({ "candidates": [{ "content": { "role": "model",
            "parts": [{ "text": thought, "thought": true }] } }] })),
    }
}

/// The same events of blocks that come one place later.
fn one_later(frame: &str) -> String {
    let moved = |line: &str| {
        let Some(text) = line.strip_prefix("data: ") else { return line.to_owned() };
        let mut value: Value = serde_json::from_str(text).unwrap();
        if let Some(index) = value["index"].as_u64() {
            value["index"] = json!(index + 1);
        }
        format!("data: {value}")
    };
    frame.split('\n').map(moved).collect::<Vec<_>>().join("\n")
}

/// Where an answer that calls a tool goes wrong, in the middle of the call's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Midway {
    /// The connection breaks.
    Cut,
    /// The body ends as if it were whole.
    Short,
    /// A frame that is no JSON, and then the rest.
    Garbled,
    /// An error in the stream itself.
    Error,
    /// Nothing more, ever.
    Hang,
    /// The arguments are only the half, and the answer ends as if they were all.
    Truncated,
    /// The same, and it ends because it has the most tokens.
    Full,
}

/// The frames of one call with these arguments, as text; the arguments come in two halves.
fn call(api: Api, place: usize, name: &str, text: &str) -> Vec<String> {
    let id = format!("toolu_{place}");
    let (begin, end) = halves(text);
    match api {
        Api::Openai => {
            let delta = |function: Value| {
                data(&json!({ "choices": [{ "index": 0, "delta": { "tool_calls": [{ "index": place, "id": id,
                    "type": "function", "function": function }] } }] }))
            };
            vec![delta(json!({ "name": name, "arguments": begin })), delta(json!({ "arguments": end }))]
        }
        Api::OpenaiResponses => {
            let item = |arguments: &str| {
                json!({ "type": "function_call", "id": format!("fc_{place}"), "call_id": id, "name": name,
                    "arguments": arguments })
            };
            let said = |kind: &str, more: Value| {
                let mut said = json!({ "type": format!("response.{kind}"), "output_index": place + 1 });
                said.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                event(&said)
            };
            let delta = |part: &str| said("function_call_arguments.delta", json!({ "delta": part }));
            vec![
                said("output_item.added", json!({ "item": item("") })) + &delta(begin),
                delta(end) + &said("output_item.done", json!({ "item": item(text) })),
            ]
        }
        Api::Anthropic => {
            let index = place + 1;
            let delta = |part: &str| {
                event(&json!({ "type": "content_block_delta", "index": index,
                    "delta": { "type": "input_json_delta", "partial_json": part } }))
            };
            let started = event(&json!({ "type": "content_block_stop", "index": place }))
                + &event(&json!({ "type": "content_block_start", "index": index,
                    "content_block": { "type": "tool_use", "id": id, "name": name, "input": {} } }));
            vec![started + &delta(begin), delta(end)]
        }
        // A call comes in one piece, or not at all.
        Api::Gemini => match serde_json::from_str::<Value>(text) {
            Ok(arguments) => {
                let mut part = json!({ "functionCall": { "name": name, "args": arguments } });
                if place == 0 {
                    part["thoughtSignature"] = json!(SEALED);
                }
                vec![data(&json!({ "candidates": [{ "content": { "role": "model", "parts": [part] } }] }))]
            }
            Err(_) => vec![],
        },
    }
}

fn halves(text: &str) -> (&str, &str) {
    text.split_at(text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at))
}

/// An answer that wants tools called: ten tokens asked and one for each call.
pub(super) fn calling(api: Api, calls: &[(String, Value)]) -> Vec<String> {
    let mut all = words_of(api, &["Well. ".to_owned()]);
    let each = calls.iter().enumerate();
    all.extend(each.flat_map(|(place, (name, arguments))| call(api, place, name, &arguments.to_string())));
    let words: Vec<_> = calls.iter().map(|(name, _)| name.clone()).collect();
    let end = end_of(api, &words, true).replace("\"end_turn\"", "\"tool_use\"");
    all.push(if api == Api::Openai { end.replace("\"stop\"", "\"tool_calls\"") } else { end });
    all
}

/// The frames of an answer with one call that goes wrong there. What becomes of the connection is not among them.
pub(super) fn calling_half(api: Api, name: &str, arguments: &Value, midway: Midway) -> Vec<String> {
    let text = arguments.to_string();
    let mut all = words_of(api, &["Well. ".to_owned()]);
    let mut frames = call(api, 0, name, &text);
    match midway {
        Midway::Cut | Midway::Short | Midway::Hang => all.extend(frames.drain(..1)),
        Midway::Error => all.extend(frames.drain(..1).chain([error_of(api)])),
        Midway::Garbled => {
            frames.insert(1, garbled(api));
            all.extend(frames);
            all.push(end_of(api, &[name.to_owned()], true));
        }
        Midway::Truncated | Midway::Full => {
            // A call in one piece is whole, or it is none and the end says why.
            let whole = api == Api::Gemini && midway == Midway::Full;
            all.extend(call(api, 0, name, if whole { &text } else { halves(&text).0 }));
            let end = end_of(api, &[name.to_owned()], midway == Midway::Truncated);
            all.push(if api == Api::Gemini { end.replace("\"STOP\"", "\"MALFORMED_FUNCTION_CALL\"") } else { end });
        }
    }
    all
}

/// Why the provider does not take the tools as they are told.
pub(super) fn untaken(api: Api, body: &Value) -> Option<String> {
    let (tools, description, schema) = match api {
        Api::Openai => (&body["tools"], "/function/description", "/function/parameters"),
        Api::OpenaiResponses => (&body["tools"], "/description", "/parameters"),
        Api::Anthropic => (&body["tools"], "/description", "/input_schema"),
        Api::Gemini => (&body["tools"][0]["functionDeclarations"], "/description", "/parametersJsonSchema"),
    };
    let is_bad = |schema: &Value| {
        let together = ["oneOf", "anyOf", "allOf", "enum", "not"].iter().any(|word| !schema[word].is_null());
        together || schema["type"] != "object" || !schema["properties"].is_object()
    };
    let is_openai = matches!(api, Api::Openai | Api::OpenaiResponses);
    tools.as_array().into_iter().flatten().find_map(|tool| {
        let text = tool.pointer(description).and_then(Value::as_str).unwrap_or_default();
        if is_openai && text.chars().count() > 1024 {
            return Some(format!("{tool}: string too long. Expected a string with maximum length 1024"));
        }
        let schema = tool.pointer(schema).unwrap_or(&Value::Null);
        is_bad(schema).then(|| format!("{tool}: schema must have type 'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the top level"))
    })
}

/// A frame that is no JSON.
pub(super) fn garbled(api: Api) -> String {
    let name = if api == Api::Anthropic { "event: content_block_delta\n" } else { "" };
    format!("{name}data: {{\"type\": \"content_block_delta\", \"delta\": {{\"te\n\n")
}

/// A part of a conversation, as far as calls of tools go: by their ids, or their names where a protocol has no ids.
enum Part {
    /// A model says something, or somebody else does.
    Turn,
    Call(Value),
    Output(Value),
}

/// Whether every call of a tool in the question has its output right behind it, before anybody says anything else.
pub(super) fn is_paired(api: Api, body: &Value) -> bool {
    let mut open: Vec<Value> = vec![];
    for part in parts(api, body) {
        let is_right = match part {
            Part::Turn => open.is_empty(),
            Part::Call(id) => {
                open.push(id.clone());
                id.is_string()
            }
            Part::Output(id) => {
                let at = open.iter().position(|called| *called == id);
                at.map(|at| open.remove(at)).is_some()
            }
        };
        if !is_right {
            return false;
        }
    }
    open.is_empty()
}

fn parts(api: Api, body: &Value) -> Vec<Part> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    match api {
        Api::Openai => list(&body["messages"])
            .iter()
            .flat_map(|message| match message["role"].as_str() {
                Some("tool") => vec![Part::Output(message["tool_call_id"].clone())],
                _ => {
                    let calls = list(&message["tool_calls"]).into_iter().map(|call| Part::Call(call["id"].clone()));
                    std::iter::once(Part::Turn).chain(calls).collect()
                }
            })
            .collect(),
        Api::OpenaiResponses => list(&body["input"])
            .iter()
            .map(|item| match item["type"].as_str() {
                Some("function_call") => Part::Call(item["call_id"].clone()),
                Some("function_call_output") => Part::Output(item["call_id"].clone()),
                _ => Part::Turn,
            })
            .collect(),
        Api::Anthropic | Api::Gemini => {
            let (messages, content) = if api == Api::Gemini { ("contents", "parts") } else { ("messages", "content") };
            let part = |part: Value| match part["type"].as_str() {
                Some("tool_use") => Part::Call(part["id"].clone()),
                Some("tool_result") => Part::Output(part["tool_use_id"].clone()),
                _ if part["functionCall"].is_object() => Part::Call(part["functionCall"]["name"].clone()),
                _ if part["functionResponse"].is_object() => Part::Output(part["functionResponse"]["name"].clone()),
                _ => Part::Turn,
            };
            list(&body[messages]).iter().flat_map(|message| list(&message[content]).into_iter().map(part)).collect()
        }
    }
}

/// The outputs of calls in a question of any protocol.
pub fn outputs(part: &Value) -> Vec<Value> {
    match part {
        Value::Array(all) => all.iter().flat_map(outputs).collect(),
        Value::Object(fields) => {
            let is_one = part["role"] == "tool"
                || ["tool_result", "function_call_output"].iter().any(|kind| part["type"] == *kind)
                || part["functionResponse"].is_object();
            if is_one { vec![part.clone()] } else { fields.values().flat_map(outputs).collect() }
        }
        _ => vec![],
    }
}

/// The images in a question of any protocol: their media types and base64, or whatever else is shown in their place.
pub(super) fn images(part: &Value) -> Vec<(String, String)> {
    let split = |url: &str| match url.strip_prefix("data:").and_then(|url| url.split_once(";base64,")) {
        Some((media_type, data)) => (media_type.to_owned(), data.to_owned()),
        None => (String::new(), url.to_owned()),
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match part {
        Value::Array(all) => all.iter().flat_map(images).collect(),
        Value::Object(fields) => match part["type"].as_str() {
            Some("image_url") => vec![split(&text(&part["image_url"]["url"]))],
            Some("input_image") => vec![split(&text(&part["image_url"]))],
            Some("image") => vec![(text(&part["source"]["media_type"]), text(&part["source"]["data"]))],
            _ => match part.get("inline_data").or(part.get("file_data")) {
                Some(inline) => vec![(text(&inline["mime_type"]), text(&inline["data"]))],
                None => fields.values().flat_map(images).collect(),
            },
        },
        _ => vec![],
    }
}

pub(super) fn error_of(api: Api) -> String {
    let error = json!({ "message": "overloaded", "type": "overloaded_error", "code": 529 });
    match api {
        Api::Openai | Api::Gemini => data(&json!({ "error": error })),
        Api::OpenaiResponses => event(&json!({ "type": "error", "message": "overloaded", "code": "overloaded" })),
        Api::Anthropic => event(&json!({ "type": "error", "error": error })),
    }
}

fn response_of(status: &str) -> Value {
    let fields: HashMap<_, _> = HashMap::from([("object", "response"), ("id", "resp_1"), ("model", "m")]);
    let mut response = json!(fields);
    response["status"] = json!(status);
    response["created_at"] = json!(1);
    response["output"] = json!([]);
    response
}

#[test]
fn a_call_without_its_output_behind_it_is_seen() {
    let conversation = |api: Api, order: &str| {
        let item = |part: char| match (api, part) {
            (Api::Openai, 'c') => json!({ "role": "assistant", "tool_calls": [{ "id": "1" }] }),
            (Api::Openai, 'o') => json!({ "role": "tool", "tool_call_id": "1" }),
            (Api::Openai, _) => json!({ "role": "user", "content": "?" }),
            (Api::OpenaiResponses, 'c') => json!({ "type": "function_call", "call_id": "1" }),
            (Api::OpenaiResponses, 'o') => json!({ "type": "function_call_output", "call_id": "1" }),
            (Api::OpenaiResponses, _) => json!({ "role": "user", "content": "?" }),
            (Api::Anthropic, 'c') => json!({ "content": [{ "type": "tool_use", "id": "1" }] }),
            (Api::Anthropic, 'o') => json!({ "content": [{ "type": "tool_result", "tool_use_id": "1" }] }),
            (Api::Anthropic, _) => json!({ "content": [{ "type": "text", "text": "?" }] }),
            (Api::Gemini, 'c') => json!({ "parts": [{ "functionCall": { "name": "a" } }] }),
            (Api::Gemini, 'o') => json!({ "parts": [{ "functionResponse": { "name": "a" } }] }),
            (Api::Gemini, _) => json!({ "parts": [{ "text": "?" }] }),
        };
        let items: Vec<_> = order.chars().map(item).collect();
        json!({ "messages": items, "input": items, "contents": items })
    };
    for api in [Api::Openai, Api::OpenaiResponses, Api::Anthropic, Api::Gemini] {
        for right in ["", "t", "tcot", "tcoco"] {
            assert!(is_paired(api, &conversation(api, right)), "{api:?} {right}");
        }
        for wrong in ["c", "tct", "o", "toc", "tcto", "tcoo"] {
            assert!(!is_paired(api, &conversation(api, wrong)), "{api:?} {wrong}");
        }
    }
}
