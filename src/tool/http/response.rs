use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderMap, SET_COOKIE},
};
use serde_json::{Map, Value, json};

use super::request::Request;
use crate::{
    http::retry_after,
    journal::{Effect, Failure},
    tool::{Call, ToolError, sealed::Sealed},
};

/// How much of a refusal's body goes into the failure.
const REFUSAL_BYTES: usize = 4 * 1024;
/// How long the body of a refusal is waited for.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);

/// The JSON Schema of the output.
pub(super) fn schema() -> Value {
    json!({
        "type": "object",
        "required": ["status", "headers", "body", "encoding", "url"],
        "properties": {
            "status": { "type": "integer" },
            "headers": {
                "type": "object",
                "description": "By lower-case name; repeated values are joined with commas, `set-cookie` is a list.",
                "additionalProperties": { "type": ["string", "array"], "items": { "type": "string" } }
            },
            "body": { "description": "Parsed where it is JSON, else text, else base64; null where there is none." },
            "encoding": { "enum": ["none", "json", "text", "base64"], "description": "How to read `body`." },
            "url": { "type": "string", "description": "Where the response came from, after redirects." }
        }
    })
}

/// The output of an expected response, or the failure of another. What is sealed is taken out of whatever would hide it:
/// what is cut, and what is encoded.
pub(super) async fn settle(
    request: &Request,
    response: Response,
    call: &Call,
    sealed: &Sealed,
) -> Result<Value, ToolError> {
    if request.expects(response.status()) {
        output(request, response, sealed).await
    } else {
        Err(refusal(response, call, sealed).await)
    }
}

async fn output(request: &Request, mut response: Response, sealed: &Sealed) -> Result<Value, ToolError> {
    let too_large = || {
        let message = format!("`{}` answered with more than {} bytes", request.host(), request.max_bytes);
        ToolError::failed("response_too_large", message)
    };
    // An announced length past the cap is not waited for; a wrong or missing one is counted below.
    if response.content_length().is_some_and(|length| length > request.max_bytes as u64) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let broken = |_| ToolError::unknown("response_incomplete", format!("`{}` broke off its answer", request.host()));
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if bytes.len() + chunk.len() > request.max_bytes {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    let (encoding, body) = body(response.headers(), bytes, sealed);
    Ok(json!({
        "status": response.status().as_u16(),
        "headers": headers(response.headers()),
        "body": body,
        "encoding": encoding,
        "url": response.url().as_str(),
    }))
}

fn body(headers: &HeaderMap, bytes: Vec<u8>, sealed: &Sealed) -> (&'static str, Value) {
    if bytes.is_empty() {
        return ("none", Value::Null);
    }
    if is_json(headers)
        && let Ok(value) = serde_json::from_slice(&bytes)
    {
        return ("json", value);
    }
    let binary = match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => return ("text", Value::String(text)),
        Ok(binary) => binary.into_bytes(),
        Err(binary) => binary.into_bytes(),
    };
    ("base64", Value::String(BASE64_STANDARD.encode(sealed.without_in(binary))))
}

/// `application/json`, `application/problem+json; charset=utf-8` …
fn is_json(headers: &HeaderMap) -> bool {
    let named = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

fn headers(headers: &HeaderMap) -> Map<String, Value> {
    let values =
        |name| headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let named = headers.keys().map(|name| {
        // The one header whose values contain commas and cannot be joined.
        let value = if name == SET_COOKIE {
            values(name).collect()
        } else {
            Value::from(values(name).collect::<Vec<_>>().join(", "))
        };
        (name.as_str().to_owned(), value)
    });
    named.collect()
}

async fn refusal(mut response: Response, call: &Call, sealed: &Sealed) -> ToolError {
    let status = response.status();
    let (mut bytes, mut veil) = (Vec::new(), sealed.veil());
    let read = async {
        while bytes.len() <= REFUSAL_BYTES {
            match response.chunk().await {
                Ok(Some(chunk)) => bytes.extend(veil.pass(&chunk)),
                Ok(None) => return bytes.extend(veil.end()),
                Err(_) => return,
            }
        }
    };
    // Half a body, or none, is no reason to forget the status.
    drop(tokio::time::timeout(REFUSAL_PATIENCE, read).await);
    bytes.truncate(REFUSAL_BYTES);
    let host = response.url().host_str().unwrap_or_default();
    let failure = Failure {
        retryable: retryable(status, call.effect),
        retry_after_seconds: retry_after(response.headers(), call.now),
        detail: Some(Box::new(json!({ "status": status.as_u16(), "body": excerpt(response.headers(), &bytes) }))),
        ..Failure::new("http_status", format!("`{host}` answered {status}"))
    };
    if call.effect == Effect::Once && may_have_acted(status) {
        return ToolError::Unknown(failure);
    }
    ToolError::Failed(failure)
}

/// Whether the status says as much of a request that was acted on as of one that was not: it broke in the middle, or a
/// gateway gave up on it.
fn may_have_acted(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 500 | 502 | 504)
}

fn excerpt(headers: &HeaderMap, bytes: &[u8]) -> Value {
    let parsed = if is_json(headers) { serde_json::from_slice(bytes).ok() } else { None };
    parsed.unwrap_or_else(|| String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}").into())
}

fn retryable(status: StatusCode, effect: Effect) -> bool {
    match status.as_u16() {
        // Nothing was done.
        425 | 429 | 503 => true,
        // Nobody knows, so what would do something again is not repeated unasked.
        408 | 500.. => effect != Effect::Once,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn typed(media_type: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media_type))])
    }

    #[test]
    fn a_body_is_json_text_or_base64() {
        for (media_type, bytes, expected) in [
            ("application/json", b"{\"a\":1}".as_slice(), ("json", json!({"a": 1}))),
            ("Application/Problem+JSON; charset=utf-8", b"[1]", ("json", json!([1]))),
            ("application/json", b"", ("none", Value::Null)),
            ("application/json", b"<html>", ("text", json!("<html>"))),
            ("text/plain", b"{\"a\":1}", ("text", json!("{\"a\":1}"))),
            ("text/plain", b"a\0b", ("base64", json!("YQBi"))),
            ("image/png", b"\x89PNG", ("base64", json!("iVBORw=="))),
        ] {
            assert_eq!(
                body(&typed(media_type), bytes.to_vec(), &Sealed::default()),
                expected,
                "{media_type} {bytes:?}"
            );
        }
    }

    #[test]
    fn what_is_sealed_is_not_encoded() {
        let sealed = Sealed::new(["sk-12345678"]);
        let (encoding, hidden) = body(&typed("image/png"), b"\x89\0sk-12345678\0".to_vec(), &sealed);
        let expected = BASE64_STANDARD.encode(b"\x89\0[sealed key]\0");
        assert_eq!((encoding, hidden), ("base64", json!(expected)));
    }

    #[test]
    fn repeated_headers_are_joined_and_cookies_listed() {
        let mut given = HeaderMap::new();
        for (name, value) in [("via", "a"), ("via", "b"), ("set-cookie", "x=1, y"), ("set-cookie", "z=2")] {
            given.append(name, HeaderValue::from_static(value));
        }
        assert_eq!(Value::from(headers(&given)), json!({"via": "a, b", "set-cookie": ["x=1, y", "z=2"]}));
    }

    #[test]
    fn only_passing_troubles_are_worth_another_try() {
        let worth = |effect| -> Vec<u16> {
            (400..600).filter(|code| retryable(StatusCode::from_u16(*code).unwrap(), effect)).collect()
        };
        assert_eq!(worth(Effect::Pure)[..3], [408, 425, 429]);
        assert_eq!(worth(Effect::Repeatable)[3..], (500..600).collect::<Vec<u16>>());
        assert_eq!(worth(Effect::Once), [425, 429, 503], "it may have been done");
    }
}
