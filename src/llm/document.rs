use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::store;
use crate::{
    audit,
    db::TenantTx,
    http::{Ctx, Permit, RequestId},
    kernel::{Actor, Error, Pinned, Result, TenantId, Timestamp, check_name, wire_time},
};

/// What is put by name and kept in versions.
pub trait DocumentKind: Serialize + DeserializeOwned + PartialEq + Send + Sync + 'static {
    /// What the table calls it.
    const KIND: &'static str;
    /// What people call it.
    const NOUN: &'static str;
    /// What the audit log calls a put.
    const PUT: &'static str;
    /// What the audit log calls a deletion.
    const DELETE: &'static str;

    /// Whether it can be put under that name.
    ///
    /// # Errors
    /// Invalid (422), naming the field.
    fn check(&self, name: &str) -> Result<()>;

    /// The provider and the model, of a configuration.
    fn model(&self) -> Option<(String, String)> {
        None
    }
}

/// One version of a named document.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Document<T> {
    /// Its name.
    #[schema(example = "support")]
    pub name: String,
    /// Its version, from 1; 0 is what the server brings along.
    #[schema(minimum = 0, example = 3)]
    pub version: i32,
    /// What was put.
    pub body: T,
    /// Who put it.
    pub created_by: Actor,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub created_at: Timestamp,
}

impl<T> Document<T> {
    /// What the server brings along: version 0.
    #[must_use]
    pub fn brought(name: &str, body: T) -> Self {
        Self { name: name.to_owned(), version: 0, body, created_by: Actor::System, created_at: Timestamp::UNIX_EPOCH }
    }

    /// `name@version`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

impl<T: DocumentKind> Document<T> {
    /// This very version.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        let model = if self.version == 0 { self.body.model() } else { None };
        Pinned { name: self.name.clone(), version: self.version, model }
    }
}

/// Whose document it is, and who writes it.
#[derive(Clone, Debug)]
pub struct Author {
    /// The tenant.
    pub tenant_id: TenantId,
    /// Who.
    pub actor: Actor,
    /// By which request, where it is by one.
    pub request_id: Option<RequestId>,
    /// When.
    pub now: Timestamp,
}

impl Author {
    /// Whoever asks.
    pub fn of<P: Permit>(ctx: &Ctx<P>) -> Self {
        let request_id = Some(ctx.request_id.clone());
        Self { tenant_id: ctx.tenant_id, actor: ctx.actor(), request_id, now: ctx.now() }
    }

    /// Records what they do to `target` in `tx`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn deed(&self, tx: &mut TenantTx, action: &'static str, target: &str, detail: Value) -> Result<()> {
        let (tenant_id, actor, request_id, at) = (self.tenant_id, &self.actor, self.request_id.as_ref(), self.now);
        audit::record(tx, &audit::Entry { tenant_id, actor, action, target, detail, request_id, at }).await
    }
}

/// Makes `body` the next version of its name, with its entry in the audit log; nothing, if the newest version says the
/// same. Says which version it is, and whether it is new.
pub(super) async fn put<T: DocumentKind>(
    tx: &mut TenantTx,
    author: &Author,
    name: String,
    body: T,
) -> Result<(Document<T>, bool)> {
    check_name(&name)?;
    body.check(&name)?;
    store::lock(tx, author.tenant_id, T::KIND, &name).await?;
    let newest = store::newest::<T>(tx, &name).await?;
    let next = newest.as_ref().map_or(1, |(version, _)| version + 1);
    if let Some((_, Some(same))) = newest.filter(|(_, newest)| newest.as_ref().is_some_and(|it| it.body == body)) {
        return Ok((same, false));
    }
    let document = Document { name, version: next, body, created_by: author.actor.clone(), created_at: author.now };
    store::insert(tx, author.tenant_id, &document).await?;
    author.deed(tx, T::PUT, &document.name, json!({ "version": next })).await?;
    Ok((document, true))
}

/// Puts a name out of use; its versions stay for the runs that pinned them.
pub(super) async fn delete<T: DocumentKind, P: Permit>(tx: &mut TenantTx, ctx: &Ctx<P>, name: &str) -> Result<()> {
    store::lock(tx, ctx.tenant_id, T::KIND, name).await?;
    let Some((version, Some(_))) = store::newest::<T>(tx, name).await? else { return Err(Error::not_found(T::NOUN)) };
    store::bury::<T>(tx, ctx.tenant_id, name, version + 1, &ctx.actor(), ctx.now()).await?;
    audit::deed(tx, ctx, T::DELETE, name, json!({ "version": version + 1 })).await
}
