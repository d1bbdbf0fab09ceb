//! An MCP server that speaks both revisions of the protocol over real HTTP, changes its tools when it is told to, and
//! misbehaves in every way a test asks for.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use super::{Oauth, within};

/// The revisions of the protocol.
pub const REVISIONS: [Revision; 2] = [Revision::Older, Revision::Newer];

/// Tools on one page of the list.
const PAGE: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    /// 2025-11-25: sessions that begin with a handshake.
    Older,
    /// 2026-07-28: every request stands alone.
    Newer,
}

impl Revision {
    pub fn name(self) -> &'static str {
        match self {
            Self::Older => "2025-11-25",
            Self::Newer => "2026-07-28",
        }
    }
}

/// A message as it arrived.
#[derive(Clone, Debug)]
pub struct Heard {
    pub headers: HeaderMap,
    pub body: Value,
}

struct Told {
    tools: BTreeMap<String, Value>,
    heard: Vec<Heard>,
    /// What a session is asked, by the id of the question.
    asked: HashMap<i64, oneshot::Sender<Value>>,
    questions: i64,
    /// What it says in place of its usual words.
    says: Option<String>,
    down: bool,
    /// Nobody is told its tools, ever.
    mute: bool,
    /// Lets the answer of `progress` go.
    released: watch::Sender<bool>,
}

struct Shared {
    revision: Revision,
    /// Whose tokens it wants to be shown.
    guard: Option<Oauth>,
    told: Mutex<Told>,
    count: watch::Sender<usize>,
}

/// The server, on a port of its own.
#[derive(Clone)]
pub struct Mcp {
    shared: Arc<Shared>,
    url: String,
}

impl Mcp {
    pub async fn start(revision: Revision) -> Self {
        Self::build(revision, None).await
    }

    /// One that answers nobody without a token of that server's.
    pub async fn guarded(revision: Revision, guard: &Oauth) -> Self {
        Self::build(revision, Some(guard.clone())).await
    }

    async fn build(revision: Revision, guard: Option<Oauth>) -> Self {
        let schema = json!({ "type": "object", "properties": { "text": { "type": "string" } } });
        let tool = |name: &str| {
            let tool = json!({ "name": name, "description": format!("Does {name}."), "inputSchema": schema });
            (name.to_owned(), tool)
        };
        let names = ["echo", "fail", "big", "ask", "ask_twice", "link", "progress", "cut", "hang", "refuse"];
        let names = names.into_iter().chain(["ask_wrong", "leak", "gateway", "renew"]);
        let told = Told {
            tools: names.map(tool).collect(),
            heard: vec![],
            asked: HashMap::new(),
            questions: 1000,
            says: None,
            down: false,
            mute: false,
            released: watch::Sender::new(false),
        };
        let shared = Arc::new(Shared { revision, guard, told: Mutex::new(told), count: watch::Sender::new(0) });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { shared, url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Lists the tool otherwise from now on; with null, not at all.
    pub fn change(&self, tool: &str, field: &str, value: Value) {
        self.shared.told().tools.get_mut(tool).unwrap()[field] = value;
    }

    /// Lists a tool that it had not, or had no longer.
    pub fn list(&self, tool: &str, description: &str) {
        let schema = json!({ "type": "object", "properties": { "text": { "type": "string" } } });
        let listed = json!({ "name": tool, "description": description, "inputSchema": schema });
        self.shared.told().tools.insert(tool.to_owned(), listed);
    }

    pub fn remove(&self, tool: &str) {
        self.shared.told().tools.remove(tool);
    }

    /// What `echo`, `fail` and `refuse` say from now on.
    pub fn says(&self, text: &str) {
        self.shared.told().says = Some(text.to_owned());
    }

    /// Answers nothing but 503 from now on.
    pub fn go_down(&self) {
        self.shared.told().down = true;
    }

    /// Hangs from now on when it is asked for its tools.
    pub fn mute(&self) {
        self.shared.told().mute = true;
    }

    /// Lets `progress` answer, now and later.
    pub fn release(&self) {
        self.shared.told().released.send_replace(true);
    }

    /// Everything heard of that method so far.
    pub fn heard(&self, method: &str) -> Vec<Heard> {
        self.shared.told().heard.iter().filter(|heard| heard.body["method"] == method).cloned().collect()
    }

    /// The arguments of all calls of the tool so far.
    pub fn calls(&self, tool: &str) -> Vec<Value> {
        let calls = self.heard("tools/call").into_iter().map(|heard| heard.body["params"].clone());
        calls.filter(|params| params["name"] == tool).collect()
    }

    /// Waits until so many messages of that method were heard.
    pub async fn hears(&self, method: &str, count: usize) -> Vec<Heard> {
        let mut news = self.shared.count.subscribe();
        let enough = async {
            loop {
                news.mark_unchanged();
                let heard = self.heard(method);
                if heard.len() >= count {
                    return heard;
                }
                news.changed().await.unwrap();
            }
        };
        within(format!("{count} of {method}"), enough).await
    }
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn words(&self, usual: &str) -> String {
        self.told().says.clone().unwrap_or_else(|| usual.to_owned())
    }
}

/// What is said of who grants access (RFC 9728), or that access has to be granted first.
fn guarded(guard: &Oauth, path: &str, headers: &HeaderMap) -> Option<Response> {
    let host = headers["host"].to_str().unwrap();
    let about = "/.well-known/oauth-protected-resource/mcp";
    if path == about {
        let resource = json!({
            "resource": format!("http://{host}/mcp"), "authorization_servers": [guard.issuer()],
            "scopes_supported": ["tools"],
        });
        return Some(axum::Json(resource).into_response());
    }
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().unwrap().strip_prefix("Bearer "));
    if token.is_some_and(|token| guard.is_good(token)) {
        return None;
    }
    let challenge = format!("Bearer resource_metadata=\"http://{host}{about}\"");
    Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response())
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if shared.told().down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if let Some(refused) = shared.guard.as_ref().and_then(|guard| guarded(guard, uri.path(), &headers)) {
        return refused;
    }
    if method != Method::POST {
        let body = json!({ "method": method.as_str() });
        shared.told().heard.push(Heard { headers, body });
        shared.count.send_modify(|count| *count += 1);
        let ended = method == Method::DELETE;
        return if ended { StatusCode::NO_CONTENT } else { StatusCode::METHOD_NOT_ALLOWED }.into_response();
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    shared.told().heard.push(Heard { headers: headers.clone(), body: body.clone() });
    shared.count.send_modify(|count| *count += 1);
    let (id, params) = (body["id"].clone(), &body["params"]);
    let newer = shared.revision == Revision::Newer;
    match body["method"].as_str() {
        // An answer to a question of ours.
        None => {
            let waits = id.as_i64().and_then(|id| shared.told().asked.remove(&id));
            let given = body.get("result").or(body.get("error")).cloned().unwrap_or_default();
            waits.into_iter().for_each(|waits| drop(waits.send(given.clone())));
            StatusCode::ACCEPTED.into_response()
        }
        Some("server/discover") if newer => result(
            &id,
            json!({
                "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": { "tools": {} },
                "ttlMs": 0, "cacheScope": "private",
                "_meta": { "io.modelcontextprotocol/serverInfo": { "name": "fake", "version": "1" } },
            }),
        ),
        Some("initialize") if !newer => {
            let info = json!({
                "protocolVersion": "2025-11-25", "capabilities": { "tools": { "listChanged": true } },
                "serverInfo": { "name": "fake", "version": "1" },
            });
            let mut response = result(&id, info);
            response.headers_mut().insert("mcp-session-id", "session-1".parse().unwrap());
            response
        }
        Some("tools/list") if shared.told().mute => std::future::pending().await,
        Some("tools/list") => {
            let from: usize = params["cursor"].as_str().map_or(0, |cursor| cursor.parse().unwrap());
            let tools: Vec<_> = shared.told().tools.values().skip(from).take(PAGE).cloned().collect();
            let mut page = json!({ "tools": tools });
            if from + PAGE < shared.told().tools.len() {
                page["nextCursor"] = json!((from + PAGE).to_string());
            }
            if newer {
                page["resultType"] = json!("complete");
                page["ttlMs"] = json!(86_400_000);
                page["cacheScope"] = json!("private");
            }
            result(&id, page)
        }
        Some("tools/call") => call(&shared, &id, params, &headers).await,
        Some(method) if method.starts_with("notifications/") => StatusCode::ACCEPTED.into_response(),
        Some(_) => {
            frame(&json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32601, "message": "no such method" } }))
        }
    }
}

async fn call(shared: &Arc<Shared>, id: &Value, params: &Value, headers: &HeaderMap) -> Response {
    let text = params["arguments"]["text"].as_str().unwrap_or_default().to_owned();
    match params["name"].as_str().unwrap() {
        "echo" => result(id, said(&shared.words(&text), false)),
        "fail" => result(id, said(&shared.words("there is no such order"), true)),
        "refuse" => {
            let error = json!({ "code": -32602, "message": shared.words("not like this") });
            frame(&json!({ "jsonrpc": "2.0", "id": id, "error": error }))
        }
        "big" => {
            let mut big = said(&"x".repeat(1_500_000), false);
            let image = json!({ "type": "image", "data": "A".repeat(500_000), "mimeType": "image/png" });
            big["content"].as_array_mut().unwrap().push(image);
            result(id, big)
        }
        "hang" => std::future::pending().await,
        "leak" => leak(id, &text, headers),
        // What stands before the server gave up on it; the server may be at it.
        "gateway" => StatusCode::BAD_GATEWAY.into_response(),
        "renew" => {
            let told = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
            events(framed(stream::iter([told, answered(id, said("renewed", false))])))
        }
        "cut" => {
            let opened: Result<_, std::io::Error> = Ok(Bytes::from(": opened\n\n"));
            let cut = stream::iter([opened, Err(std::io::Error::other("cut"))]);
            events(Body::from_stream(cut))
        }
        "progress" => {
            let token = &params["_meta"]["progressToken"];
            let told = json!({ "progressToken": token, "progress": 1, "total": 4, "message": "a quarter" });
            let told = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": told });
            let mut released = shared.told().released.subscribe();
            let done = answered(id, said("done", false));
            let frames = stream::once(async move { told }).chain(stream::once(async move {
                // The sender is gone when the test is.
                let _ = released.wait_for(|released| *released).await;
                done
            }));
            events(framed(frames))
        }
        name => asks(shared, id, params, (name, &text)).await,
    }
}

/// Says what it was shown of who calls, in every way there is.
fn leak(id: &Value, how: &str, headers: &HeaderMap) -> Response {
    let shown = ["authorization", "x-api-key"].into_iter().filter_map(|name| headers.get(name));
    let shown = shown.map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    match how {
        "fail" => result(id, said(&format!("{}{shown}", "x".repeat(990)), true)),
        "refuse" => {
            let error = json!({ "code": -32602, "message": format!("{}{shown}", "x".repeat(990)) });
            frame(&json!({ "jsonrpc": "2.0", "id": id, "error": error }))
        }
        _ => {
            let mut said = said(&format!("you are {shown}"), false);
            said["structuredContent"] = json!({ "shown": [&shown], &shown: 1 });
            result(id, said)
        }
    }
}

/// The tools that ask before they answer: for a name, for two things one after the other, for what fits the schema in the
/// text, for a sign-in somewhere else.
async fn asks(shared: &Arc<Shared>, id: &Value, params: &Value, (tool, text): (&str, &str)) -> Response {
    let questions = match tool {
        "ask" => vec![question("Whose order?", "name")],
        "ask_twice" => vec![question("Whose order?", "name"), question("Which?", "number")],
        "ask_wrong" => {
            let schema: Value = serde_json::from_str(text).unwrap();
            vec![json!({ "mode": "form", "message": "Whose order?", "requestedSchema": schema })]
        }
        _ => {
            vec![json!({ "mode": "url", "message": "Sign in", "url": "https://login.example/", "elicitationId": "e1" })]
        }
    };
    if shared.revision == Revision::Newer {
        let done: usize = params["requestState"].as_str().map_or(0, |state| state.parse().unwrap());
        let given = &params["inputResponses"]["question"];
        assert_eq!(done > 0, !given.is_null(), "{params}");
        return match questions.get(done) {
            Some(question) => {
                let asked = json!({ "question": { "method": "elicitation/create", "params": question } });
                let needs = json!({
                    "resultType": "input_required", "inputRequests": asked, "requestState": (done + 1).to_string()
                });
                result(id, needs)
            }
            None => result(id, said(&format!("given {given}"), false)),
        };
    }
    let (shared, id) = (Arc::clone(shared), id.clone());
    let frames = stream::unfold((0, String::new(), None), move |(step, mut text, waiting)| {
        let (shared, id, questions) = (Arc::clone(&shared), id.clone(), questions.clone());
        async move {
            let waiting: Option<oneshot::Receiver<Value>> = waiting;
            if let Some(waiting) = waiting {
                let given = waiting.await.unwrap_or_default();
                text = format!("given {given}");
                if given["action"] != "accept" {
                    return Some((
                        answered(&id, said(&format!("nobody there: {given}"), true)),
                        (usize::MAX, text, None),
                    ));
                }
            }
            if step > questions.len() {
                return None;
            }
            let Some(question) = questions.get(step) else {
                return Some((answered(&id, said(&text, false)), (usize::MAX, text, None)));
            };
            let (sender, receiver) = oneshot::channel();
            let number = {
                let mut told = shared.told();
                told.questions += 1;
                let number = told.questions;
                told.asked.insert(number, sender);
                number
            };
            let asked = json!({ "jsonrpc": "2.0", "id": number, "method": "elicitation/create", "params": question });
            Some((asked, (step + 1, text, Some(receiver))))
        }
    });
    events(framed(frames))
}

fn question(message: &str, field: &str) -> Value {
    let field = json!({ "type": "object", "required": [field], "properties": { field: { "type": "string" } } });
    json!({ "mode": "form", "message": message, "requestedSchema": field })
}

fn said(text: &str, failed: bool) -> Value {
    let mut said = json!({ "content": [{ "type": "text", "text": text }], "resultType": "complete" });
    if failed {
        said["isError"] = json!(true);
    }
    said
}

fn answered(id: &Value, result: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": result })
}

fn result(id: &Value, result: Value) -> Response {
    frame(&answered(id, result))
}

fn frame(message: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], message.to_string()).into_response()
}

fn framed(messages: impl Stream<Item = Value> + Send + 'static) -> Body {
    Body::from_stream(messages.map(|message| Ok::<_, Infallible>(format!("event: message\ndata: {message}\n\n"))))
}

fn events(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}
