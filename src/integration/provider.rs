//! The authorization server before a resource, as rmcp speaks to it, through the tenant's door.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use oauth2::TokenResponse;
use reqwest::{
    Method, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use rmcp::transport::auth::{
    AuthError, AuthorizationManager, AuthorizationMetadata, CredentialStore, InMemoryCredentialStore,
    InMemoryStateStore, OAuthClientConfig, OAuthHttpClient, OAuthHttpClientError, OAuthHttpClientFuture,
    OAuthHttpRequest, StateStore, StoredCredentials,
};
use serde_json::Value;

use super::{
    attempt::Attempt,
    grant::{Grant, RegisteredClient},
};
use crate::http::Door;

/// What people read when they are asked.
const NAME: &str = "Fermata";
/// The longest for one request, and for all that one question takes.
const REQUEST: Duration = Duration::from_secs(10);
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes.
const ANSWER: usize = 256 * 1024;
/// The longest text of a provider that is passed on, in characters.
const TEXT: usize = 500;

/// Why a provider gave nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// It may pass.
    Passing(String),
    /// Somebody has to do something.
    Refused(String),
}

impl Fault {
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Passing(text) | Self::Refused(text) => text,
        }
    }
}

impl From<AuthError> for Fault {
    fn from(error: AuthError) -> Self {
        let causes = std::iter::successors(StdError::source(&error), |&cause| cause.source());
        let cause = causes.last().map(|cause| format!(": {cause}")).unwrap_or_default();
        let text = format!("{error}{cause}").replace('\0', "\u{fffd}").chars().take(TEXT).collect();
        match error {
            AuthError::TokenRefreshFailed(_) | AuthError::DiscoveryRequestFailed { .. } | AuthError::HttpError(_) => {
                Self::Passing(text)
            }
            _ => Self::Refused(text),
        }
    }
}

/// An authorization server that was found.
pub(super) struct Provider {
    manager: AuthorizationManager,
    credentials: InMemoryCredentialStore,
    states: InMemoryStateStore,
    way: Arc<Way>,
    /// Where it takes tokens back, if it does (RFC 7009).
    revocation: Option<Url>,
    /// Who it is.
    pub(super) issuer: String,
}

/// An authorization that was begun.
pub(super) struct Begun {
    /// Where the person goes.
    pub(super) url: String,
    /// What comes back with them.
    pub(super) state: String,
    pub(super) attempt: Attempt,
}

impl Provider {
    /// Asks the resource at `url` who grants access to it, and that server what it can do.
    pub(super) async fn discover(door: Door, url: &str) -> Result<Self, Fault> {
        let way = Arc::new(Way(door));
        let mut manager = AuthorizationManager::new_with_oauth_http_client(url, way.clone()).await?;
        let found = manager.resolve_metadata().await?;
        let issuer = found.metadata.issuer.clone().filter(|_| found.source.is_discovered());
        let nobody = || Fault::Refused(format!("`{url}` does not say who grants access to it (RFC 9728, RFC 8414)"));
        let issuer = issuer.ok_or_else(nobody)?;
        check_endpoints(url, &found.metadata)?;
        let revocation = found.metadata.additional_fields.get("revocation_endpoint").and_then(Value::as_str);
        let revocation = revocation.and_then(|endpoint| safe(url, endpoint));
        manager.set_metadata(found.metadata);
        let (credentials, states) = (InMemoryCredentialStore::new(), InMemoryStateStore::new());
        manager.set_credential_store(credentials.clone());
        manager.set_state_store(states.clone());
        Ok(Self { manager, credentials, states, way, revocation, issuer })
    }

    /// Begins an authorization as `client`, or as one that is registered for it.
    pub(super) async fn begin(
        mut self,
        client: Option<(String, Option<String>)>,
        redirect_url: &str,
        scopes: Option<Vec<String>>,
    ) -> Result<Begun, Fault> {
        let scopes = match scopes {
            Some(scopes) => scopes,
            None => self.manager.select_initial_scopes(&[]).await,
        };
        let scopes: Vec<_> = scopes.iter().map(String::as_str).collect();
        let client = match client {
            Some((id, secret)) => {
                let client = RegisteredClient { id, secret, redirect_url: redirect_url.to_owned() };
                self.be(&client)?;
                client
            }
            None => {
                // The manager takes the kind of application that it registers from the client it has.
                self.be(&RegisteredClient { id: String::new(), secret: None, redirect_url: redirect_url.to_owned() })?;
                let OAuthClientConfig { client_id: id, client_secret: secret, .. } =
                    self.manager.register_client(NAME, redirect_url, &scopes).await?;
                RegisteredClient { id, secret, redirect_url: redirect_url.to_owned() }
            }
        };
        let url = self.manager.get_authorization_url(&scopes).await?;
        let parsed = Url::parse(&url).ok();
        let state = parsed.iter().flat_map(Url::query_pairs).find(|(name, _)| name == "state");
        let state = state.map(|(_, state)| state.into_owned()).unwrap_or_default();
        let lost = || Fault::Refused("the authorization endpoint is of no use".to_owned());
        let stored = self.states.load(&state).await?.ok_or_else(lost)?;
        Ok(Begun { url, state, attempt: Attempt { client, issuer: self.issuer, stored } })
    }

    /// Gives the code for what it stands for.
    pub(super) async fn exchange(mut self, attempt: Attempt, code: &str, iss: Option<&str>) -> Result<Grant, Fault> {
        self.is_still(&attempt.issuer)?;
        self.be(&attempt.client)?;
        let state = attempt.stored.csrf_token.clone();
        self.states.save(&state, attempt.stored).await?;
        self.manager.exchange_code_for_token_with_issuer(code, &state, iss).await?;
        self.granted(attempt.client).await
    }

    /// Gives the refresh token for new ones.
    pub(super) async fn renew(mut self, grant: Grant) -> Result<Grant, Fault> {
        self.is_still(&grant.issuer)?;
        self.be(&grant.client)?;
        let stored = StoredCredentials::new(grant.client.id.clone(), Some(grant.token), grant.scopes, None);
        self.credentials.save(stored.with_issuer(Some(grant.issuer))).await?;
        self.manager.refresh_token().await?;
        self.granted(grant.client).await
    }

    /// Gives the tokens back (RFC 7009), if it takes them.
    pub(super) async fn revoke(self, grant: &Grant) -> Result<bool, Fault> {
        self.is_still(&grant.issuer)?;
        let Some(endpoint) = &self.revocation else { return Ok(false) };
        let refresh = grant.token.refresh_token().map(|token| (token.secret().as_str(), "refresh_token"));
        // With a refresh token goes what came of it; but not everywhere.
        for (token, kind) in refresh.into_iter().chain([(grant.token.access_token().secret().as_str(), "access_token")])
        {
            let request = revocation(endpoint, &grant.client, (token, kind));
            let late = |_| Fault::Passing("it takes too long".to_owned());
            let answer = tokio::time::timeout(REQUEST, self.way.send(request)).await.map_err(late)?;
            let answer = answer.map_err(|error| Fault::Passing(error.to_string()))?;
            if !answer.status().is_success() {
                return Err(Fault::Refused(format!("the provider answers {} to the {kind}", answer.status())));
            }
        }
        Ok(true)
    }

    /// A code or a refresh token is for the server that gave it, whomever the resource names now.
    pub(super) fn is_still(&self, issuer: &str) -> Result<(), Fault> {
        let other = || {
            Fault::Refused(format!(
                "the resource names another authorization server, `{}`, than `{issuer}`",
                self.issuer
            ))
        };
        (self.issuer == issuer).then_some(()).ok_or_else(other)
    }

    fn be(&mut self, client: &RegisteredClient) -> Result<(), Fault> {
        let kind = if client.redirect_url.starts_with("https:") { "web" } else { "native" };
        let mut config = OAuthClientConfig::new(&client.id, &client.redirect_url).with_application_type(kind);
        config.client_secret.clone_from(&client.secret);
        Ok(self.manager.configure_client(config)?)
    }

    async fn granted(self, client: RegisteredClient) -> Result<Grant, Fault> {
        let nothing = || Fault::Refused("the provider granted nothing".to_owned());
        let stored = self.credentials.load().await?.ok_or_else(nothing)?;
        let token = stored.token_response.ok_or_else(nothing)?;
        Ok(Grant { client, issuer: self.issuer, scopes: stored.granted_scopes, token })
    }
}

/// What a provider answers, as long as anybody waits for it.
pub(super) async fn patiently<T>(ask: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = |_| Fault::Passing("the provider takes too long".to_owned());
    tokio::time::timeout(PATIENCE, ask).await.map_err(late)?
}

/// Whether people and secrets can be sent there: over TLS, unless the resource itself does without.
fn check_endpoints(resource: &str, metadata: &AuthorizationMetadata) -> Result<(), Fault> {
    let endpoints = [
        Some(&metadata.authorization_endpoint),
        Some(&metadata.token_endpoint),
        metadata.registration_endpoint.as_ref(),
    ];
    let bad = endpoints.into_iter().flatten().find(|endpoint| safe(resource, endpoint).is_none());
    let unsafe_one =
        |endpoint: &String| Fault::Refused(format!("the provider's endpoint `{endpoint}` is no https URL"));
    bad.map_or(Ok(()), |endpoint| Err(unsafe_one(endpoint)))
}

/// The endpoint, if secrets can be sent there.
fn safe(resource: &str, endpoint: &str) -> Option<Url> {
    let plain = resource.starts_with("http:");
    Url::parse(endpoint).ok().filter(|url| url.scheme() == "https" || (plain && url.scheme() == "http"))
}

/// The request that gives a token back, by the client that it was given to.
fn revocation(endpoint: &Url, client: &RegisteredClient, (token, kind): (&str, &str)) -> reqwest::Request {
    let mut request = reqwest::Request::new(Method::POST, endpoint.clone());
    let mut form = vec![("token", token), ("token_type_hint", kind)];
    match &client.secret {
        // RFC 6749, section 2.3.1.
        Some(secret) => {
            let encoded = |text: &str| encoded(&[(text, "")]).trim_end_matches('=').to_owned();
            let pair = BASE64_STANDARD.encode(format!("{}:{}", encoded(&client.id), encoded(secret)));
            if let Ok(mut value) = HeaderValue::try_from(format!("Basic {pair}")) {
                value.set_sensitive(true);
                request.headers_mut().insert(AUTHORIZATION, value);
            }
        }
        None => form.push(("client_id", &client.id)),
    }
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    request.headers_mut().insert(CONTENT_TYPE, form_type);
    *request.body_mut() = Some(encoded(&form).into());
    request
}

/// As forms are sent.
fn encoded(pairs: &[(&str, &str)]) -> String {
    let url = Url::parse_with_params("http://form/", pairs);
    url.ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
}

/// The tenant's door, as rmcp wants it. No redirect is followed.
struct Way(Door);

impl OAuthHttpClient for Way {
    fn execute(&self, request: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(async move {
            let late = |_| OAuthHttpClientError::from("it takes too long");
            let request = reqwest::Request::try_from(request.request)?;
            tokio::time::timeout(REQUEST, self.send(request)).await.map_err(late)?
        })
    }
}

impl Way {
    async fn send(&self, request: reqwest::Request) -> Result<axum::http::Response<Vec<u8>>, OAuthHttpClientError> {
        self.0.vet(request.url()).map_err(|refusal| refusal.to_string())?;
        let response = self.0.client().execute(request).await?;
        let mut answer = axum::http::Response::new(Vec::new());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = response.headers().clone();
        let mut body = response.bytes_stream();
        while let Some(chunk) = body.next().await.transpose()? {
            if answer.body().len() + chunk.len() > ANSWER {
                return Err("its answer is larger than is read".into());
            }
            answer.body_mut().extend_from_slice(&chunk);
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(resource: &str, endpoint: &str) -> Result<(), Fault> {
        let mut metadata = AuthorizationMetadata::default();
        metadata.authorization_endpoint = endpoint.to_owned();
        metadata.token_endpoint = "https://login.example/token".to_owned();
        check_endpoints(resource, &metadata)
    }

    #[test]
    fn nobody_is_sent_to_what_is_no_https_page() {
        let resource = "https://mcp.example/";
        check(resource, "https://login.example/authorize").unwrap();
        for endpoint in
            ["javascript:alert(1)", "http://login.example/", "file:///etc/passwd", "data:text/html,x", "/authorize", ""]
        {
            check(resource, endpoint).unwrap_err();
        }
        check("http://127.0.0.1:9/mcp", "http://127.0.0.1:9/authorize").unwrap();
        check("http://127.0.0.1:9/mcp", "javascript:alert(1)").unwrap_err();
    }
}
