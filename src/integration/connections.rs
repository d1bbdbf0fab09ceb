use std::sync::Arc;

use secrecy::ExposeSecret;
use serde_json::json;
use tokio_util::task::TaskTracker;

use super::{
    connection::{Connection, ConnectionBody, ConnectionStatus},
    grant::Secret,
    store::{self, Kept},
};
use crate::{
    audit,
    auth::Vault,
    config::OauthSettings,
    db::{Database, TenantTx},
    http::{Ctx, Outbound, Permit},
    kernel::{Clock, ConnectionId, Error, Page, PageQuery, Result, TenantId, check_name},
};

/// Connections of one tenant.
const CONNECTIONS: usize = 256;

/// The connections of this installation's tenants. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections {
    pub(super) db: Database,
    pub(super) clock: Clock,
    pub(super) vault: Vault,
    pub(super) outbound: Arc<Outbound>,
    /// Pages that providers may send people back to.
    pub(super) redirects: Arc<[String]>,
    /// What has to be finished, whoever still waits for it.
    pub(super) tasks: TaskTracker,
}

impl Connections {
    /// Sealed by `vault`, with providers that are reached through `outbound`.
    #[must_use]
    pub fn new(
        (db, clock): (Database, Clock),
        (vault, outbound): (Vault, Arc<Outbound>),
        settings: &OauthSettings,
        tasks: &TaskTracker,
    ) -> Self {
        let (redirects, tasks) = (settings.redirects.clone().into(), tasks.clone());
        Self { db, clock, vault, outbound, redirects, tasks }
    }

    /// Puts a connection; says whether its name is new. What was granted stays if it is for the same resource and client,
    /// else the provider is told that nobody uses it any more.
    ///
    /// # Errors
    /// Invalid (422), naming the field; conflict, where this server has nothing to seal with.
    pub(super) async fn put<P: Permit>(
        &self,
        ctx: &Ctx<P>,
        name: String,
        body: ConnectionBody,
    ) -> Result<(Connection, bool)> {
        check_name(&name)?;
        let body = body.check()?;
        let mut tx = ctx.begin().await?;
        let before = store::held(&mut tx, &name).await?;
        let dropped = before.clone();
        let (connection, new) = self.put_over(&mut tx, ctx, name, (before, body)).await?;
        tx.commit().await?;
        if let Some(dropped) = dropped.filter(|_| connection.grant.is_none()) {
            self.give_back_later(ctx.tenant_id, dropped);
        }
        Ok((connection, new))
    }

    async fn put_over<P: Permit>(
        &self,
        tx: &mut TenantTx,
        ctx: &Ctx<P>,
        name: String,
        (before, body): (Option<Kept>, ConnectionBody),
    ) -> Result<(Connection, bool)> {
        let (client, now) = (body.known_client(), ctx.now());
        let new = before.is_none();
        if new && store::all(tx).await?.len() >= CONNECTIONS {
            return Err(Error::invalid("name", format!("there are {CONNECTIONS} connections already; delete one")));
        }
        let connection = Connection {
            connection_id: before.as_ref().map_or_else(|| ConnectionId::new(now), |it| it.connection.connection_id),
            name,
            url: body.url,
            status: ConnectionStatus::Pending,
            scopes: body.scopes,
            client,
            grant: None,
            created_by: before.as_ref().map_or_else(|| ctx.actor(), |it| it.connection.created_by.clone()),
            created_at: before.as_ref().map_or(now, |it| it.connection.created_at),
            updated_at: now,
        };
        let secret = body.client.and_then(|client| client.secret);
        let of = (ctx.tenant_id, connection.connection_id);
        let sealed = secret.map(|secret| Secret::Client.seal(&self.vault, of, &secret.expose_secret())).transpose()?;
        let kept = match before {
            Some(before) if before.connection.is_for_the_same(&connection) => {
                if before.connection.scopes == connection.scopes && sealed.is_none() {
                    return Ok((before.connection, false));
                }
                let client_secret = sealed.or(before.client_secret);
                let connection = Connection { scopes: connection.scopes, updated_at: now, ..before.connection };
                Kept { connection, client_secret, ..before }
            }
            before => {
                store::forget(tx, connection.connection_id).await?;
                // Left out, the secret of the same client stays, whatever it is to be let into.
                let same = before.filter(|before| before.connection.client == connection.client);
                let client_secret = sealed.or_else(|| same.and_then(|before| before.client_secret));
                Kept { connection, client_secret, grant: None, renew_at: None }
            }
        };
        store::write(tx, ctx.tenant_id, &kept).await?;
        audit::deed(tx, ctx, "connection.put", &kept.connection.name, json!({ "url": kept.connection.url })).await?;
        Ok((kept.connection, new))
    }

    /// Deletes a connection with its tokens, and has the provider told that nobody uses them any more.
    ///
    /// # Errors
    /// Not found.
    pub(super) async fn delete<P: Permit>(&self, ctx: &Ctx<P>, name: &str) -> Result<()> {
        let mut tx = ctx.begin().await?;
        let kept = store::held(&mut tx, name).await?.ok_or_else(|| Error::not_found("connection"))?;
        store::delete(&mut tx, name).await?;
        audit::deed(&mut tx, ctx, "connection.delete", name, json!({})).await?;
        tx.commit().await?;
        self.give_back_later(ctx.tenant_id, kept);
        Ok(())
    }

    /// Has the provider told that nobody uses these tokens any more, which is committed.
    pub(super) fn give_back_later(&self, tenant: TenantId, kept: Kept) {
        // In a task of its own: they are gone from here whatever the provider makes of it.
        self.tasks.spawn(self.clone().give_back(tenant, kept));
    }
}

/// The connection of that name.
///
/// # Errors
/// Not found.
pub(super) async fn get<P: Permit>(ctx: &Ctx<P>, name: &str) -> Result<Connection> {
    let found = store::find(&mut ctx.begin_reading().await?, name).await?;
    found.map(|kept| kept.connection).ok_or_else(|| Error::not_found("connection"))
}

/// All connections, by name.
///
/// # Errors
/// When the page asked for is none.
pub(super) async fn list<P: Permit>(ctx: &Ctx<P>, query: &PageQuery) -> Result<Page<Connection>> {
    let all = store::all(&mut ctx.begin_reading().await?).await?;
    query.cut(all.into_iter().map(|kept| kept.connection).collect())
}
