use std::{convert::Infallible, time::Duration};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
    response::{IntoResponse, Response},
};
use utoipa::{
    IntoParams,
    openapi::{
        ObjectBuilder, Required,
        path::{Parameter, ParameterBuilder, ParameterIn},
        schema::Type,
    },
};

/// `Prefer: wait=N` (RFC 7240), N from 1 to 60 seconds; anything else is no preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefer {
    wait: Option<u8>,
}

impl Prefer {
    /// How long the caller would wait for news, if they would.
    #[must_use]
    pub fn wait(self) -> Option<Duration> {
        self.wait.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Says in the response that the preference was honoured.
    pub fn applied(self, response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        let value = self.wait.and_then(|seconds| HeaderValue::from_str(&format!("wait={seconds}")).ok());
        if let Some(value) = value {
            response.headers_mut().insert(HeaderName::from_static("preference-applied"), value);
        }
        response
    }

    fn read(headers: &HeaderMap) -> Self {
        let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        // The first mention counts (RFC 7240 §2), even when its value is of no use.
        let wait = preferences.flat_map(|value| value.split(',')).find_map(|preference| {
            let (name, value) = preference.split(';').next()?.split_once('=')?;
            name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').parse::<u8>().ok())
        });
        Self { wait: wait.flatten().filter(|seconds| (1..=60).contains(seconds)) }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Prefer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::read(&parts.headers))
    }
}

impl IntoParams for Prefer {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let text = "`wait=N` (1 to 60): answer once the run has ended or needs a decision, or after N seconds.";
        let schema = ObjectBuilder::new().schema_type(Type::String).examples([serde_json::json!("wait=10")]);
        let header = ParameterBuilder::new().name("Prefer").parameter_in(ParameterIn::Header);
        vec![header.required(Required::False).description(Some(text)).schema(Some(schema)).build()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wait_of_one_to_sixty_counts() {
        for (text, seconds) in [
            ("wait=10", Some(10)),
            ("respond-async, Wait = \"60\"; x=y", Some(60)),
            ("wait=0", None),
            ("wait=61", None),
            ("wait=1000", None),
            ("wait=-1", None),
            ("wait", None),
            ("waiting=5", None),
            ("wait=x, wait=5", None),
            (",,;=", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_static(text));
            assert_eq!(Prefer::read(&headers).wait, seconds, "{text}");
        }
    }
}
