use std::collections::HashMap;

use entity::{approval, approval_decision};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use serde_json::{Value, json};
use sqlx::Row;
use uuid::Uuid;

use super::{Answer, Approval, ApprovalStatus, DecisionRecord};
use crate::{
    db::TenantTx,
    journal::{Append, AwaitingApproval, Event, Question},
    kernel::{Actor, ApprovalId, Error, Result, RunId, TenantId, Timestamp},
};

/// A question, as it was journaled.
pub(super) async fn insert(tx: &mut TenantTx, append: &Append, event: &Event, asked: &AwaitingApproval) -> Result<()> {
    let step = event.step.as_ref().map(ToString::to_string);
    sqlx::query(
        "insert into approvals (tenant_id, approval_id, run_id, step_id, attempt, question, status, action,
                                tool_version, arguments, digest, cost_estimate, reason, scope, requires,
                                self_approval, asked_by, asked_at, expires_at)
         select $1, $2, $3, $4, $5, $6, 'pending', $7, $8, $9, $10, $11, $12, $13, $14, $15, r.created_by, $16, $17
         from runs r where r.tenant_id = $1 and r.run_id = $3",
    )
    .bind(append.tenant_id.uuid())
    .bind(asked.approval_id.uuid())
    .bind(append.run_id.uuid())
    .bind(step)
    .bind(event.attempt.and_then(|attempt| i32::try_from(attempt).ok()))
    .bind(match asked.question {
        Question::Consent => "consent",
        Question::Repeat => "repeat",
    })
    .bind(&asked.action)
    .bind(&asked.tool_version)
    .bind(sqlx::types::Json(&*asked.arguments))
    .bind(&asked.digest)
    .bind(asked.cost_estimate)
    .bind(&asked.reason)
    .bind(json!(asked.scope))
    .bind(json!(asked.requires))
    .bind(asked.self_approval)
    .bind(append.at)
    .bind(asked.expires_at)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The outcome of a question, once: only a pending one can be settled.
pub(super) async fn settle(
    tx: &mut TenantTx,
    tenant: TenantId,
    approval_id: ApprovalId,
    (status, by): (&str, Option<&Actor>),
    at: Timestamp,
) -> Result<()> {
    let done = sqlx::query(
        "update approvals set status = $3, decided_by = $4, decided_at = $5
         where tenant_id = $1 and approval_id = $2 and status = 'pending'",
    )
    .bind(tenant.uuid())
    .bind(approval_id.uuid())
    .bind(status)
    .bind(by.map(ToString::to_string))
    .bind(at)
    .execute(tx.conn())
    .await?;
    if done.rows_affected() == 1 {
        Ok(())
    } else {
        Err(Error::internal(format!("{approval_id} is not pending in the table, though it is in the journal")))
    }
}

/// The run that an approval belongs to.
pub(super) async fn run_of(tx: &mut TenantTx, tenant: TenantId, approval_id: ApprovalId) -> Result<Option<RunId>> {
    let row = sqlx::query("select run_id from approvals where tenant_id = $1 and approval_id = $2")
        .bind(tenant.uuid())
        .bind(approval_id.uuid())
        .fetch_optional(tx.conn())
        .await?;
    row.map(|row| Ok(RunId::from_uuid(row.try_get(0)?))).transpose()
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

/// What somebody said, for the record.
pub(super) async fn record(
    tx: &mut TenantTx,
    tenant: TenantId,
    approval_id: ApprovalId,
    by: &Actor,
    answer: &Answer,
    digest: &str,
    at: Timestamp,
) -> Result<()> {
    sqlx::query(
        "insert into approval_decisions (tenant_id, approval_id, decided_by, status, reason, digest, claimed_at, decided_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.uuid())
    .bind(approval_id.uuid())
    .bind(by.to_string())
    .bind(answer.status.name())
    .bind(&answer.reason)
    .bind(digest)
    .bind(answer.claimed_at)
    .bind(at)
    .execute(tx.conn())
    .await?;
    Ok(())
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
                self_approval: row.self_approval,
                asked_by: row.asked_by.parse()?,
                asked_at: row.asked_at,
                expires_at: row.expires_at,
                decided_by: row.decided_by.as_deref().map(str::parse).transpose()?,
                decided_at: row.decided_at,
                decisions,
            })
        })
        .collect()
}

/// A column's word as the enum that goes over the wire.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(Error::internal)
}
