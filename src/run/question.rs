//! Questions that a tenant's people are asked where no run of theirs is at it: each is a run of its own, in the name of
//! nobody, whose one step is held.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;

use super::{
    job,
    service::{Opening, Request, Runs, Source},
};
use crate::{
    db::TenantTx,
    journal::{Command, OnDenied, Plan},
    kernel::{Actor, Problem, Result, RunId, TenantId, Timestamp},
    tool::{Question, Questions},
};

/// What the run's metadata calls it.
const KIND: &str = "question";

#[async_trait]
impl Questions for Runs {
    async fn ask(
        &self,
        tx: &mut TenantTx,
        (tenant_id, run_id): (TenantId, RunId),
        question: Question,
        now: Timestamp,
    ) -> Result<()> {
        let opening = Opening { tenant_id, run_id, by: Actor::System, parent: None, request_id: None, now };
        let request = Request {
            goal: Some(question.goal),
            source: Source::Plan(Plan { steps: vec![Arc::new(question.step)], ..Plan::default() }),
            input: json!({}),
            budget: None,
            // That nobody wants it is an answer too.
            on_denied: Some(OnDenied::Skip),
            retry: None,
            metadata: json!({ job::TASK: KIND }),
            foresight: None,
            execute: true,
        };
        self.open(tx, opening, request).await.map(drop)
    }

    async fn withdraw(
        &self,
        tx: &mut TenantTx,
        (tenant_id, run_id): (TenantId, RunId),
        by: &Actor,
        now: Timestamp,
    ) -> Result<()> {
        let command = Command::Cancel { by: by.clone(), reason: Some("nobody needs to answer any more".to_owned()) };
        match self.move_run(tx, tenant_id, run_id, command, now, vec![]).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.problem(), Problem::Conflict | Problem::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
