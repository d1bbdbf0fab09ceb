use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use sha2::{Digest, Sha256};

use super::Arrival;
use crate::{
    config::HttpSettings,
    kernel::{Error, Problem, Result},
};

/// Reads a request's body whole, within the size and time the settings allow, and notes its hash for
/// the idempotency key. Every extractor that takes a body reads it through here.
///
/// # Errors
/// Too large (413), too slow (408), or cut short (400).
pub async fn read_body(request: Request, settings: &HttpSettings) -> Result<Bytes> {
    let (mut parts, body) = request.into_parts();
    let arrival = Arrival::of(&mut parts);
    let bytes = collect(body, &parts.headers, settings).await?;
    arrival.body_hash.get_or_init(|| Sha256::digest(&bytes).into());
    Ok(bytes)
}

async fn collect(body: Body, headers: &HeaderMap, settings: &HttpSettings) -> Result<Bytes> {
    let limit = settings.body_limit;
    let too_large = || Error::new(Problem::TooLarge, format!("a body has {limit} bytes at most")).with("limit", limit);
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    match tokio::time::timeout(settings.body_timeout.0, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Error::malformed("the body ended early").because(error)),
        Err(_) => {
            let detail = format!("the body did not arrive within {}", settings.body_timeout);
            Err(Error::new(Problem::RequestTimeout, detail))
        }
    }
}

/// The media type a body is said to have, without parameters, in lower case.
#[must_use]
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    text.split(';').next().map(|kind| kind.trim().to_ascii_lowercase())
}
