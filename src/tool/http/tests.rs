//! `http.request` against real connections on this machine.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::{HttpRequest, Sender};
use crate::{
    config::ToolSettings,
    http::{AllowList, Outbound},
    journal::{Effect, Failure},
    kernel::{Error, Result, TenantId},
    tool::{Call, Outcome, Tool, ToolError, tests::call},
};

struct Allowed(Vec<&'static str>);

#[async_trait]
impl AllowList for Allowed {
    async fn allowed(&self, _: TenantId) -> Result<Vec<String>> {
        Ok(self.0.iter().map(ToString::to_string).collect())
    }
}

fn tool(allowed: impl AllowList, loopback: bool) -> HttpRequest {
    let settings = ToolSettings { loopback, ..ToolSettings::default() };
    HttpRequest::new(Sender::new(Arc::new(Outbound::new(&settings, Arc::new(allowed)).unwrap()), 1024 * 1024))
}

fn dev() -> HttpRequest {
    tool(Allowed(Vec::new()), true)
}

fn guarded(allowed: &[&'static str]) -> HttpRequest {
    tool(Allowed(allowed.to_vec()), false)
}

/// What the server does once it has read a request.
enum Reply {
    Say(String),
    HangUp,
    Hang,
}

fn ok(media_type: &str, body: &str) -> Reply {
    let length = body.len();
    Reply::Say(format!("HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\r\n{body}"))
}

fn status(code: u16, headers: &str, body: &str) -> Reply {
    Reply::Say(format!("HTTP/1.1 {code} X\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()))
}

#[derive(Clone)]
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
    arrived: Arc<Notify>,
}

impl Server {
    async fn start(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            connections: Arc::default(),
            arrived: Arc::default(),
        };
        let (accepting, reply) = (server.clone(), Arc::new(reply));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *accepting.connections.lock().unwrap() += 1;
                tokio::spawn(accepting.clone().serve(stream, Arc::clone(&reply)));
            }
        });
        server
    }

    async fn serve(self, mut stream: TcpStream, reply: Arc<impl Fn(&str) -> Reply>) {
        while let Some(request) = read(&mut stream).await {
            let reply = reply(&request);
            self.seen.lock().unwrap().push(request);
            self.arrived.notify_one();
            match reply {
                Reply::Say(text) => stream.write_all(text.as_bytes()).await.unwrap_or_default(),
                Reply::HangUp => return,
                Reply::Hang => pending().await,
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// One request with its body, or none at the end.
async fn read(stream: &mut TcpStream) -> Option<String> {
    let mut text = String::new();
    loop {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.ok().filter(|count| *count > 0)?;
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        if body.len() >= length.parse().unwrap() {
            return Some(text);
        }
    }
}

async fn ask(tool: &HttpRequest, arguments: Value) -> Result<Value, ToolError> {
    finish(tool, call(arguments)).await
}

async fn finish(tool: &HttpRequest, call: Call) -> Result<Value, ToolError> {
    match tool.call(call).await? {
        Outcome::Done { output, .. } => Ok(output),
        other @ (Outcome::Wait(_) | Outcome::Ask(_)) => panic!("{other:?}"),
    }
}

fn failed(result: Result<Value, ToolError>) -> Failure {
    match result {
        Err(ToolError::Failed(failure)) => failure,
        other => panic!("not a certain failure: {other:?}"),
    }
}

fn unknown(result: Result<Value, ToolError>) -> Failure {
    match result {
        Err(ToolError::Unknown(failure)) => failure,
        other => panic!("not an unknown outcome: {other:?}"),
    }
}

#[tokio::test]
async fn a_request_goes_out_as_told_and_comes_back_parsed() {
    let server = Server::start(|_| ok("application/json", r#"{"id":7}"#)).await;
    let url = server.url("/contacts");
    let arguments =
        json!({"method": "POST", "url": url, "query": {"q": "a b"}, "headers": {"X-A": "1"}, "json": {"n": 1}});
    let output = ask(&dev(), arguments).await.unwrap();
    assert_eq!(output["status"], 200);
    assert_eq!(output["body"], json!({"id": 7}));
    assert_eq!(output["encoding"], "json");
    assert_eq!(output["headers"]["content-type"], "application/json");
    assert_eq!(output["url"], format!("{url}?q=a+b"));
    let seen = server.seen().join("");
    assert!(seen.starts_with("POST /contacts?q=a+b HTTP/1.1\r\n"), "{seen}");
    for part in ["idempotency-key: run_1/step\r\n", "user-agent: fermata/", "x-a: 1\r\n", "\r\n\r\n{\"n\":1}"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = Server::start(|_| ok("text/plain", "hi")).await;
    let tool = dev();
    for _ in 0..3 {
        assert_eq!(ask(&tool, json!({"url": server.url("/")})).await.unwrap()["body"], "hi");
    }
    assert_eq!(*server.connections.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_refusal_is_a_failure_with_its_status_and_the_head_of_its_body() {
    let body = "x".repeat(100_000);
    let server = Server::start(move |request| match request.starts_with("GET /busy") {
        true => status(503, "retry-after: 7\r\n", &body),
        false => status(404, "content-type: application/json\r\n", r#"{"why":"gone"}"#),
    })
    .await;
    let busy = failed(ask(&dev(), json!({"url": server.url("/busy")})).await);
    assert_eq!((busy.code.as_str(), busy.retryable), ("http_status", true));
    let detail = busy.detail.unwrap();
    assert_eq!((&detail["status"], busy.retry_after_seconds.map(u32::from)), (&json!(503), Some(7)));
    assert_eq!(detail["body"].as_str().unwrap().len(), 4096);
    let gone = failed(ask(&dev(), json!({"url": server.url("/gone")})).await);
    assert!(!gone.retryable);
    assert_eq!(gone.detail.unwrap()["body"]["why"], "gone");
}

#[tokio::test]
async fn the_caller_says_which_statuses_are_expected() {
    let server = Server::start(|_| status(404, "", "none")).await;
    let url = server.url("/");
    assert_eq!(ask(&dev(), json!({"url": url, "expect": [200, 404]})).await.unwrap()["status"], 404);
    assert_eq!(failed(ask(&dev(), json!({"url": url, "expect": [200]})).await).code, "http_status");
}

#[tokio::test]
async fn this_machine_is_out_of_reach_unless_allowed() {
    let server = Server::start(|_| ok("text/plain", "secret")).await;
    let port = server.address.port();
    let by_name = json!({"url": format!("http://localhost:{port}/")});
    let by_number = json!({"url": format!("http://2130706433:{port}/")});
    for arguments in [&by_name, &by_number] {
        let refused = failed(ask(&guarded(&[]), arguments.clone()).await);
        assert_eq!((refused.code.as_str(), refused.retryable), ("address_refused", false));
    }
    assert_eq!(*server.connections.lock().unwrap(), 0, "nothing was dialled");
    assert_eq!(failed(ask(&guarded(&["localhost"]), by_number.clone()).await).code, "address_refused");
    assert_eq!(ask(&guarded(&["127.0.0.0/8"]), by_number).await.unwrap()["body"], "secret");
    assert_eq!(ask(&guarded(&["LOCALHOST"]), by_name).await.unwrap()["body"], "secret");
}

#[tokio::test]
async fn an_open_connection_of_another_tenants_rules_is_not_used() {
    struct ByTenant(TenantId);
    #[async_trait]
    impl AllowList for ByTenant {
        async fn allowed(&self, tenant: TenantId) -> Result<Vec<String>> {
            Ok(if tenant == self.0 { vec!["localhost".to_owned()] } else { Vec::new() })
        }
    }
    let server = Server::start(|_| ok("text/plain", "secret")).await;
    let first = call(json!({"url": format!("http://localhost:{}/", server.address.port())}));
    let tool = tool(ByTenant(first.tenant_id), false);
    let second = Call { tenant_id: call(json!({})).tenant_id, ..first.clone() };
    assert!(finish(&tool, first.clone()).await.is_ok());
    assert_eq!(failed(finish(&tool, second).await).code, "address_refused");
    assert!(finish(&tool, first).await.is_ok());
    assert_eq!(*server.connections.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_database_that_is_away_for_a_moment_fails_no_call() {
    struct AwayAtFirst(AtomicU32);
    #[async_trait]
    impl AllowList for AwayAtFirst {
        async fn allowed(&self, _: TenantId) -> Result<Vec<String>> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0..3 => Err(Error::unavailable("away")),
                _ => Ok(vec!["127.0.0.1".to_owned()]),
            }
        }
    }
    let server = Server::start(|_| ok("text/plain", "here")).await;
    let there = call(json!({"url": server.url("/")}));
    assert_eq!(finish(&tool(AwayAtFirst(AtomicU32::new(0)), false), there.clone()).await.unwrap()["body"], "here");
    // Called off while it waits, nothing was sent.
    there.cancel.cancel();
    let called_off = failed(finish(&tool(AwayAtFirst(AtomicU32::new(0)), false), there).await);
    assert_eq!(called_off.code, "cancelled");
}

#[tokio::test]
async fn every_redirect_is_vetted() {
    let server = Server::start(|request| match request.split(' ').nth(1) {
        Some("/metadata") => status(302, "location: http://169.254.169.254/latest/\r\n", ""),
        Some("/file") => status(302, "location: file:///etc/passwd\r\n", ""),
        Some("/inside") => status(302, "location: http://10.0.0.1/\r\n", ""),
        Some("/loop") => status(302, "location: /loop\r\n", ""),
        Some("/far") => status(307, "location: /near?x=1\r\n", ""),
        _ => ok("text/plain", "here"),
    })
    .await;
    for (path, code) in [
        ("/metadata", "address_refused"),
        ("/inside", "address_refused"),
        ("/file", "url_refused"),
        ("/loop", "too_many_redirects"),
    ] {
        assert_eq!(failed(ask(&dev(), json!({"url": server.url(path)})).await).code, code, "{path}");
    }
    let output = ask(&dev(), json!({"url": server.url("/far")})).await.unwrap();
    assert_eq!((&output["body"], &output["url"]), (&json!("here"), &json!(server.url("/near?x=1"))));
    let unfollowed = ask(&dev(), json!({"method": "POST", "url": server.url("/far")})).await.unwrap();
    assert_eq!((&unfollowed["status"], &unfollowed["headers"]["location"]), (&json!(307), &json!("/near?x=1")));
}

#[tokio::test]
async fn another_host_is_not_told_the_secrets_of_the_first() {
    let second = Server::start(|_| ok("text/plain", "here")).await;
    let location = format!("location: {}\r\n", second.url("/"));
    let first = Server::start(move |_| status(302, &location, "")).await;
    let arguments = json!({"url": first.url("/"), "headers": {"authorization": "Bearer s", "accept": "text/plain"}});
    ask(&dev(), arguments).await.unwrap();
    assert!(first.seen()[0].contains("authorization: Bearer s"));
    assert!(!second.seen()[0].contains("authorization"));
    assert!(second.seen()[0].contains("accept: text/plain"));
}

#[tokio::test]
async fn a_body_past_the_cap_is_not_taken_in() {
    let server = Server::start(|request| match request.starts_with("GET /chunked") {
        // More chunks never come; reading must end all the same.
        true => Reply::Say(format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}",
            format!("400\r\n{}\r\n", "x".repeat(1024)).repeat(4)
        )),
        false => ok("text/plain", &"x".repeat(2001)),
    })
    .await;
    for path in ["/chunked", "/announced"] {
        let failure = failed(ask(&dev(), json!({"url": server.url(path), "maxBytes": 2000})).await);
        assert_eq!((failure.code.as_str(), failure.retryable), ("response_too_large", false));
    }
    assert!(ask(&dev(), json!({"url": server.url("/announced"), "maxBytes": 2001})).await.is_ok());
}

#[tokio::test]
async fn a_head_may_announce_any_length() {
    let server = Server::start(|_| Reply::Say("HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n".to_owned())).await;
    let output = ask(&dev(), json!({"method": "HEAD", "url": server.url("/")})).await.unwrap();
    assert_eq!((&output["encoding"], &output["body"]), (&json!("none"), &Value::Null));
}

#[tokio::test]
async fn what_could_not_be_sent_certainly_failed() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let post = |url: String| json!({"method": "POST", "url": url, "json": 1});
    let refused = failed(ask(&dev(), post(format!("http://{free}/"))).await);
    assert_eq!((refused.code.as_str(), refused.retryable), ("connect_failed", true));
    // A server that does not speak TLS.
    let server = Server::start(|_| Reply::HangUp).await;
    let plain = failed(ask(&dev(), post(format!("https://localhost:{}/", server.address.port()))).await);
    assert_eq!((plain.code.as_str(), plain.retryable), ("connect_failed", true));
    let nowhere = failed(ask(&dev(), post("http://does-not-exist.invalid/".to_owned())).await);
    assert_eq!((nowhere.code.as_str(), nowhere.retryable), ("dns_failed", true));
}

#[tokio::test]
async fn what_was_sent_and_not_answered_is_unknown() {
    let server = Server::start(|request| match request.split(' ').nth(1) {
        Some("/see-other") => status(303, "location: /gone\r\n", ""),
        _ => Reply::HangUp,
    })
    .await;
    let tool = dev();
    let post = |path| ask(&tool, json!({"method": "POST", "url": server.url(path), "json": 1, "maxRedirects": 1}));
    assert_eq!(unknown(post("/").await).code, "no_response");
    assert_eq!(server.seen().len(), 1, "sent once and not again");
    let half = Server::start(|_| {
        Reply::Say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nbroken".to_owned())
    })
    .await;
    let broken = ask(&dev(), json!({"method": "POST", "url": half.url("/"), "json": 1})).await;
    assert_eq!(unknown(broken).code, "response_incomplete");
    assert_eq!(unknown(post("/see-other").await).code, "no_response");
}

#[tokio::test]
async fn after_the_work_is_done_a_lost_answer_is_no_certain_failure() {
    let server = Server::start(|request| match request.split(' ').nth(1) {
        Some("/order") => status(303, "location: /orders/1\r\n", ""),
        _ => status(503, "", ""),
    })
    .await;
    let arguments = json!({"method": "POST", "url": server.url("/order"), "maxRedirects": 1});
    assert_eq!(unknown(ask(&dev(), arguments).await).code, "http_status");
}

#[tokio::test]
async fn a_status_that_says_nothing_of_what_was_done_leaves_an_act_unknown_and_nothing_else() {
    let server = Server::start(|request| {
        let code = request.split(['/', ' ']).nth(2).and_then(|code| code.parse().ok()).unwrap();
        status(code, "", "")
    })
    .await;
    for code in [400, 408, 429, 500, 501, 502, 503, 504] {
        let asked = async |effect, expect: &[u16]| {
            let mut arguments = json!({"method": "POST", "url": server.url(&format!("/{code}")), "json": 1});
            if !expect.is_empty() {
                arguments["expect"] = json!(expect);
            }
            finish(&dev(), Call { effect, ..call(arguments) }).await
        };
        let once = asked(Effect::Once, &[]).await;
        assert_eq!(matches!(once, Err(ToolError::Unknown(_))), [408, 500, 502, 504].contains(&code), "{once:?}");
        assert_eq!(failed(asked(Effect::Repeatable, &[]).await).code, "http_status");
        assert_eq!(asked(Effect::Once, &[code]).await.unwrap()["status"], code, "it is expected");
    }
}

#[tokio::test]
async fn called_off_before_sending_nothing_is_sent() {
    let server = Server::start(|_| ok("text/plain", "hi")).await;
    let call = call(json!({"method": "POST", "url": server.url("/")}));
    call.cancel.cancel();
    assert_eq!(finish(&dev(), call).await, Err(ToolError::cancelled()));
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn called_off_after_sending_nobody_knows() {
    let server = Server::start(|_| Reply::Hang).await;
    let call = call(json!({"method": "POST", "url": server.url("/"), "json": 1}));
    let cancel = call.cancel.clone();
    let tool = dev();
    let asking = finish(&tool, call);
    let calling_off = async {
        server.arrived.notified().await;
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(asking, calling_off);
    assert_eq!(unknown(result).code, "cancelled");
}

#[tokio::test]
async fn who_waits_for_a_place_at_a_host_has_sent_nothing() {
    let server = Server::start(|_| Reply::Hang).await;
    let tool = dev();
    let call = call(json!({"method": "POST", "url": server.url("/"), "json": 1}));
    let asking = join_all((0..17).map(|_| finish(&tool, call.clone())));
    let calling_off = async {
        while server.seen().len() < 16 {
            server.arrived.notified().await;
        }
        call.cancel.cancel();
    };
    let (results, ()) = tokio::join!(asking, calling_off);
    let waited = results.into_iter().filter(|result| *result == Err(ToolError::cancelled())).count();
    assert_eq!((waited, server.seen().len()), (1, 16));
}
