use std::collections::BTreeMap;

use bytes::Bytes;
use reqwest::{
    Method, StatusCode, Url,
    header::{CONTENT_TYPE, Entry, HeaderMap, HeaderName, HeaderValue, LOCATION},
};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::{
    journal::Effect,
    tool::{Call, ToolError, read},
};

/// What the rest of an output may take besides the body.
const OVERHEAD: usize = 24 * 1024;
const MOST_REDIRECTS: u8 = 10;
pub(super) const METHODS: [&str; 7] = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH"];

/// Ours to say, or about the connection and not the request.
const OURS: [&str; 14] = [
    "idempotency-key",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "http2-settings",
];

/// What a redirect to another origin still carries: any other header may hold a secret.
const HARMLESS: [&str; 8] = [
    "accept",
    "accept-language",
    "content-language",
    "content-type",
    "idempotency-key",
    "traceparent",
    "tracestate",
    "user-agent",
];

/// The JSON Schema of the arguments, where an output may take so many bytes of JSON.
pub(super) fn schema(output_limit: usize) -> Value {
    json!({
        "type": "object",
        "required": ["url"],
        "additionalProperties": false,
        "not": { "required": ["json", "body"] },
        "properties": {
            "method": { "enum": METHODS, "default": "GET" },
            "url": { "type": "string", "minLength": 1, "maxLength": 8192, "description": "An http or https URL." },
            "headers": {
                "type": "object",
                "maxProperties": 64,
                "additionalProperties": { "type": ["string", "number", "boolean"] }
            },
            "query": {
                "type": "object",
                "description": "Added to the URL's own; a list repeats its name, null leaves it out.",
                "additionalProperties": {
                    "type": ["string", "number", "boolean", "null", "array"],
                    "items": { "type": ["string", "number", "boolean"] }
                }
            },
            "json": { "description": "The body, sent as JSON." },
            "body": { "type": "string", "description": "The body, sent as it is." },
            "repeatable": {
                "type": "boolean",
                "default": false,
                "description": "The receiver honours Idempotency-Key: a POST or PATCH of unknown outcome may be repeated."
            },
            "maxRedirects": {
                "type": "integer",
                "minimum": 0,
                "maximum": MOST_REDIRECTS,
                "description": "Redirects to follow: 5 for GET and HEAD when absent, else none. With 0 the redirect is the answer."
            },
            "maxBytes": { "type": "integer", "minimum": 0, "maximum": output_limit, "default": default_bytes(output_limit) },
            "expect": {
                "type": "array",
                "minItems": 1,
                "items": { "type": "integer", "minimum": 100, "maximum": 599 },
                "description": "The statuses that are no failure; all below 400 when absent."
            }
        }
    })
}

fn default_bytes(output_limit: usize) -> usize {
    output_limit.saturating_sub(OVERHEAD)
}

/// What repeating the request does; arguments that say nothing clear are taken for the worst.
pub(super) fn effect(arguments: &Value) -> Effect {
    match effect_of_method(arguments) {
        Effect::Once if arguments.get("repeatable") == Some(&Value::Bool(true)) => Effect::Repeatable,
        effect => effect,
    }
}

/// What repeating the request does, whatever the arguments promise of the receiver.
pub(super) fn effect_of_method(arguments: &Value) -> Effect {
    match arguments.get("method").map_or(Some("GET"), Value::as_str) {
        Some("GET" | "HEAD" | "OPTIONS") => Effect::Pure,
        Some("PUT" | "DELETE") => Effect::Repeatable,
        _ => Effect::Once,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Arguments {
    #[serde(default)]
    method: Option<String>,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    #[serde(default)]
    query: BTreeMap<String, Value>,
    /// Present and null is a body too.
    #[serde(default, deserialize_with = "present")]
    json: Option<Value>,
    #[serde(default)]
    body: Option<String>,
    /// Read by [`effect`].
    #[serde(default, rename = "repeatable")]
    _repeatable: bool,
    #[serde(default)]
    max_redirects: Option<u8>,
    #[serde(default)]
    max_bytes: Option<usize>,
    #[serde(default)]
    expect: Option<Vec<u16>>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// One request, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    /// How large a response's body may be.
    pub(super) max_bytes: usize,
    /// An earlier request of the same call did its work and was answered with "look there".
    pub(super) acted: bool,
    follows: bool,
    redirects_left: u8,
    expect: Option<Vec<u16>>,
}

fn invalid(message: String) -> ToolError {
    ToolError::failed("invalid_arguments", message)
}

impl Request {
    /// What the arguments say, for a call.
    pub(super) fn of(call: &Call, arguments: &Value, output_limit: usize) -> Result<Self, ToolError> {
        let arguments: Arguments = read(arguments)?;
        let method = arguments.method.as_deref().unwrap_or("GET");
        if !METHODS.contains(&method) {
            return Err(invalid(format!("`method` is one of {}", METHODS.join(", "))));
        }
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| invalid("`method` is no method".to_owned()))?;
        let mut headers = headers(&arguments.headers)?;
        let key = HeaderValue::from_str(&call.idempotency_key)
            .map_err(|_| ToolError::failed("internal", "the idempotency key cannot be sent in a header"))?;
        headers.insert("idempotency-key", key);
        if let Entry::Vacant(place) = headers.entry("traceparent") {
            let trace = HeaderValue::from_str(&call.trace().to_string());
            place.insert(trace.map_err(|_| ToolError::failed("internal", "the trace cannot be sent in a header"))?);
        }
        let redirects = arguments.max_redirects.unwrap_or(match method {
            Method::GET | Method::HEAD => 5,
            _ => 0,
        });
        Ok(Self {
            url: url(&arguments.url, &arguments.query)?,
            body: body(arguments.json, arguments.body, &mut headers)?,
            headers,
            max_bytes: arguments.max_bytes.unwrap_or(default_bytes(output_limit)).min(output_limit),
            acted: false,
            follows: redirects > 0,
            redirects_left: redirects.min(MOST_REDIRECTS),
            expect: arguments.expect,
            method,
        })
    }

    /// Scheme, host and port: what a place at a host and trust in a redirect go by.
    pub(super) fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// The host as the URL spells it.
    pub(super) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Whether that status is a success.
    pub(super) fn expects(&self, status: StatusCode) -> bool {
        match &self.expect {
            Some(expected) => expected.contains(&status.as_u16()),
            None => status.as_u16() < 400,
        }
    }

    /// The request that a response sends us on to, if it does and we follow (RFC 9110, 15.4).
    pub(super) fn next(&self, status: StatusCode, headers: &HeaderMap) -> Result<Option<Self>, ToolError> {
        let expected = self.expect.as_ref().is_some_and(|expected| expected.contains(&status.as_u16()));
        let Some(target) = redirect(status, headers).filter(|_| self.follows && !expected) else { return Ok(None) };
        let mut next = self.clone();
        next.redirects_left = self.redirects_left.checked_sub(1).ok_or_else(|| {
            ToolError::failed("too_many_redirects", format!("`{}` redirects once more than is followed", self.host()))
        })?;
        next.url = target
            .to_str()
            .ok()
            .and_then(|target| self.url.join(target).ok())
            .ok_or_else(|| ToolError::failed("redirect_refused", "the redirect's Location is no URL"))?;
        if next.origin() != self.origin() {
            next.drop_secrets();
        }
        if becomes_get(status, &self.method) {
            next.become_get();
        }
        Ok(Some(next))
    }

    fn drop_secrets(&mut self) {
        let mut kept = HeaderMap::new();
        for name in HARMLESS {
            if let Some(value) = self.headers.remove(name) {
                kept.insert(name, value);
            }
        }
        self.headers = kept;
    }

    fn become_get(&mut self) {
        self.acted = true;
        self.method = Method::GET;
        self.body = None;
        for name in ["content-type", "content-language", "content-encoding", "content-location"] {
            self.headers.remove(name);
        }
    }
}

/// Where a response points to, where it does.
fn redirect(status: StatusCode, headers: &HeaderMap) -> Option<&HeaderValue> {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308).then(|| headers.get(LOCATION)).flatten()
}

fn becomes_get(status: StatusCode, method: &Method) -> bool {
    match status.as_u16() {
        303 => !matches!(*method, Method::GET | Method::HEAD),
        // Not what they were meant to say, but what everybody does.
        301 | 302 => *method == Method::POST,
        _ => false,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// A header that a request may be given.
///
/// # Errors
/// Why it may not.
pub(super) fn header(name: &str) -> Result<HeaderName, &'static str> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "is no header name")?;
    if OURS.contains(&parsed.as_str()) { Err("cannot be set: it is not the caller's") } else { Ok(parsed) }
}

/// A header that may hold a secret: no redirect carries it to another origin.
///
/// # Errors
/// Why it may not.
pub(super) fn secret_header(name: &str) -> Result<HeaderName, &'static str> {
    let header = header(name)?;
    if HARMLESS.contains(&header.as_str()) {
        Err("is no place for a secret: redirects carry it on")
    } else {
        Ok(header)
    }
}

fn headers(given: &BTreeMap<String, Value>) -> Result<HeaderMap, ToolError> {
    let mut headers = HeaderMap::with_capacity(given.len() + 2);
    for (name, value) in given {
        let parsed = header(name).map_err(|rule| invalid(format!("`headers`: {name:?} {rule}")))?;
        // Visible ASCII, spaces and tabs: no line break can split the request.
        let value = text(value)
            .and_then(|value| HeaderValue::from_str(&value).ok())
            .ok_or_else(|| invalid(format!("`headers.{name}` is text of visible ASCII characters on one line")))?;
        if headers.insert(parsed, value).is_some() {
            return Err(invalid(format!("`headers.{name}` is given twice")));
        }
    }
    Ok(headers)
}

fn url(text: &str, query: &BTreeMap<String, Value>) -> Result<Url, ToolError> {
    // The message does not repeat it: a URL may hold a secret.
    let mut url = Url::parse(text).map_err(|e| invalid(format!("`url` is no absolute URL: {e}")))?;
    url.set_fragment(None);
    let pairs = pairs(query)?;
    if !pairs.is_empty() {
        url.query_pairs_mut().extend_pairs(pairs);
    }
    Ok(url)
}

fn pairs(query: &BTreeMap<String, Value>) -> Result<Vec<(&str, String)>, ToolError> {
    let mut pairs = Vec::new();
    for (name, value) in query {
        let values = match value {
            Value::Null => &[][..],
            Value::Array(values) => values,
            one => std::slice::from_ref(one),
        };
        for value in values {
            let value =
                self::text(value).ok_or_else(|| invalid(format!("`query.{name}` is a scalar or a list of them")))?;
            pairs.push((name.as_str(), value));
        }
    }
    Ok(pairs)
}

fn body(json: Option<Value>, plain: Option<String>, headers: &mut HeaderMap) -> Result<Option<Bytes>, ToolError> {
    let (bytes, media_type) = match (json, plain) {
        (Some(_), Some(_)) => return Err(invalid("give one of `json` and `body`".to_owned())),
        (Some(json), None) => (Bytes::from(json.to_string()), "application/json"),
        (None, Some(plain)) => (Bytes::from(plain), "text/plain; charset=utf-8"),
        (None, None) => return Ok(None),
    };
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(media_type));
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::tests::call;

    fn request(arguments: Value) -> Result<Request, ToolError> {
        Request::of(&call(json!({})), &arguments, 1024)
    }

    #[test]
    fn effects_follow_the_method_and_doubt_is_once() {
        for (arguments, expected) in [
            (json!({}), Effect::Pure),
            (json!({"method": "HEAD"}), Effect::Pure),
            (json!({"method": "PUT"}), Effect::Repeatable),
            (json!({"method": "DELETE"}), Effect::Repeatable),
            (json!({"method": "POST"}), Effect::Once),
            (json!({"method": "PATCH", "repeatable": false}), Effect::Once),
            (json!({"method": "POST", "repeatable": true}), Effect::Repeatable),
            (json!({"method": "POST", "repeatable": "true"}), Effect::Once),
            (json!({"method": "get"}), Effect::Once),
            (json!({"method": null}), Effect::Once),
        ] {
            assert_eq!(effect(&arguments), expected, "{arguments}");
        }
    }

    #[test]
    fn the_parts_of_a_request_come_together() {
        let request = request(json!({
            "method": "POST",
            "url": "https://a.example/x?a=1#part",
            "query": {"b": ["2", 3], "c": "ä &", "d": null, "e": true},
            "headers": {"X-Count": 5, "authorization": "Bearer t"},
            "json": null,
        }))
        .unwrap();
        assert_eq!(request.url.as_str(), "https://a.example/x?a=1&b=2&b=3&c=%C3%A4+%26&e=true");
        assert_eq!(request.headers["x-count"], "5");
        assert_eq!(request.headers["content-type"], "application/json");
        assert_eq!(request.headers["idempotency-key"], call(json!({})).idempotency_key.as_str());
        assert_eq!(request.body.as_deref(), Some(b"null".as_slice()));
    }

    #[test]
    fn a_call_stands_in_its_runs_trace_unless_it_names_another() {
        let call = call(json!({"url": "https://a.example"}));
        let of = |call: &Call| Request::of(call, &call.arguments, 1024).unwrap();
        let ours = of(&call).headers["traceparent"].to_str().unwrap().to_owned();
        assert!(ours.starts_with(&format!("00-{}-", call.run_id.uuid().simple())) && ours.len() == 55, "{ours}");
        let next = Call { attempt: call.attempt + 1, ..call };
        assert_ne!(of(&next).headers["traceparent"], ours.as_str());
        let theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let named = request(json!({"url": "https://a.example", "headers": {"traceparent": theirs}})).unwrap();
        assert_eq!(named.headers["traceparent"], theirs);
    }

    #[test]
    fn headers_that_could_deceive_are_refused() {
        for headers in [
            json!({"Idempotency-Key": "mine"}),
            json!({"Host": "b.example"}),
            json!({"transfer-ENCODING": "chunked"}),
            json!({"Content-Length": 3}),
            json!({"Connection": "close"}),
            json!({"x": "a\r\nHost: b"}),
            json!({"x": "a\nb"}),
            json!({"x": "a\u{0}b"}),
            json!({"x\r\ny": "a"}),
            json!({":path": "a"}),
            json!({"": "a"}),
            json!({"X-A": "a", "x-a": "b"}),
        ] {
            let result = request(json!({"url": "https://a.example", "headers": headers}));
            assert!(matches!(&result, Err(ToolError::Failed(f)) if f.code == "invalid_arguments"), "{headers}");
        }
    }

    fn redirected(arguments: Value, status: u16, location: &str) -> Result<Option<Request>, ToolError> {
        let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
        request(arguments).unwrap().next(StatusCode::from_u16(status).unwrap(), &headers)
    }

    #[test]
    fn another_origin_gets_no_secret() {
        let arguments = json!({
            "url": "https://a.example/x",
            "headers": {"Authorization": "t", "Cookie": "c", "X-Api-Key": "k", "Accept": "*/*"}
        });
        let names = |location| {
            let next = redirected(arguments.clone(), 302, location).unwrap().unwrap();
            let mut names: Vec<_> = next.headers.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(names("/y"), "accept authorization cookie idempotency-key traceparent x-api-key");
        for location in ["https://b.example/", "https://a.example:8443/", "http://a.example/", "//b.example/y"] {
            assert_eq!(names(location), "accept idempotency-key traceparent", "{location}");
        }
    }

    #[test]
    fn a_redirect_keeps_or_changes_the_method_as_everybody_does() {
        let after = |method: &str, status| {
            let arguments = json!({"method": method, "url": "https://a.example/", "body": "b", "maxRedirects": 1});
            let next = redirected(arguments, status, "/y").unwrap().unwrap();
            (next.method.to_string(), next.body.is_some(), next.acted)
        };
        assert_eq!(after("POST", 302), ("GET".to_owned(), false, true));
        assert_eq!(after("POST", 303), ("GET".to_owned(), false, true));
        assert_eq!(after("DELETE", 303), ("GET".to_owned(), false, true));
        assert_eq!(after("POST", 307), ("POST".to_owned(), true, false));
        assert_eq!(after("PUT", 301), ("PUT".to_owned(), true, false));
        assert_eq!(after("HEAD", 303), ("HEAD".to_owned(), true, false));
    }

    #[test]
    fn redirects_are_followed_only_where_that_is_safe_or_wanted() {
        let at = "https://a.example/";
        assert!(redirected(json!({"method": "POST", "url": at}), 307, "/y").unwrap().is_none());
        assert!(redirected(json!({"url": at, "maxRedirects": 0}), 302, "/y").unwrap().is_none());
        assert!(redirected(json!({"url": at, "expect": [302]}), 302, "/y").unwrap().is_none());
        assert!(redirected(json!({"url": at}), 304, "/y").unwrap().is_none());
        assert!(redirected(json!({"url": at}), 302, "http://[").is_err());
        let once = redirected(json!({"url": at, "maxRedirects": 1}), 302, "/y").unwrap().unwrap();
        let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static("/z"))]);
        let twice = once.next(StatusCode::FOUND, &headers);
        assert!(matches!(twice, Err(ToolError::Failed(f)) if f.code == "too_many_redirects"));
    }
}
