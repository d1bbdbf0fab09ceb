use async_trait::async_trait;

use super::store;
use crate::{
    db::TenantTx,
    journal::{Append, Body, Projection},
    kernel::Result,
};

/// Keeps the table of approvals in step with the journal, in the journal's own commits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inbox;

#[async_trait]
impl Projection for Inbox {
    fn concerns(&self, append: &Append) -> bool {
        append.events.iter().any(|event| {
            matches!(
                event.body,
                Body::AwaitingApproval(_)
                    | Body::Approved(_)
                    | Body::Denied(_)
                    | Body::ApprovalExpired(_)
                    | Body::ApprovalCancelled(_)
            )
        })
    }

    async fn project(&self, tx: &mut TenantTx, appends: &[&Append]) -> Result<()> {
        for append in appends {
            for event in &append.events {
                let (approval_id, status, by) = match &event.body {
                    Body::AwaitingApproval(asked) => {
                        store::insert(tx, append, event, asked).await?;
                        continue;
                    }
                    Body::Approved(approved) => (approved.approval_id, "approved", Some(&approved.by)),
                    Body::Denied(denied) => (denied.approval_id, "denied", Some(&denied.by)),
                    Body::ApprovalExpired(expired) => (expired.approval_id, "expired", None),
                    Body::ApprovalCancelled(gone) => (gone.approval_id, "cancelled", None),
                    _ => continue,
                };
                store::settle(tx, append.tenant_id, approval_id, (status, by), append.at).await?;
            }
        }
        Ok(())
    }
}
