use std::fmt;

use axum::http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    auth::{Claims, signing_key},
    config::AuthSettings,
    kernel::{Error, Result, TicketId, Timestamp},
};

/// The cookie's name.
const NAME: &str = "fermata_stream";

/// What keeps a pass from being taken for anything else, and the other way round.
const AUDIENCE: &str = "fermata/stream";

/// Makes and reads passes: cookies that let a browser come back to the one stream its ticket opened.
pub(super) struct Passes {
    encoding: EncodingKey,
    decoding: DecodingKey,
    secure: bool,
}

/// What a pass says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pass {
    aud: String,
    /// The one path it is good for.
    pub path: String,
    /// The ticket it came from.
    pub ticket: TicketId,
    /// The token that asked for the ticket.
    pub claims: Claims,
}

impl Pass {
    pub fn new(path: String, ticket: TicketId, claims: Claims) -> Self {
        Self { aud: AUDIENCE.to_owned(), path, ticket, claims }
    }
}

impl Passes {
    /// Signs with a key of its own, made from the secret that signs tokens. Where tokens are signed
    /// elsewhere there is none; then passes are good on this process only, for as long as it lives.
    pub fn new(settings: &AuthSettings, secure: bool) -> Self {
        let own = rand::random::<[u8; 32]>();
        let secret = signing_key(settings).map(|(_, secret)| secret.expose_secret().as_bytes());
        let key =
            Sha256::new().chain_update(AUDIENCE).chain_update([0]).chain_update(secret.unwrap_or(&own)).finalize();
        Self { encoding: EncodingKey::from_secret(&key), decoding: DecodingKey::from_secret(&key), secure }
    }

    /// The `Set-Cookie` that hands the pass to the browser; `cookie_path` is the path as the browser sees it.
    ///
    /// # Errors
    /// A fault of ours.
    pub fn cookie(&self, pass: &Pass, cookie_path: &str, now: Timestamp) -> Result<HeaderValue> {
        let token =
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), pass, &self.encoding).map_err(Error::internal)?;
        let age = (pass.claims.expires_at - now).num_seconds().max(0);
        let secure = if self.secure { "; Secure" } else { "" };
        let cookie = format!("{NAME}={token}; Path={cookie_path}; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
        HeaderValue::try_from(cookie).map_err(Error::internal)
    }

    /// The passes for `path` among the request's cookies.
    pub fn presented(&self, headers: &HeaderMap, path: &str) -> Vec<Pass> {
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        lines
            .flat_map(|line| line.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .filter(|(name, _)| *name == NAME)
            .filter_map(|(_, token)| self.read(token))
            .filter(|pass| pass.path == path)
            .collect()
    }

    /// Expiry is for whoever admits the claims to check, against our clock.
    fn read(&self, token: &str) -> Option<Pass> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.required_spec_claims = ["aud".to_owned()].into();
        validation.set_audience(&[AUDIENCE]);
        validation.validate_exp = false;
        jsonwebtoken::decode::<Pass>(token, &self.decoding, &validation).ok().map(|data| data.claims)
    }
}

impl fmt::Debug for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passes").field("secure", &self.secure).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};

    use super::*;
    use crate::auth::{Permissions, Role};
    use crate::kernel::TenantId;

    fn passes(secret: &str) -> Passes {
        let settings = AuthSettings { secret: Some(secret.to_owned().into()), ..AuthSettings::default() };
        Passes::new(&settings, true)
    }

    fn pass() -> Pass {
        let now = DateTime::UNIX_EPOCH;
        let claims = Claims {
            tenant_id: TenantId::new(now),
            subject: "user_1".parse().expect("a subject"),
            token_id: "tok_1".to_owned(),
            roles: vec![Role::Viewer],
            groups: vec![],
            permissions: Permissions::of(&[Role::Viewer], None),
            issued_at: now,
            expires_at: now + TimeDelta::minutes(10),
        };
        Pass::new("/workflow/events".to_owned(), TicketId::new(now), claims)
    }

    fn headers(cookies: &str) -> HeaderMap {
        [(header::COOKIE, HeaderValue::from_str(cookies).expect("a header"))].into_iter().collect()
    }

    #[test]
    fn a_pass_comes_back_from_its_cookie_for_its_path_only() {
        let (passes, pass) = (passes("a secret of at least 32 bytes, this one"), pass());
        let cookie = passes.cookie(&pass, "/x/workflow/events", DateTime::UNIX_EPOCH).expect("a cookie");
        let text = cookie.to_str().expect("text");
        let (pair, rest) = text.split_once(';').expect("attributes");
        assert_eq!(rest, " Path=/x/workflow/events; Max-Age=600; HttpOnly; SameSite=Strict; Secure");
        let sent = headers(&format!("other=1; {pair}; fermata_stream=junk"));
        assert_eq!(passes.presented(&sent, "/workflow/events"), vec![pass]);
        assert!(passes.presented(&sent, "/workflow/runs/x/events").is_empty());
    }

    #[test]
    fn a_pass_signed_with_another_key_is_none() {
        let cookie = passes("a secret of at least 32 bytes, this one").cookie(&pass(), "/", DateTime::UNIX_EPOCH);
        let cookie = cookie.expect("a cookie");
        let sent = headers(cookie.to_str().expect("text").split(';').next().expect("a pair"));
        assert!(passes("a secret of at least 32 bytes, another").presented(&sent, "/workflow/events").is_empty());
    }

    #[test]
    fn a_bearer_token_is_no_pass() {
        let secret = "a secret of at least 32 bytes, this one";
        let token =
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &pass(), &EncodingKey::from_secret(secret.as_bytes()));
        let sent = headers(&format!("{NAME}={}", token.expect("a token")));
        assert!(passes(secret).presented(&sent, "/workflow/events").is_empty());
    }
}
