//! A provider of models that speaks each of the real wire protocols over real HTTP, says what it is told to say, and
//! fails as it is told to fail.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use fermata::config::{Api, ProviderSettings};
use futures_util::{StreamExt, stream};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use super::{plain::Plain, within};

/// Every protocol, with a name for its provider.
pub const APIS: [(&str, Api); 4] = [
    ("fake-openai", Api::Openai),
    ("fake-responses", Api::OpenaiResponses),
    ("fake-anthropic", Api::Anthropic),
    ("fake-gemini", Api::Gemini),
];

/// The operator's key at every provider.
pub const KEY: &str = "sk-operator-0123456789";

/// What is said, or goes wrong, the next time that a model is asked.
#[derive(Clone, Debug)]
pub enum Turn {
    /// These words, one frame each, and the end.
    Say(Vec<String>),
    /// The same, cut off at the most tokens.
    SayUntilFull(Vec<String>),
    /// Calls of tools, by the names that the model was told, after a word.
    Call(Vec<(String, Value)>),
    /// The words, held after so many of them until the test lets go.
    SayHeld(Vec<String>, usize),
    /// This status, with headers, instead of an answer.
    Status(u16, Vec<(&'static str, &'static str)>),
    /// Nothing, ever.
    Hang,
    /// The words, and then the connection breaks.
    Cut(Vec<String>),
    /// The words, and among them a frame that is no JSON.
    Garbled(Vec<String>),
    /// JSON of quite another kind, with status 200.
    WrongJson,
    /// An answer without words.
    Empty,
    /// The words, and then an error in the stream itself.
    ErrorInside(Vec<String>),
    /// A sound, where speech is asked for.
    Sound(Vec<u8>),
}

impl Turn {
    /// One text, in frames of a word each.
    pub fn say(text: &str) -> Self {
        Self::Say(text.split_inclusive(' ').map(str::to_owned).collect())
    }

    /// One call of a tool.
    pub fn call(tool: &str, arguments: Value) -> Self {
        Self::Call(vec![(tool.to_owned(), arguments)])
    }

    /// All that goes wrong once, and not when it is asked again.
    pub fn passing() -> [Self; 8] {
        let words = || vec!["A half ".to_owned(), "sentence".to_owned()];
        [
            Self::Status(429, vec![("retry-after", "0")]),
            Self::Status(500, vec![]),
            Self::Status(503, vec![]),
            Self::Cut(words()),
            Self::Garbled(words()),
            Self::WrongJson,
            Self::Empty,
            Self::ErrorInside(words()),
        ]
    }
}

/// A question as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Asked {
    /// The key it came with, wherever the protocol has it.
    pub fn key(&self) -> Option<&str> {
        let header = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        bearer.or_else(|| header("x-api-key")).or_else(|| header("x-goog-api-key"))
    }
}

/// What is said to a question, by what is in it.
type Answering = Arc<dyn Fn(&Value) -> Turn + Send + Sync>;

#[derive(Default)]
struct Told {
    script: VecDeque<Turn>,
    /// What is said once the script is at its end.
    answering: Option<Answering>,
    asked: Vec<Asked>,
    /// Questions in which a call of a tool has no output.
    unpaired: Vec<Value>,
}

struct Shared {
    told: Mutex<Told>,
    count: watch::Sender<usize>,
    released: watch::Sender<bool>,
}

/// The provider, on a port of its own. Without a script it says `Hello there.`
#[derive(Clone)]
pub struct Provider {
    shared: Arc<Shared>,
    url: String,
}

impl Provider {
    pub async fn start() -> Self {
        let (told, count, released) = (Mutex::default(), watch::Sender::new(0), watch::Sender::new(false));
        let shared = Arc::new(Shared { told, count, released });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/v1/", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { shared, url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Settings under which it is every one of [`APIS`], with the operator's key.
    pub fn settings(&self) -> impl Iterator<Item = (String, ProviderSettings)> {
        APIS.map(|(name, api)| {
            let (url, key) = (self.url.clone(), Some(SecretString::from(KEY)));
            let model = |name: &str| Some(name.to_owned());
            let speaks = matches!(api, Api::Openai | Api::OpenaiResponses);
            let settings = ProviderSettings {
                api,
                url,
                key,
                keyless: false,
                smart: model("big"),
                fast: model("small"),
                embed: model("vectors").filter(|_| speaks || api == Api::Gemini),
                speech: model("voice").filter(|_| speaks),
                transcribe: model("ear").filter(|_| speaks),
            };
            (name.to_owned(), settings)
        })
        .into_iter()
    }

    /// What it says next, in order.
    pub fn script(&self, turns: impl IntoIterator<Item = Turn>) {
        self.told().script.extend(turns);
    }

    /// What it says from now on to a question, by the body of that: the same question has the same answer.
    pub fn answering(&self, answer: impl Fn(&Value) -> Turn + Send + Sync + 'static) {
        self.told().answering = Some(Arc::new(answer));
    }

    /// Lets go of words that are held, from now on.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// All questions so far.
    pub fn asked(&self) -> Vec<Asked> {
        let told = self.told();
        assert!(told.unpaired.is_empty(), "calls without outputs: {:#?}", told.unpaired);
        told.asked.clone()
    }

    /// Waits until there were so many questions, and answers with them.
    pub async fn asked_times(&self, count: usize) -> Vec<Asked> {
        let mut news = self.shared.count.subscribe();
        let enough = news.wait_for(|asked| *asked >= count);
        within(format!("{count} questions to the model"), enough).await.unwrap();
        self.asked()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.shared.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// What is said next to a question.
    fn next(&self, asked: Asked, is_paired: bool) -> Turn {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let unpaired = (!is_paired).then(|| asked.body.clone());
        told.unpaired.extend(unpaired);
        let scripted = told.script.pop_front().or_else(|| Some(told.answering.as_ref()?(&asked.body)));
        told.asked.push(asked);
        let turn = scripted.unwrap_or_else(|| Turn::say("Hello there."));
        drop(told);
        self.count.send_modify(|count| *count += 1);
        turn
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    if let Some(plain) = Plain::at(&path) {
        let body = plain.read(&body);
        let turn = shared.next(Asked { path, headers, body: body.clone() }, true);
        return plain.give(turn, &body).await;
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let api = match &path {
        path if path.ends_with("/chat/completions") => Api::Openai,
        path if path.ends_with("/responses") => Api::OpenaiResponses,
        path if path.ends_with("/messages") => Api::Anthropic,
        path if path.contains(":streamGenerateContent") => Api::Gemini,
        other => panic!("no model is asked at {other}"),
    };
    let is_paired = is_paired(api, &body);
    let turn = shared.next(Asked { path, headers, body }, is_paired);
    let whole = |words: &[String], stop| [words_of(api, words), vec![end_of(api, words, stop)]].concat();
    match turn {
        Turn::Say(words) => frames(whole(&words, true)),
        Turn::SayUntilFull(words) => frames(whole(&words, false)),
        Turn::Call(calls) => frames(calling(api, &calls)),
        Turn::SayHeld(words, after) => held(whole(&words, true), after, shared.released.subscribe()),
        Turn::Status(status, extra) => refusal(status, extra),
        Turn::Hang => std::future::pending().await,
        Turn::Cut(words) => cut(words_of(api, &words)),
        Turn::Garbled(words) => {
            let mut all = whole(&words, true);
            let name = if api == Api::Anthropic { "event: content_block_delta\n" } else { "" };
            all.insert(1, format!("{name}data: {{\"type\": \"content_block_delta\", \"delta\": {{\"te\n\n"));
            frames(all)
        }
        Turn::WrongJson => wrong(),
        Turn::Empty => frames(whole(&[], true)),
        Turn::ErrorInside(words) => frames([words_of(api, &words), vec![error_of(api)]].concat()),
        Turn::Sound(_) => panic!("no sound is asked for"),
    }
}

fn frames(all: Vec<String>) -> Response {
    let body = Body::from_stream(stream::iter(all.into_iter().map(Ok::<_, Infallible>)));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

fn held(all: Vec<String>, after: usize, mut released: watch::Receiver<bool>) -> Response {
    let (first, rest) = (all[..=after].to_vec(), all[after + 1..].to_vec());
    let rest = stream::once(async move {
        // The sender is gone when the test is.
        let _ = released.wait_for(|released| *released).await;
        stream::iter(rest)
    });
    let body = Body::from_stream(stream::iter(first).chain(rest.flatten()).map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// Ends the connection, and not the stream.
fn cut(all: Vec<String>) -> Response {
    let broken = stream::once(async { Err(std::io::Error::other("cut")) });
    let body = Body::from_stream(stream::iter(all.into_iter().map(Ok)).chain(broken));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

pub(super) fn wrong() -> Response {
    axum::Json(json!({ "weather": "fine" })).into_response()
}

pub(super) fn refusal(status: u16, extra: Vec<(&'static str, &'static str)>) -> Response {
    let message = format!("as told: {status}; your key is {KEY}");
    let body = axum::Json(json!({ "error": { "message": message, "type": "told" } }));
    let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
    response.headers_mut().extend(extra.into_iter().map(|(name, value)| {
        (name.parse::<header::HeaderName>().unwrap(), value.parse::<header::HeaderValue>().unwrap())
    }));
    response
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn event(value: &Value) -> String {
    format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap())
}

/// The beginning of an answer and its words.
fn words_of(api: Api, words: &[String]) -> Vec<String> {
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
fn end_of(api: Api, words: &[String], stop: bool) -> String {
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

/// An answer that wants tools called: ten tokens asked and one for each call.
fn calling(api: Api, calls: &[(String, Value)]) -> Vec<String> {
    let mut all = words_of(api, &["Well. ".to_owned()]);
    for (place, (name, arguments)) in calls.iter().enumerate() {
        let (id, text) = (format!("toolu_{place}"), arguments.to_string());
        let (begin, end) = text.split_at(text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at));
        match api {
            Api::Openai => {
                let delta = |function: Value| {
                    data(&json!({ "choices": [{ "index": 0, "delta": { "tool_calls": [{ "index": place, "id": id,
                        "type": "function", "function": function }] } }] }))
                };
                all.push(delta(json!({ "name": name, "arguments": begin })));
                all.push(delta(json!({ "arguments": end })));
            }
            Api::OpenaiResponses => {
                let item = json!({ "type": "function_call", "id": format!("fc_{place}"), "call_id": id, "name": name,
                    "arguments": text });
                all.push(event(
                    &json!({ "type": "response.output_item.added", "output_index": place + 1, "item": item }),
                ));
                all.push(event(
                    &json!({ "type": "response.output_item.done", "output_index": place + 1, "item": item }),
                ));
            }
            Api::Anthropic => {
                let index = place + 1;
                all.push(event(&json!({ "type": "content_block_stop", "index": place })));
                all.push(event(&json!({ "type": "content_block_start", "index": index,
                    "content_block": { "type": "tool_use", "id": id, "name": name, "input": {} } })));
                for part in [begin, end] {
                    all.push(event(&json!({ "type": "content_block_delta", "index": index,
                        "delta": { "type": "input_json_delta", "partial_json": part } })));
                }
            }
            Api::Gemini => {
                let part = json!({ "functionCall": { "name": name, "args": arguments } });
                all.push(data(&json!({ "candidates": [{ "content": { "role": "model", "parts": [part] } }] })));
            }
        }
    }
    let words: Vec<_> = calls.iter().map(|(name, _)| name.clone()).collect();
    let end = end_of(api, &words, true).replace("\"end_turn\"", "\"tool_use\"");
    all.push(if api == Api::Openai { end.replace("\"stop\"", "\"tool_calls\"") } else { end });
    all
}

/// Whether every call of a tool in the question has its output.
fn is_paired(api: Api, body: &Value) -> bool {
    let texts = |pointer: &str, of: &[Value]| -> Vec<String> {
        of.iter().filter_map(|item| item.pointer(pointer)?.as_str().map(str::to_owned)).collect()
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (mut called, mut given) = match api {
        Api::Openai => {
            let messages = list(&body["messages"]);
            let calls: Vec<_> = messages.iter().flat_map(|message| list(&message["tool_calls"])).collect();
            (texts("/id", &calls), texts("/tool_call_id", &messages))
        }
        Api::OpenaiResponses => {
            let of =
                |kind: &str| list(&body["input"]).into_iter().filter(|item| item["type"] == kind).collect::<Vec<_>>();
            (texts("/call_id", &of("function_call")), texts("/call_id", &of("function_call_output")))
        }
        Api::Anthropic => {
            let parts: Vec<_> = list(&body["messages"]).iter().flat_map(|message| list(&message["content"])).collect();
            let of = |kind: &str| parts.iter().filter(|part| part["type"] == kind).cloned().collect::<Vec<_>>();
            (texts("/id", &of("tool_use")), texts("/tool_use_id", &of("tool_result")))
        }
        Api::Gemini => {
            let parts: Vec<_> = list(&body["contents"]).iter().flat_map(|content| list(&content["parts"])).collect();
            (texts("/functionCall/name", &parts), texts("/functionResponse/name", &parts))
        }
    };
    called.sort();
    given.sort();
    called == given
}

fn error_of(api: Api) -> String {
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
