use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, TimeDelta};
use jsonwebtoken::{Header, Validation};
use serde::Deserialize;

use super::{
    Claims, Permissions, Role,
    keys::{self, Key},
};
use crate::{
    config::AuthSettings,
    kernel::{Error, Problem, Result, Subject, TenantId, Timestamp},
};

/// The longest token looked at, in bytes.
const LONGEST: usize = 8 * 1024;

/// The most groups a token may name, and the longest name of one in characters.
const GROUPS: usize = 64;
const GROUP: usize = 128;

/// Verifies tokens. A key is good for one algorithm, the one it was configured with; whatever else a
/// token's header says about keys is never followed.
#[derive(Clone)]
pub struct Verifier {
    inner: Arc<Inner>,
}

struct Inner {
    keys: HashMap<String, Key>,
    issuer: String,
    audience: String,
    leeway: TimeDelta,
}

#[derive(Deserialize)]
struct Payload {
    iss: String,
    aud: Audience,
    sub: String,
    tid: TenantId,
    exp: NumericDate,
    iat: NumericDate,
    nbf: Option<NumericDate>,
    jti: String,
    #[serde(default)]
    roles: Vec<Role>,
    #[serde(default)]
    groups: Vec<String>,
    scope: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Seconds since the epoch, with or without a fraction (RFC 7519).
#[derive(Clone, Copy, Deserialize)]
struct NumericDate(f64);

impl NumericDate {
    #[expect(clippy::cast_possible_truncation, reason = "the cast saturates and out of range is refused")]
    fn instant(self, claim: &str) -> Result<Timestamp> {
        DateTime::from_timestamp_millis((self.0 * 1000.0) as i64)
            .ok_or_else(|| refused(format!("the token's `{claim}` is no time")))
    }
}

fn refused(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Problem::Unauthenticated, detail)
}

impl Verifier {
    /// A verifier of the keys in the settings.
    ///
    /// # Errors
    /// When there is no key, or one is weak or unreadable; the message says what to do.
    pub fn new(settings: &AuthSettings) -> Result<Self, String> {
        let leeway = TimeDelta::from_std(settings.leeway.0).map_err(|_| "auth.leeway is too long")?;
        let keys = keys::ring(settings)?;
        let (issuer, audience) = (settings.issuer.clone(), settings.audience.clone());
        Ok(Self { inner: Arc::new(Inner { keys, issuer, audience, leeway }) })
    }

    /// What the token says, if it may be believed at `now`.
    ///
    /// # Errors
    /// Unauthenticated, with the reason.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims> {
        if token.len() > LONGEST {
            return Err(refused(format!("the token is longer than {LONGEST} bytes")));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("the token is no signed JWT"))?;
        let key = self.key(&header)?;
        let payload = jsonwebtoken::decode::<Payload>(token, &key.decoding, &signature_only(key))
            .map_err(|error| refused(explain(&error)))?
            .claims;
        self.check(payload, now)
    }

    fn key(&self, header: &Header) -> Result<&Key> {
        if header.crit.is_some() {
            return Err(refused("the token has critical extensions (`crit`), of which none is known here"));
        }
        let kind = header.typ.as_deref().map(str::to_ascii_lowercase);
        if !matches!(kind.as_deref(), None | Some("jwt" | "at+jwt" | "application/at+jwt")) {
            return Err(refused("the token's `typ` is neither JWT nor at+jwt"));
        }
        let kid = header.kid.as_deref().ok_or_else(|| refused("the token names no key (`kid`)"))?;
        let key = self.inner.keys.get(kid).ok_or_else(|| refused("no key here has the token's `kid`"))?;
        if key.algorithm != header.alg {
            return Err(refused("the token's `alg` is not the one its key is for"));
        }
        Ok(key)
    }

    fn check(&self, payload: Payload, now: Timestamp) -> Result<Claims> {
        let Inner { issuer, audience, leeway, .. } = &*self.inner;
        if payload.iss != *issuer {
            return Err(refused("the token is from another issuer (`iss`)"));
        }
        let for_us = match &payload.aud {
            Audience::One(aud) => aud == audience,
            Audience::Many(auds) => auds.contains(audience),
        };
        if !for_us {
            return Err(refused("the token is for another audience (`aud`)"));
        }
        let (issued_at, expires_at) = (payload.iat.instant("iat")?, payload.exp.instant("exp")?);
        if now - *leeway >= expires_at {
            return Err(refused("the token has expired"));
        }
        let starts_at = payload.nbf.map(|nbf| nbf.instant("nbf")).transpose()?;
        if starts_at.is_some_and(|nbf| nbf > now + *leeway) || issued_at > now + *leeway {
            return Err(refused("the token is not valid yet"));
        }
        let subject: Subject = payload.sub.parse().map_err(|e: Error| refused(format!("`sub`: {}", e.detail())))?;
        let token_id = payload.jti;
        if !(1..=128).contains(&token_id.len()) || !token_id.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(refused("the token's `jti` is not 1 to 128 visible ASCII characters"));
        }
        let is_group = |name: &String| (1..=GROUP).contains(&name.chars().count());
        if payload.groups.len() > GROUPS || !payload.groups.iter().all(is_group) {
            return Err(refused(format!(
                "the token's `groups` are not {GROUPS} names of 1 to {GROUP} characters at most"
            )));
        }
        let permissions = Permissions::of(&payload.roles, payload.scope.as_deref());
        let (tenant_id, roles) = (payload.tid, payload.roles);
        // A group that happens to be called as a role is none.
        let groups =
            payload.groups.into_iter().filter(|name| Role::ALL.iter().all(|role| role.name() != name)).collect();
        Ok(Claims { tenant_id, subject, token_id, roles, groups, permissions, issued_at, expires_at })
    }
}

/// The library checks the signature; the claims are ours to check, against our clock.
fn signature_only(key: &Key) -> Validation {
    let mut validation = Validation::new(key.algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn explain(error: &jsonwebtoken::errors::Error) -> String {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::Json(json) => {
            let text = json.to_string();
            let reason = text.split(" at line ").next().unwrap_or_default();
            format!("the token's claims cannot be read: {reason}")
        }
        _ => "the token's signature does not verify".to_owned(),
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("kids", &self.inner.keys.keys()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
