use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};

use super::RequestId;
use crate::kernel::{Error, Problem};

/// Where a problem's `type` points: the page this server shows for it.
pub(super) const PAGES: &str = "/docs/problems/";

/// The media type of problems (RFC 9457).
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// The detail of the 401 for a request without a token, whose challenge then has no error (RFC 6750 §3.1).
pub(super) const NO_TOKEN: &str = "send `Authorization: Bearer <token>`";

/// Marks a response as a problem, so that the server can add the request's id and log its cause.
#[derive(Clone, Debug)]
pub(super) struct Occurrence(pub(super) Arc<Error>);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = render(&self, None);
        challenge(&self, response.headers_mut());
        response.extensions_mut().insert(Occurrence(Arc::new(self)));
        response
    }
}

/// The response for `error`; `instance` names the request it occurred in.
pub(super) fn render(error: &Error, instance: Option<&RequestId>) -> Response {
    let status = StatusCode::from_u16(error.problem().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = Value::Object(document(error, instance)).to_string();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

fn document(error: &Error, instance: Option<&RequestId>) -> Map<String, Value> {
    let problem = error.problem();
    let mut document = Map::new();
    document.insert("type".to_owned(), format!("{PAGES}{}", problem.slug()).into());
    document.insert("title".to_owned(), problem.title().into());
    document.insert("status".to_owned(), problem.status().into());
    document.insert("detail".to_owned(), error.detail().into());
    if let Some(id) = instance {
        document.insert("instance".to_owned(), format!("urn:fermata:request:{id}").into());
    }
    document.extend(error.members().clone());
    document
}

fn challenge(error: &Error, headers: &mut HeaderMap) {
    let mut put = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    match error.problem() {
        Problem::Unauthenticated if error.detail() == NO_TOKEN => {
            put(header::WWW_AUTHENTICATE, r#"Bearer realm="fermata""#);
        }
        Problem::Unauthenticated => {
            put(header::WWW_AUTHENTICATE, r#"Bearer realm="fermata", error="invalid_token""#);
        }
        Problem::Forbidden => {
            let scope = error.members().get("permission").and_then(Value::as_str);
            let scope = scope.map(|scope| format!(r#", scope="{scope}""#)).unwrap_or_default();
            put(header::WWW_AUTHENTICATE, &format!(r#"Bearer realm="fermata", error="insufficient_scope"{scope}"#));
        }
        problem if matches!(problem.status(), 429 | 503) || problem == Problem::IdempotencyInFlight => {
            put(header::RETRY_AFTER, "1");
        }
        _ => {}
    }
}

/// The problem that an error status without one stands for: axum's own refusals have no body of ours.
pub(super) fn of_status(status: StatusCode) -> Error {
    let (problem, detail) = match status {
        StatusCode::NOT_FOUND => (Problem::NotFound, "nothing is served at this path"),
        StatusCode::METHOD_NOT_ALLOWED => (Problem::MethodNotAllowed, "`Allow` lists the methods of this path"),
        StatusCode::NOT_ACCEPTABLE => (Problem::NotAcceptable, "nothing `Accept` names is offered here"),
        StatusCode::REQUEST_TIMEOUT => (Problem::RequestTimeout, "send the whole request without a pause"),
        StatusCode::PAYLOAD_TOO_LARGE => (Problem::TooLarge, "send less"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => (Problem::UnsupportedMediaType, "send JSON"),
        StatusCode::UNPROCESSABLE_ENTITY => (Problem::Invalid, "the input cannot be used"),
        StatusCode::SERVICE_UNAVAILABLE => (Problem::Unavailable, "try again in a moment"),
        status if status.is_server_error() => (Problem::Internal, "the fault is logged under this request's id"),
        _ => (Problem::Malformed, "the request cannot be read"),
    };
    Error::new(problem, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_its_members_and_keeps_its_cause() {
        let error = Error::invalid("steps[0].id", "too long").because("private");
        let text = Value::Object(document(&error, None)).to_string();
        assert!(text.contains(r#""field":"steps[0].id""#) && text.contains("/docs/problems/invalid-input"), "{text}");
        assert!(!text.contains("private"));
    }

    #[test]
    fn a_refused_caller_is_told_how() {
        let header = |error: Error| {
            let response = error.into_response();
            response.headers()[header::WWW_AUTHENTICATE].to_str().expect("text").to_owned()
        };
        assert_eq!(header(Error::new(Problem::Unauthenticated, NO_TOKEN)), r#"Bearer realm="fermata""#);
        let missing = Error::new(Problem::Forbidden, "no").with("permission", "runs:write");
        assert!(header(missing).ends_with(r#"scope="runs:write""#));
    }
}
