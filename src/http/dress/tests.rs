use axum::{
    body::Body,
    http::{Request, StatusCode},
    routing::{get, post},
};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::*;
use crate::kernel::Span;

fn app(settings: &HttpSettings) -> Router {
    let router = Router::new()
        .route("/ok", get(async || "fine"))
        .route("/post", post(async || "fine"))
        .route("/long", get(async || "long ".repeat(1000)))
        .route("/stream", get(async || ([("content-type", "text/event-stream")], "data: x\n\n".repeat(1000))))
        .route("/panic", get(async || panic!("the secret reason") as &'static str))
        .route("/fault", get(async || Error::internal("private")))
        .route("/hang", get(std::future::pending::<&'static str>));
    dress(router, Clock::system(), Traces::default(), settings).expect("router")
}

async fn ask(request: axum::http::request::Builder) -> (axum::http::response::Parts, Vec<u8>) {
    ask_with(&HttpSettings::default(), request).await
}

async fn ask_with(
    settings: &HttpSettings,
    request: axum::http::request::Builder,
) -> (axum::http::response::Parts, Vec<u8>) {
    let request = request.body(Body::empty()).expect("request");
    let (parts, body) = app(settings).oneshot(request).await.expect("response").into_parts();
    (parts, body.collect().await.expect("body").to_bytes().to_vec())
}

#[tokio::test]
async fn every_error_is_a_problem_that_names_its_request() {
    for (path, status, slug) in [
        ("/nowhere", 404, "not-found"),
        ("/post", 405, "method-not-allowed"),
        ("/panic", 500, "internal"),
        ("/fault", 500, "internal"),
        ("/ok?x=%00", 400, "malformed-request"),
    ] {
        let (parts, body) = ask(Request::get(path).header("x-request-id", "mine-1")).await;
        let problem: Value = serde_json::from_slice(&body).expect(path);
        assert_eq!((parts.status.as_u16(), &problem["status"]), (status, &Value::from(status)), "{path}");
        assert_eq!(parts.headers["content-type"], "application/problem+json");
        assert_eq!(problem["type"], format!("/docs/problems/{slug}"));
        assert_eq!(problem["instance"], "urn:fermata:request:mine-1");
        let text = problem.to_string();
        assert!(!text.contains("secret") && !text.contains("private"), "{text}");
        assert_eq!(parts.headers.contains_key("allow"), status == 405);
    }
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    let settings =
        HttpSettings { request_timeout: Span(std::time::Duration::from_millis(1)), ..HttpSettings::default() };
    let (parts, _) = ask_with(&settings, Request::get("/hang")).await;
    assert_eq!((parts.status, &parts.headers["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &HeaderValue::from(1)));
}

#[tokio::test]
async fn ids_and_traces_go_out_as_they_came_in() {
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (parts, _) = ask(Request::get("/ok").header("x-request-id", "a b").header("traceparent", trace)).await;
    assert!(parts.headers["x-request-id"].to_str().expect("text").starts_with("req_"));
    let ours = parts.headers["traceparent"].to_str().expect("text");
    assert!(ours.starts_with(&trace[..36]) && ours.ends_with("-01") && ours != trace, "{ours}");
}

#[tokio::test]
async fn all_but_streams_is_compressed() {
    let (long, _) = ask(Request::get("/long").header("accept-encoding", "gzip")).await;
    assert_eq!(long.headers["content-encoding"], "gzip");
    let (stream, _) = ask(Request::get("/stream").header("accept-encoding", "gzip")).await;
    assert!(!stream.headers.contains_key("content-encoding"));
}

#[tokio::test]
async fn only_listed_origins_may_call_from_a_browser() {
    let settings = HttpSettings { cors_origins: vec!["https://a.example".to_owned()], ..HttpSettings::default() };
    let preflight = |origin: &'static str| {
        Request::options("/post").header("origin", origin).header("access-control-request-method", "POST")
    };
    let (good, _) = ask_with(&settings, preflight("https://a.example")).await;
    assert_eq!(good.headers["access-control-allow-origin"], "https://a.example");
    let (bad, _) = ask_with(&settings, preflight("https://b.example")).await;
    assert!(!bad.headers.contains_key("access-control-allow-origin"));
    for wrong in ["a.example", "https://a.example/", "https://*.example", "null"] {
        assert!(cors(&[wrong.to_owned()]).is_err(), "{wrong}");
    }
}
