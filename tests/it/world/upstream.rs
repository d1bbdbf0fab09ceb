//! The services that steps call: a small server that does as it is told and remembers what it was asked.

use std::{
    collections::HashMap,
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
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use super::within;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub method: Method,
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Arrived {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What a path answers.
#[derive(Clone, Debug)]
pub enum Reply {
    /// This status and JSON.
    Json(u16, Value),
    /// This status, headers and body.
    Raw(u16, Vec<(&'static str, String)>, Bytes),
    /// An event stream of these `data:` lines, and its end.
    Events(Vec<String>),
    /// Nothing, ever; the connection stays open.
    Hang,
    /// The beginning of an answer, and then the connection breaks.
    Cut,
}

#[derive(Default)]
struct Told {
    /// What a path answers from now on; the next answers first.
    always: HashMap<String, Reply>,
    next: HashMap<String, Vec<Reply>>,
    /// Paths whose answers wait for the word.
    held: HashMap<String, watch::Sender<bool>>,
    arrived: Vec<Arrived>,
}

struct Shared {
    told: Mutex<Told>,
    count: watch::Sender<usize>,
}

/// A service outside, on a port of its own. Unless told otherwise it answers `200 {"ok": true}`.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
    url: String,
}

impl Upstream {
    pub async fn start() -> Self {
        let shared = Arc::new(Shared { told: Mutex::default(), count: watch::Sender::new(0) });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { shared, url }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// What `path` answers from now on.
    pub fn reply(&self, path: &str, reply: Reply) {
        self.told().always.insert(path.to_owned(), reply);
    }

    /// What `path` answers the next `times` times.
    pub fn next(&self, path: &str, times: usize, reply: Reply) {
        self.told().next.entry(path.to_owned()).or_default().extend(std::iter::repeat_n(reply, times));
    }

    /// The next `times` requests to `path` fail with this status.
    pub fn fail(&self, path: &str, times: usize, status: u16) {
        self.next(path, times, Reply::Json(status, json!({ "error": "as told" })));
    }

    /// Answers of `path` wait until [`Upstream::release`].
    pub fn hold(&self, path: &str) {
        self.told().held.insert(path.to_owned(), watch::Sender::new(false));
    }

    /// Lets the held answers of `path` go.
    pub fn release(&self, path: &str) {
        if let Some(held) = self.told().held.remove(path) {
            held.send_replace(true);
        }
    }

    /// All requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<Arrived> {
        self.told().arrived.clone()
    }

    /// The requests to `path` so far.
    pub fn requests_to(&self, path: &str) -> Vec<Arrived> {
        self.told().arrived.iter().filter(|arrived| arrived.path == path).cloned().collect()
    }

    /// Waits until `path` has had this many requests, and answers with them.
    pub async fn arrived(&self, path: &str, count: usize) -> Vec<Arrived> {
        let mut news = self.shared.count.subscribe();
        let enough = async {
            loop {
                news.mark_unchanged();
                let requests = self.requests_to(path);
                if requests.len() >= count {
                    return requests;
                }
                news.changed().await.unwrap();
            }
        };
        within(format!("{count} requests to {path}"), enough).await
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.shared.told()
    }
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let (reply, held) = {
        let mut told = shared.told();
        let query = uri.query().map(str::to_owned);
        told.arrived.push(Arrived { method, path: path.clone(), query, headers, body });
        let next = told.next.get_mut(&path).filter(|next| !next.is_empty()).map(|next| next.remove(0));
        let reply = next.or_else(|| told.always.get(&path).cloned());
        (reply, told.held.get(&path).map(watch::Sender::subscribe))
    };
    shared.count.send_modify(|count| *count += 1);
    if let Some(mut held) = held {
        // The sender is gone when the test is.
        let _ = held.wait_for(|released| *released).await;
    }
    reply.unwrap_or_else(|| Reply::Json(200, json!({ "ok": true }))).response().await
}

impl Reply {
    async fn response(self) -> Response {
        match self {
            Self::Json(status, body) => (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response(),
            Self::Raw(status, headers, body) => {
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                response.body(Body::from(body)).unwrap()
            }
            Self::Events(lines) => {
                let frames = lines.into_iter().map(|line| Ok::<_, Infallible>(format!("data: {line}\n\n")));
                let body = Body::from_stream(futures_util::stream::iter(frames));
                ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
            }
            Self::Hang => std::future::pending().await,
            Self::Cut => {
                let parts = [Ok("{\"ok\":"), Err(std::io::Error::other("cut"))];
                Body::from_stream(futures_util::stream::iter(parts)).into_response()
            }
        }
    }
}
