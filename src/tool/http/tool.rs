use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use reqwest::Certificate;
use serde_json::Value;

use super::{
    AllowList,
    client::Clients,
    exchange::{Exchange, unless_cancelled},
    hosts::Hosts,
    request::{self, Request},
    response,
    rules::Rules,
};
use crate::{
    config::ToolSettings,
    journal::Effect,
    kernel::{Error, Problem},
    tool::{Call, Outcome, Tool, ToolError},
};

/// How many requests of one tenant to one host may be open at once.
const PER_HOST: usize = 16;

/// The tool.
pub(in crate::tool) struct HttpRequest {
    allow_list: Arc<dyn AllowList>,
    loopback: bool,
    clients: Clients,
    hosts: Hosts,
    /// The largest output of a step.
    output_limit: usize,
}

impl HttpRequest {
    /// Reaches the public internet and what the tenant's allow-list names.
    ///
    /// # Errors
    /// When the file of certificate authorities cannot be used.
    pub(in crate::tool) fn new(
        allow_list: Arc<dyn AllowList>,
        settings: &ToolSettings,
        output_limit: usize,
    ) -> Result<Self, Error> {
        let authorities = settings.ca_file.as_deref().map(authorities).transpose()?.unwrap_or_default();
        let (clients, hosts) = (Clients::new(authorities), Hosts::new(PER_HOST));
        Ok(Self { allow_list, loopback: settings.loopback, clients, hosts, output_limit })
    }

    async fn rules(&self, call: &Call) -> Result<Rules, ToolError> {
        match call.patiently(|| self.allow_list.allowed(call.tenant_id)).await {
            Ok(entries) => Ok(Rules::new(self.loopback, &entries)),
            Err(error) => {
                tracing::warn!(%error, ?error, "a tenant's allow-list cannot be read");
                Err(ToolError::retryable("unavailable", "the tenant's allow-list cannot be read at the moment"))
            }
        }
    }
}

fn authorities(file: &Path) -> Result<Vec<Certificate>, Error> {
    let unusable = |reason: String| {
        Error::new(Problem::Invalid, format!("tools.ca_file: {} cannot be used: {reason}", file.display()))
    };
    let pem = std::fs::read(file).map_err(|e| unusable(e.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|e| unusable(e.to_string()))?;
    if found.is_empty() { Err(unusable("it holds no PEM certificate".to_owned())) } else { Ok(found) }
}

#[async_trait]
impl Tool for HttpRequest {
    fn name(&self) -> &str {
        "http.request"
    }

    fn description(&self) -> &str {
        "Sends an HTTP request, always with the step's Idempotency-Key, and gives the response."
    }

    fn arguments(&self) -> Value {
        request::schema(self.output_limit)
    }

    fn output(&self) -> Value {
        response::schema()
    }

    fn effect(&self, arguments: &Value) -> Effect {
        request::effect(arguments)
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let request = Request::of(&call, self.output_limit)?;
        let rules = unless_cancelled(&call, self.rules(&call)).await??;
        let client = self.clients.under(&rules)?;
        let exchange = Exchange { call: &call, rules: &rules, client: &client, hosts: &self.hosts };
        exchange.run(request).await.map(Outcome::done)
    }
}
