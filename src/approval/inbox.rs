use super::store;
use crate::{
    db::Rider,
    journal::{Append, Body, Projection},
    kernel::Result,
};

/// Keeps the table of approvals in step with the journal, in the journal's own commits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inbox;

impl Projection for Inbox {
    fn riders(&self, appends: &[&Append]) -> Result<Vec<Rider>> {
        let (mut asked, mut settled) = (Vec::new(), Vec::new());
        for append in appends {
            for event in &append.events {
                let (approval_id, status, by) = match &event.body {
                    Body::AwaitingApproval(question) => {
                        asked.push(store::Asked::of(append, event, question)?);
                        continue;
                    }
                    Body::Approved(approved) => (approved.approval_id, "approved", Some(&approved.by)),
                    Body::Denied(denied) => (denied.approval_id, "denied", Some(&denied.by)),
                    Body::ApprovalExpired(expired) => (expired.approval_id, "expired", None),
                    Body::ApprovalCancelled(gone) => (gone.approval_id, "cancelled", None),
                    _ => continue,
                };
                settled.push(store::Settled::of(append, approval_id, status, by));
            }
        }
        Ok(store::riders(asked, settled))
    }
}
