//! A conversation with a server, in which one call is made at a time, so that everything heard belongs to it; and the
//! few that are kept for the next call.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use rmcp::{
    RoleClient, ServiceError,
    model::{CallToolRequest, CallToolRequestParams, ClientRequest, PaginatedRequestParams, ServerResult},
    service::{PeerRequestOptions, RequestHandle, RunningService},
};
use secrecy::ExposeSecret;
use tokio::sync::mpsc;

use super::{
    ear::Ear,
    fault::{self, Other},
    pin::Listed,
    process::Process,
};
use crate::{
    integration::AccessToken,
    journal::ToolProgress,
    kernel::{TenantId, Timestamp},
    tool::{
        ToolError,
        http::{Hosts, Place},
    },
};

/// Pages of a list, and tools on them all.
const PAGES: usize = 20;
const TOOLS: usize = 1000;
/// Bytes of JSON that they take together.
const LISTING: usize = 4 * 1024 * 1024;
/// A list is believed for so long where the server does not say that it changed.
const LISTED: TimeDelta = TimeDelta::seconds(60);
/// A session is used for so long, and kept unused for so long.
const LIFE: Duration = Duration::from_secs(300);
const IDLE: Duration = Duration::from_secs(30);
/// Sessions that are kept unused.
const KEPT: usize = 64;
/// Sessions of one tenant with one server at once.
const SESSIONS: usize = 8;
/// How long a server may take to hear that it is over.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a server lists, by name.
pub(super) type Listing = BTreeMap<String, Listed>;

/// A conversation.
pub(super) struct Session {
    server: String,
    host: String,
    service: RunningService<RoleClient, Ear>,
    pub(super) progress: mpsc::Receiver<ToolProgress>,
    process: Option<Process>,
    listed: Option<(Timestamp, Listing)>,
    /// What it is held with.
    token: Option<AccessToken>,
    born: Instant,
}

/// What a session is held by.
type Held = (RunningService<RoleClient, Ear>, mpsc::Receiver<ToolProgress>, Option<Process>);

impl Session {
    pub(super) fn new(
        (server, host): (&str, String),
        (service, progress, process): Held,
        token: Option<AccessToken>,
    ) -> Self {
        let (server, born) = (server.to_owned(), Instant::now());
        Self { server, host, service, progress, process, listed: None, token, born }
    }

    /// The token it is held with.
    pub(super) fn token(&self) -> Option<&AccessToken> {
        self.token.as_ref()
    }

    /// The revision of the protocol it is held in, and what the server calls itself.
    pub(super) fn peer(&self) -> (String, Option<String>) {
        let Some(info) = self.service.peer_info() else { return Default::default() };
        let said = info.server_info.as_ref().map(|it| format!("{} {}", it.name, it.version));
        let name = said.map(|said| fault::excerpt(&self.ear().sealed().without(&said)));
        (info.protocol_version.to_string(), name)
    }

    pub(super) fn ear(&self) -> &Ear {
        self.service.service()
    }

    /// What the server lists now, or listed a short while before, of the tools that somebody wants: always the same ones
    /// in one session, which keeps no others.
    ///
    /// # Errors
    /// Why it does not; nothing was called.
    pub(super) async fn tools(&mut self, now: Timestamp, wanted: impl Fn(&str) -> bool) -> Result<&Listing, ToolError> {
        let changed = self.ear().heard_of_change();
        let known = self.listed.take().filter(|(at, _)| !changed && now - at < LISTED);
        let listed = match known {
            Some(known) => known,
            None => (now, self.list(wanted).await?),
        };
        Ok(&self.listed.insert(listed).1)
    }

    /// What it listed is looked at again before the next call.
    pub(super) fn doubt(&mut self) {
        self.listed = None;
    }

    async fn list(&self, wanted: impl Fn(&str) -> bool) -> Result<Listing, ToolError> {
        let mut listing = Listing::new();
        let (mut count, mut bytes, mut cursor) = (0, 0, None);
        for _ in 0..PAGES {
            let mut from = PaginatedRequestParams::default();
            from.cursor = cursor;
            let page = self.service.list_tools(Some(from)).await.map_err(|error| certain(self.fault(&error)))?;
            for tool in page.tools {
                let none = |_| ToolError::failed("mcp_protocol", "a tool of the server is none");
                (count, bytes) = (count + 1, bytes + serde_json::to_vec(&tool).map_err(none)?.len());
                if count > TOOLS || bytes > LISTING {
                    return Err(self.too_many());
                }
                let mut tool = serde_json::to_value(&tool).map_err(none)?;
                self.ear().sealed().hide(&mut tool);
                let listed: Listed = serde_json::from_value(tool).map_err(none)?;
                if wanted(&listed.name) {
                    listing.insert(listed.name.clone(), listed);
                }
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(listing);
            }
        }
        Err(self.too_many())
    }

    fn too_many(&self) -> ToolError {
        let most = format!("{TOOLS} tools, {PAGES} pages or {} MiB", LISTING / 1024 / 1024);
        ToolError::failed("mcp_too_many_tools", format!("MCP server `{}` lists more than {most}", self.server))
    }

    /// Sends a call; the answer comes to the handle.
    ///
    /// # Errors
    /// When the session is over, and nothing was sent.
    pub(super) async fn send(&self, params: CallToolRequestParams) -> Result<RequestHandle<RoleClient>, ToolError> {
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let sent = self.service.send_cancellable_request(request, PeerRequestOptions::no_options()).await;
        sent.map_err(|error| certain(self.fault(&error)))
    }

    /// Why an answer did not come.
    pub(super) fn fault(&self, error: &ServiceError) -> ToolError {
        fault::of_service(Other { server: &self.server, host: &self.host, sealed: self.ear().sealed() }, error)
    }

    /// Whether it speaks in the name of whoever that token is of, or of nobody.
    fn speaks_by(&self, token: Option<&AccessToken>) -> bool {
        let secret = |token: &AccessToken| token.secret.expose_secret().to_owned();
        self.token.as_ref().map(secret) == token.map(secret)
    }

    fn is_of_use(&self) -> bool {
        let life = self.token.as_ref().and_then(|token| token.good_for).map_or(LIFE, |good| LIFE.min(good));
        !self.service.is_closed() && !self.service.is_transport_closed() && self.born.elapsed() < life
    }

    /// Tells the server that it is over, and ends what was started for it.
    pub(super) async fn close(self) {
        let Self { mut service, process, server, .. } = self;
        if !matches!(service.close_with_timeout(FAREWELL).await, Ok(Some(_))) {
            tracing::debug!(server, "a session with an MCP server did not end in time");
        }
        drop(service);
        if let Some(process) = process {
            process.end().await;
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Whatever went wrong, no tool was called.
fn certain(error: ToolError) -> ToolError {
    match error {
        ToolError::Unknown(failure) | ToolError::Failed(failure) => ToolError::Failed(failure),
    }
}

/// Whose sessions, with which version of which server.
pub(super) type Key = (TenantId, String, i32);

/// Sessions that wait for their next call.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<Vec<(Key, Instant, Session)>>,
    places: Hosts,
}

impl Default for Pool {
    fn default() -> Self {
        Self { idle: Mutex::default(), places: Hosts::new(SESSIONS) }
    }
}

impl Pool {
    /// Waits until the tenant may have one more session with the server.
    pub(super) async fn enter(&self, tenant: TenantId, server: &str) -> Place {
        self.places.enter(tenant, server.to_owned()).await
    }

    /// One that is open already, with that token. Those with another speak for somebody who has left, and are closed.
    pub(super) fn take(&self, key: &Key, token: Option<&AccessToken>) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, _, session) in idle.extract_if(.., |(of, _, session)| of == key && !session.speaks_by(token)) {
            tokio::spawn(session.close());
        }
        let place =
            idle.iter().rposition(|(of, since, session)| of == key && since.elapsed() < IDLE && session.is_of_use());
        place.map(|place| idle.remove(place).2)
    }

    /// Keeps one for the next call.
    pub(super) fn keep(&self, key: Key, session: Session) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push((key, Instant::now(), session));
        let surplus = idle.len().saturating_sub(KEPT);
        for (_, _, session) in idle.drain(..surplus) {
            tokio::spawn(session.close());
        }
    }

    /// Closes those that are of no more use to anybody.
    pub(super) fn discard(&self, key: &Key) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, _, session) in idle.extract_if(.., |(of, _, _)| of == key) {
            tokio::spawn(session.close());
        }
    }

    /// Closes those that nobody wants any more.
    pub(super) async fn tidy(&self) {
        let stale = |(_, since, session): &(Key, Instant, Session)| since.elapsed() >= IDLE || !session.is_of_use();
        self.close_where(stale).await;
    }

    /// Closes all.
    pub(super) async fn close(&self) {
        self.close_where(|_| true).await;
    }

    async fn close_where(&self, which: impl Fn(&(Key, Instant, Session)) -> bool) {
        let gone: Vec<_> = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let (gone, kept) = std::mem::take(&mut *idle).into_iter().partition(which);
            *idle = kept;
            gone
        };
        futures_util::future::join_all(gone.into_iter().map(|(_, _, session)| session.close())).await;
    }
}

/// The answer that a handle brings.
pub(super) fn answered(
    answer: Result<Result<ServerResult, ServiceError>, tokio::sync::oneshot::error::RecvError>,
) -> Result<ServerResult, ServiceError> {
    answer.unwrap_or(Err(ServiceError::TransportClosed))
}
