use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::{
    Claims, Permissions, Role,
    keys::{MAIN, weakness},
};
use crate::{
    config::{AuthSettings, KeyMaterial},
    kernel::{Span, Subject, TenantId, Timestamp, TokenId},
};

/// Makes tokens with the first HS256 key of the settings: for `fermata token` and development.
pub struct Minter {
    header: Header,
    key: EncodingKey,
    issuer: String,
    audience: String,
}

/// What a new token says.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The bearer.
    pub subject: Subject,
    /// Their roles.
    pub roles: Vec<Role>,
    /// Their groups.
    pub groups: Vec<String>,
    /// Narrows the roles; a service's token has nothing without it.
    pub scope: Option<String>,
    /// How long it is good.
    pub ttl: Span,
}

#[derive(Serialize)]
struct Payload<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    tid: TenantId,
    roles: &'a [Role],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    groups: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: &'a str,
}

impl Minter {
    /// A minter with `auth.secret`, or else the first HS256 key of `auth.keys`.
    ///
    /// # Errors
    /// When there is none, or it is weak; the message says what to do.
    pub fn new(settings: &AuthSettings) -> Result<Self, String> {
        let (kid, secret) =
            signing_key(settings).ok_or("no HS256 key to sign with: set FERMATA_AUTH_SECRET as the server has it")?;
        if let Some(why) = weakness(secret.expose_secret()) {
            return Err(format!("{why}; make one with `openssl rand -base64 48`"));
        }
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
        let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
        Ok(Self { header, key, issuer: settings.issuer.clone(), audience: settings.audience.clone() })
    }

    /// The token, and what it says.
    ///
    /// # Errors
    /// When the times do not fit a token.
    pub fn mint(&self, grant: &Grant, now: Timestamp) -> Result<(SecretString, Claims), String> {
        let ttl = chrono::TimeDelta::from_std(grant.ttl.0).map_err(|_| "the time to live is too long")?;
        let expires_at = now.checked_add_signed(ttl).ok_or("the time to live is too long")?;
        let token_id = TokenId::new(now).to_string();
        let payload = Payload {
            iss: &self.issuer,
            aud: &self.audience,
            sub: grant.subject.as_str(),
            tid: grant.tenant_id,
            roles: &grant.roles,
            groups: &grant.groups,
            scope: grant.scope.as_deref(),
            iat: now.timestamp(),
            nbf: now.timestamp(),
            exp: expires_at.timestamp(),
            jti: &token_id,
        };
        let token = jsonwebtoken::encode(&self.header, &payload, &self.key).map_err(|e| e.to_string())?;
        let claims = Claims {
            tenant_id: grant.tenant_id,
            subject: grant.subject.clone(),
            permissions: Permissions::of(&grant.roles, grant.scope.as_deref()),
            roles: grant.roles.clone(),
            groups: grant.groups.clone(),
            token_id,
            issued_at: now,
            expires_at,
        };
        Ok((token.into(), claims))
    }
}

/// The secret our own tokens are signed with, and its kid: `auth.secret`, or else the first HS256 key listed.
pub(crate) fn signing_key(settings: &AuthSettings) -> Option<(&str, &SecretString)> {
    let listed = settings.keys.iter().find_map(|key| match &key.material {
        KeyMaterial::HS256 { secret } => Some((key.kid.as_str(), secret)),
        _ => None,
    });
    settings.secret.as_ref().map(|secret| (MAIN, secret)).or(listed)
}

impl std::fmt::Debug for Minter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minter").field("kid", &self.header.kid).finish_non_exhaustive()
    }
}
