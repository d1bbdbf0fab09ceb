use serde_json::Value;

use crate::{
    db::TenantTx,
    http::RequestId,
    kernel::{Actor, Id, Kind, Result, TenantId, Timestamp},
};

#[derive(Debug)]
enum AuditKind {}

impl Kind for AuditKind {
    const PREFIX: &'static str = "aud";
    const NOUN: &'static str = "audit entry";
}

/// One entry of the audit log.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Whose log it is.
    pub tenant_id: TenantId,
    /// Who did it.
    pub actor: &'a Actor,
    /// What was done: a dotted name in the past's vocabulary, as `run.cancel` or `workflow.put`.
    pub action: &'static str,
    /// To which thing: its id or name.
    pub target: &'a str,
    /// What else is worth knowing; a JSON object without secrets.
    pub detail: Value,
    /// The request it was done by, where there was one.
    pub request_id: Option<&'a RequestId>,
    /// When.
    pub at: Timestamp,
}

/// Appends an entry; it becomes true with the deed, when `tx` commits.
///
/// # Errors
/// Those of the database.
pub async fn record(tx: &mut TenantTx, entry: Entry<'_>) -> Result<()> {
    sqlx::query(
        "insert into audit_log (tenant_id, audit_id, at, actor, action, target, detail, request_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(entry.tenant_id.uuid())
    .bind(Id::<AuditKind>::new(entry.at).uuid())
    .bind(entry.at)
    .bind(entry.actor.to_string())
    .bind(entry.action)
    .bind(entry.target)
    .bind(entry.detail)
    .bind(entry.request_id.map(RequestId::as_str))
    .execute(tx.conn())
    .await?;
    Ok(())
}
