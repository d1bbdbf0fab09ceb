use std::collections::HashMap;

use entity::{approval, approval_decision};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use super::{Approval, ApprovalStatus, DecisionRecord};
use crate::{
    db::{Rider, TenantTx, composite},
    journal::{Append, AwaitingApproval, Event, Question},
    kernel::{Actor, ApprovalId, Error, Result, RunId, TenantId, Timestamp},
};

/// A question, as it was journaled.
#[derive(Clone)]
pub(super) struct Asked {
    tenant_id: Uuid,
    run_id: Uuid,
    approval_id: Uuid,
    step_id: Option<String>,
    attempt: Option<i32>,
    question: &'static str,
    action: String,
    tool_version: String,
    arguments: String,
    digest: String,
    cost_estimate: Option<f64>,
    reason: Option<String>,
    scope: Vec<String>,
    requires: Vec<String>,
    approvers: Vec<String>,
    self_approval: bool,
    asked_at: Timestamp,
    expires_at: Option<Timestamp>,
    form: Option<String>,
}

impl Asked {
    pub(super) fn of(append: &Append, event: &Event, asked: &AwaitingApproval) -> Result<Self> {
        Ok(Self {
            tenant_id: append.tenant_id.uuid(),
            run_id: append.run_id.uuid(),
            approval_id: asked.approval_id.uuid(),
            step_id: event.step.as_ref().map(ToString::to_string),
            attempt: event.attempt.and_then(|attempt| i32::try_from(attempt).ok()),
            question: match asked.question {
                Question::Consent => "consent",
                Question::Repeat => "repeat",
                Question::Budget => "budget",
                Question::Input => "input",
            },
            action: asked.action.clone(),
            tool_version: asked.tool_version.clone(),
            arguments: serde_json::to_string(&asked.arguments).map_err(Error::internal)?,
            digest: asked.digest.clone(),
            cost_estimate: asked.cost_estimate,
            reason: asked.reason.clone(),
            scope: asked.scope.clone(),
            requires: asked.requires.clone(),
            approvers: asked.approvers.clone(),
            self_approval: asked.self_approval,
            asked_at: append.at,
            expires_at: asked.expires_at,
            form: asked.form.as_ref().map(serde_json::to_string).transpose().map_err(Error::internal)?,
        })
    }
}

/// The outcome of a question.
#[derive(Clone)]
pub(super) struct Settled {
    tenant_id: Uuid,
    run_id: Uuid,
    approval_id: Uuid,
    status: &'static str,
    decided_by: Option<String>,
    decided_at: Timestamp,
}

impl Settled {
    pub(super) fn of(append: &Append, approval_id: ApprovalId, status: &'static str, by: Option<&Actor>) -> Self {
        Self {
            tenant_id: append.tenant_id.uuid(),
            run_id: append.run_id.uuid(),
            approval_id: approval_id.uuid(),
            status,
            decided_by: by.map(ToString::to_string),
            decided_at: append.at,
        }
    }
}

/// What somebody said, for the record.
#[derive(Clone)]
struct Said {
    tenant_id: Uuid,
    run_id: Uuid,
    approval_id: Uuid,
    decided_by: String,
    status: &'static str,
    reason: Option<String>,
    digest: String,
    claimed_at: Option<Timestamp>,
    decided_at: Timestamp,
}

composite! {
    Asked = "approval_hold"
        (tenant_id, run_id, approval_id, step_id, attempt, question, action, tool_version, arguments, digest,
         cost_estimate, reason, scope, requires, approvers, self_approval, asked_at, expires_at, form);
    Settled = "approval_settled" (tenant_id, run_id, approval_id, status, decided_by, decided_at);
    Said = "approval_said"
        (tenant_id, run_id, approval_id, decided_by, status, reason, digest, claimed_at, decided_at);
}

/// Writes questions, and then outcomes: each once, since only a pending one can be settled.
pub(super) fn riders(asked: Vec<Asked>, settled: Vec<Settled>) -> Vec<Rider> {
    let asked = (!asked.is_empty()).then(|| Rider::new("ask_approvals", asked));
    let settled = (!settled.is_empty()).then(|| Rider::new("settle_approvals", settled));
    asked.into_iter().chain(settled).collect()
}

/// Writes what somebody said of an approval of that run.
pub(super) fn said(tenant: TenantId, run_id: RunId, approval_id: ApprovalId, said: &DecisionRecord) -> Rider {
    let row = Said {
        tenant_id: tenant.uuid(),
        run_id: run_id.uuid(),
        approval_id: approval_id.uuid(),
        decided_by: said.decided_by.to_string(),
        status: said.status.name(),
        reason: said.reason.clone(),
        digest: said.digest.clone(),
        claimed_at: said.claimed_at,
        decided_at: said.decided_at,
    };
    Rider::new("record_decisions", vec![row])
}

/// The newest approval of a step, an open one first.
pub(super) async fn latest_of(
    tx: &mut TenantTx,
    tenant: TenantId,
    run_id: RunId,
    step: &str,
) -> Result<Option<ApprovalId>> {
    let row = sqlx::query(
        "select approval_id from approvals where tenant_id = $1 and run_id = $2 and step_id = $3
         order by (status = 'pending') desc, approval_id desc limit 1",
    )
    .bind(tenant.uuid())
    .bind(run_id.uuid())
    .bind(step)
    .fetch_optional(tx.conn())
    .await?;
    row.map(|row| Ok(ApprovalId::from_uuid(row.try_get(0)?))).transpose()
}

/// One approval as it was asked, without what was said of it.
pub(super) async fn asked(tx: &TenantTx, tenant: TenantId, approval_id: ApprovalId) -> Result<Option<Approval>> {
    let row = approval::Entity::find_by_id((tenant.uuid(), approval_id.uuid())).one(tx).await?;
    row.map(|row| read(row, Vec::new())).transpose()
}

/// One approval with what was said of it.
pub(super) async fn get(tx: &TenantTx, tenant: TenantId, approval_id: ApprovalId) -> Result<Option<Approval>> {
    let Some(row) = approval::Entity::find_by_id((tenant.uuid(), approval_id.uuid())).one(tx).await? else {
        return Ok(None);
    };
    Ok(with_decisions(tx, tenant, vec![row]).await?.pop())
}

/// A page of the inbox, newest first; one row more than `limit` where there are more.
pub(super) async fn list(
    tx: &TenantTx,
    tenant: TenantId,
    status: Option<ApprovalStatus>,
    run_id: Option<RunId>,
    (limit, after): (usize, Option<Uuid>),
) -> Result<Vec<Approval>> {
    let mut query = approval::Entity::find().filter(approval::Column::TenantId.eq(tenant.uuid()));
    if let Some(status) = status {
        query = query.filter(approval::Column::Status.eq(status.name()));
    }
    if let Some(run_id) = run_id {
        query = query.filter(approval::Column::RunId.eq(run_id.uuid()));
    }
    if let Some(after) = after {
        query = query.filter(approval::Column::ApprovalId.lt(after));
    }
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let rows = query.order_by_desc(approval::Column::ApprovalId).limit(most).all(tx).await?;
    with_decisions(tx, tenant, rows).await
}

/// Adds what was said: one read for all rows.
async fn with_decisions(tx: &TenantTx, tenant: TenantId, rows: Vec<approval::Model>) -> Result<Vec<Approval>> {
    let ids = rows.iter().map(|row| row.approval_id);
    let mut decisions: HashMap<Uuid, Vec<DecisionRecord>> = HashMap::new();
    let said = approval_decision::Entity::find()
        .filter(approval_decision::Column::TenantId.eq(tenant.uuid()))
        .filter(approval_decision::Column::ApprovalId.is_in(ids))
        .order_by_asc(approval_decision::Column::DecidedAt)
        .all(tx)
        .await?;
    for one in said {
        decisions.entry(one.approval_id).or_default().push(DecisionRecord {
            decided_by: one.decided_by.parse()?,
            status: word(&one.status)?,
            reason: one.reason,
            digest: one.digest,
            claimed_at: one.claimed_at,
            decided_at: one.decided_at,
        });
    }
    rows.into_iter()
        .map(|row| {
            let decisions = decisions.remove(&row.approval_id).unwrap_or_default();
            read(row, decisions)
        })
        .collect()
}

fn read(row: approval::Model, decisions: Vec<DecisionRecord>) -> Result<Approval> {
    Ok(Approval {
        approval_id: ApprovalId::from_uuid(row.approval_id),
        run_id: RunId::from_uuid(row.run_id),
        step_id: row.step_id,
        attempt: u32::try_from(row.attempt).map_err(Error::internal)?,
        question: word(&row.question)?,
        status: word(&row.status)?,
        action: row.action,
        tool_version: row.tool_version,
        arguments: row.arguments,
        digest: row.digest,
        cost_estimate: row.cost_estimate,
        reason: row.reason,
        scope: serde_json::from_value(row.scope).map_err(Error::internal)?,
        requires: serde_json::from_value(row.requires).map_err(Error::internal)?,
        approvers: serde_json::from_value(row.approvers).map_err(Error::internal)?,
        self_approval: row.self_approval,
        asked_by: row.asked_by.parse()?,
        asked_at: row.asked_at,
        expires_at: row.expires_at,
        form: row.form.map(serde_json::from_value).transpose().map_err(Error::internal)?,
        decided_by: row.decided_by.as_deref().map(str::parse).transpose()?,
        decided_at: row.decided_at,
        decisions,
    })
}

/// A column's word as the enum that goes over the wire.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(Error::internal)
}
