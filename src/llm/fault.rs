use std::{borrow::Cow, time::Duration};

use reqwest::{StatusCode, header::HeaderMap};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::{Usage, provider::Target};
use crate::{
    config::Api,
    http::{self, Refusal},
    kernel::Timestamp,
};

/// The longest message of a provider that is passed on, in characters.
const MESSAGE: usize = 500;

/// Why nothing came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    /// For a person; no key is in it.
    pub(super) message: String,
    /// How long the provider asks to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// What was taken all the same, where that is known.
    pub(super) took: Option<Usage>,
}

/// What kind of a fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// The provider is asked too much.
    Limited,
    /// It is away, or fails.
    Away,
    /// It broke off in the middle, or spoke in a way that cannot be read.
    Broken,
    /// It took too long.
    TimedOut,
    /// It refuses the key.
    Unauthorised,
    /// It refuses what it is asked.
    Refused,
    /// It is not to be reached from here.
    Unreachable,
    /// It failed too often, and is not called for a while.
    LeftAlone,
    /// It gives more than there is room for.
    TooLarge,
}

impl FaultKind {
    /// A stable word.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Limited => "model_rate_limited",
            Self::Away => "model_unavailable",
            Self::Broken => "model_broke_off",
            Self::TimedOut => "model_timeout",
            Self::Unauthorised => "model_key_refused",
            Self::Refused => "model_refused",
            Self::Unreachable => "address_refused",
            Self::LeftAlone => "model_left_alone",
            Self::TooLarge => "model_answer_too_large",
        }
    }

    /// Whether the same call may be answered later.
    pub(super) const fn passes(self) -> bool {
        matches!(self, Self::Limited | Self::Away | Self::Broken | Self::TimedOut)
    }
}

impl Fault {
    /// What it said cannot be used.
    pub(super) fn broken(target: &Target, why: &str) -> Self {
        Self::plain(FaultKind::Broken, format!("{}: {why}", place(target)))
    }

    pub(super) fn plain(kind: FaultKind, message: String) -> Self {
        Self { kind, message, retry_after: None, took: None }
    }

    /// The same of a call that has taken so much.
    pub(super) fn having_taken(self, usage: Usage) -> Self {
        Self { took: Some(usage), ..self }
    }

    /// What it answered instead, with a status that says so.
    pub(super) fn answered(
        target: &Target,
        (status, headers): (StatusCode, &HeaderMap),
        body: &str,
        now: Timestamp,
    ) -> Self {
        let said = reason(body, target.key.as_ref());
        let message = format!("{} answered {}: {said}", place(target), status.as_u16());
        Self { retry_after: retry_after(headers, now), ..Self::plain(of_status(status), message) }
    }

    /// It could not be reached, or the connection broke.
    pub(super) fn transport(target: &Target, error: &reqwest::Error) -> Self {
        if let Some(refusal) = Refusal::behind(error, target.url.host_str().unwrap_or_default()) {
            return Self::plain(FaultKind::Unreachable, refusal.to_string());
        }
        let why = innermost(error, target.key.as_ref());
        Self::plain(FaultKind::Away, format!("{} cannot be reached, or hung up: {why}", place(target)))
    }

    /// Whether the provider refuses the thoughts of before, or that some are missing.
    pub(super) fn is_about_thoughts(&self, api: Api) -> bool {
        api == Api::Anthropic && self.kind == FaultKind::Refused && self.message.contains("`thinking`")
    }

    pub(super) fn of(target: &Target, error: &genai::Error, now: Timestamp) -> Self {
        use genai::{Error as E, webc};
        let host = target.url.host_str().unwrap_or_default();
        let source: &(dyn std::error::Error + 'static) = match error {
            E::WebStream { error, .. } => &**error,
            E::WebModelCall { webc_error: webc::Error::Reqwest(error), .. } => error,
            E::WebModelCall { webc_error, .. } | E::WebAdapterCall { webc_error, .. } => webc_error,
            other => other,
        };
        // The status of a stream that never began is found inside.
        let inner = source.downcast_ref::<genai::Error>().unwrap_or(error);
        if let Some(refusal) = Refusal::behind(source, host) {
            return Self::plain(FaultKind::Unreachable, refusal.to_string());
        }
        let (kind, why) = match (inner.status(), inner) {
            (Some(status), _) => (of_status(status), format!("answered {}", status.as_u16())),
            (None, E::ChatResponse { .. }) => (FaultKind::Away, "failed in the middle".to_owned()),
            (None, E::StreamParse { .. } | E::SerdeJson(_)) => {
                (FaultKind::Broken, "said something that cannot be read".to_owned())
            }
            (
                None,
                E::WebModelCall {
                    webc_error:
                        webc::Error::ResponseFailedNotJson { .. } | webc::Error::ResponseFailedInvalidJson { .. },
                    ..
                },
            ) => (FaultKind::Broken, "said something that cannot be read".to_owned()),
            (None, E::WebStream { .. } | E::WebModelCall { .. } | E::WebAdapterCall { .. }) => {
                (FaultKind::Away, "cannot be reached, or hung up".to_owned())
            }
            (None, _) => (FaultKind::Refused, "cannot be asked this".to_owned()),
        };
        let key = target.key.as_ref();
        let told = match inner {
            E::HttpError { body, .. }
            | E::WebModelCall { webc_error: webc::Error::ResponseFailedStatus { body, .. }, .. } => reason(body, key),
            E::ChatResponse { body, .. } => reason(&body.to_string(), key),
            E::WebStream { .. } | E::WebModelCall { .. } | E::WebAdapterCall { .. } => innermost(source, key),
            other => brief(&other.to_string(), key),
        };
        let message = format!("{} {why}: {told}", place(target));
        let retry_after = inner.headers().and_then(|headers| retry_after(headers, now));
        Self { retry_after, ..Self::plain(kind, message) }
    }
}

/// Whom it was that was asked.
pub(super) fn place(target: &Target) -> String {
    format!("`{}` of {}", target.config.body.model, target.config.body.provider)
}

fn of_status(status: StatusCode) -> FaultKind {
    match status.as_u16() {
        429 => FaultKind::Limited,
        401 | 403 => FaultKind::Unauthorised,
        408 | 409 | 425 | 500.. => FaultKind::Away,
        _ => FaultKind::Refused,
    }
}

/// How long to wait, in the milliseconds that some providers give, or by `Retry-After`.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let millis = || headers.get("retry-after-ms")?.to_str().ok()?.trim().parse().ok().map(Duration::from_millis);
    let seconds = || http::retry_after(headers, now).map(|seconds| Duration::from_secs(u64::from(seconds.get())));
    millis().or_else(seconds)
}

/// What a provider says of itself: the message in its JSON, or the beginning of whatever it sent.
fn reason(body: &str, key: Option<&SecretString>) -> String {
    let json = serde_json::from_str::<Value>(body).ok();
    let message = json.as_ref().and_then(|json| {
        let first = json.get(0).unwrap_or(json);
        first.pointer("/error/message").or_else(|| first.get("message")).or_else(|| first.get("error"))?.as_str()
    });
    brief(message.unwrap_or(body), key)
}

fn innermost(error: &(dyn std::error::Error + 'static), key: Option<&SecretString>) -> String {
    let last = std::iter::successors(Some(error), |&e| e.source()).last();
    brief(&last.map_or_else(String::new, ToString::to_string), key)
}

/// The beginning of it on one line, without the key.
fn brief(text: &str, key: Option<&SecretString>) -> String {
    // Hidden before anything is cut: half a key would be found no more.
    let text = without_key(text, key);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MESSAGE) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

fn without_key<'t>(text: &'t str, key: Option<&SecretString>) -> Cow<'t, str> {
    match key.map(ExposeSecret::expose_secret).filter(|key| !key.is_empty()) {
        Some(key) => text.replace(key, "[the key]").into(),
        None => text.into(),
    }
}
