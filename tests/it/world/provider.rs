//! A provider of models that speaks each of the real wire protocols over real HTTP, says what it is told to say, and
//! fails as it is told to fail.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
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

use super::{
    frames::{
        Midway, calling, calling_half, end_of, error_of, garbled, images, is_paired, lacks_thought, outputs,
        thoughtful, untaken, words_of,
    },
    plain::Plain,
    within,
};

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
    /// The same, without a word on what it took, as some servers stream it.
    Untold(Vec<String>),
    /// The same, cut off at the most tokens.
    SayUntilFull(Vec<String>),
    /// Calls of tools, by the names that the model was told, after a word.
    Call(Vec<(String, Value)>),
    /// These thoughts, and then what is said or called.
    Think(Vec<String>, Box<Self>),
    /// The words, held after so many of them until the test lets go.
    SayHeld(Vec<String>, usize),
    /// The words, with so long between them.
    SaySlowly(Vec<String>, Duration),
    /// This status, with headers, instead of an answer.
    Status(u16, Vec<(&'static str, &'static str)>),
    /// Nothing, ever.
    Hang,
    /// The words, and then the connection breaks.
    Cut(Vec<String>),
    /// The words, and then the end of the body, as if it were whole.
    Short(Vec<String>),
    /// A call of a tool that goes wrong in the middle.
    Broken(String, Value, Midway),
    /// The words, and among them a frame that is no JSON.
    Garbled(Vec<String>),
    /// The words, and then a page of some gateway in the same body, in no frame at all.
    Unframed(Vec<String>),
    /// The words, the last of them in bytes that are no UTF-8, and the end.
    Torn(Vec<String>),
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
        shown(&self.headers)
    }

    /// What it has of the outputs of calls, as the protocol shows them.
    pub fn outputs(&self) -> Vec<Value> {
        outputs(&self.body)
    }

    /// The images that it shows, as media types and base64.
    pub fn images(&self) -> Vec<(String, String)> {
        images(&self.body)
    }
}

/// The key among the headers of a question.
fn shown(headers: &HeaderMap) -> Option<&str> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    bearer.or_else(|| header("x-api-key")).or_else(|| header("x-goog-api-key"))
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
    /// Whether each byte of a question is a token.
    is_dense: bool,
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

    /// From now on each byte that it is asked counts as a token, as with the densest of words (as OpenAI's chat tells it).
    pub fn dense(&self) {
        self.told().is_dense = true;
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
        let scripted = told.script.pop_front().or_else(|| Some(told.answering.as_ref()?(&asked.body)));
        drop(told);
        self.note(asked, is_paired);
        scripted.unwrap_or_else(|| Turn::say("Hello there."))
    }

    /// The tokens of a question, where they are not ten.
    fn count_of(&self, body: &Value) -> Option<usize> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_dense.then(|| bytes_of(&body["messages"]) + bytes_of(&body["tools"]))
    }

    /// Counts a question among those that were asked.
    fn note(&self, asked: Asked, is_paired: bool) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let unpaired = (!is_paired).then(|| asked.body.clone());
        told.unpaired.extend(unpaired);
        told.asked.push(asked);
        drop(told);
        self.count.send_modify(|count| *count += 1);
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    if let Some(plain) = Plain::at(&path) {
        let body = plain.read(&body);
        let key = shown(&headers).unwrap_or_default().to_owned();
        let turn = shared.next(Asked { path, headers, body: body.clone() }, true);
        return plain.give(turn, &body, &key).await;
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let key = shown(&headers).unwrap_or_default().to_owned();
    let api = match &path {
        path if path.ends_with("/chat/completions") => Api::Openai,
        path if path.ends_with("/responses") => Api::OpenaiResponses,
        path if path.ends_with("/messages") => Api::Anthropic,
        path if path.contains(":streamGenerateContent") => Api::Gemini,
        other => panic!("no model is asked at {other}"),
    };
    let (is_paired, lack) = (is_paired(api, &body), lacks_thought(api, &body).or_else(|| untaken(api, &body)));
    if let Some(lack) = lack {
        shared.note(Asked { path, headers, body }, is_paired);
        return refused(&lack);
    }
    let turn = shared.next(Asked { path, headers, body: body.clone() }, is_paired);
    let count = shared.count_of(&body);
    let whole =
        |words: &[String], stop| counted([words_of(api, words), vec![end_of(api, words, stop)]].concat(), count);
    match turn {
        Turn::Think(thoughts, then) => frames(match *then {
            Turn::Say(words) => thoughtful(api, &thoughts, whole(&words, true)),
            Turn::Call(calls) => thoughtful(api, &thoughts, calling(api, &calls)),
            other => panic!("nothing is thought before {other:?}"),
        }),
        Turn::Say(words) => frames(whole(&words, true)),
        Turn::Untold(words) => {
            frames(whole(&words, true).iter().map(|frame| frame.replace("\"usage", "\"no")).collect())
        }
        Turn::SayUntilFull(words) => frames(whole(&words, false)),
        Turn::Call(calls) => frames(counted(calling(api, &calls), count)),
        Turn::SayHeld(words, after) => held(whole(&words, true), after, shared.released.subscribe()),
        Turn::SaySlowly(words, pause) => slowly(whole(&words, true), pause),
        Turn::Status(status, extra) => refusal(status, extra, &key),
        Turn::Hang => std::future::pending().await,
        Turn::Cut(words) => cut(words_of(api, &words)),
        Turn::Short(words) => frames(words_of(api, &words)),
        Turn::Garbled(words) => {
            let mut all = whole(&words, true);
            all.insert(1, garbled(api));
            frames(all)
        }
        Turn::Unframed(words) => {
            let page = "<html><body>502 Bad Gateway</body></html>\n".to_owned();
            frames([words_of(api, &words), vec![page]].concat())
        }
        Turn::Torn(words) => torn(whole(&words, true), words.last().map_or("", String::as_str)),
        Turn::Broken(name, arguments, midway) => {
            let all = calling_half(api, &name, &arguments, midway);
            match midway {
                Midway::Cut => cut(all),
                Midway::Hang => held(all.clone(), all.len() - 1, shared.released.subscribe()),
                _ => frames(all),
            }
        }
        Turn::WrongJson => wrong(),
        Turn::Empty => frames(whole(&[], true)),
        Turn::ErrorInside(words) => frames([words_of(api, &words), vec![error_of(api)]].concat()),
        Turn::Sound(_) => panic!("no sound is asked for"),
    }
}

/// The bytes of all text in it.
fn bytes_of(value: &Value) -> usize {
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| name.len() + bytes_of(value)).sum(),
        Value::Array(items) => items.iter().map(bytes_of).sum(),
        Value::String(text) => text.len(),
        other => other.to_string().len(),
    }
}

/// The same with so many tokens asked.
fn counted(all: Vec<String>, tokens: Option<usize>) -> Vec<String> {
    let Some(tokens) = tokens else { return all };
    let told = format!("\"prompt_tokens\":{tokens},");
    all.into_iter().map(|frame| frame.replace("\"prompt_tokens\":10,", &told)).collect()
}

fn frames(all: Vec<String>) -> Response {
    let body = Body::from_stream(stream::iter(all.into_iter().map(Ok::<_, Infallible>)));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// With bytes that are no UTF-8 where this word stands.
fn torn(all: Vec<String>, word: &str) -> Response {
    let bytes = |frame: String| match frame.split_once(word) {
        Some((before, after)) => [before.as_bytes(), &[0xff, 0xfe, 0xc3], after.as_bytes()].concat(),
        None => frame.into_bytes(),
    };
    let all = all.into_iter().map(move |frame| Ok::<_, Infallible>(bytes(frame)));
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream::iter(all.collect::<Vec<_>>())))
        .into_response()
}

fn slowly(all: Vec<String>, pause: Duration) -> Response {
    let paced = stream::iter(all).then(move |frame| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, Infallible>(frame)
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(paced)).into_response()
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

/// Says that a question cannot be asked like this.
fn refused(why: &str) -> Response {
    let body = json!({ "type": "error", "error": { "type": "invalid_request_error", "message": why } });
    (StatusCode::BAD_REQUEST, axum::Json(body)).into_response()
}

/// A status, and a message in which the key is said back.
/// A refusal that says the key back: whole, and again where what is kept of its message may end.
pub(super) fn refusal(status: u16, extra: Vec<(&'static str, &'static str)>, key: &str) -> Response {
    let mut message = format!("as told: {status}; your key is {key}, ");
    message += &format!("{}{key}", "x".repeat(480_usize.saturating_sub(message.len())));
    let body = axum::Json(json!({ "error": { "message": message, "type": "told" } }));
    let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
    response.headers_mut().extend(extra.into_iter().map(|(name, value)| {
        (name.parse::<header::HeaderName>().unwrap(), value.parse::<header::HeaderValue>().unwrap())
    }));
    response
}
