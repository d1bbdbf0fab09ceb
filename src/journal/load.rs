use std::sync::Arc;

use serde_json::Value;
use sqlx::{Row, postgres::PgRow};

use super::{Body, Event, OnDenied, Parent, RunState, Stage, StepKey, event, store};
use crate::{
    db::TenantTx,
    kernel::{Actor, Error, Result, RunId, TenantId, Timestamp},
};

/// What never changes about a run after it was accepted.
#[derive(Clone, Debug)]
pub struct RunHead {
    /// What was asked for.
    pub goal: Option<String>,
    /// The definition and its version.
    pub workflow: Option<(String, i32)>,
    /// Its input.
    pub input: Arc<Value>,
    /// The most it may cost; all that it may take is in its state.
    pub budget: Option<f64>,
    /// The caller's own notes.
    pub metadata: Arc<Value>,
    /// Who started it.
    pub created_by: Actor,
    /// The run and step that started it.
    pub parent: Option<Parent>,
    /// When it was accepted.
    pub created_at: Timestamp,
}

impl RunHead {
    /// `name@version` of its definition.
    #[must_use]
    pub fn workflow_name(&self) -> Option<String> {
        self.workflow.as_ref().map(|(name, version)| format!("{name}@{version}"))
    }
}

/// A run as it stands.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What never changes.
    pub head: RunHead,
    /// What its events made of it.
    pub state: RunState,
}

/// Whether a load keeps other writers out until its transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// It only looks.
    Free,
    /// It is about to append.
    Held,
}

/// Loads runs by folding their events: one read however many runs there are. Runs that do not exist, for
/// these tenants, are left out, and so are those that retention has begun to drop.
///
/// # Errors
/// When the database is away or an event is of no form this version knows.
pub async fn load(tx: &mut TenantTx, runs: &[(TenantId, RunId)], lock: Lock) -> Result<Vec<Loaded>> {
    // A transaction that only reads keeps nobody out: its append is refused if the run moves meanwhile.
    let held = lock == Lock::Held && !tx.only_reads();
    let mut loaded = Vec::with_capacity(runs.len());
    for row in &store::runs(tx.conn(), runs, held).await? {
        loaded.extend(fold(row, |_, _, _| true)?);
    }
    fetch_outputs(tx, &mut loaded).await?;
    Ok(loaded)
}

/// Loads one run as [`load`] does, and lets `hear` have each of the events that shaped it, in order.
///
/// # Errors
/// As [`load`].
pub async fn recount(
    tx: &mut TenantTx,
    tenant: TenantId,
    run: RunId,
    mut hear: impl FnMut(Timestamp, &Event),
) -> Result<Option<Loaded>> {
    let hear = |_, ts, event: &Event| {
        hear(ts, event);
        true
    };
    load_one(tx, tenant, run, hear).await
}

/// Loads one run as it stood before the first of its events, by number, that is not `past`.
///
/// # Errors
/// As [`load`].
pub async fn load_past(
    tx: &mut TenantTx,
    tenant: TenantId,
    run: RunId,
    mut past: impl FnMut(u64, &Event) -> bool,
) -> Result<Option<Loaded>> {
    load_one(tx, tenant, run, |seq, _, event| past(seq, event)).await
}

async fn load_one(
    tx: &mut TenantTx,
    tenant: TenantId,
    run: RunId,
    past: impl FnMut(u64, Timestamp, &Event) -> bool,
) -> Result<Option<Loaded>> {
    let rows = store::runs(tx.conn(), &[(tenant, run)], false).await?;
    let Some(mut loaded) = rows.first().map(|row| fold(row, past)).transpose()?.flatten() else { return Ok(None) };
    fetch_outputs(tx, std::slice::from_mut(&mut loaded)).await?;
    Ok(Some(loaded))
}

/// Takes in the events until one is not `past`. Outputs that are kept apart are still to be fetched.
fn fold(row: &PgRow, mut past: impl FnMut(u64, Timestamp, &Event) -> bool) -> Result<Option<Loaded>> {
    let (mut state, head) = read_head(row)?;
    // Retention drops the first events first.
    let (Some(1), Some(last)) = (row.try_get::<Option<i64>, _>("first")?, row.try_get::<Option<i64>, _>("last")?)
    else {
        return Ok(None);
    };
    let mut last = u64::try_from(last).map_err(Error::internal)?;
    for text in row.try_get::<Option<Vec<String>>, _>("texts")?.unwrap_or_default() {
        let (seq, ts, event) = event::decode(&text)?;
        if !past(seq, ts, &event) {
            last = seq - 1;
            break;
        }
        state.apply(ts, &event);
    }
    // Reports of progress are not among them, and count.
    state.seq = last;
    Ok(Some(Loaded { head, state }))
}

fn read_head(row: &PgRow) -> Result<(RunState, RunHead)> {
    let created_by: Actor = row.try_get::<String, _>("created_by")?.parse()?;
    let on_denied = match row.try_get::<&str, _>("on_denied")? {
        "skip" => OnDenied::Skip,
        _ => OnDenied::Fail,
    };
    let tenant_id = TenantId::from_uuid(row.try_get("tenant_id")?);
    let run_id = RunId::from_uuid(row.try_get("run_id")?);
    let parent_run: Option<uuid::Uuid> = row.try_get("parent_run_id")?;
    let parent_step: Option<String> = row.try_get("parent_step_id")?;
    let parent = match (parent_run, parent_step) {
        (Some(run), Some(step)) => Some(Parent { run_id: RunId::from_uuid(run), step_id: step.parse()? }),
        _ => None,
    };
    let name: Option<String> = row.try_get("workflow_name")?;
    let version: Option<i32> = row.try_get("workflow_version")?;
    let head = RunHead {
        goal: row.try_get("goal")?,
        workflow: name.zip(version),
        input: Arc::new(row.try_get("input")?),
        budget: row.try_get("budget")?,
        metadata: Arc::new(row.try_get("metadata")?),
        created_by: created_by.clone(),
        parent,
        created_at: row.try_get("created_at")?,
    };
    let mut state = RunState::new(tenant_id, run_id, created_by, on_denied);
    state.purse.budget.cost = head.budget;
    Ok((state, head))
}

/// Puts outputs that were too large for their events back in place, of all the runs at once.
async fn fetch_outputs(tx: &mut TenantTx, loaded: &mut [Loaded]) -> Result<()> {
    let absent = |stage: &Stage| matches!(stage, Stage::Completed { output: None });
    let of_one = |(at, Loaded { state, .. }): (usize, &Loaded)| {
        let steps = state.steps.iter().filter(|(_, step)| absent(&step.stage));
        steps.map(|(key, _)| (at, state.tenant_id, state.run_id, key.to_string())).collect::<Vec<_>>()
    };
    let wanted: Vec<_> = loaded.iter().enumerate().flat_map(of_one).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    for (at, step, value) in store::outputs(tx.conn(), &wanted).await? {
        let key: StepKey = step.parse()?;
        let step = loaded.get_mut(at).and_then(|it| it.state.steps.get_mut(&key));
        if let Some(Stage::Completed { output }) = step.map(|step| &mut step.stage) {
            *output = Some(Arc::new(value));
        }
    }
    Ok(())
}

/// Whether an event ends its run.
#[must_use]
pub const fn is_terminal(body: &Body) -> bool {
    matches!(body, Body::Completed(_) | Body::Failed(_) | Body::Cancelled(_))
}
