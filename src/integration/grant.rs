use chrono::TimeDelta;
use oauth2::TokenResponse;
use rmcp::transport::auth::OAuthTokenResponse;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::{
    auth::{Sealed, Vault},
    kernel::{ConnectionId, Error, Result, TenantId, Timestamp},
};

/// A token is renewed so long before it is over, or at half its time if that is later.
const AHEAD: TimeDelta = TimeDelta::seconds(60);

/// What a provider has granted, and to which client of ours.
#[derive(Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) client: RegisteredClient,
    /// The authorization server.
    pub(super) issuer: String,
    pub(super) scopes: Vec<String>,
    pub(super) token: OAuthTokenResponse,
}

/// What we are to an authorization server.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct RegisteredClient {
    pub(super) id: String,
    pub(super) secret: Option<String>,
    /// Where people are sent back.
    pub(super) redirect_url: String,
}

impl Grant {
    pub(super) fn access_token(&self) -> SecretString {
        SecretString::from(self.token.access_token().secret().as_str())
    }

    /// Whether it can go on without anybody signing in again.
    pub(super) fn is_renewable(&self) -> bool {
        self.token.refresh_token().is_some()
    }

    /// When to renew it, if it came just now and says for how long it is good.
    pub(super) fn renew_at(&self, now: Timestamp) -> Option<Timestamp> {
        let life = TimeDelta::from_std(self.token.expires_in()?).ok()?;
        now.checked_add_signed(life - AHEAD.min(life / 2))
    }
}

/// What a connection's secret is sealed for: it opens nowhere else.
#[derive(Clone, Copy, Debug)]
pub(super) enum Secret {
    /// The secret of a client that was registered beforehand.
    Client,
    /// The tokens.
    Grant,
    /// What an authorization that was begun is finished with.
    Attempt,
}

impl Secret {
    fn purpose(self, tenant: TenantId, connection: ConnectionId) -> String {
        let what = match self {
            Self::Client => "client",
            Self::Grant => "grant",
            Self::Attempt => "attempt",
        };
        format!("{tenant} connections {connection} {what}")
    }

    pub(super) fn seal<T: Serialize>(self, vault: &Vault, of: (TenantId, ConnectionId), value: &T) -> Result<Sealed> {
        let text = SecretString::from(serde_json::to_string(value).map_err(Error::internal)?);
        vault.seal(&text, &self.purpose(of.0, of.1), rand::random())
    }

    pub(super) fn open<T: for<'de> Deserialize<'de>>(
        self,
        vault: &Vault,
        of: (TenantId, ConnectionId),
        sealed: &Sealed,
    ) -> Result<T> {
        use secrecy::ExposeSecret;
        let text = vault.open(sealed, &self.purpose(of.0, of.1))?;
        serde_json::from_str(text.expose_secret()).map_err(Error::internal)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_renewed_a_minute_ahead_and_a_short_one_at_half_its_time() {
        let now = chrono::DateTime::UNIX_EPOCH;
        for (life, renewed) in [
            (json!(3600), Some(3540)),
            (json!(60), Some(30)),
            (json!(0), Some(0)),
            (json!(null), None),
            (json!(u64::MAX), None),
        ] {
            let token = json!({ "access_token": "a", "token_type": "bearer", "expires_in": life });
            let client = json!({ "id": "c", "secret": null, "redirect_url": "" });
            let grant: Grant =
                serde_json::from_value(json!({ "client": client, "issuer": "", "scopes": [], "token": token }))
                    .unwrap();
            assert_eq!(grant.renew_at(now), renewed.map(|seconds| now + TimeDelta::seconds(seconds)), "{life}");
        }
    }
}
