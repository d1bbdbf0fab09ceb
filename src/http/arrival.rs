use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, OnceLock},
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};

use crate::{
    kernel::{self, Clock},
    telemetry::{Trace, Traces},
};

/// What a request is called in logs, problems and the audit log: ours (`req_…`), or the caller's own
/// `X-Request-Id` where it is 1 to 128 of `[A-Za-z0-9._:-]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// As it is echoed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn read(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get("x-request-id")?.to_str().ok()?;
        let safe = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        ((1..=128).contains(&text.len()) && text.bytes().all(safe)).then(|| Self(text.into()))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a request before anything else is: its id, its trace, and, once it has been read,
/// the hash of its body.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// What the request is called.
    pub request_id: RequestId,
    /// Where it stands in its trace.
    pub trace: Trace,
    pub(super) body_hash: Arc<OnceLock<[u8; 32]>>,
}

impl Arrival {
    pub(super) fn read(headers: &HeaderMap, clock: &Clock, traces: &Traces) -> Self {
        let fresh = || RequestId(kernel::RequestId::new(clock.now()).to_string().into());
        Self {
            request_id: RequestId::read(headers).unwrap_or_else(fresh),
            trace: traces.arrive(caller(headers)),
            body_hash: Arc::default(),
        }
    }

    /// The arrival the server noted; a router that nothing dressed (a test's) notes it here.
    pub(super) fn of(parts: &mut Parts) -> Self {
        if let Some(noted) = parts.extensions.get::<Self>() {
            return noted.clone();
        }
        let arrival = Self::read(&parts.headers, &Clock::system(), &Traces::default());
        parts.extensions.insert(arrival.clone());
        arrival
    }
}

/// Where the caller stands in a trace, by the one `traceparent` it gives.
fn caller(headers: &HeaderMap) -> Option<Trace> {
    let mut given = headers.get_all("traceparent").iter();
    match (given.next(), given.next()) {
        (Some(only), None) => only.to_str().ok().and_then(Trace::parse),
        _ => None,
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Arrival {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_safe_request_id_is_taken_over() {
        let read = |text: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", axum::http::HeaderValue::from_bytes(text).expect("header"));
            RequestId::read(&headers)
        };
        assert_eq!(read(b"order-17:a").map(|id| id.to_string()).as_deref(), Some("order-17:a"));
        assert!(read(b"").is_none() && read(b"a b").is_none() && read(b"caf\xc3\xa9").is_none());
        assert!(read(&[b'a'; 129]).is_none());
    }
}
