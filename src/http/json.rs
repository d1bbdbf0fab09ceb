use axum::{
    body::{Body, HttpBody},
    extract::{FromRef, FromRequest, OptionalFromRequest, Request},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Front,
    body::{media_type, read_body},
    inspect::inspect,
    strict::Strict,
};
use crate::kernel::{Error, Problem, Result};

/// A JSON body, in or out. In: the media type, size, depth, text and every field are checked before the
/// handler runs, and a refusal names the field. Out: `application/json`.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T>
where
    Front: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let front = Front::from_ref(state);
        if !media_type(request.headers()).is_some_and(|kind| kind == "application/json" || kind.ends_with("+json")) {
            return Err(Error::new(Problem::UnsupportedMediaType, "send `Content-Type: application/json`"));
        }
        let body = read_body(request, front.settings()).await?;
        parse_json(&body, front.settings().depth_limit).map(Self)
    }
}

/// Taken as `Option<Json<T>>` it is `None` when the request has no body.
impl<T: DeserializeOwned, S: Send + Sync> OptionalFromRequest<S> for Json<T>
where
    Front: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>> {
        if request.body().is_end_stream() {
            return Ok(None);
        }
        <Self as FromRequest<S>>::from_request(request, state).await.map(Some)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => {
                let mut response = Response::new(Body::from(body));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => Error::internal(error).into_response(),
        }
    }
}

/// Reads a JSON object nested at most `depth` deep, strictly: no field twice, no NUL, no unknown field.
///
/// # Errors
/// Malformed (400) when it is no such JSON, invalid (422) when a field is wrong; both name the place.
pub fn parse_json<T: DeserializeOwned>(text: &[u8], depth: usize) -> Result<T> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::malformed("a JSON body is needed"));
    }
    let text = std::str::from_utf8(text)
        .map_err(|error| Error::malformed(format!("the body is not UTF-8 (byte {})", error.valid_up_to() + 1)))?;
    inspect(text, depth)?;
    if !text.trim_start().starts_with('{') {
        return Err(Error::invalid("", "the body is not a JSON object"));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(Strict(&mut reader)).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        Error::invalid(&field, reason(error.inner()))
    })
}

/// The reader's own words without its line and column.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(reason, _)| reason.to_owned())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Outer {
        #[serde(default)]
        #[serde(rename = "innerList")]
        _inner_list: Vec<Inner>,
        #[serde(default)]
        #[serde(rename = "innerMap")]
        _inner_map: std::collections::BTreeMap<String, Inner>,
        #[serde(rename = "oneInner")]
        _one_inner: Option<Box<Inner>>,
        #[serde(rename = "kind")]
        _kind: Option<Variant>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    enum Variant {
        Of(#[expect(dead_code, reason = "it is only read")] Inner),
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "count")]
        _count: u32,
    }

    fn refusal(text: &str) -> (Problem, String, String) {
        let error = parse_json::<Outer>(text.as_bytes(), 64).expect_err(text);
        let field = error.members().get("field").and_then(Value::as_str).unwrap_or_default().to_owned();
        (error.problem(), field, error.detail().to_owned())
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        for (text, field) in [
            (r#"{"inner":[]}"#, "inner"),
            (r#"{"innerList":[{"count":1},{"count":"x"}]}"#, "innerList[1].count"),
            (r#"{"innerList":[{"count":1,"more":2}]}"#, "innerList[0].more"),
            (r#"{"innerList":[{}]}"#, "innerList[0]"),
            (r#"{"innerList":{}}"#, "innerList"),
            (r#"{"innerList":[{"count":1},[1]]}"#, "innerList[1]"),
            (r#"{"innerMap":{"a":[1]}}"#, "innerMap.a"),
            (r#"{"oneInner":[1]}"#, "oneInner"),
            (r#"{"kind":{"of":[1]}}"#, "kind.of"),
            ("[]", ""),
        ] {
            let (problem, found, detail) = refusal(text);
            assert_eq!((problem, found.as_str()), (Problem::Invalid, field), "{text}: {detail}");
            assert!(!detail.contains("line"), "{detail}");
        }
    }

    #[test]
    fn what_is_no_json_is_malformed() {
        for text in ["", "  ", "{", "{}}", "{\"innerList\":[1,]}", "nul", "{'a':1}"] {
            assert_eq!(refusal(text).0, Problem::Malformed, "{text}");
        }
        let error = parse_json::<Outer>(b"{\"a\":\"\xff\"}", 64).expect_err("not UTF-8");
        assert_eq!(error.problem(), Problem::Malformed);
    }
}
