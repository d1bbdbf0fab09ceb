use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Value, json};

use super::{Follow, Run, contract, within};

/// Somebody who calls the API.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

/// A request in the making.
pub struct Request {
    client: Client,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Option<Bytes>,
    checked: bool,
}

/// What came back, in whole. Where the API's description knows the operation, the answer agrees with it.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The request, for messages.
    pub to: String,
}

impl Client {
    pub fn new(url: &str, token: Option<String>) -> Self {
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { http, url: url.to_owned(), token }
    }

    /// The same caller at another server.
    pub fn at(&self, url: &str) -> Self {
        Self { url: url.to_owned(), ..self.clone() }
    }

    /// The same place with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub fn token(&self) -> &str {
        self.token.as_deref().unwrap()
    }

    pub fn request(&self, method: Method, path: &str) -> Request {
        let (client, path) = (self.clone(), path.to_owned());
        Request { client, method, path, headers: HeaderMap::new(), body: None, checked: true }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path).send().await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::POST, path).json(body).send().await
    }

    /// Puts a definition written in YAML.
    pub async fn put_yaml(&self, name: &str, text: &str) -> Answer {
        let request = self.request(Method::PUT, &format!("/workflow/definitions/{name}"));
        request.header("content-type", "application/yaml").body(text.to_owned()).send().await
    }

    /// Begins a run of these steps: a list of them, or `{steps, output}`.
    pub async fn start(&self, plan: Value) -> Run {
        self.execute(json!({ "plan": plan })).await
    }

    /// Begins what the body of `POST /agent/execute` says.
    pub async fn execute(&self, body: Value) -> Run {
        let run = self.post("/agent/execute", &body).await.expect(202);
        Run::new(self.clone(), run["runId"].as_str().unwrap())
    }

    /// A run that somebody began, as this caller sees it.
    pub fn run(&self, id: &str) -> Run {
        Run::new(self.clone(), id)
    }

    /// Says yes to an approval; answers with it.
    pub async fn approve(&self, approval: &str) -> Value {
        self.decide(approval, &json!({ "status": "approved" })).await.expect(200)
    }

    /// Says no to an approval; answers with it.
    pub async fn deny(&self, approval: &str, reason: &str) -> Value {
        self.decide(approval, &json!({ "status": "denied", "reason": reason })).await.expect(200)
    }

    pub async fn decide(&self, approval: &str, body: &Value) -> Answer {
        self.post(&format!("/approvals/{approval}/decision"), body).await
    }

    /// Opens the stream of the tenant's events; `query` is empty or begins with `?`.
    pub async fn follow_tenant(&self, query: &str) -> Follow {
        self.request(Method::GET, &format!("/workflow/events{query}")).follow().await
    }
}

impl Request {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// For a server that the description is not about.
    pub fn unchecked(mut self) -> Self {
        self.checked = false;
        self
    }

    /// With an `Idempotency-Key`.
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    async fn exchange(self) -> (Method, String, reqwest::Result<reqwest::Response>) {
        let Self { client, method, path, headers, body, .. } = self;
        let mut request = client.http.request(method.clone(), format!("{}{path}", client.url)).headers(headers);
        if let Some(token) = &client.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = within(format!("{method} {path}"), request.send()).await;
        (method, path, response)
    }

    async fn response(self) -> (Method, String, reqwest::Response) {
        let (method, path, response) = self.exchange().await;
        let response = response.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
        (method, path, response)
    }

    /// The whole answer.
    pub async fn send(self) -> Answer {
        self.read(false).await.unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// The answer; of a stream that is opened, its head only.
    pub async fn opening(self) -> Answer {
        self.read(true).await.unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// The whole answer, or none where the connection broke.
    pub async fn attempt(self) -> Option<Answer> {
        self.read(false).await.ok()
    }

    async fn read(self, only_open: bool) -> reqwest::Result<Answer> {
        let checked = self.checked;
        let (method, path, response) = self.exchange().await;
        let response = response?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // As it went out: without the segments `.` and `..`, which no URL keeps, not even as `%2E`.
        let asked = response.url().path().to_owned();
        let to = format!("{method} {path}");
        let body = if only_open && headers.get("content-type").is_some_and(|kind| kind == "text/event-stream") {
            Bytes::new()
        } else {
            within(format!("the body of {to}"), response.bytes()).await?
        };
        let answer = Answer { status, headers, body, to };
        if checked {
            contract::check(method.as_str(), &asked, &answer);
        }
        Ok(answer)
    }

    /// A stream of events, if one is opened.
    pub async fn try_follow(self) -> Option<Follow> {
        let (_, _, response) = self.header("accept", "text/event-stream").response().await;
        (response.status() == StatusCode::OK).then(|| Follow::new(response))
    }

    /// A stream of events, if the server is there and opens one.
    pub async fn reach(self) -> Option<Follow> {
        self.reach_bytes().await.map(Follow::new)
    }

    /// The same, as it comes over the wire.
    pub async fn reach_bytes(self) -> Option<reqwest::Response> {
        let (method, path, response) = self.header("accept", "text/event-stream").exchange().await;
        let response = response.ok().filter(|response| response.status() != StatusCode::SERVICE_UNAVAILABLE)?;
        assert_eq!(response.status(), StatusCode::OK, "{method} {path}: {:?}", response.text().await);
        Some(response)
    }

    /// A stream of events, opened.
    pub async fn follow(self) -> Follow {
        let (method, path, response) = self.header("accept", "text/event-stream").response().await;
        assert_eq!(response.status(), StatusCode::OK, "{method} {path}: {:?}", response.text().await);
        Follow::new(response)
    }
}

impl Answer {
    /// Its JSON; `null` where it has none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Its JSON, provided that it has this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.to, self.text());
        self.json()
    }

    /// The problem, provided that it is this one.
    #[track_caller]
    pub fn problem(&self, status: u16, slug: &str) -> Value {
        let problem = self.expect(status);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.to);
        assert_eq!(problem["type"], format!("/docs/problems/{slug}"), "{}: {problem}", self.to);
        problem
    }
}
