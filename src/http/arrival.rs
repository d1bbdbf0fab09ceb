use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, OnceLock},
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};

use crate::kernel::{self, Clock};

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

/// A place in a distributed trace (W3C Trace Context, version 00). Displays as a `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    trace_id: u128,
    span_id: u64,
    sampled: bool,
}

impl Trace {
    /// The trace's own id, 32 hexadecimal digits on the wire.
    #[must_use]
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// A new span of the same trace, for what this request does next.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: random_span(), ..*self }
    }

    /// Our span in the caller's trace, or the start of a new one.
    fn read(headers: &HeaderMap) -> Self {
        let mut given = headers.get_all("traceparent").iter();
        let parent = match (given.next(), given.next()) {
            (Some(only), None) => only.to_str().ok().and_then(Self::parse),
            _ => None,
        };
        match parent {
            Some(parent) => parent.child(),
            None => Self { trace_id: rand::random::<u128>().max(1), span_id: random_span(), sampled: false },
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let future = hex(version, 2)? > 0;
        // A later version may append fields; version 00 has exactly these, and ff is none.
        if version == "ff" || (!future && parts.next().is_some()) {
            return None;
        }
        let (trace_id, span_id) = (hex(trace, 32)?, u64::try_from(hex(span, 16)?).ok()?);
        let sampled = hex(flags, 2)? & 1 == 1;
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, sampled })
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (text.len() == digits && lower).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

fn random_span() -> u64 {
    rand::random::<u64>().max(1)
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
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
    pub(super) fn read(headers: &HeaderMap, clock: &Clock) -> Self {
        let fresh = || RequestId(kernel::RequestId::new(clock.now()).to_string().into());
        Self {
            request_id: RequestId::read(headers).unwrap_or_else(fresh),
            trace: Trace::read(headers),
            body_hash: Arc::default(),
        }
    }

    /// The arrival the server noted; a router that nothing dressed (a test's) notes it here.
    pub(super) fn of(parts: &mut Parts) -> Self {
        if let Some(noted) = parts.extensions.get::<Self>() {
            return noted.clone();
        }
        let arrival = Self::read(&parts.headers, &Clock::system());
        parts.extensions.insert(arrival.clone());
        arrival
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
    fn a_traceparent_is_read_as_the_standard_says() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(Trace::parse(good).map(|t| t.to_string()).as_deref(), Some(good));
        assert!(Trace::parse(&good.replacen("00", "cc", 1)).is_some());
        assert!(Trace::parse(&format!("{}-more", good.replacen("00", "cc", 1))).is_some());
        for bad in [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }

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
