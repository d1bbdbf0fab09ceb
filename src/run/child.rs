//! Child runs: how a step starts one, hears of its end, and takes it along when the parent is cancelled.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{
    service::{Opening, Request, Runs, Source},
    store::{self, Ended},
};
use crate::{
    db::{Database, TenantTx},
    journal::{self, Command, Failure, Lock, Parent, Plan, RunState, Stage, Status, Taken, Wait},
    kernel::{Actor, Clock, Error, Problem, Result, RunId, TenantId},
    tool::{self, Call, ChildRequest, ChildRuns, ChildSource, ToolError},
};

/// How deep runs may start runs.
const DEPTH: i64 = 16;

/// Looks after the children of runs.
#[derive(Clone, Debug)]
pub struct Children {
    db: Database,
    runs: Runs,
    clock: Clock,
}

impl Children {
    /// Starts and cancels through `runs`.
    #[must_use]
    pub fn new(db: Database, runs: Runs, clock: Clock) -> Self {
        Self { db, runs, clock }
    }

    /// What became of the children that steps wait for, as commands for the parent.
    pub(super) async fn ended(&self, parent: &RunState) -> Result<Vec<Command>> {
        let waiting: Vec<_> = parent
            .open_steps()
            .filter_map(|(key, step)| match step.stage {
                Stage::Waiting { wait: Wait::Child { child_run_id }, .. } => Some((key, step.attempt, child_run_id)),
                _ => None,
            })
            .collect();
        if waiting.is_empty() {
            return Ok(vec![]);
        }
        let ids: Vec<_> = waiting.iter().map(|(_, _, child)| *child).collect();
        let mut tx = self.db.tenant(parent.tenant_id).await?;
        let ended = store::ended(&mut tx, parent.tenant_id, &ids).await?;
        let taken = Self::taken(&mut tx, parent, &ended).await?;
        let commands = waiting.into_iter().filter_map(|(key, attempt, child)| {
            let one = ended.iter().find(|ended| ended.run_id == child)?;
            let end = match one.status {
                Status::Completed => Ok(Arc::new(tool::child_output(parent.step(key)?, child, one.output.clone()))),
                _ => Err(not_completed(one)),
            };
            let counted = taken.iter().find(|(run, _)| *run == child).map(|(_, taken)| *taken);
            let taken = counted.unwrap_or(Taken { cost: one.cost, ..Taken::default() });
            Some(Command::Return { step: key.clone(), attempt, end, taken })
        });
        Ok(commands.collect())
    }

    /// What runs that have ended took, where the parent's budget asks for more than the money.
    async fn taken(tx: &mut TenantTx, parent: &RunState, ended: &[Ended]) -> Result<Vec<(RunId, Taken)>> {
        if parent.purse.budget.is_empty() || ended.is_empty() {
            return Ok(vec![]);
        }
        let runs: Vec<_> = ended.iter().map(|ended| (parent.tenant_id, ended.run_id)).collect();
        let loaded = journal::load(tx, &runs, Lock::Free).await?;
        Ok(loaded.into_iter().map(|run| (run.state.run_id, run.state.taken())).collect())
    }

    /// The plan that a model made of a run, with the versions of the models that its steps name.
    pub(super) async fn pin(&self, tenant_id: TenantId, plan: &Plan, input: &Arc<Value>) -> Result<Plan> {
        let mut tx = self.db.tenant(tenant_id).await?;
        self.runs.pin(&mut tx, plan.clone(), input).await
    }

    /// Cancels a child in the name of its parent; one that has ended stays as it is.
    pub(super) async fn cancel(&self, parent: &RunState, child: RunId) -> Result<()> {
        let mut tx = self.db.tenant(parent.tenant_id).await?;
        let command = Command::Cancel { by: Actor::Run(parent.run_id), reason: Some("its parent ends".to_owned()) };
        match self.runs.move_run(&mut tx, parent.tenant_id, child, command, self.clock.now(), vec![]).await {
            Ok(_) => tx.commit().await,
            Err(error) if matches!(error.problem(), Problem::Conflict | Problem::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn open(&self, call: &Call, child: ChildRequest) -> Result<RunId> {
        let mut tx = self.db.tenant(call.tenant_id).await?;
        if store::depth(&mut tx, call.tenant_id, call.run_id).await? >= DEPTH {
            return Err(Error::invalid("workflow", format!("runs start runs {DEPTH} deep at most")));
        }
        let opening = Opening {
            tenant_id: call.tenant_id,
            run_id: child.run_id,
            // The child acts for whoever started the parent, who therefore may not approve it either.
            by: call.actor.clone(),
            parent: Some(Parent { run_id: call.run_id, step_id: call.step.clone() }),
            request_id: None,
            now: self.clock.now(),
        };
        let request = Request {
            goal: child.goal,
            source: match child.source {
                ChildSource::Workflow(name) => Source::Workflow(name),
                ChildSource::Agent(plan) => Source::Plan(plan),
            },
            input: child.input,
            budget: child.budget,
            on_denied: None,
            retry: None,
            metadata: json!({}),
            foresight: None,
            execute: true,
        };
        let run = self.runs.open(&mut tx, opening, request).await?;
        tx.commit().await?;
        Ok(run.summary.run_id)
    }
}

fn not_completed(child: &Ended) -> Failure {
    let Ended { run_id, status, error, .. } = child;
    let why = error.as_ref().and_then(|error| error["message"].as_str());
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    let message = format!("the child run {run_id} was {}{why}", status.name());
    let error = error.as_ref().map(|error| json!({ "code": error["code"], "message": error["message"] }));
    let detail = Some(Box::new(json!({ "runId": run_id, "status": status, "error": error })));
    Failure { detail, ..Failure::new("child_not_completed", message) }
}

#[async_trait]
impl ChildRuns for Children {
    async fn start(&self, call: &Call, child: ChildRequest) -> Result<RunId, ToolError> {
        call.patiently(|| self.open(call, child.clone())).await.map_err(|error| ToolError::idempotent(&error))
    }
}
