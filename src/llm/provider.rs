//! From a configuration to a place to call: whose address, whose key, through which door.

use std::sync::Arc;

use reqwest::{Client, Url};
use secrecy::SecretString;

use super::{AskError, Document, Keys, ModelConfig, quota::KeyId};
use crate::{
    config::{Api, LlmSettings, ProviderSettings},
    db::{self, Database},
    http::Outbound,
    kernel::{Error, Result, Span, TenantId},
};

/// A model that can be called.
pub(super) struct Target {
    pub(super) config: Document<ModelConfig>,
    pub(super) api: Api,
    /// Ends in a slash.
    pub(super) url: Url,
    pub(super) key: Option<SecretString>,
    /// Whose share a call is taken from.
    pub(super) key_id: KeyId,
    pub(super) client: Client,
    pub(super) timeout: Span,
    /// The model as metrics name it: one that the operator names and has a place and a key for, or `other`. There are as
    /// many as tenants like, and anybody may read a metric.
    pub(super) shown: String,
}

/// Finds out where to call.
#[derive(Clone, Debug)]
pub(super) struct Providers {
    db: Database,
    settings: Arc<LlmSettings>,
    keys: Keys,
    outbound: Arc<Outbound>,
}

impl Providers {
    pub(super) fn new(db: Database, settings: Arc<LlmSettings>, keys: Keys, outbound: Arc<Outbound>) -> Self {
        Self { db, settings, keys, outbound }
    }

    /// The target of a configuration.
    ///
    /// # Errors
    /// Why it cannot be called: no such provider, no key, an address that is not to be reached.
    pub(super) async fn target(&self, tenant: TenantId, config: Document<ModelConfig>) -> Result<Target, AskError> {
        let name = &config.body.provider;
        let provider = self
            .settings
            .providers
            .get(name)
            .ok_or_else(|| AskError::misconfigured(&config, format!("this server knows no provider `{name}`")))?;
        let (url, client) = match &config.body.endpoint {
            Some(endpoint) => self.tenants(tenant, &config, endpoint).await?,
            None => (address(&provider.url), self.outbound.operators().map_err(AskError::from)?),
        };
        let url = url.ok_or_else(|| AskError::misconfigured(&config, "its address is no URL".to_owned()))?;
        let (key, key_id) = self.key(tenant, provider, &config).await?;
        let usual = Span::seconds(u64::from(self.settings.default_timeout_seconds));
        let timeout = config.body.timeout.unwrap_or(usual);
        let ModelConfig { model, key: own, endpoint, .. } = &config.body;
        let is_operators = own.is_none() && endpoint.is_none() && provider.names(model);
        let shown = if is_operators { model.clone() } else { "other".to_owned() };
        Ok(Target { api: provider.api, url, key, key_id, client, timeout, shown, config })
    }

    /// An address that the tenant names is reached through the tenant's door.
    async fn tenants(
        &self,
        tenant: TenantId,
        config: &Document<ModelConfig>,
        endpoint: &str,
    ) -> Result<(Option<Url>, Client), AskError> {
        let door = db::patiently(|| self.outbound.door(tenant)).await?;
        let url = address(endpoint);
        if let Some(Err(refusal)) = url.as_ref().map(|url| door.vet(url)) {
            return Err(AskError::misconfigured(config, refusal.to_string()));
        }
        Ok((url, door.client().clone()))
    }

    /// The operator's key goes to the operator's address and to no other.
    async fn key(
        &self,
        tenant: TenantId,
        provider: &ProviderSettings,
        config: &Document<ModelConfig>,
    ) -> Result<(Option<SecretString>, KeyId), AskError> {
        let ModelConfig { provider: name, key, endpoint, .. } = &config.body;
        if let Some(key) = key {
            let opened = self.open(tenant, key).await?.ok_or_else(|| {
                AskError::misconfigured(config, format!("there is no sealed key `{key}`: put one under /llm/keys"))
            })?;
            return Ok((Some(opened), format!("{tenant} {key}")));
        }
        match (&provider.key, endpoint) {
            (_, Some(endpoint)) => Ok((None, format!("{tenant} {endpoint}"))),
            (Some(key), None) => Ok((Some(key.clone()), name.clone())),
            (None, None) if provider.keyless => Ok((None, name.clone())),
            (None, None) => {
                let detail = format!(
                    "there is no key for the provider `{name}`: the operator has set none, and the configuration names none"
                );
                Err(AskError::misconfigured(config, detail))
            }
        }
    }

    async fn open(&self, tenant: TenantId, key: &str) -> Result<Option<SecretString>, Error> {
        db::patiently(|| async { self.keys.open(&mut self.db.tenant(tenant).await?, tenant, key).await }).await
    }
}

/// A URL that paths can be appended to.
fn address(text: &str) -> Option<Url> {
    let slash = if text.ends_with('/') { "" } else { "/" };
    Url::parse(&format!("{text}{slash}")).ok()
}
