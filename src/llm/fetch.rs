//! What a question names by address. The server fetches it itself, through the tenant's door and right before a model is
//! asked: not every provider does, and an adapter may leave out what it cannot pass on.

use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::TimeDelta;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, LOCATION},
};

use super::{AskError, Models};
use crate::{
    db,
    http::{Door, Refusal},
    kernel::{Clock, TenantId, Timestamp},
};

/// The longest that all that a question names may take.
const PATIENCE: TimeDelta = TimeDelta::seconds(30);
/// Redirects that are followed for one thing.
const REDIRECTS: usize = 5;

/// A kind of thing that is fetched.
#[derive(Debug)]
pub(super) struct Kind {
    /// What its codes begin with, and its setting.
    pub(super) name: &'static str,
    /// All of them that a question names, and one.
    pub(super) all: &'static str,
    pub(super) one: &'static str,
    /// Whether what a server says of a body is that media type.
    pub(super) is_of: fn(&str, &str) -> bool,
}

impl Kind {
    fn error(&self, why: &str, message: String) -> AskError {
        AskError::new(&format!("{}_{why}", self.name), message)
    }

    fn unreachable(&self, message: String, retryable: bool) -> AskError {
        AskError { retryable, ..self.error("unreachable", message) }
    }
}

/// Fetches what one question names.
pub(super) struct Fetch {
    kind: &'static Kind,
    door: Door,
    /// The most bytes that all of it may have, and how many are left.
    most: usize,
    left: AtomicUsize,
    clock: Clock,
    deadline: Timestamp,
}

impl Models {
    /// Fetches things of that kind, which may have so many bytes together.
    pub(super) async fn fetch(&self, tenant: TenantId, kind: &'static Kind, most: usize) -> Result<Fetch, AskError> {
        let door = db::patiently(|| self.outbound.door(tenant)).await?;
        let (clock, deadline) = (self.clock.clone(), self.clock.now() + PATIENCE);
        Ok(Fetch { kind, door, most, left: AtomicUsize::new(most), clock, deadline })
    }
}

impl Fetch {
    /// What comes of fetching, unless that takes too long.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = Result<T, AskError>>) -> Result<T, AskError> {
        tokio::select! {
            fetched = work => fetched,
            () = self.clock.sleep_until(self.deadline) => {
                let message = format!("{} took more than {} s to fetch", self.kind.all, PATIENCE.num_seconds());
                Err(self.kind.unreachable(message, true))
            }
        }
    }

    /// The bytes at that address, which are of that media type.
    pub(super) async fn get(&self, url: &str, media_type: &str) -> Result<Vec<u8>, AskError> {
        let none = || AskError::new("url_refused", format!("the address of {} is no URL", self.kind.one));
        let url = Url::parse(url).map_err(|_| none())?;
        let response = self.answered(url, media_type).await?;
        let told = response.headers().get(CONTENT_TYPE).and_then(|told| told.to_str().ok()).unwrap_or_default();
        if !(self.kind.is_of)(told, media_type) {
            let host = host(response.url());
            let message = format!("`{host}` gives `{told}` where `{media_type}` is told of");
            return Err(self.kind.error("invalid", message));
        }
        self.read(response).await
    }

    /// The answer at that address, or where its redirects lead; each of them is vetted.
    async fn answered(&self, mut url: Url, media_type: &str) -> Result<Response, AskError> {
        let unreachable = |message, passes| Err(self.kind.unreachable(message, passes));
        for _ in 0..=REDIRECTS {
            self.door.vet(&url).map_err(refused)?;
            let asking = self.door.client().get(url.clone()).header(ACCEPT, media_type);
            let response = match asking.send().await {
                Ok(response) => response,
                Err(error) => match Refusal::behind(&error, host(&url)) {
                    Some(refusal) => return Err(refused(refusal)),
                    None => return unreachable(format!("`{}` cannot be reached, or hung up", host(&url)), true),
                },
            };
            match (response.status(), response.headers().get(LOCATION)) {
                (StatusCode::OK, _) => return Ok(response),
                (status, Some(next)) if status.is_redirection() => {
                    let next = next.to_str().ok().and_then(|next| url.join(next).ok());
                    let Some(next) = next else {
                        return unreachable(format!("`{}` redirects to no URL", host(&url)), false);
                    };
                    url = next;
                }
                (status, _) => {
                    let passes = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
                    return unreachable(format!("`{}` answered {}", host(&url), status.as_u16()), passes);
                }
            }
        }
        unreachable(format!("`{}` redirects once more than is followed", host(&url)), false)
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, AskError> {
        let Kind { name, all, one, .. } = self.kind;
        let too_large = || {
            let message = format!("{all} may have {} bytes (`llm.{name}_bytes`), and there are more", self.most);
            self.kind.error("too_large", message)
        };
        // A length past the room is not waited for; a wrong or missing one is counted below.
        let room = u64::try_from(self.left.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        if response.content_length().is_some_and(|length| length > room) {
            return Err(too_large());
        }
        let host = host(response.url()).to_owned();
        let broken = |_| self.kind.unreachable(format!("`{host}` broke off in the middle of {one}"), true);
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            let take = |left: usize| left.checked_sub(chunk.len());
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| too_large())?;
            bytes.extend_from_slice(&chunk);
        }
        let empty = || self.kind.error("invalid", format!("`{host}` gives {one} without bytes"));
        if bytes.is_empty() { Err(empty()) } else { Ok(bytes) }
    }
}

/// Not all of an address: it may be signed.
fn host(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

fn refused(refusal: Refusal) -> AskError {
    let code = match refusal {
        Refusal::Url(_) => "url_refused",
        Refusal::Address(_) => "address_refused",
    };
    AskError::new(code, refusal.to_string())
}

/// What kind of a body a server says it is, without parameters.
pub(super) fn essence(told: &str) -> String {
    told.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}
