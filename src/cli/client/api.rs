use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use secrecy::ExposeSecret;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    connection::Target,
    failure::{Failure, Problem, Result},
    output,
};

/// The server sends a comment every 15 s; this long without a byte, the connection is dead.
const SILENCE: Duration = Duration::from_secs(45);

/// The longest an ordinary answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The public API of one server.
#[derive(Clone, Debug)]
pub(super) struct Api {
    http: reqwest::Client,
    target: Target,
}

/// A successful answer.
#[derive(Debug)]
pub(super) struct Reply(Bytes);

impl Api {
    pub(super) fn new(target: Target) -> Result<Self> {
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("fermata/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE);
        // What a proxy calls localhost is the proxy.
        if is_local(&target.base) {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|e| Failure::Usage(format!("no HTTP client can be made: {}", causes(&e))))?;
        Ok(Self { http, target })
    }

    /// The same server after what may have been a restart.
    pub(super) fn again(&self) -> Self {
        Self { http: self.http.clone(), target: self.target.again() }
    }

    /// Where the server is, for a person.
    pub(super) fn base(&self) -> String {
        self.target.base.to_string()
    }

    pub(super) async fn get(&self, path: &[&str]) -> Result<Reply> {
        self.read(self.request(Method::GET, path)?).await
    }

    pub(super) async fn list(&self, path: &[&str], query: &[(&str, String)]) -> Result<Reply> {
        self.read(self.request(Method::GET, path)?.query(query)).await
    }

    pub(super) async fn post(&self, path: &[&str], body: &impl Serialize, key: Option<&str>) -> Result<Reply> {
        let mut request = self.request(Method::POST, path)?.json(body);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.read(request).await
    }

    pub(super) async fn put(&self, path: &[&str], media_type: &str, body: Vec<u8>) -> Result<Reply> {
        self.read(self.request(Method::PUT, path)?.header("content-type", media_type).body(body)).await
    }

    /// Opens a stream after `last`; none when there is nothing more to come.
    pub(super) async fn stream(&self, path: &[&str], last: Option<&str>) -> Result<Option<Response>> {
        let mut request = self.request(Method::GET, path)?.header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(None),
            status if status.is_success() => Ok(Some(response)),
            _ => Err(refusal(response).await),
        }
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder> {
        let url = self.target.at(path)?;
        Ok(self.http.request(method, url).bearer_auth(self.target.token.expose_secret()))
    }

    async fn read(&self, request: RequestBuilder) -> Result<Reply> {
        let response = self.send(request.timeout(PATIENCE)).await?;
        if response.status().is_success() {
            response.bytes().await.map(Reply).map_err(|e| self.unreachable(&e))
        } else {
            Err(refusal(response).await)
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        request.send().await.map_err(|e| self.unreachable(&e))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        Failure::Unreachable { url: self.base(), cause: causes(error) }
    }
}

impl Reply {
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.0).map_err(|e| Failure::Unreadable(e.to_string()))
    }

    /// Prints the body as it came.
    pub(super) fn print(&self) -> Result<()> {
        output::document(String::from_utf8_lossy(&self.0).trim_end())
    }
}

async fn refusal(response: Response) -> Failure {
    let status = response.status().as_u16();
    let request_id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let body = response.bytes().await.unwrap_or_default();
    Failure::Refused(Box::new(Problem::parse(status, &body, request_id.as_deref())))
}

/// An error and what is behind it, without the URL, which is said already.
pub(super) fn causes(error: &reqwest::Error) -> String {
    let mut said = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Layers of a library repeat one another.
        if !said.iter().any(|earlier: &String| earlier.contains(&text)) {
            said.push(text);
        }
        cause = error.source();
    }
    if said.is_empty() { error.to_string() } else { said.join(": ") }
}

fn is_local(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    }
}
