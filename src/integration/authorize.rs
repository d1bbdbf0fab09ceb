//! How a connection comes to be: a person is sent to the provider, and whoever sent them brings back its answer.

use secrecy::ExposeSecret;
use serde_json::json;

use super::{
    attempt::{self, Attempt, AuthorizationUrl, CallbackBody},
    connection::{Connection, ConnectionStatus, GrantSummary, is_way_back},
    connections::Connections,
    grant::{Grant, Secret},
    provider::{Begun, Provider, patiently},
    store::{self, Kept},
};
use crate::{
    audit,
    http::{Ctx, Permit},
    kernel::{ConnectionId, Error, Result, TenantId},
};

impl Connections {
    /// Begins an authorization: where to send the person, and what is to come back kept for whoever begins.
    ///
    /// # Errors
    /// Not found; invalid (422), naming the field, also where the provider cannot be had; conflict.
    pub(super) async fn authorize<P: Permit>(
        &self,
        ctx: &Ctx<P>,
        name: &str,
        redirect_url: &str,
    ) -> Result<AuthorizationUrl> {
        if !is_way_back(redirect_url, &self.redirects) {
            let rule = "`redirectUrl` is a page that the operator lists under `oauth.redirects`, \
                        or `http://127.0.0.1:{port}/…` of the person's own machine";
            return Err(Error::invalid("redirectUrl", rule));
        }
        let kept = store::find(&mut ctx.begin_reading().await?, name).await?;
        let kept = kept.ok_or_else(|| Error::not_found("connection"))?;
        // Outside any transaction: it may take long.
        let begun = self.begin(ctx, &kept, redirect_url).await?;
        let of = (ctx.tenant_id, kept.connection.connection_id);
        let row = store::Begun {
            state_hash: attempt::hash(&begun.state),
            connection: of.1,
            actor: ctx.actor(),
            sealed: Secret::Attempt.seal(&self.vault, of, &begun.attempt)?,
            expires_at: ctx.now() + attempt::GOOD_FOR,
        };
        let mut tx = ctx.begin().await?;
        still(store::held(&mut tx, name).await?, &kept.connection)?;
        store::begin(&mut tx, ctx.tenant_id, &row, ctx.now()).await?;
        let detail = json!({ "issuer": begun.attempt.issuer });
        audit::deed(&mut tx, ctx, "connection.authorize", name, detail).await?;
        tx.commit().await?;
        Ok(AuthorizationUrl { url: begun.url, expires_at: row.expires_at })
    }

    async fn begin<P: Permit>(&self, ctx: &Ctx<P>, kept: &Kept, redirect_url: &str) -> Result<Begun> {
        let connection = &kept.connection;
        let of = (ctx.tenant_id, connection.connection_id);
        let (secret, door) = (self.client_secret(of, kept)?, self.outbound.door(ctx.tenant_id).await?);
        let begin = async {
            let provider = Provider::discover(door, &connection.url).await?;
            if let Some(client) = &connection.client {
                provider.is_still(&client.issuer)?;
            }
            let client = connection.client.as_ref().map(|client| (client.id.clone(), secret));
            provider.begin(client, redirect_url, connection.scopes.clone()).await
        };
        patiently(begin).await.map_err(|fault| Error::invalid("url", fault.into_text()))
    }

    /// The secret of the client that was registered beforehand, as it was put last.
    pub(super) fn client_secret(&self, of: (TenantId, ConnectionId), kept: &Kept) -> Result<Option<String>> {
        kept.client_secret.as_ref().map(|sealed| Secret::Client.open(&self.vault, of, sealed)).transpose()
    }

    /// Finishes what the same actor has begun: gives the code for the tokens, and keeps them.
    ///
    /// # Errors
    /// Not found; invalid (422), naming the field, where the answer is not good or the provider does not take it. What was
    /// begun is over then as well.
    pub(super) async fn finish<P: Permit>(&self, ctx: &Ctx<P>, name: &str, answer: CallbackBody) -> Result<Connection> {
        let mut tx = ctx.begin().await?;
        let kept = store::find(&mut tx, name).await?.ok_or_else(|| Error::not_found("connection"))?;
        let of = (ctx.tenant_id, kept.connection.connection_id);
        let place = (attempt::hash(&answer.state), of.1);
        let sealed = store::take(&mut tx, place, &ctx.actor(), ctx.now()).await?.ok_or_else(|| {
            Error::invalid("state", "nothing that you have begun has this `state`, or not any more: begin again")
        })?;
        tx.commit().await?;
        let attempt: Attempt = Secret::Attempt.open(&self.vault, of, &sealed)?;
        let door = self.outbound.door(ctx.tenant_id).await?;
        let exchange = async {
            let provider = Provider::discover(door, &kept.connection.url).await?;
            provider.exchange(attempt, answer.code.expose_secret(), answer.iss.as_deref()).await
        };
        let grant = patiently(exchange).await.map_err(|fault| Error::invalid("code", fault.into_text()))?;
        self.keep(ctx, name, kept.connection, grant).await
    }

    async fn keep<P: Permit>(&self, ctx: &Ctx<P>, name: &str, before: Connection, grant: Grant) -> Result<Connection> {
        let now = ctx.now();
        let mut tx = ctx.begin().await?;
        let kept = still(store::held(&mut tx, name).await?, &before)?;
        let dropped = self.outlived(ctx, &kept, &grant).then(|| kept.clone());
        let summary = GrantSummary {
            issuer: grant.issuer.clone(),
            scopes: grant.scopes.clone(),
            connected_by: ctx.actor(),
            connected_at: now,
        };
        let detail = json!({ "issuer": summary.issuer, "scopes": summary.scopes });
        let sealed = Secret::Grant.seal(&self.vault, (ctx.tenant_id, before.connection_id), &grant)?;
        let status = ConnectionStatus::Connected;
        let connection = Connection { status, grant: Some(summary), updated_at: now, ..kept.connection };
        let kept = Kept { connection, grant: Some(sealed), renew_at: grant.renew_at(now), ..kept };
        store::write(&mut tx, ctx.tenant_id, &kept).await?;
        audit::deed(&mut tx, ctx, "connection.connect", name, detail).await?;
        tx.commit().await?;
        if let Some(dropped) = dropped {
            self.give_back_later(ctx.tenant_id, dropped);
        }
        Ok(kept.connection)
    }

    /// Whether what was granted before is another thing than what is granted now, so that the one can be given back
    /// without the other: some providers know only one grant of a person to a client.
    fn outlived<P: Permit>(&self, ctx: &Ctx<P>, before: &Kept, grant: &Grant) -> bool {
        // What cannot be opened any more cannot be given back either.
        let Ok(old) = self.grant_of(ctx.tenant_id, before) else { return false };
        let by = before.connection.grant.as_ref().map(|summary| &summary.connected_by);
        let same_client = (&old.issuer, &old.client.id) == (&grant.issuer, &grant.client.id);
        !same_client || by != Some(&ctx.actor())
    }
}

/// The connection as it is now, if it still is for the same.
fn still(now: Option<Kept>, before: &Connection) -> Result<Kept> {
    let changed = || Error::conflict("the connection was put anew meanwhile: begin again");
    now.filter(|kept| kept.connection.is_for_the_same(before)).ok_or_else(changed)
}
