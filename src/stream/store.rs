use std::collections::HashMap;

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Row, postgres::PgRow};

use super::{cursor::Place, filter::Filter};
use crate::{
    db::TenantTx,
    kernel::{Result, RunId, TenantId, TicketId, Timestamp},
};

/// Bytes of JSON read at once from one stream; a single larger event is read alone.
pub(super) const READ: usize = 256 * 1024;

/// A run's end, as its row has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub last_seq: u64,
    /// The last event ends the run.
    pub ended: bool,
}

/// An event of a run.
#[derive(Debug)]
pub(super) struct EventRow {
    pub seq: u64,
    pub name: String,
    pub data: String,
}

/// Columns of `runs`: the head's own number is that of its last change, and the run may have gone on since.
const HEAD: &str = "status in ('completed', 'failed', 'cancelled') as ended, coalesce((
    select max(e.seq) from run_events e where e.tenant_id = runs.tenant_id and e.run_id = runs.run_id
  ), last_seq) as last_seq";

/// Where a run's stream ends; none when the tenant has no such run.
pub(super) async fn head(tx: &mut TenantTx, tenant: TenantId, run: RunId) -> Result<Option<Head>> {
    let sql = format!("select {HEAD} from runs where tenant_id = $1 and run_id = $2");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(tenant.uuid()).bind(run.uuid()).fetch_optional(tx.conn()).await?;
    row.map(|row| Ok(Head { last_seq: number(row.try_get("last_seq")?), ended: row.try_get("ended")? })).transpose()
}

/// Where the streams of several runs end; those that there are no more are left out.
pub(super) async fn heads(tx: &mut TenantTx, runs: &[(TenantId, RunId)]) -> Result<HashMap<(TenantId, RunId), Head>> {
    let sql = format!(
        "select tenant_id, run_id, {HEAD}
         from runs join unnest($1::uuid[], $2::uuid[]) as asked (tenant_id, run_id) using (tenant_id, run_id)"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(runs.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
        .bind(runs.iter().map(|(_, run)| run.uuid()).collect::<Vec<_>>())
        .fetch_all(tx.conn())
        .await?;
    rows.into_iter()
        .map(|row| {
            let head = Head { last_seq: number(row.try_get("last_seq")?), ended: row.try_get("ended")? };
            let tenant = TenantId::from_uuid(row.try_get("tenant_id")?);
            Ok(((tenant, RunId::from_uuid(row.try_get("run_id")?)), head))
        })
        .collect()
}

/// At most `limit` events of each run after the number that goes with it, in order.
pub(super) async fn events(
    tx: &mut TenantTx,
    wanted: &[(TenantId, RunId, u64)],
    limit: u64,
) -> Result<Vec<(TenantId, RunId, EventRow)>> {
    let rows = sqlx::query(
        "select wanted.tenant_id, wanted.run_id, found.seq, found.name, found.data
         from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as wanted (tenant_id, run_id, after)
         cross join lateral (
           select seq, name, data, sum(octet_length(data)) over (order by seq) - octet_length(data) as before
           from (
             select e.seq, e.name, e.data::text as data
             from run_events e
             where e.tenant_id = wanted.tenant_id and e.run_id = wanted.run_id and e.seq > wanted.after
             order by e.seq limit $4
           ) page
         ) found
         where found.before < $5
         order by wanted.tenant_id, wanted.run_id, found.seq",
    )
    .bind(wanted.iter().map(|(tenant, ..)| tenant.uuid()).collect::<Vec<_>>())
    .bind(wanted.iter().map(|(_, run, _)| run.uuid()).collect::<Vec<_>>())
    .bind(wanted.iter().map(|(.., after)| signed(*after)).collect::<Vec<_>>())
    .bind(signed(limit))
    .bind(size(READ))
    .fetch_all(tx.conn())
    .await?;
    rows.into_iter()
        .map(|row| {
            let event =
                EventRow { seq: number(row.try_get("seq")?), name: row.try_get("name")?, data: row.try_get("data")? };
            Ok((TenantId::from_uuid(row.try_get("tenant_id")?), RunId::from_uuid(row.try_get("run_id")?), event))
        })
        .collect()
}

/// A page of one run's events as JSON; `limit` of them after `after`.
pub(super) async fn page(
    tx: &mut TenantTx,
    tenant: TenantId,
    run: RunId,
    after: u64,
    limit: usize,
) -> Result<Vec<(u64, Box<RawValue>)>> {
    let rows = sqlx::query(
        "select seq, data::text as data from run_events
         where tenant_id = $1 and run_id = $2 and seq > $3 order by seq limit $4",
    )
    .bind(tenant.uuid())
    .bind(run.uuid())
    .bind(signed(after))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(tx.conn())
    .await?;
    rows.into_iter()
        .map(|row| {
            let json = RawValue::from_string(row.try_get("data")?).map_err(crate::kernel::Error::internal)?;
            Ok((number(row.try_get("seq")?), json))
        })
        .collect()
}

/// The transaction before which every other has ended.
pub(super) async fn horizon(tx: &mut TenantTx) -> Result<u64> {
    let row = sqlx::query("select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as horizon")
        .fetch_one(tx.conn())
        .await?;
    Ok(number(row.try_get("horizon")?))
}

/// A stretch of a tenant's events in the order of commits.
#[derive(Debug)]
pub(super) struct Stretch {
    pub rows: Vec<(Place, EventRow)>,
    /// No event below this transaction is missing, unless `more`.
    pub horizon: u64,
    /// The stretch was cut short.
    pub more: bool,
    /// The horizon hides events that are already committed.
    pub hidden: bool,
    /// The place of the tenant's last event that retention has dropped.
    pub gap: Option<Place>,
}

/// At most `limit` of the tenant's events after `after` that pass the filter, from below the horizon, of about
/// `most` bytes together.
pub(super) async fn stretch(
    tx: &mut TenantTx,
    tenant: TenantId,
    after: Place,
    filter: &Filter,
    limit: i64,
    most: usize,
) -> Result<Stretch> {
    // One statement, so one snapshot: the horizon and the rows belong together. Whether anything is hidden is asked of
    // the last row alone: asked whether there is any such row, the planner reads the table until it finds one.
    let rows = sqlx::query(
        "with now as materialized (
           select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as horizon
         )
         select now.horizon,
                coalesce((select h.xact from run_events h where h.tenant_id = $1 order by h.xact desc limit 1)
                         >= now.horizon, false) as hidden,
                gap.xact as gap_xact, gap.run_id as gap_run, gap.seq as gap_seq,
                found.xact, found.run_id, found.seq, found.name, found.data
         from now left join stream_gaps gap on gap.tenant_id = $1 left join (
           select *, sum(octet_length(data)) over (order by xact, run_id, seq) - octet_length(data) as before
           from (
             select e.xact, e.run_id, e.seq, e.name, e.data::text as data
             from run_events e
             where e.tenant_id = $1 and (e.xact, e.run_id, e.seq) > ($2, $3, $4)
               and e.xact < (select horizon from now)
               and ($5::text[] is null or e.name = any ($5))
             order by e.xact, e.run_id, e.seq limit $6
           ) page
         ) found on found.before < $7
         order by found.xact, found.run_id, found.seq",
    )
    .bind(tenant.uuid())
    .bind(signed(after.xact))
    .bind(after.run)
    .bind(signed(after.seq))
    .bind(filter.wanted())
    .bind(limit)
    .bind(size(most))
    .fetch_all(tx.conn())
    .await?;
    let mut stretch =
        Stretch { rows: Vec::with_capacity(rows.len()), horizon: 0, more: false, hidden: false, gap: None };
    let mut bytes = 0;
    for row in rows {
        stretch.horizon = number(row.try_get("horizon")?);
        stretch.hidden = row.try_get("hidden")?;
        stretch.gap = place(&row, ["gap_xact", "gap_run", "gap_seq"])?;
        let Some(place) = place(&row, ["xact", "run_id", "seq"])? else { break };
        let event = EventRow { seq: place.seq, name: row.try_get("name")?, data: row.try_get("data")? };
        bytes += event.data.len();
        stretch.rows.push((place, event));
    }
    stretch.more = i64::try_from(stretch.rows.len()).is_ok_and(|n| n == limit) || !fits(bytes, most);
    Ok(stretch)
}

/// The place that those columns have, if they have one.
fn place(row: &PgRow, [xact, run, seq]: [&str; 3]) -> Result<Option<Place>> {
    let Some(xact) = row.try_get::<Option<i64>, _>(xact)? else { return Ok(None) };
    Ok(Some(Place { xact: number(xact), run: row.try_get(run)?, seq: number(row.try_get(seq)?) }))
}

/// Whether a reading of that many bytes was not cut short by its size.
pub(super) fn fits(bytes: usize, most: usize) -> bool {
    bytes < most
}

/// A ticket as it is kept.
pub(super) struct Ticket<'a> {
    pub tenant: TenantId,
    pub id: TicketId,
    /// SHA-256 of what the browser is given.
    pub secret: &'a [u8],
    pub path: &'a str,
}

/// Keeps a ticket until `expires`.
pub(super) async fn keep_ticket(
    tx: &mut TenantTx,
    ticket: &Ticket<'_>,
    subject: &str,
    claims: serde_json::Value,
    expires: Timestamp,
) -> Result<()> {
    sqlx::query(
        "insert into stream_tickets (tenant_id, ticket_id, secret, path, subject, claims, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(ticket.tenant.uuid())
    .bind(ticket.id.uuid())
    .bind(ticket.secret)
    .bind(ticket.path)
    .bind(subject)
    .bind(claims)
    .bind(expires)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Uses a ticket up: the claims it stands for, once. None when it is unknown, for another path, used or late.
pub(super) async fn use_ticket(
    tx: &mut TenantTx,
    ticket: &Ticket<'_>,
    now: Timestamp,
) -> Result<Option<serde_json::Value>> {
    let row = sqlx::query(
        "delete from stream_tickets
         where tenant_id = $1 and ticket_id = $2 and secret = $3 and path = $4 and expires_at > $5
         returning claims",
    )
    .bind(ticket.tenant.uuid())
    .bind(ticket.id.uuid())
    .bind(ticket.secret)
    .bind(ticket.path)
    .bind(now)
    .fetch_optional(tx.conn())
    .await?;
    row.map(|row| Ok(row.try_get("claims")?)).transpose()
}

/// The table's numbers are signed and never negative.
fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
