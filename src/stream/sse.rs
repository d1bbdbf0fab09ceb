//! Opening streams: from where, for whom, in which form. What is sent then is the subscriber's business.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;

use super::{
    Streams,
    cursor::{Place, beyond_head, malformed, parse_event_id, parse_place},
    filter::Filter,
    media::Form,
    routes::{EventPage, From, Gap, RunEvents, TenantEvents},
    run::RunSource,
    store,
    subscriber::{Pulse, Source, Subscriber},
    tenant::TenantSource,
    ticket::{GOOD_FOR, Ticket, TicketUrl},
};
use crate::{
    http::{Ctx, permit::RunsRead},
    journal::event_id,
    kernel::{Error, PageQuery, Result, RunId},
};

impl Streams {
    /// A run's events after `last`; none when that was the run's last.
    pub(super) async fn follow_run(
        &self,
        ctx: &Ctx<RunsRead>,
        run: RunId,
        last: Option<&str>,
        query: &RunEvents,
    ) -> Result<Option<Body>> {
        query.only(Form::Stream)?;
        let cursor = last.map(parse_event_id).transpose()?.unwrap_or_default();
        self.hub.open()?;
        let seat = self.seats.take(ctx.tenant_id, &ctx.token_id, "run")?;
        // Subscribed first: what commits after the head is read reaches the source.
        let source = RunSource::new(&self.hub, ctx.tenant_id, run);
        // Where the run is followed here already, beyond the cursor, there is nothing to ask the table.
        if !source.is_beyond(cursor) {
            let mut tx = ctx.begin().await?;
            let head = store::head(&mut tx, ctx.tenant_id, run).await?.ok_or_else(|| Error::not_found("run"))?;
            tx.commit().await?;
            if cursor > head.last_seq {
                return Err(beyond_head(&event_id(head.last_seq)));
            }
            source.seen(head);
            if head.ended && cursor == head.last_seq {
                return Ok(None);
            }
        }
        source.reached(cursor);
        let (filter, pulse, greeting) = (Filter::all(), self.pulse(ctx), self.greeting("\n"));
        Ok(Some(Subscriber::new(source, cursor, filter, greeting, pulse, seat).body()))
    }

    /// The tenant's events after `last`.
    pub(super) async fn follow_tenant(
        &self,
        ctx: &Ctx<RunsRead>,
        last: Option<&str>,
        query: &TenantEvents,
    ) -> Result<Body> {
        let asked = query.types.as_deref().map(Filter::parse).transpose()?;
        let (cursor, filter) = match last.map(|text| parse_place(text, ctx.tenant_id)).transpose()? {
            Some((_, bound)) if asked.as_ref().is_some_and(|asked| *asked != bound) => {
                return Err(malformed("this cursor belongs to other `types`: leave them out, or begin anew"));
            }
            Some((place, bound)) => (Some(place), bound),
            None => ((query.from == Some(From::Start)).then_some(Place::START), asked.unwrap_or_else(Filter::all)),
        };
        self.hub.open()?;
        let seat = self.seats.take(ctx.tenant_id, &ctx.token_id, "tenant")?;
        let source = TenantSource::new(&self.hub, ctx.tenant_id);
        let cursor = self.place(ctx, &source, cursor).await?;
        // An id without an event: a client that gets none before it reconnects loses none either.
        let greeting = self.greeting(&format!("id: {}{}\n\n", cursor.of(ctx.tenant_id), filter.suffix()));
        let pulse = self.pulse(ctx);
        Ok(Subscriber::new(source, cursor, filter, greeting, pulse, seat).body())
    }

    /// Where to begin: at the cursor, which must not lie in the future, or at the present.
    async fn place(&self, ctx: &Ctx<RunsRead>, source: &TenantSource, cursor: Option<Place>) -> Result<Place> {
        if let (None, Some(present)) = (cursor, source.present()) {
            return Ok(present);
        }
        let mut tx = ctx.begin().await?;
        let horizon = store::horizon(&mut tx).await?;
        tx.commit().await?;
        source.seen(horizon);
        let present = Place::below(horizon);
        match cursor {
            Some(cursor) if cursor > present => Err(beyond_head(&present.of(ctx.tenant_id).to_string())),
            Some(cursor) => Ok(cursor),
            None => Ok(present),
        }
    }

    /// A page of a run's events.
    pub(super) async fn page(&self, ctx: &Ctx<RunsRead>, run: RunId, query: &RunEvents) -> Result<EventPage> {
        query.only(Form::Page)?;
        let (limit, _) = PageQuery { limit: query.limit, cursor: None }.resolve()?;
        let after = query.cursor.as_deref().map(parse_event_id).transpose()?.unwrap_or_default();
        let mut tx = ctx.begin().await?;
        let head = store::head(&mut tx, ctx.tenant_id, run).await?.ok_or_else(|| Error::not_found("run"))?;
        if after > head.last_seq {
            return Err(beyond_head(&event_id(head.last_seq)));
        }
        let mut rows = store::page(&mut tx, ctx.tenant_id, run, after, limit + 1).await?;
        tx.commit().await?;
        let next = rows.first().map_or(head.last_seq + 1, |(seq, _)| *seq);
        let gap = (next > after + 1).then(|| Gap::between(after, next));
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|(seq, _)| event_id(*seq));
        Ok(EventPage { gap, items: rows.into_iter().map(|(_, json)| json).collect(), next_cursor })
    }

    /// A URL that opens the stream at `path` once.
    pub(super) async fn issue_ticket(&self, ctx: &Ctx<RunsRead>, run: Option<RunId>, path: &str) -> Result<TicketUrl> {
        let (now, ticket) = (ctx.now(), Ticket::new(ctx.tenant_id, ctx.now()));
        let expires_at = now + GOOD_FOR;
        let claims = serde_json::to_value(ctx.claims()).map_err(Error::internal)?;
        let mut tx = ctx.begin().await?;
        if let Some(run) = run {
            store::head(&mut tx, ctx.tenant_id, run).await?.ok_or_else(|| Error::not_found("run"))?;
        }
        let hash = ticket.hash();
        let row = store::Ticket { tenant: ticket.tenant, id: ticket.id, secret: &hash, path };
        store::keep_ticket(&mut tx, &row, ctx.subject.as_str(), claims, expires_at).await?;
        tx.commit().await?;
        let base = self.front.settings().base_url();
        Ok(TicketUrl { url: format!("{base}{path}?ticket={}", ticket.text()), expires_at })
    }

    /// The response around a stream, or 204, which tells a browser not to come back.
    pub(super) fn respond(&self, body: Option<Body>, version: Version, cookie: Option<HeaderValue>) -> Response {
        let Some(body) = body else { return StatusCode::NO_CONTENT.into_response() };
        let mut response = Response::new(body);
        let headers: &mut HeaderMap = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        // HTTP/2 has no such header.
        if version <= Version::HTTP_11 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
        }
        headers.extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
        response
    }

    fn pulse(&self, ctx: &Ctx<RunsRead>) -> Pulse {
        Pulse::new(self.front.clock().clone(), self.keep_alive, ctx.expires_at)
    }

    fn greeting(&self, rest: &str) -> Bytes {
        format!("retry: {}\n{rest}", self.retry.as_millis()).into()
    }
}
