use serde_json::Value;
use uuid::Uuid;

use crate::{
    db::{Rider, TenantTx, composite},
    http::RequestId,
    kernel::{Actor, Id, Kind, Result, RunId, TenantId, Timestamp},
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

/// An entry as its table has it.
#[derive(Clone)]
struct Row {
    /// The run whose append it is about.
    mover: Option<Uuid>,
    tenant_id: Uuid,
    audit_id: Uuid,
    at: Timestamp,
    actor: String,
    action: &'static str,
    target: String,
    detail: String,
    request_id: Option<String>,
}

composite! {
    Row = "audit_entry" (mover, tenant_id, audit_id, at, actor, action, target, detail, request_id);
}

impl Row {
    fn of(entry: &Entry<'_>, mover: Option<RunId>) -> Self {
        Self {
            mover: mover.map(|run| run.uuid()),
            tenant_id: entry.tenant_id.uuid(),
            audit_id: Id::<AuditKind>::new(entry.at).uuid(),
            at: entry.at,
            actor: entry.actor.to_string(),
            action: entry.action,
            target: entry.target.to_owned(),
            detail: entry.detail.to_string(),
            request_id: entry.request_id.map(|id| id.as_str().to_owned()),
        }
    }
}

/// An entry that rides along with the append of `run` that is the deed.
#[must_use]
pub fn rider(run: RunId, entry: &Entry<'_>) -> Rider {
    Rider::new("record_audit", vec![Row::of(entry, Some(run))])
}

/// Appends the entry of a deed that is no append; it becomes true with the deed, when `tx` commits.
///
/// # Errors
/// Those of the database.
pub async fn record(tx: &mut TenantTx, entry: &Entry<'_>) -> Result<()> {
    sqlx::query("select record_audit(null, $1)").bind(vec![Row::of(entry, None)]).execute(tx.conn()).await?;
    Ok(())
}
