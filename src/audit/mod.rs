//! Who did what to which thing: appended in the transaction of the deed, never changed.

mod store;

use serde_json::Value;

use crate::{
    db::TenantTx,
    http::{Ctx, Permit},
    kernel::Result,
};

pub use store::{Entry, record, rider};

/// Appends the entry of what the bearer does to `target` in `tx`; `detail` is a JSON object without secrets.
///
/// # Errors
/// Those of the database.
pub async fn deed<P: Permit>(
    tx: &mut TenantTx,
    ctx: &Ctx<P>,
    action: &'static str,
    target: &str,
    detail: Value,
) -> Result<()> {
    let entry = Entry {
        tenant_id: ctx.tenant_id,
        actor: &ctx.actor(),
        action,
        target,
        detail,
        request_id: Some(&ctx.request_id),
        at: ctx.now(),
    };
    record(tx, &entry).await
}
