//! The journal's SQL: heads, events, steps and claims of many runs in one transaction, and the way back.

use std::collections::{HashMap, HashSet};

use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::append::{Append, Claim};
use crate::kernel::{Result, RunId, TenantId, Timestamp};

/// Moves the heads that stand where the appends expect them; returns the runs that moved.
pub(super) async fn move_heads(conn: &mut PgConnection, appends: &[&Append]) -> Result<HashSet<RunId>> {
    let columns = |f: fn(&Append) -> Uuid| appends.iter().map(|a| f(a)).collect::<Vec<_>>();
    let seqs =
        |f: fn(&Append) -> u64| appends.iter().map(|a| i64::try_from(f(a)).unwrap_or(i64::MAX)).collect::<Vec<_>>();
    let texts = |f: fn(&Append) -> Option<&str>| appends.iter().map(|a| f(a)).collect::<Vec<_>>();
    let pending = |a: &&Append| a.head.pending.iter().map(|id| id.uuid().to_string()).collect::<Vec<_>>().join(",");
    let rows = sqlx::query(
        "update runs r
         set status = a.status, last_seq = a.last_seq, cost = a.cost, error = a.error::json,
             plan = coalesce(a.plan::json, r.plan), output = coalesce(a.output::json, r.output),
             pending_approvals = coalesce(string_to_array(nullif(a.pending, ''), ',')::uuid[], '{}'),
             updated_at = a.at, finished_at = case when a.ended then a.at end
         from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::text[], $6::float8[], $7::text[],
                     $8::text[], $9::text[], $10::text[], $11::timestamptz[], $12::bool[])
              as a (tenant_id, run_id, expected, last_seq, status, cost, error, plan, output, pending, at, ended)
         where (r.tenant_id, r.run_id, r.last_seq) = (a.tenant_id, a.run_id, a.expected)
         returning r.run_id",
    )
    .bind(columns(|a| a.tenant_id.uuid()))
    .bind(columns(|a| a.run_id.uuid()))
    .bind(seqs(|a| a.expected))
    .bind(seqs(|a| a.head.last_seq))
    .bind(appends.iter().map(|a| a.head.status).collect::<Vec<_>>())
    .bind(appends.iter().map(|a| a.head.cost).collect::<Vec<_>>())
    .bind(texts(|a| a.head.error.as_deref()))
    .bind(texts(|a| a.head.plan.as_deref()))
    .bind(texts(|a| a.head.output.as_deref()))
    .bind(appends.iter().map(pending).collect::<Vec<_>>())
    .bind(appends.iter().map(|a| a.at).collect::<Vec<_>>())
    .bind(appends.iter().map(|a| a.head.ended).collect::<Vec<_>>())
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| Ok(RunId::from_uuid(row.try_get(0)?))).collect()
}

/// Writes the events, as they will be sent.
pub(super) async fn insert_events(conn: &mut PgConnection, appends: &[&Append]) -> Result<()> {
    let frames = || appends.iter().flat_map(|a| a.frames.iter().map(move |frame| (a, frame)));
    if frames().next().is_none() {
        return Ok(());
    }
    let data = |bytes| std::str::from_utf8(bytes).map_err(crate::kernel::Error::internal);
    sqlx::query(
        "insert into run_events (tenant_id, run_id, seq, name, data)
         select * from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::json[])",
    )
    .bind(frames().map(|(a, _)| a.tenant_id.uuid()).collect::<Vec<_>>())
    .bind(frames().map(|(a, _)| a.run_id.uuid()).collect::<Vec<_>>())
    .bind(frames().map(|(_, f)| i64::try_from(f.seq).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .bind(frames().map(|(_, f)| f.name).collect::<Vec<_>>())
    .bind(frames().map(|(_, f)| data(&f.data)).collect::<Result<Vec<_>>>()?)
    .execute(conn)
    .await?;
    Ok(())
}

/// Brings the step rows up to date.
pub(super) async fn upsert_steps(conn: &mut PgConnection, appends: &[&Append]) -> Result<()> {
    let steps = || appends.iter().flat_map(|a| a.steps.iter().map(move |step| (a, step)));
    if steps().next().is_none() {
        return Ok(());
    }
    sqlx::query(
        "insert into run_steps as s (tenant_id, run_id, step_id, status, attempt, tool, arguments, output, error,
                                     started_at, finished_at, updated_at)
         select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::int[], $6::text[], $7::json[],
                              $8::json[], $9::json[], $10::timestamptz[], $11::timestamptz[], $12::timestamptz[])
         on conflict (tenant_id, run_id, step_id) do update
         set status = excluded.status, attempt = excluded.attempt, error = excluded.error,
             arguments = coalesce(excluded.arguments, s.arguments), output = coalesce(excluded.output, s.output),
             started_at = coalesce(s.started_at, excluded.started_at), finished_at = excluded.finished_at,
             updated_at = excluded.updated_at",
    )
    .bind(steps().map(|(a, _)| a.tenant_id.uuid()).collect::<Vec<_>>())
    .bind(steps().map(|(a, _)| a.run_id.uuid()).collect::<Vec<_>>())
    .bind(steps().map(|(_, s)| s.step_id.as_str()).collect::<Vec<_>>())
    .bind(steps().map(|(_, s)| s.status).collect::<Vec<_>>())
    .bind(steps().map(|(_, s)| i32::try_from(s.attempt).unwrap_or(i32::MAX)).collect::<Vec<_>>())
    .bind(steps().map(|(_, s)| s.tool.as_str()).collect::<Vec<_>>())
    .bind(steps().map(|(_, s)| s.arguments.as_deref()).collect::<Vec<_>>())
    .bind(steps().map(|(_, s)| s.output.as_deref()).collect::<Vec<_>>())
    .bind(steps().map(|(_, s)| s.error.as_deref()).collect::<Vec<_>>())
    .bind(steps().map(|(_, s)| s.started_at).collect::<Vec<_>>())
    .bind(steps().map(|(_, s)| s.finished_at).collect::<Vec<_>>())
    .bind(steps().map(|(a, _)| a.at).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

/// Settles who works on the runs next: released, due, or, once ended, nobody, and their parents are due.
pub(super) async fn settle_claims(conn: &mut PgConnection, appends: &[&Append]) -> Result<()> {
    let mut released: (Vec<Uuid>, Vec<Uuid>, Vec<Uuid>, Vec<Option<Timestamp>>) = Default::default();
    let mut due: (Vec<Uuid>, Vec<Uuid>, Vec<Timestamp>) = Default::default();
    let mut ended: (Vec<Uuid>, Vec<Uuid>) = Default::default();
    let mut parents: (Vec<Uuid>, Vec<Uuid>, Vec<Timestamp>) = Default::default();
    for append in appends {
        let (tenant, run) = (append.tenant_id.uuid(), append.run_id.uuid());
        match append.claim {
            _ if append.head.ended => {
                ended.0.push(tenant);
                ended.1.push(run);
                if let Some(parent) = append.parent {
                    parents.0.push(tenant);
                    parents.1.push(parent.uuid());
                    parents.2.push(append.at);
                }
            }
            Claim::Keep => {}
            Claim::Release { worker, due_at } => {
                released.0.push(tenant);
                released.1.push(run);
                released.2.push(worker.uuid());
                released.3.push(due_at);
            }
            Claim::Due => {
                due.0.push(tenant);
                due.1.push(run);
                due.2.push(append.at);
            }
        }
    }
    if !released.0.is_empty() {
        // A wake-up that came while the run was claimed is in `due_at` and must outlive the release.
        sqlx::query(
            "update run_leases l set worker_id = null, due_at = least(l.due_at, a.due_at)
             from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[]) as a (tenant_id, run_id, worker_id, due_at)
             where (l.tenant_id, l.run_id, l.worker_id) = (a.tenant_id, a.run_id, a.worker_id)",
        )
        .bind(released.0)
        .bind(released.1)
        .bind(released.2)
        .bind(released.3)
        .execute(&mut *conn)
        .await?;
    }
    if !due.0.is_empty() {
        sqlx::query(
            "insert into run_leases as l (tenant_id, run_id, due_at)
             select * from unnest($1::uuid[], $2::uuid[], $3::timestamptz[])
             on conflict (tenant_id, run_id) do update set due_at = least(l.due_at, excluded.due_at)",
        )
        .bind(due.0)
        .bind(due.1)
        .bind(due.2)
        .execute(&mut *conn)
        .await?;
    }
    if !ended.0.is_empty() {
        sqlx::query(
            "delete from run_leases l using unnest($1::uuid[], $2::uuid[]) as a (tenant_id, run_id)
             where (l.tenant_id, l.run_id) = (a.tenant_id, a.run_id)",
        )
        .bind(ended.0)
        .bind(ended.1)
        .execute(&mut *conn)
        .await?;
    }
    if !parents.0.is_empty() {
        sqlx::query(
            "update run_leases l set due_at = least(l.due_at, a.at)
             from unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) as a (tenant_id, run_id, at)
             where (l.tenant_id, l.run_id) = (a.tenant_id, a.run_id)",
        )
        .bind(parents.0)
        .bind(parents.1)
        .bind(parents.2)
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// A new run's row, before its first event.
#[derive(Debug)]
pub struct NewRun<'a> {
    /// What was asked for.
    pub goal: Option<&'a str>,
    /// The definition and its version.
    pub workflow: Option<(&'a str, i32)>,
    /// Its input.
    pub input: &'a serde_json::Value,
    /// The most it may cost.
    pub budget: Option<f64>,
    /// What a denial means where the step does not say.
    pub on_denied: super::OnDenied,
    /// The caller's own notes.
    pub metadata: &'a serde_json::Value,
    /// The run and step that start it.
    pub parent: Option<&'a super::Parent>,
}

/// Writes the row; false when a run of that id is there already (a child that was started before).
pub(super) async fn insert_run(
    conn: &mut PgConnection,
    state: &super::RunState,
    run: &NewRun<'_>,
    at: Timestamp,
) -> Result<bool> {
    let done = sqlx::query(
        "insert into runs (tenant_id, run_id, status, last_seq, goal, workflow_name, workflow_version, input, budget,
                           on_denied, metadata, created_by, parent_run_id, parent_step_id, created_at, updated_at)
         values ($1, $2, 'idle', 0, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13)
         on conflict (tenant_id, run_id) do nothing",
    )
    .bind(state.tenant_id.uuid())
    .bind(state.run_id.uuid())
    .bind(run.goal)
    .bind(run.workflow.map(|(name, _)| name))
    .bind(run.workflow.map(|(_, version)| version))
    .bind(run.input)
    .bind(run.budget)
    .bind(match run.on_denied {
        super::OnDenied::Fail => "fail",
        super::OnDenied::Skip => "skip",
    })
    .bind(run.metadata)
    .bind(state.created_by.to_string())
    .bind(run.parent.map(|parent| parent.run_id.uuid()))
    .bind(run.parent.map(|parent| parent.step_id.to_string()))
    .bind(at)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The heads of the runs that exist; locked against every other writer when `lock` is set.
pub(super) async fn heads(conn: &mut PgConnection, runs: &[(TenantId, RunId)], lock: bool) -> Result<Vec<PgRow>> {
    let (tenants, ids) = columns(runs);
    let select =
        "select r.tenant_id, r.run_id, r.last_seq, r.goal, r.workflow_name, r.workflow_version, r.input, r.budget,
                r.on_denied, r.metadata, r.created_by, r.parent_run_id, r.parent_step_id, r.created_at
         from runs r join unnest($1::uuid[], $2::uuid[]) as a (tenant_id, run_id)
           on (r.tenant_id, r.run_id) = (a.tenant_id, a.run_id)";
    let locked =
        "select r.tenant_id, r.run_id, r.last_seq, r.goal, r.workflow_name, r.workflow_version, r.input, r.budget,
                r.on_denied, r.metadata, r.created_by, r.parent_run_id, r.parent_step_id, r.created_at
         from runs r join unnest($1::uuid[], $2::uuid[]) as a (tenant_id, run_id)
           on (r.tenant_id, r.run_id) = (a.tenant_id, a.run_id)
         order by r.tenant_id, r.run_id for update of r";
    Ok(sqlx::query(if lock { locked } else { select }).bind(tenants).bind(ids).fetch_all(conn).await?)
}

/// The events that shape a run's state, in order; reports of progress are left out.
pub(super) async fn past(
    conn: &mut PgConnection,
    runs: &[(TenantId, RunId)],
) -> Result<HashMap<RunId, Vec<(u64, String)>>> {
    let (tenants, ids) = columns(runs);
    let rows = sqlx::query(
        "select e.run_id, e.seq, e.data::text
         from run_events e join unnest($1::uuid[], $2::uuid[]) as a (tenant_id, run_id)
           on (e.tenant_id, e.run_id) = (a.tenant_id, a.run_id)
         where e.name <> 'tool.progress'
         order by e.run_id, e.seq",
    )
    .bind(tenants)
    .bind(ids)
    .fetch_all(conn)
    .await?;
    let mut past: HashMap<RunId, Vec<(u64, String)>> = HashMap::new();
    for row in rows {
        let seq = u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or_default();
        past.entry(RunId::from_uuid(row.try_get(0)?)).or_default().push((seq, row.try_get(2)?));
    }
    Ok(past)
}

/// Outputs that were too large for their events.
pub(super) async fn outputs(
    conn: &mut PgConnection,
    tenant: TenantId,
    run: RunId,
    steps: &[String],
) -> Result<Vec<(String, serde_json::Value)>> {
    let rows = sqlx::query(
        "select step_id, output from run_steps
         where tenant_id = $1 and run_id = $2 and step_id = any ($3) and output is not null",
    )
    .bind(tenant.uuid())
    .bind(run.uuid())
    .bind(steps)
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

fn columns(runs: &[(TenantId, RunId)]) -> (Vec<Uuid>, Vec<Uuid>) {
    runs.iter().map(|(tenant, run)| (tenant.uuid(), run.uuid())).unzip()
}
