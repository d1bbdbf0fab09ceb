//! SQL of runs: who works on what, and what callers see.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{
    definition::{self, Definition},
    view::{Links, Run, RunSummary, forked_from, last_event_id},
};
use crate::{
    db::{Database, TenantTx},
    journal::{Parent, Status},
    kernel::{ApprovalId, Error, Reference, Result, RunId, TenantId, Timestamp, WorkerId},
};

/// Enters a worker, or says that it still lives; false when it had been given up for dead meanwhile.
pub(super) async fn beat(
    db: &Database,
    worker: WorkerId,
    lock_key: i64,
    until: Timestamp,
    enter: bool,
) -> Result<bool> {
    let mut tx = db.system().await?;
    let done = if enter {
        sqlx::query("insert into workers (worker_id, lock_key, alive_until) values ($1, $2, $3)")
            .bind(worker.uuid())
            .bind(lock_key)
            .bind(until)
            .execute(tx.conn())
            .await?
    } else {
        sqlx::query("update workers set alive_until = $2 where worker_id = $1 and alive_until > '-infinity'")
            .bind(worker.uuid())
            .bind(until)
            .execute(tx.conn())
            .await?
    };
    tx.commit().await?;
    Ok(done.rows_affected() == 1)
}

/// Takes a worker out whose leases are all released.
pub(super) async fn leave(db: &Database, worker: WorkerId) -> Result<()> {
    let mut tx = db.system().await?;
    sqlx::query("delete from workers where worker_id = $1").bind(worker.uuid()).execute(tx.conn()).await?;
    tx.commit().await
}

/// Frees the runs of workers that are gone; returns how many.
pub(super) async fn release_dead(db: &Database, at: Timestamp) -> Result<i64> {
    let mut tx = db.system().await?;
    let freed = sqlx::query("select release_dead_workers($1)").bind(at).fetch_one(tx.conn()).await?.try_get(0)?;
    tx.commit().await?;
    Ok(freed)
}

/// Frees the runs this worker holds without knowing; returns how many.
pub(super) async fn release_strays(db: &Database, worker: WorkerId, known: &[RunId], at: Timestamp) -> Result<i64> {
    let mut tx = db.system().await?;
    let freed = sqlx::query("select release_stray_runs($1, $2, $3)")
        .bind(worker.uuid())
        .bind(known.iter().map(|run| run.uuid()).collect::<Vec<_>>())
        .bind(at)
        .fetch_one(tx.conn())
        .await?
        .try_get(0)?;
    tx.commit().await?;
    Ok(freed)
}

/// Claims runs that are due, fair between tenants.
pub(super) async fn claim(
    db: &Database,
    worker: WorkerId,
    most: usize,
    tenant_most: usize,
    at: Timestamp,
) -> Result<Vec<(TenantId, RunId)>> {
    let mut tx = db.system().await?;
    let rows = sqlx::query("select tenant_id, run_id from claim_runs($1, $2, $3, $4)")
        .bind(worker.uuid())
        .bind(i32::try_from(most).unwrap_or(i32::MAX))
        .bind(i32::try_from(tenant_most).unwrap_or(i32::MAX))
        .bind(at)
        .fetch_all(tx.conn())
        .await?;
    tx.commit().await?;
    rows.iter().map(|row| Ok((TenantId::from_uuid(row.try_get(0)?), RunId::from_uuid(row.try_get(1)?)))).collect()
}

/// When the next unclaimed run is due.
pub(super) async fn next_due(db: &Database) -> Result<Option<Timestamp>> {
    let mut tx = db.system().await?;
    Ok(sqlx::query("select next_due()").fetch_one(tx.conn()).await?.try_get(0)?)
}

/// Gives a claim back untouched.
pub(super) async fn give_back(
    db: &Database,
    worker: WorkerId,
    runs: &[(TenantId, RunId)],
    at: Timestamp,
) -> Result<()> {
    let tenants: Vec<_> = runs.iter().map(|(tenant, _)| *tenant).collect();
    let mut tx = db.tenants(&tenants).await?;
    sqlx::query(
        "update run_leases set worker_id = null, due_at = $3
         where worker_id = $1 and run_id = any ($2)",
    )
    .bind(worker.uuid())
    .bind(runs.iter().map(|(_, run)| run.uuid()).collect::<Vec<_>>())
    .bind(at)
    .execute(tx.conn())
    .await?;
    tx.commit().await
}

/// Whether the worker still holds the run.
pub(super) async fn holds(tx: &mut TenantTx, worker: WorkerId, tenant: TenantId, run: RunId) -> Result<bool> {
    let held = sqlx::query("select 1 from run_leases where tenant_id = $1 and run_id = $2 and worker_id = $3")
        .bind(tenant.uuid())
        .bind(run.uuid())
        .bind(worker.uuid())
        .fetch_optional(tx.conn())
        .await?;
    Ok(held.is_some())
}

const RUN: &str =
    "run_id, tenant_id, status, goal, workflow_name, workflow_version, error, pending_approvals, cost, budget,
     parent_run_id, parent_step_id, created_by, created_at, finished_at,
     coalesce(last.ts, updated_at) as updated_at, coalesce(last.seq, last_seq) as last_seq";

/// How far a run is and when it moved last: its head stays where it is while nothing changes that it shows. By the
/// event's text, where `ts` stands before anything that a caller wrote: `->>` refuses all of it for one U+0000.
const LAST: &str = "left join lateral (
       select e.seq, substring(left(e.data::text, 256) from '\"ts\":\"([^\"]+)\"')::timestamptz as ts from run_events e
       where e.tenant_id = runs.tenant_id and e.run_id = runs.run_id order by e.seq desc limit 1
     ) last on true";

/// One run, whole.
pub(super) async fn get(tx: &mut TenantTx, tenant: TenantId, run: RunId) -> Result<Option<Run>> {
    let sql =
        format!("select {RUN}, plan, input, output, metadata from runs {LAST} where tenant_id = $1 and run_id = $2");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(tenant.uuid()).bind(run.uuid()).fetch_optional(tx.conn()).await?;
    row.map(|row| {
        let metadata = row.try_get("metadata")?;
        Ok(Run {
            summary: summary(&row)?,
            plan: row.try_get("plan")?,
            input: row.try_get("input")?,
            output: row.try_get("output")?,
            forked_from: forked_from(&metadata),
            metadata,
        })
    })
    .transpose()
}

/// A page of runs, newest first; one row more than `limit` where there are more.
pub(super) async fn list(
    tx: &mut TenantTx,
    tenant: TenantId,
    status: Option<Status>,
    workflow: Option<&Reference>,
    (limit, after): (usize, Option<Uuid>),
) -> Result<Vec<RunSummary>> {
    // Only what was asked for stands in the statement: its plan is one for any values.
    let asked = [
        (status.is_some(), "and status = $2"),
        (workflow.is_some(), "and workflow_name = $3"),
        (workflow.is_some_and(|workflow| workflow.version.is_some()), "and workflow_version = $4"),
        (after.is_some(), "and run_id < $5"),
    ];
    let asked: Vec<_> = asked.into_iter().filter_map(|(is_asked, clause)| is_asked.then_some(clause)).collect();
    let asked = asked.join(" ");
    let sql = format!("select {RUN} from runs {LAST} where tenant_id = $1 {asked} order by run_id desc limit $6");
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(status.map(Status::name))
        .bind(workflow.map(|workflow| &workflow.name))
        .bind(workflow.and_then(|workflow| workflow.version))
        .bind(after)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1))
        .fetch_all(tx.conn())
        .await?;
    rows.iter().map(summary).collect()
}

/// A page of the runs that are tasks of a kind, newest first; one row more than `limit` where there are more.
pub(super) async fn tasks(
    tx: &mut TenantTx,
    tenant: TenantId,
    kind: &str,
    (limit, after): (usize, Option<Uuid>),
) -> Result<Vec<RunSummary>> {
    let sql = format!(
        "select {RUN} from runs {LAST}
         where tenant_id = $1 and metadata ->> 'fermata.task' = $2 and ($3::uuid is null or run_id < $3)
         order by run_id desc limit $4"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(kind)
        .bind(after)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1))
        .fetch_all(tx.conn())
        .await?;
    rows.iter().map(summary).collect()
}

fn summary(row: &PgRow) -> Result<RunSummary> {
    let run_id = RunId::from_uuid(row.try_get("run_id")?);
    let status: &str = row.try_get("status")?;
    let workflow: Option<String> = row.try_get("workflow_name")?;
    let version: Option<i32> = row.try_get("workflow_version")?;
    let pending: Vec<Uuid> = row.try_get("pending_approvals")?;
    let parent_run: Option<Uuid> = row.try_get("parent_run_id")?;
    let parent_step: Option<String> = row.try_get("parent_step_id")?;
    let parent = match (parent_run, parent_step) {
        (Some(run), Some(step)) => Some(Parent { run_id: RunId::from_uuid(run), step_id: step.parse()? }),
        _ => None,
    };
    Ok(RunSummary {
        run_id,
        tenant_id: TenantId::from_uuid(row.try_get("tenant_id")?),
        status: Status::named(status).ok_or_else(|| Error::internal(format!("no status is called {status}")))?,
        goal: row.try_get("goal")?,
        workflow: workflow.zip(version).map(|(name, version)| format!("{name}@{version}")),
        error: row.try_get("error")?,
        pending_approvals: pending.into_iter().map(ApprovalId::from_uuid).collect(),
        cost: row.try_get("cost")?,
        budget: row.try_get("budget")?,
        parent,
        created_by: row.try_get::<String, _>("created_by")?.parse()?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        finished_at: row.try_get("finished_at")?,
        last_event_id: last_event_id(row.try_get("last_seq")?),
        links: Links::of(run_id),
    })
}

/// What a run is opened on.
#[derive(Debug)]
pub(super) struct Ground {
    /// How many live runs the tenant has; counted no further than asked.
    pub live_runs: u64,
    /// The definition that was asked for, and what it is called: name and version.
    pub definition: Option<(Definition, (String, i32))>,
}

/// Counts the tenant's live runs up to `most`, and finds a definition: of the newest version, unless one is asked for.
pub(super) async fn ground(
    tx: &mut TenantTx,
    tenant: TenantId,
    most: u64,
    reference: Option<&Reference>,
) -> Result<Ground> {
    let row = sqlx::query(
        "select live.runs, d.name, d.version, d.definition
         from (select count(*) as runs from (select from run_leases where tenant_id = $1 limit $2) as lease) as live
         left join lateral (
           select name, version, definition from workflow_definitions
           where tenant_id = $1 and name = $3 and ($4::integer is null or version = $4) order by version desc limit 1
         ) as d on true",
    )
    .bind(tenant.uuid())
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .bind(reference.map(|reference| &reference.name))
    .bind(reference.and_then(|reference| reference.version))
    .fetch_one(tx.conn())
    .await?;
    let live_runs = u64::try_from(row.try_get::<i64, _>("runs")?).map_err(Error::internal)?;
    let definition: Option<Json<Definition>> = row.try_get("definition")?;
    let name: Option<(String, i32)> = row.try_get::<Option<_>, _>("name")?.zip(row.try_get("version")?);
    let own = definition.map(|Json(definition)| definition).zip(name);
    let usual = |reference: &Reference| definition::usual(reference).transpose();
    let definition = own.map(Ok).or_else(|| reference.and_then(usual)).transpose()?;
    Ok(Ground { live_runs, definition })
}

/// A run that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub run_id: RunId,
    pub status: Status,
    pub output: Option<Value>,
    pub error: Option<Value>,
    pub cost: f64,
}

/// Those of the runs that have ended.
pub(super) async fn ended(tx: &mut TenantTx, tenant: TenantId, runs: &[RunId]) -> Result<Vec<Ended>> {
    let rows = sqlx::query(
        "select run_id, status, output, error, cost from runs
         where tenant_id = $1 and run_id = any ($2) and status in ('completed', 'failed', 'cancelled')",
    )
    .bind(tenant.uuid())
    .bind(runs.iter().map(|run| run.uuid()).collect::<Vec<_>>())
    .fetch_all(tx.conn())
    .await?;
    rows.iter()
        .map(|row| {
            let status: &str = row.try_get(1)?;
            let status =
                Status::named(status).ok_or_else(|| Error::internal(format!("no status is called {status}")))?;
            let run_id = RunId::from_uuid(row.try_get(0)?);
            Ok(Ended { run_id, status, output: row.try_get(2)?, error: row.try_get(3)?, cost: row.try_get(4)? })
        })
        .collect()
}

/// How many ancestors a run has.
pub(super) async fn depth(tx: &mut TenantTx, tenant: TenantId, run: RunId) -> Result<i64> {
    let row = sqlx::query(
        "with recursive line (run_id, depth) as (
             select parent_run_id, 1 from runs where tenant_id = $1 and run_id = $2 and parent_run_id is not null
             union all
             select r.parent_run_id, line.depth + 1 from runs r join line on r.run_id = line.run_id
             where r.tenant_id = $1 and r.parent_run_id is not null and line.depth < 100
         )
         select coalesce(max(depth), 0)::bigint from line",
    )
    .bind(tenant.uuid())
    .bind(run.uuid())
    .fetch_one(tx.conn())
    .await?;
    Ok(row.try_get(0)?)
}

/// Where a run stands, and whether it has its plan.
pub(super) async fn standing(tx: &mut TenantTx, tenant: TenantId, run: RunId) -> Result<Option<(Status, bool)>> {
    let row = sqlx::query("select status, plan is not null from runs where tenant_id = $1 and run_id = $2")
        .bind(tenant.uuid())
        .bind(run.uuid())
        .fetch_optional(tx.conn())
        .await?;
    let Some(row) = row else { return Ok(None) };
    let status: String = row.try_get(0)?;
    Ok(Status::named(&status).zip(Some(row.try_get(1)?)))
}
