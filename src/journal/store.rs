//! The journal's SQL: heads, events, steps and claims of many runs in one transaction, and the way back.

use std::{collections::HashSet, error::Error as _};

use sqlx::{
    Arguments, AssertSqlSafe, PgConnection, Postgres, Row,
    error::{BoxDynError, DatabaseError},
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use super::{
    Status,
    append::{Append, Claim},
};
use crate::{
    db::{Rider, composite},
    kernel::{Error, Result, RunId, TenantId, Timestamp},
};

/// The rows of one append, as the types of the database have them.
#[derive(Default)]
struct Rows<'a> {
    runs: Vec<Uuid>,
    openings: Vec<Opening<'a>>,
    heads: Vec<Head<'a>>,
    events: Vec<Event<'a>>,
    steps: Vec<Step<'a>>,
    claims: Vec<Settle>,
}

struct Opening<'a> {
    tenant_id: Uuid,
    run_id: Uuid,
    goal: Option<&'a str>,
    workflow_name: Option<&'a str>,
    workflow_version: Option<i32>,
    input: &'a str,
    budget: Option<f64>,
    on_denied: &'static str,
    metadata: &'a str,
    created_by: &'a str,
    parent_run_id: Option<Uuid>,
    parent_step_id: Option<&'a str>,
}

struct Head<'a> {
    tenant_id: Uuid,
    run_id: Uuid,
    expected: i64,
    last_seq: i64,
    status: &'static str,
    ended: bool,
    pending: Vec<Uuid>,
    cost: f64,
    plan: Option<&'a str>,
    output: Option<&'a str>,
    error: Option<&'a str>,
    at: Timestamp,
}

struct Event<'a> {
    tenant_id: Uuid,
    run_id: Uuid,
    seq: i64,
    /// The first one of its append.
    leads: bool,
    name: &'static str,
    data: &'a str,
}

/// A step whose output is too large for its event.
struct Step<'a> {
    tenant_id: Uuid,
    run_id: Uuid,
    step_id: &'a str,
    status: &'static str,
    attempt: i32,
    tool: &'a str,
    arguments: Option<&'a str>,
    output: &'a str,
    error: Option<&'a str>,
    started_at: Option<Timestamp>,
    finished_at: Timestamp,
    at: Timestamp,
}

/// What becomes of the claim on a run.
struct Settle {
    tenant_id: Uuid,
    run_id: Uuid,
    /// The run whose append says so.
    mover: Uuid,
    settle: &'static str,
    worker_id: Option<Uuid>,
    due_at: Option<Timestamp>,
}

composite! {
    Opening<'_> = "run_opening"
        (tenant_id, run_id, goal, workflow_name, workflow_version, input, budget, on_denied, metadata, created_by,
         parent_run_id, parent_step_id);
    Head<'_> = "run_head"
        (tenant_id, run_id, expected, last_seq, status, ended, pending, cost, plan, output, error, at);
    Event<'_> = "run_next" (tenant_id, run_id, seq, leads, name, data);
    Step<'_> = "run_step"
        (tenant_id, run_id, step_id, status, attempt, tool, arguments, output, error, started_at, finished_at, at);
    Settle = "run_claim" (tenant_id, run_id, mover, settle, worker_id, due_at);
}

impl<'a> Rows<'a> {
    fn add(&mut self, append: &'a Append) -> Result<()> {
        let (tenant_id, run_id, at) = (append.tenant_id.uuid(), append.run_id.uuid(), append.at);
        self.runs.push(run_id);
        self.openings.extend(append.opening.as_ref().map(|opening| Opening {
            tenant_id,
            run_id,
            goal: opening.goal.as_deref(),
            workflow_name: opening.workflow.as_ref().map(|(name, _)| name.as_str()),
            workflow_version: opening.workflow.as_ref().map(|(_, version)| *version),
            input: &opening.input,
            budget: opening.budget,
            on_denied: opening.on_denied,
            metadata: &opening.metadata,
            created_by: &opening.created_by,
            parent_run_id: append.parent.map(|parent| parent.uuid()),
            parent_step_id: opening.parent_step.as_deref(),
        }));
        self.heads.extend(append.head.as_ref().map(|head| Head {
            tenant_id,
            run_id,
            expected: signed(append.expected),
            last_seq: signed(head.last_seq),
            status: head.shown.status.name(),
            ended: head.shown.status.is_terminal(),
            pending: head.shown.pending.iter().map(|id| id.uuid()).collect(),
            cost: head.shown.cost,
            plan: head.plan.as_deref(),
            output: head.output.as_deref(),
            error: head.error.as_deref(),
            at,
        }));
        for frame in &append.frames {
            let data = std::str::from_utf8(&frame.data).map_err(Error::internal)?;
            let leads = frame.seq == append.expected + 1;
            self.events.push(Event { tenant_id, run_id, seq: signed(frame.seq), leads, name: frame.name, data });
        }
        self.steps.extend(append.outputs.iter().map(|row| Step {
            tenant_id,
            run_id,
            step_id: &row.step_id,
            status: "completed",
            attempt: i32::try_from(row.attempt).unwrap_or(i32::MAX),
            tool: &row.tool,
            arguments: None,
            output: &row.output,
            error: None,
            started_at: None,
            finished_at: at,
            at,
        }));
        self.settle(append);
        Ok(())
    }

    /// Who works on the run next: whoever claims it, or, once it ended, nobody, and its parent is due.
    fn settle(&mut self, append: &Append) {
        let (tenant_id, run_id, at) = (append.tenant_id.uuid(), append.run_id.uuid(), append.at);
        let own = Settle { tenant_id, run_id, mover: run_id, settle: "due", worker_id: None, due_at: Some(at) };
        match append.claim {
            _ if append.status.is_terminal() => {
                let parent = append.parent.map(|parent| parent.uuid());
                self.claims.extend(parent.map(|run_id| Settle { run_id, settle: "nudge", ..own }));
                self.claims.push(Settle { settle: "end", ..own });
            }
            Claim::Keep => {}
            // A plan that stands waits for nobody here: the run is not live until it is to begin.
            Claim::Release { due_at: None, .. } if append.status == Status::Planning => {
                self.claims.push(Settle { settle: "end", ..own });
            }
            Claim::Release { worker, due_at } => {
                let worker_id = Some(worker.uuid());
                self.claims.push(Settle { settle: "release", worker_id, due_at, ..own });
            }
            Claim::Due => self.claims.push(own),
            Claim::Take(worker) => {
                self.claims.push(Settle { settle: "take", worker_id: Some(worker.uuid()), ..own });
            }
        }
    }
}

/// Writes the appends, with what rides along, and answers as [`written`] reads it; or none of them, where
/// [`is_overtaken`] is true of the error. The statement names its tenants by itself where `named` has them, as a
/// transaction of its own.
pub(super) fn append(
    named: Option<&str>,
    appends: &[&Append],
    riders: &[Rider],
) -> Result<Query<'static, Postgres, PgArguments>> {
    let mut rows = Rows::default();
    // One order for all, so that two writers cannot wait for each other.
    let mut appends = appends.to_vec();
    appends.sort_unstable_by_key(|append| (append.tenant_id, append.run_id));
    appends.iter().try_for_each(|append| rows.add(append))?;
    let mut arguments = PgArguments::default();
    let mut add = || -> Result<(), BoxDynError> {
        arguments.add(named)?;
        arguments.add(&rows.runs)?;
        arguments.add(&rows.openings)?;
        arguments.add(&rows.heads)?;
        arguments.add(&rows.events)?;
        arguments.add(&rows.steps)?;
        arguments.add(&rows.claims)?;
        riders.iter().try_for_each(|rider| rider.bind(&mut arguments))
    };
    add().map_err(|error| Error::internal(error.to_string()))?;
    // Each rider is handed the runs by the one before it, which orders them.
    let mut sql = "select w.moved, w.taken from append_events($1, $2, $3, $4, $5, $6, $7) w".to_owned();
    let mut before = "w".to_owned();
    for (at, rider) in (8..).zip(riders) {
        sql = format!("{sql}, {}({before}.moved, ${at}) r{at} (moved)", rider.function);
        before = format!("r{at}");
    }
    Ok(sqlx::query_with(AssertSqlSafe(sql), arguments))
}

/// What [`append`] did: the runs that moved, and those a worker took.
pub(super) fn written(row: &PgRow) -> Result<Written> {
    let ids = |column: &str| -> Result<HashSet<RunId>> {
        Ok(row.try_get::<Vec<Uuid>, _>(column)?.into_iter().map(RunId::from_uuid).collect())
    };
    Ok(Written { moved: ids("moved")?, taken: ids("taken")? })
}

/// Whether an append was refused because a run does not stand where it expects it.
pub(super) fn is_overtaken(error: &Error) -> bool {
    let driver = error.source().and_then(|source| source.downcast_ref::<sqlx::Error>());
    driver.and_then(sqlx::Error::as_database_error).and_then(DatabaseError::constraint) == Some("run_events_pkey")
}

/// What an append did.
#[derive(Debug)]
pub(super) struct Written {
    /// The runs that it wrote.
    pub(super) moved: HashSet<RunId>,
    /// Those of them that a worker took.
    pub(super) taken: HashSet<RunId>,
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The runs that exist, each with the events that shape its state (reports of progress are left out); locked against
/// every other writer when `lock` is set.
pub(super) async fn runs(conn: &mut PgConnection, runs: &[(TenantId, RunId)], lock: bool) -> Result<Vec<PgRow>> {
    let (tenants, ids): (Vec<_>, Vec<_>) = runs.iter().map(|(tenant, run)| (tenant.uuid(), run.uuid())).unzip();
    // Of a single run the planner knows that it is one, and keeps the plan.
    let asked = match runs {
        [_] => "(select ($1::uuid[])[1], ($2::uuid[])[1])",
        _ => "unnest($1::uuid[], $2::uuid[])",
    };
    // One run at a time by its key, whatever the planner thinks of the table's size.
    let sql = format!(
        "select r.*, p.first, p.last, p.texts from {asked} as a (tenant_id, run_id)
         cross join lateral (
           select tenant_id, run_id, goal, workflow_name, workflow_version, input, budget, on_denied,
                  metadata, created_by, parent_run_id, parent_step_id, created_at
           from runs where tenant_id = a.tenant_id and run_id = a.run_id limit 1
         ) r
         cross join lateral run_past(r.tenant_id, r.run_id, $3) p"
    );
    Ok(sqlx::query(AssertSqlSafe(sql)).bind(tenants).bind(ids).bind(lock).fetch_all(conn).await?)
}

/// Outputs that were too large for their events.
pub(super) async fn outputs(
    conn: &mut PgConnection,
    wanted: &[(usize, TenantId, RunId, String)],
) -> Result<Vec<(usize, String, serde_json::Value)>> {
    let (mut places, mut tenants, mut runs, mut steps) = (vec![], vec![], vec![], vec![]);
    for (place, tenant, run, step) in wanted {
        places.push(i64::try_from(*place).map_err(Error::internal)?);
        tenants.push(tenant.uuid());
        runs.push(run.uuid());
        steps.push(step.as_str());
    }
    let rows = sqlx::query(
        "select w.place, s.step_id, s.output
         from unnest($1::bigint[], $2::uuid[], $3::uuid[], $4::text[]) as w (place, tenant_id, run_id, step_id)
         join run_steps s on s.tenant_id = w.tenant_id and s.run_id = w.run_id and s.step_id = w.step_id
         where s.output is not null",
    )
    .bind(places)
    .bind(tenants)
    .bind(runs)
    .bind(steps)
    .fetch_all(conn)
    .await?;
    let read = |row: &PgRow| {
        let place = usize::try_from(row.try_get::<i64, _>(0)?).map_err(Error::internal)?;
        Ok((place, row.try_get(1)?, row.try_get(2)?))
    };
    rows.iter().map(read).collect()
}
