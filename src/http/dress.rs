use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method, Response},
    middleware,
    response::IntoResponse,
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::CompressionLayer,
    cors::{AllowOrigin, CorsLayer},
};

use super::frame::{self, Frame};
use crate::{
    config::HttpSettings,
    kernel::{Clock, Error},
    telemetry::Traces,
};

/// Puts around the whole of the application what every request gets: its id, trace, log line and
/// measurements; the time limit; problems instead of bare errors and panics; CORS and gzip.
///
/// # Errors
/// When `http.cors_origins` holds something that is no origin.
pub fn dress(router: Router, clock: Clock, traces: Traces, settings: &HttpSettings) -> Result<Router, String> {
    let frame = Frame::new(clock, traces, settings.request_timeout.0);
    let router = router.layer(CatchPanicLayer::custom(panicked));
    let router = match cors(&settings.cors_origins)? {
        Some(cors) => router.layer(cors),
        None => router,
    };
    Ok(router.layer(middleware::from_fn_with_state(frame, frame::attend)).layer(CompressionLayer::new()))
}

fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response<axum::body::Body> {
    let text = cause.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_default();
    Error::internal(format!("a handler panicked: {text}")).into_response()
}

fn cors(origins: &[String]) -> Result<Option<CorsLayer>, String> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(
            [
                "authorization",
                "content-type",
                "accept",
                "idempotency-key",
                "prefer",
                "last-event-id",
                "traceparent",
                "x-request-id",
            ]
            .map(HeaderName::from_static),
        )
        .expose_headers(
            [
                "x-request-id",
                "traceparent",
                "idempotency-replayed",
                "preference-applied",
                "retry-after",
                "www-authenticate",
            ]
            .map(HeaderName::from_static),
        )
        .max_age(std::time::Duration::from_secs(600));
    match origins {
        [] => Ok(None),
        [any] if any == "*" => Ok(Some(layer.allow_origin(AllowOrigin::any()))),
        listed => {
            let listed = listed.iter().map(|origin| parse_origin(origin)).collect::<Result<Vec<_>, _>>()?;
            Ok(Some(layer.allow_origin(listed).allow_credentials(true)))
        }
    }
}

fn parse_origin(origin: &str) -> Result<HeaderValue, String> {
    let wrong = || format!("http.cors_origins: `{origin}` is no origin: write `https://console.example`");
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")).ok_or_else(wrong)?;
    if host.is_empty() || host.contains(['/', '*', ' ', '@']) {
        return Err(wrong());
    }
    HeaderValue::from_str(origin).map_err(|_| wrong())
}

#[cfg(test)]
mod tests;
