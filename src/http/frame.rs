use std::time::{Duration, Instant};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use metrics::{gauge, histogram};
use tracing::{Instrument, field};

use super::{
    Arrival, RequestId,
    once::unversioned,
    problem::{Occurrence, of_status, render},
};
use crate::{
    kernel::{Clock, Error, Problem},
    telemetry::{self, KeyValue, SpanKind, Traces},
};

const LATENCY: &str = "fermata_http_request_duration_seconds";
const IN_FLIGHT: &str = "fermata_http_requests_in_flight";

/// What is done around every request.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    clock: Clock,
    traces: Traces,
    limit: Duration,
}

impl Frame {
    pub(super) fn new(clock: Clock, traces: Traces, limit: Duration) -> Self {
        Self { clock, traces, limit }
    }
}

/// Notes the arrival, lets the request be answered in time, and sees the answer out.
pub(super) async fn attend(State(frame): State<Frame>, mut request: Request, next: Next) -> Response {
    let arrival = Arrival::read(request.headers(), &frame.clock, &frame.traces);
    request.extensions_mut().insert(arrival.clone());
    let visit = Visit::start(&request, &arrival, &frame.traces);
    let answer = async {
        let response = match refusal(request.uri()) {
            Some(error) => error.into_response(),
            None => match tokio::time::timeout(frame.limit, next.run(request)).await {
                Ok(response) => response,
                Err(_) => Error::new(Problem::Unavailable, "the answer took too long: ask again").into_response(),
            },
        };
        let response = sign(explain(response, &arrival.request_id), &arrival);
        visit.end(&response);
        response
    };
    let (log, span) = (visit.log.clone(), visit.span.clone());
    span.around(answer.instrument(log)).await
}

/// No path or parameter may hold what the database's text cannot.
fn refusal(uri: &Uri) -> Option<Error> {
    let target = uri.path_and_query()?.as_str();
    target.contains("%00").then(|| Error::malformed("the URL holds the character U+0000"))
}

/// Turns every error into a problem that names its request, and logs what stays private.
fn explain(response: Response, id: &RequestId) -> Response {
    if !response.status().is_client_error() && !response.status().is_server_error() {
        return response;
    }
    let noted = response.extensions().get::<Occurrence>().cloned();
    let Occurrence(error) = noted.unwrap_or_else(|| Occurrence(of_status(response.status()).into()));
    if error.problem().status() >= 500 {
        tracing::error!(problem = error.problem().slug(), error = ?error, "the request failed");
    } else {
        tracing::debug!(problem = error.problem().slug(), error = ?error, "the request was refused");
    }
    let mut told = render(&error, Some(id));
    for (name, value) in response.headers() {
        if *name != header::CONTENT_TYPE && *name != header::CONTENT_LENGTH {
            told.headers_mut().append(name, value.clone());
        }
    }
    told
}

fn sign(mut response: Response<Body>, arrival: &Arrival) -> Response {
    let headers = response.headers_mut();
    put(headers, "x-request-id", arrival.request_id.as_str());
    put(headers, "traceparent", &arrival.trace.to_string());
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// One request between arrival and answer. Counts as in flight until dropped, also when the caller goes.
struct Visit {
    method: &'static str,
    route: String,
    started: Instant,
    log: tracing::Span,
    span: telemetry::Span,
}

impl Visit {
    fn start(request: &Request, arrival: &Arrival, traces: &Traces) -> Self {
        let method = known(request.method());
        let route = request.extensions().get::<MatchedPath>();
        let route = route.map_or("unmatched", |path| unversioned(path.as_str())).to_owned();
        let log = tracing::info_span!(
            "request",
            request_id = %arrival.request_id,
            trace_id = %format_args!("{:032x}", arrival.trace.trace_id()),
            method,
            path = request.uri().path(),
            tenant = field::Empty,
        );
        let span = span(request, &route, arrival, traces);
        gauge!(IN_FLIGHT).increment(1);
        Self { method, route, started: Instant::now(), log, span }
    }

    fn end(&self, response: &Response) {
        let took = self.started.elapsed();
        let status = response.status().as_u16();
        let class = match status / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.span.note(|| [KeyValue::new("http.response.status_code", i64::from(status))]);
        if status >= 500 {
            self.span.fail(status.to_string());
        }
        histogram!(LATENCY, "route" => self.route.clone(), "method" => self.method, "status" => class)
            .record(took.as_secs_f64());
        let milliseconds = took.as_secs_f64() * 1000.0;
        tracing::info!(route = self.route, status, took_ms = format_args!("{milliseconds:.1}"), "answered");
    }
}

/// The request's span, by the conventions for HTTP servers. Its query is not told, which may hold a ticket; and nobody
/// wants to see all the looks at our health.
fn span(request: &Request, route: &str, arrival: &Arrival, traces: &Traces) -> telemetry::Span {
    if route.starts_with("/health") || route == "/metrics" {
        return telemetry::Span::default();
    }
    let method = known(request.method());
    let span = traces.begin(arrival.trace, SpanKind::Server, || match method {
        "OTHER" => format!("HTTP {route}"),
        method => format!("{method} {route}"),
    });
    span.note(|| {
        [
            KeyValue::new("http.request.method", if method == "OTHER" { "_OTHER" } else { method }),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("url.path", request.uri().path().to_owned()),
            KeyValue::new("url.scheme", "http"),
            KeyValue::new("fermata.request.id", arrival.request_id.to_string()),
        ]
    });
    span
}

impl Drop for Visit {
    fn drop(&mut self) {
        gauge!(IN_FLIGHT).decrement(1);
    }
}

/// A label must not be the caller's to invent.
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
    KNOWN.into_iter().find(|name| *name == method.as_str()).unwrap_or("OTHER")
}
