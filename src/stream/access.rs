//! Who may open a stream: a bearer, a browser with a ticket, or that browser coming back.

use axum::{
    extract::{FromRequestParts, MatchedPath},
    http::{HeaderName, HeaderValue, header, request::Parts},
};
use serde::Deserialize;

use super::{Streams, pass::Pass, store, ticket};
use crate::{
    http::{Arrival, Ctx, permit::RunsRead},
    kernel::{Error, Problem, Result},
};

/// Somebody who may read a stream, and the cookie to send along, where a ticket brought them.
pub(super) struct Viewer {
    pub ctx: Ctx<RunsRead>,
    pub cookie: Option<HeaderValue>,
}

impl FromRequestParts<Streams> for Viewer {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, streams: &Streams) -> Result<Self> {
        if parts.headers.contains_key(header::AUTHORIZATION) {
            return bearer(parts, streams).await;
        }
        let (path, ticket) = (requested_path(parts), presented_ticket(parts)?);
        let mut passes = streams.passes.presented(&parts.headers, &path).into_iter();
        let pass = match &ticket {
            // The browser's own reconnect repeats the URL, with the ticket that is used up.
            Some(ticket) => passes.find(|pass| pass.ticket == ticket.id),
            None => passes.next(),
        };
        if pass.is_some() || ticket.is_some() {
            own_page(parts, streams)?;
        }
        let Ok(arrival) = Arrival::from_request_parts(parts, streams).await;
        match (pass, ticket) {
            (Some(pass), _) => Ok(Self { ctx: Ctx::from_claims(&streams.front, pass.claims, arrival)?, cookie: None }),
            (None, Some(ticket)) => streams.redeem(&ticket, path, arrival).await,
            // Says what is missing.
            (None, None) => bearer(parts, streams).await,
        }
    }
}

async fn bearer(parts: &mut Parts, streams: &Streams) -> Result<Viewer> {
    let ctx = <Ctx<RunsRead> as FromRequestParts<Streams>>::from_request_parts(parts, streams).await?;
    Ok(Viewer { ctx, cookie: None })
}

impl Streams {
    /// Uses the ticket up, whatever comes of it.
    async fn redeem(&self, ticket: &ticket::Ticket, path: String, arrival: Arrival) -> Result<Viewer> {
        let now = self.front.clock().now();
        let hash = ticket.hash();
        let row = store::Ticket { tenant: ticket.tenant, id: ticket.id, secret: &hash, path: &path };
        let mut tx = self.front.database().tenant(ticket.tenant).await?;
        let claims = store::use_ticket(&mut tx, &row, now).await?;
        tx.commit().await?;
        let claims = serde_json::from_value(claims.ok_or_else(ticket::refused)?).map_err(Error::internal)?;
        let ctx = Ctx::from_claims(&self.front, claims, arrival)?;
        let seen_as = format!("{}{path}", self.prefix());
        let cookie = self.passes.cookie(&Pass::new(path, ticket.id, ctx.claims()), &seen_as, now)?;
        Ok(Viewer { ctx, cookie: Some(cookie) })
    }
}

/// The path as it was asked for. Where the routes are mounted deeper, the request no longer has all of it.
pub(super) fn requested_path(parts: &Parts) -> String {
    let asked = parts.uri.path();
    let mounted = parts.extensions.get::<MatchedPath>().and_then(|path| path.as_str().split_once("/workflow/"));
    match (mounted, asked.split_once("/workflow/")) {
        (Some((prefix, _)), Some((_, rest))) => format!("{prefix}/workflow/{rest}"),
        _ => asked.to_owned(),
    }
}

fn presented_ticket(parts: &Parts) -> Result<Option<ticket::Ticket>> {
    #[derive(Deserialize)]
    struct Query {
        ticket: Option<String>,
    }
    let query = axum::extract::Query::<Query>::try_from_uri(&parts.uri).map_err(|_| ticket::refused())?;
    query.0.ticket.map(|text| text.parse()).transpose()
}

/// A ticket or cookie counts only from our own pages and those on the list.
fn own_page(parts: &Parts, streams: &Streams) -> Result<()> {
    const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let host = parts.uri.authority().map(|authority| authority.as_str());
    let host = host.or_else(|| parts.headers.get(header::HOST)?.to_str().ok());
    let from = parts.headers.get(header::ORIGIN);
    let own = match (from, parts.headers.get(FETCH_SITE)) {
        (Some(origin), _) => origin.to_str().is_ok_and(|origin| streams.trusts(origin, host)),
        // A browser names no origin when it asks its own; anything but a browser names none at all.
        (None, Some(site)) => site == "same-origin" || site == "none",
        (None, None) => true,
    };
    if own {
        return Ok(());
    }
    Err(Error::new(Problem::Forbidden, "tickets and cookies count only from the origins in `http.cors_origins`"))
}

impl Streams {
    /// Whether a page of that origin may use a ticket: our own origin, or one that is listed.
    fn trusts(&self, origin: &str, host: Option<&str>) -> bool {
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let settings = self.front.settings();
        matches!(scheme, "http" | "https") && host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
            || settings.cors_origins.iter().any(|listed| listed == origin)
            || origin_of(&settings.base_url()) == origin
    }

    /// What a proxy puts before our paths.
    fn prefix(&self) -> String {
        let base = self.front.settings().base_url();
        base.strip_prefix(origin_of(&base)).unwrap_or_default().to_owned()
    }
}

fn origin_of(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url.get(start..).and_then(|rest| rest.find('/')).map_or(url.len(), |at| start + at);
    url.get(..end).unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_and_host() {
        assert_eq!(origin_of("https://a.example:1/x/y"), "https://a.example:1");
        assert_eq!(origin_of("http://a.example"), "http://a.example");
    }

    #[test]
    fn a_path_without_a_route_is_the_request_s() {
        let (parts, ()) = axum::http::Request::get("/v1/workflow/events?x=1").body(()).expect("a request").into_parts();
        assert_eq!(requested_path(&parts), "/v1/workflow/events");
    }
}
