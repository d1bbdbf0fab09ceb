use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Version, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Streams,
    access::{Viewer, requested_path},
    media::Form,
    ticket::TicketUrl,
};
use crate::{
    http::{Ctx, Json, Path, Query, permit::RunsRead},
    journal::{Envelope, event_id},
    kernel::{Error, Result, RunId},
};

/// The streams' operations.
pub fn routes(streams: Streams) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(run_events))
        .routes(routes!(run_ticket))
        .routes(routes!(tenant_events))
        .routes(routes!(tenant_ticket))
        .with_state(streams)
}

/// Where in a run's events to begin, and how many for a page.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(super) struct RunEvents {
    /// Stream: the last event seen, for clients that cannot send `Last-Event-ID`; the header wins.
    #[param(example = "evt_7")]
    pub last_event_id: Option<String>,
    /// Page: events a page, 1 to 200 (50 when absent).
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u16>,
    /// Page: the last event of the page before.
    #[param(example = "evt_50")]
    pub cursor: Option<String>,
    /// Stream: the ticket of a browser, which needs no `Authorization` then.
    pub ticket: Option<String>,
}

/// Which of the tenant's events, and from where.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(super) struct TenantEvents {
    /// Names of events, separated by commas; all when absent. A cursor keeps them.
    #[param(example = "awaiting_approval,failed")]
    pub types: Option<String>,
    /// Where to begin without a cursor: `now` (the default) or `start`, the first event there is.
    #[param(inline)]
    pub from: Option<From>,
    /// The `id` of the last event seen, for clients that cannot send `Last-Event-ID`; the header wins.
    pub last_event_id: Option<String>,
    /// The ticket of a browser, which needs no `Authorization` then.
    #[expect(dead_code, reason = "`Viewer` reads it; here it is known and documented")]
    ticket: Option<String>,
}

/// Where a tenant's stream begins without a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum From {
    /// With what commits from now on.
    Now,
    /// With the first event there is.
    Start,
}

/// Follow a run's events, or read a page of them
///
/// Events 1, 2, 3 … of the run, first those that were, then each as it commits; the stream ends after the
/// event that ends the run. Where events are no longer retained, `gap` comes in their place. With
/// `Accept: application/json` it is a page.
#[utoipa::path(
    get, path = "/workflow/runs/{id}/events", tag = "runs", operation_id = "followRun",
    params(("id" = RunId, Path, description = "The run"), RunEvents,
        ("Last-Event-ID" = Option<String>, Header, description = "The last event seen: only later ones are sent")),
    responses(
        (status = 200, description = "The events", content(
            (String = "text/event-stream", example = json!("retry: 1000\n\nid: evt_1\nevent: idle\ndata: {\"eventId\":\"evt_1\",\"step\":\"idle\", …}\n\n")),
            (EventPage = "application/json"),
        )),
        (status = 204, description = "The run has ended and the client has seen its last event: do not come back"),
    ),
    extensions(("x-problems" = json!(["not-acceptable", "cursor-beyond-head", "too-many-streams"]))),
    security(("bearer" = ["runs:read"]), ()),
)]
async fn run_events(
    State(streams): State<Streams>,
    Path(run): Path<RunId>,
    Query(query): Query<RunEvents>,
    version: Version,
    headers: HeaderMap,
    viewer: Viewer,
) -> Result<Response> {
    match Form::wanted(&headers, &[Form::Stream, Form::Page])? {
        Form::Page => {
            let page = streams.page(&viewer.ctx, run, &query).await?;
            Ok(Json(page).into_response())
        }
        Form::Stream => {
            let last = last_event_id(&headers, query.last_event_id.clone())?;
            let body = streams.follow_run(&viewer.ctx, run, last.as_deref(), &query).await?;
            Ok(streams.respond(body, version, viewer.cookie))
        }
    }
}

/// Follow all runs of the tenant
///
/// The events of all runs in the order of commits, each run's in its own order. The `id` of an event is an
/// opaque cursor, bound to the tenant and to `types`. Where events behind the cursor are no longer retained, `gap` comes
/// before what is left.
#[utoipa::path(
    get, path = "/workflow/events", tag = "runs", operation_id = "followTenant",
    params(TenantEvents,
        ("Last-Event-ID" = Option<String>, Header, description = "The last event seen: only later ones are sent")),
    responses(
        (status = 200, description = "The events", body = String, content_type = "text/event-stream"),
    ),
    extensions(("x-problems" = json!(["not-acceptable", "cursor-beyond-head", "invalid-input", "too-many-streams"]))),
    security(("bearer" = ["runs:read"]), ()),
)]
async fn tenant_events(
    State(streams): State<Streams>,
    Query(query): Query<TenantEvents>,
    version: Version,
    headers: HeaderMap,
    viewer: Viewer,
) -> Result<Response> {
    Form::wanted(&headers, &[Form::Stream])?;
    let last = last_event_id(&headers, query.last_event_id.clone())?;
    let body = streams.follow_tenant(&viewer.ctx, last.as_deref(), &query).await?;
    Ok(streams.respond(Some(body), version, viewer.cookie))
}

/// Let a browser follow a run
///
/// A URL for `EventSource`, which cannot send a token. It works once, within 30 s, for this run; after that
/// a cookie lets the browser reconnect until the token expires.
#[utoipa::path(
    post, path = "/workflow/runs/{id}/events/ticket", tag = "runs", operation_id = "ticketForRun",
    params(("id" = RunId, Path, description = "The run")),
    responses((status = 201, description = "The ticket", body = TicketUrl)),
    security(("bearer" = ["runs:read"])),
)]
async fn run_ticket(
    State(streams): State<Streams>,
    ctx: Ctx<RunsRead>,
    Path(run): Path<RunId>,
    parts: Parts,
) -> Result<Response> {
    ticket(&streams, &ctx, Some(run), &parts).await
}

/// Let a browser follow all runs of the tenant
///
/// A URL for `EventSource`, which cannot send a token. It works once, within 30 s; after that a cookie lets
/// the browser reconnect until the token expires. `types` and `from` may be appended to it.
#[utoipa::path(
    post, path = "/workflow/events/ticket", tag = "runs", operation_id = "ticketForTenant",
    responses((status = 201, description = "The ticket", body = TicketUrl)),
    security(("bearer" = ["runs:read"])),
)]
async fn tenant_ticket(State(streams): State<Streams>, ctx: Ctx<RunsRead>, parts: Parts) -> Result<Response> {
    ticket(&streams, &ctx, None, &parts).await
}

async fn ticket(streams: &Streams, ctx: &Ctx<RunsRead>, run: Option<RunId>, parts: &Parts) -> Result<Response> {
    let path = requested_path(parts);
    let stream = path.strip_suffix("/ticket").unwrap_or(&path);
    let url = streams.issue_ticket(ctx, run, stream).await?;
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(url)).into_response())
}

/// The header, which a browser sends when it reconnects, before the query, which it repeats.
fn last_event_id(headers: &HeaderMap, query: Option<String>) -> Result<Option<String>> {
    match headers.get("last-event-id") {
        Some(value) => {
            let text = value.to_str().map_err(|_| super::cursor::malformed("`Last-Event-ID` is not an event's id"))?;
            Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
        }
        None => Ok(query),
    }
}

/// A page of a run's events.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventPage {
    /// The events right after the cursor that are no longer retained; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// The events, as they are in the table.
    #[schema(value_type = Vec<Envelope>)]
    pub items: Vec<Box<RawValue>>,
    /// Send it back as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Events of a run that are no longer retained: the payload of `gap`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gap {
    /// The first of them.
    #[schema(example = "evt_5")]
    pub first_missing: String,
    /// The last of them.
    #[schema(example = "evt_120")]
    pub last_missing: String,
}

impl Gap {
    /// What is missing between the event `after` and the `next`.
    pub fn between(after: u64, next: u64) -> Self {
        Self { first_missing: event_id(after + 1), last_missing: event_id(next - 1) }
    }
}

impl RunEvents {
    /// For a stream, a page's parameters make no sense, and the other way round.
    pub fn only(&self, form: Form) -> Result<()> {
        let (stray, why) = match form {
            Form::Stream => (
                self.limit.is_some() || self.cursor.is_some(),
                "`limit` and `cursor` go with a page (`Accept: application/json`); a stream takes `lastEventId`",
            ),
            Form::Page => (
                self.last_event_id.is_some() || self.ticket.is_some(),
                "`lastEventId` and `ticket` go with a stream; a page takes `cursor`",
            ),
        };
        if stray { Err(Error::malformed(why)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use crate::journal::Body;

    #[test]
    fn the_page_about_events_lists_every_one() {
        let page = include_str!("../../docs/events.md");
        for name in Body::NAMES {
            assert!(page.contains(&format!("\n| `{name}` | ")), "docs/events.md does not list `{name}`");
        }
    }
}
