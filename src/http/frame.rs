use std::time::{Duration, Instant};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use metrics::{gauge, histogram};
use tracing::{Instrument, Span, field};

use super::{
    Arrival, RequestId,
    once::unversioned,
    problem::{Occurrence, of_status, render},
};
use crate::kernel::{Clock, Error, Problem};

const LATENCY: &str = "fermata_http_request_duration_seconds";
const IN_FLIGHT: &str = "fermata_http_requests_in_flight";

/// What is done around every request.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    clock: Clock,
    limit: Duration,
}

impl Frame {
    pub(super) fn new(clock: Clock, limit: Duration) -> Self {
        Self { clock, limit }
    }
}

/// Notes the arrival, lets the request be answered in time, and sees the answer out.
pub(super) async fn attend(State(frame): State<Frame>, mut request: Request, next: Next) -> Response {
    let arrival = Arrival::read(request.headers(), &frame.clock);
    request.extensions_mut().insert(arrival.clone());
    let visit = Visit::start(&request, &arrival);
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
    let span = visit.span.clone();
    answer.instrument(span).await
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
    span: Span,
}

impl Visit {
    fn start(request: &Request, arrival: &Arrival) -> Self {
        let method = known(request.method());
        let route = request.extensions().get::<MatchedPath>();
        let route = route.map_or("unmatched", |path| unversioned(path.as_str())).to_owned();
        let span = tracing::info_span!(
            "request",
            request_id = %arrival.request_id,
            trace_id = %format_args!("{:032x}", arrival.trace.trace_id()),
            method,
            path = request.uri().path(),
            tenant = field::Empty,
        );
        gauge!(IN_FLIGHT).increment(1);
        Self { method, route, started: Instant::now(), span }
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
        histogram!(LATENCY, "route" => self.route.clone(), "method" => self.method, "status" => class)
            .record(took.as_secs_f64());
        let milliseconds = took.as_secs_f64() * 1000.0;
        tracing::info!(route = self.route, status, took_ms = format_args!("{milliseconds:.1}"), "answered");
    }
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
