//! What a failed exchange says of the world: whether the call may have been made, and whether it is worth another try.

use std::error::Error as StdError;

use rmcp::{
    ServiceError,
    service::ClientInitializeError,
    transport::{DynamicTransportError, streamable_http_client::StreamableHttpError},
};
use serde_json::json;

use crate::{
    http::Refusal,
    journal::Failure,
    tool::{ToolError, sealed::Sealed},
};

type HttpError = StreamableHttpError<reqwest::Error>;

/// The server wants to know better who calls. Nothing was called.
pub(super) const UNAUTHORIZED: &str = "mcp_unauthorized";
/// Somebody has to connect it first. Nothing was called.
pub(super) const UNCONNECTED: &str = "connection_required";
/// The longest text of a server that goes into a failure, in characters.
const TEXT: usize = 1000;

/// Who is spoken to.
#[derive(Clone, Copy)]
pub(super) struct Other<'a> {
    /// The server's name.
    pub(super) server: &'a str,
    /// Where it is.
    pub(super) host: &'a str,
    /// What it was shown of who calls, which it is not to tell anybody.
    pub(super) sealed: &'a Sealed,
}

impl Other<'_> {
    fn excerpt(&self, text: &str) -> String {
        excerpt(&self.sealed.without(text))
    }
}

/// Why no session came to be. Nothing was called.
pub(super) fn of_connection(other: Other<'_>, error: &ClientInitializeError) -> ToolError {
    let server = other.server;
    let broken = |why: &str| ToolError::retryable("mcp_unreachable", format!("MCP server `{server}`: {why}"));
    match error {
        ClientInitializeError::TransportError { error, .. } => match of_transport(other, error) {
            // No tool was called, so nothing is unknown.
            ToolError::Unknown(failure) | ToolError::Failed(failure) => ToolError::Failed(failure),
        },
        ClientInitializeError::JsonRpcError(error) => refused(other, &error.message),
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => of_connection(other, fallback),
        ClientInitializeError::NoCompatibleProtocolVersion { server_supported, .. } => {
            refused(other, &format!("it speaks none of our revisions of the protocol, but {server_supported:?}"))
        }
        ClientInitializeError::ConnectionClosed(_) => broken("it broke the connection off"),
        _ => broken("it did not say that it is one"),
    }
}

fn refused(other: Other<'_>, why: &str) -> ToolError {
    ToolError::failed("mcp_refused", format!("MCP server `{}` refuses us: {}", other.server, other.excerpt(why)))
}

/// Why a question has no answer.
pub(super) fn of_service(other: Other<'_>, error: &ServiceError) -> ToolError {
    let server = other.server;
    match error {
        ServiceError::McpError(error) => {
            let message = format!("MCP server `{server}`: {}", other.excerpt(&error.message));
            ToolError::failed("mcp_error", message).with(json!({ "code": error.code.0 }))
        }
        ServiceError::TransportSend(error) => of_transport(other, error),
        ServiceError::UnexpectedResponse => {
            ToolError::unknown("mcp_protocol", format!("MCP server `{server}` gave an answer that is none"))
        }
        _ => ToolError::unknown("mcp_broken", format!("MCP server `{server}` broke off before it answered")),
    }
}

fn of_transport(other: Other<'_>, error: &DynamicTransportError) -> ToolError {
    let named = |what: &str| format!("MCP server `{}` {what}", other.server);
    let Some(error) = error.error.downcast_ref::<HttpError>() else {
        return ToolError::unknown("mcp_broken", named("is gone"));
    };
    match error {
        StreamableHttpError::Client(error) => of_request(other, error),
        StreamableHttpError::HttpStatus(error) => {
            let failure = Failure {
                retryable: true,
                retry_after_seconds: error.retry_after.as_ref().and_then(|seconds| seconds.parse().ok()),
                ..Failure::new("mcp_http_status", named(&format!("answered {}", error.status)))
            };
            // A gateway says as much of a call that got through as of one that did not.
            if error.status < 500 { ToolError::Failed(failure) } else { ToolError::Unknown(failure) }
        }
        // Another token of the same grant would not do either.
        StreamableHttpError::InsufficientScope(_) => {
            ToolError::failed("mcp_insufficient_scope", named("wants a wider grant than we have"))
        }
        StreamableHttpError::AuthRequired(_) => {
            ToolError::failed(UNAUTHORIZED, named("does not accept what we show of who calls"))
        }
        StreamableHttpError::SessionExpired => ToolError::retryable("mcp_session_expired", named("forgot the session")),
        StreamableHttpError::ResponseBodyTooLarge { .. } => {
            ToolError::failed("output_too_large", named("answered with more than is read"))
        }
        // Our transport's words for a status that is no success.
        StreamableHttpError::UnexpectedServerResponse(said) if said.starts_with("HTTP 4") => {
            ToolError::failed("mcp_http_status", named(&format!("answered {}", other.excerpt(said))))
        }
        StreamableHttpError::UnexpectedServerResponse(_)
        | StreamableHttpError::UnexpectedContentType(_)
        | StreamableHttpError::Deserialize(_) => {
            ToolError::unknown("mcp_protocol", named("gave an answer that is none"))
        }
        _ => ToolError::unknown("mcp_broken", named("broke off before it answered")),
    }
}

/// Why a request had no response: for certain before it was sent, or maybe after.
fn of_request(Other { server, host, .. }: Other<'_>, error: &reqwest::Error) -> ToolError {
    if let Some(refusal) = Refusal::behind(error, host) {
        return ToolError::failed("address_refused", format!("MCP server `{server}`: {refusal}"));
    }
    let causes = std::iter::successors(StdError::source(error), |&e| e.source());
    let reason = causes.last().map_or_else(|| "unknown cause".to_owned(), ToString::to_string);
    if let Some(status) = error.status() {
        return ToolError::failed("mcp_http_status", format!("MCP server `{server}` answered {status}"));
    }
    if error.is_builder() {
        return ToolError::failed(
            "invalid_arguments",
            format!("MCP server `{server}`: no request can be made: {reason}"),
        );
    }
    if error.is_connect() || error.is_dns() {
        return ToolError::retryable("mcp_unreachable", format!("MCP server `{server}` cannot be reached: {reason}"));
    }
    ToolError::unknown("mcp_broken", format!("MCP server `{server}` gave no answer: {reason}"))
}

/// Some of what a server says.
pub(super) fn excerpt(text: &str) -> String {
    text.replace('\0', "\u{fffd}").chars().take(TEXT).collect()
}
