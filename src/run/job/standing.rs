use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::TASK;
use crate::{
    db::TenantTx,
    journal::{self, Loaded, Lock, Phase, RunState, Stage, Status, StepKey},
    kernel::{Error, Result, RunId, TenantId},
    run::{store, view::RunSummary},
};

/// The step that asks, in the workflows that the server brings along.
const STEP: &str = "ask";

/// What a task cannot go on without.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum WaitingFor {
    /// Somebody's decision: `GET /approvals` has the question.
    Approval,
}

/// A task as it stands.
pub(super) struct Standing {
    pub(super) summary: RunSummary,
    run: Loaded,
    /// What its run gave.
    output: Option<Value>,
}

impl Standing {
    /// The tasks of these runs, in their order.
    pub(super) async fn of(tx: &mut TenantTx, tenant: TenantId, summaries: Vec<RunSummary>) -> Result<Vec<Self>> {
        let ids: Vec<_> = summaries.iter().map(|summary| summary.run_id).collect();
        let keys: Vec<_> = ids.iter().map(|id| (tenant, *id)).collect();
        let mut runs = journal::load(tx, &keys, Lock::Free).await?;
        // After the runs: what has ended by then has its output.
        let ended = store::ended(tx, tenant, &ids).await?;
        let mut outputs: HashMap<_, _> = ended.into_iter().map(|ended| (ended.run_id, ended.output)).collect();
        let standing = summaries.into_iter().filter_map(|summary| {
            let at = runs.iter().position(|run| run.state.run_id == summary.run_id)?;
            let output = outputs.remove(&summary.run_id).flatten();
            Some(Self { output, summary, run: runs.swap_remove(at) })
        });
        Ok(standing.collect())
    }

    /// One task, if the run is one of these kinds.
    pub(super) async fn find(tx: &mut TenantTx, tenant: TenantId, id: RunId, kinds: &[&str]) -> Result<Self> {
        let not_found = || Error::not_found("task");
        let run = store::get(tx, tenant, id).await?.ok_or_else(not_found)?;
        if !run.metadata.get(TASK).and_then(Value::as_str).is_some_and(|kind| kinds.contains(&kind)) {
            return Err(not_found());
        }
        Self::of(tx, tenant, vec![run.summary]).await?.pop().ok_or_else(not_found)
    }

    pub(super) fn state(&self) -> &RunState {
        &self.run.state
    }

    pub(super) fn status(&self) -> Status {
        self.run.state.status()
    }

    /// What has to come before it goes on.
    pub(super) fn waiting_for(&self) -> Option<WaitingFor> {
        (self.status() == Status::AwaitingApproval).then_some(WaitingFor::Approval)
    }

    /// A part of what the model gave, once the run is through.
    pub(super) fn part(&self, name: &str) -> Option<String> {
        match (self.status(), self.run.state.stage(&StepKey::whole(STEP))) {
            (Status::Completed, Some(Stage::Completed { output: Some(output) })) => {
                output.get(name).and_then(Value::as_str).map(str::to_owned)
            }
            _ => None,
        }
    }

    /// What came of it: the run's output, or else the model's words, or a sound in base64.
    pub(super) fn result(&self) -> Option<String> {
        match self.output.as_ref().filter(|_| self.status() == Status::Completed) {
            Some(Value::String(text)) => Some(text.clone()),
            None | Some(Value::Null) => self.part("text").or_else(|| self.part("audio")),
            Some(other) => Some(other.to_string()),
        }
    }

    /// Why it came to nothing.
    pub(super) fn error(&self) -> Option<String> {
        match &self.run.state.phase {
            Phase::Failed(failure) => Some(format!("{}: {}", failure.code, failure.message)),
            Phase::Cancelled => Some("cancelled".to_owned()),
            _ => None,
        }
    }
}
