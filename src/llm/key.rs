use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::store;
use crate::{
    audit,
    auth::Vault,
    db::TenantTx,
    http::{Ctx, Permit},
    kernel::{Actor, Error, Result, TenantId, Timestamp, check_name, wire_time},
};

/// A key as anybody may see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeySummary {
    /// Its name, by which configurations mean it.
    #[schema(example = "our-openai")]
    pub name: String,
    /// Who sealed it.
    pub created_by: Actor,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub created_at: Timestamp,
}

/// The keys that tenants seal for their own models: they go in, and come out for a call only.
#[derive(Clone, Debug)]
pub struct Keys {
    vault: Vault,
}

/// The longest secret, in bytes.
const LONGEST: usize = 8192;

impl Keys {
    /// Sealed by `vault`.
    #[must_use]
    pub fn new(vault: Vault) -> Self {
        Self { vault }
    }

    /// Seals a secret under a name, in place of what was there; says whether the name is new.
    pub(super) async fn put<P: Permit>(
        &self,
        tx: &mut TenantTx,
        ctx: &Ctx<P>,
        name: String,
        secret: &SecretString,
    ) -> Result<(KeySummary, bool)> {
        check_name(&name)?;
        let text = secret.expose_secret();
        // It goes into a header.
        if text.is_empty() || text.len() > LONGEST || !text.bytes().all(|b| b.is_ascii_graphic()) {
            let detail = format!("`secret` has 1 to {LONGEST} visible ASCII characters");
            return Err(Error::invalid("secret", detail));
        }
        let sealed = self.vault.seal(secret, &purpose(ctx.tenant_id, &name), rand::random())?;
        let key = KeySummary { name, created_by: ctx.actor(), created_at: ctx.now() };
        let new = store::put_key(tx, ctx.tenant_id, &key, &sealed).await?;
        audit::deed(tx, ctx, "llm.key.put", &key.name, json!({})).await?;
        Ok((key, new))
    }

    /// Deletes a key; the next call that needs it fails.
    pub(super) async fn delete<P: Permit>(&self, tx: &mut TenantTx, ctx: &Ctx<P>, name: &str) -> Result<()> {
        if !store::delete_key(tx, name).await? {
            return Err(Error::not_found("key"));
        }
        audit::deed(tx, ctx, "llm.key.delete", name, json!({})).await
    }

    /// Opens a key for a call; none if there is no key of that name.
    ///
    /// # Errors
    /// Those of the database, and when the vault does not open it.
    pub async fn open(&self, tx: &mut TenantTx, tenant: TenantId, name: &str) -> Result<Option<SecretString>> {
        let sealed = store::key(tx, name).await?;
        sealed.map(|sealed| self.vault.open(&sealed, &purpose(tenant, name))).transpose()
    }
}

fn purpose(tenant: TenantId, name: &str) -> String {
    format!("{tenant} llm_keys {name}")
}
