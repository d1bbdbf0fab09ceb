//! Tokens for calls, renewed by one process at a time.

use std::time::Duration;

use chrono::TimeDelta;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::{
    connection::{Connection, ConnectionStatus, is_same},
    connections::Connections,
    grant::{Grant, Secret},
    provider::{Fault, PATIENCE, Provider, patiently},
    store::{self, Kept},
};
use crate::{
    audit,
    auth::Sealed,
    db,
    kernel::{Actor, Error, Problem, Result, TenantId, Timestamp},
};

/// Who renews is alone with it for so long: as long as it may take, and a little.
const ALONE: TimeDelta = TimeDelta::seconds(PATIENCE.as_secs() as i64 + 5);
/// How often whoever waits for another's renewal looks.
const LOOK: Duration = Duration::from_millis(100);

/// A token for the one URL of its connection.
#[derive(Debug)]
pub struct AccessToken {
    /// The bearer token.
    pub secret: SecretString,
    /// How long it is good for, as far as the provider has said.
    pub good_for: Option<Duration>,
}

impl Connections {
    /// A token of the connection of that name, for calls of `url`; renewed first if it is about to be over.
    ///
    /// # Errors
    /// Conflict, where somebody has to put or connect it first, and the detail says what; unavailable, where the provider
    /// or the database is away.
    pub async fn token(&self, tenant: TenantId, name: &str, url: &str) -> Result<AccessToken> {
        let wait = async {
            loop {
                let kept = self.usable(tenant, name, url).await?;
                let (id, now) = (kept.connection.connection_id, self.clock.now());
                let grant = self.grant_of(tenant, &kept)?;
                if kept.renew_at.is_none_or(|at| at > now) {
                    let good_for = kept.renew_at.and_then(|at| (at - now).to_std().ok());
                    return Ok(AccessToken { secret: grant.access_token(), good_for });
                }
                let mut tx = self.db.tenant(tenant).await?;
                let ours = store::claim(&mut tx, id, now, now + ALONE).await?;
                tx.commit().await?;
                if ours {
                    // In a task of its own: whoever waits may give up, but what the provider gives meanwhile has to be kept.
                    let renewal = self.clone().renew(tenant, kept, grant);
                    self.tasks.spawn(renewal).await.map_err(Error::internal)??;
                } else {
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        let late =
            |_| Error::new(Problem::Unavailable, format!("the connection `{name}` is being renewed for too long"));
        tokio::time::timeout(PATIENCE * 2, wait).await.map_err(late)?
    }

    /// Says that what the connection is to did not take this token, so that the next one is another.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn distrust(&self, tenant: TenantId, name: &str, token: &SecretString) -> Result<()> {
        let mut tx = self.db.tenant(tenant).await?;
        let Some(kept) = store::held(&mut tx, name).await? else { return Ok(()) };
        let grant = match &kept.grant {
            Some(_) if kept.connection.status == ConnectionStatus::Connected => self.grant_of(tenant, &kept)?,
            _ => return Ok(()),
        };
        if grant.access_token().expose_secret() == token.expose_secret() {
            store::renew_from(&mut tx, kept.connection.connection_id, self.clock.now()).await?;
        }
        tx.commit().await
    }

    async fn usable(&self, tenant: TenantId, name: &str, url: &str) -> Result<Kept> {
        let kept = store::find(&mut self.db.reader(tenant).await?, name).await?;
        let kept = kept.ok_or_else(|| Error::conflict(format!("there is no connection `{name}`")))?;
        if !is_same(&kept.connection.url, url) {
            let detail = format!("the connection `{name}` is to `{}` and to nothing else", kept.connection.url);
            return Err(Error::conflict(detail));
        }
        match kept.connection.status {
            ConnectionStatus::Connected => Ok(kept),
            ConnectionStatus::Pending => Err(unconnected(name, "has to be connected first")),
            ConnectionStatus::Broken => Err(unconnected(name, "has to be connected again")),
        }
    }

    pub(super) fn grant_of(&self, tenant: TenantId, kept: &Kept) -> Result<Grant> {
        let sealed =
            kept.grant.as_ref().ok_or_else(|| unconnected(&kept.connection.name, "has to be connected first"))?;
        Secret::Grant.open(&self.vault, (tenant, kept.connection.connection_id), sealed)
    }

    /// Renews a grant, and keeps it before anybody uses it. One that cannot be renewed breaks the connection.
    async fn renew(self, tenant: TenantId, kept: Kept, mut grant: Grant) -> Result<()> {
        let (name, id) = (&kept.connection.name, kept.connection.connection_id);
        if let Some(secret) = self.client_secret((tenant, id), &kept)? {
            grant.client.secret = Some(secret);
        }
        let renewed = if grant.is_renewable() {
            let door = self.outbound.door(tenant).await?;
            patiently(async {
                // Whatever the resource says of itself now, the grant may still be good.
                let provider = Provider::discover(door, &kept.connection.url).await;
                provider.map_err(|fault| Fault::Passing(fault.into_text()))?.renew(grant).await
            })
            .await
        } else {
            Err(Fault::Refused("the provider gave nothing to renew it with".to_owned()))
        };
        let now = self.clock.now();
        let renewal = match renewed {
            Ok(grant) => Renewal::Good(Secret::Grant.seal(&self.vault, (tenant, id), &grant)?, grant.renew_at(now)),
            Err(Fault::Refused(why)) => Renewal::Refused(why),
            Err(Fault::Passing(why)) => Renewal::Later(why),
        };
        // What was given is lost if it is not kept, so this does not give up while the database is away.
        let wanted = db::patiently(|| self.settle(tenant, &kept, &renewal, now)).await?;
        match renewal {
            Renewal::Good(grant, renew_at) if !wanted => {
                self.give_back_later(tenant, Kept { grant: Some(grant), renew_at, ..kept });
                Ok(())
            }
            Renewal::Good(..) | Renewal::Refused(_) => Ok(()),
            Renewal::Later(why) => {
                let detail = format!("the connection `{name}` cannot be renewed now: {why}");
                Err(Error::new(Problem::Unavailable, detail))
            }
        }
    }

    /// Tells the provider that the tokens a connection had are of no more use, if it wants to hear that.
    pub(super) async fn give_back(self, tenant: TenantId, kept: Kept) {
        let connection = &kept.connection;
        if kept.grant.is_none() {
            return;
        }
        let given_back = async {
            let mut grant = self.grant_of(tenant, &kept)?;
            if let Some(secret) = self.client_secret((tenant, connection.connection_id), &kept)? {
                grant.client.secret = Some(secret);
            }
            let door = self.outbound.door(tenant).await?;
            let revoke = async { Provider::discover(door, &connection.url).await?.revoke(&grant).await };
            patiently(revoke).await.map_err(|fault| Error::new(Problem::Unavailable, fault.into_text()))
        };
        match given_back.await {
            Ok(true) => tracing::info!(%tenant, connection = connection.name, "tokens were given back"),
            Ok(false) => tracing::debug!(%tenant, connection = connection.name, "the provider takes no tokens back"),
            Err(error) => {
                tracing::warn!(%tenant, connection = connection.name, %error, "tokens could not be given back");
            }
        }
    }

    /// Keeps what came of a renewal, unless somebody has connected it anew meanwhile or does not want it any more, and lets
    /// the next one have its turn. Says whether it is wanted.
    async fn settle(&self, tenant: TenantId, before: &Kept, renewal: &Renewal, now: Timestamp) -> Result<bool> {
        let name = &before.connection.name;
        let mut tx = self.db.tenant(tenant).await?;
        store::let_go(&mut tx, before.connection.connection_id).await?;
        let held = store::held(&mut tx, name).await?;
        // Asked a second time, it may be there already.
        let is_there = |kept: &Kept| matches!(renewal, Renewal::Good(grant, _) if kept.grant.as_ref() == Some(grant));
        let wanted = held.as_ref().is_some_and(|kept| kept.grant == before.grant || is_there(kept));
        let found = held.filter(|kept| kept.grant == before.grant);
        let next = match (found, renewal) {
            (None, _) | (_, Renewal::Later(_)) => None,
            (Some(kept), Renewal::Good(grant, renew_at)) => {
                Some(Kept { grant: Some(grant.clone()), renew_at: *renew_at, ..kept })
            }
            (Some(kept), Renewal::Refused(why)) => {
                tracing::warn!(name, why, "a connection is broken");
                let entry = audit::Entry {
                    tenant_id: tenant,
                    actor: &Actor::System,
                    action: "connection.break",
                    target: name,
                    detail: json!({ "reason": why }),
                    request_id: None,
                    at: now,
                };
                audit::record(&mut tx, &entry).await?;
                let status = ConnectionStatus::Broken;
                Some(Kept { connection: Connection { status, updated_at: now, ..kept.connection }, ..kept })
            }
        };
        if let Some(kept) = next {
            store::write(&mut tx, tenant, &kept).await?;
        }
        tx.commit().await?;
        Ok(wanted)
    }
}

/// What came of asking for a new token.
enum Renewal {
    /// It, and when to renew it.
    Good(Sealed, Option<Timestamp>),
    /// Somebody has to sign in again.
    Refused(String),
    /// It is worth another try.
    Later(String),
}

fn unconnected(name: &str, what: &str) -> Error {
    Error::conflict(format!("the connection `{name}` {what}: POST /integrations/{name}/oauth/authorize"))
}
