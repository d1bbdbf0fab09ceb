use std::sync::Arc;

use async_trait::async_trait;
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
    journal::Effect,
    tool::{Call, Outcome, Tool, ToolError},
};

/// The tool.
pub(in crate::tool) struct HttpRequest {
    allow_list: Arc<dyn AllowList>,
    loopback: bool,
    clients: Clients,
    hosts: Hosts,
}

impl HttpRequest {
    /// With `loopback`, this machine's own addresses are open to every tenant.
    pub(in crate::tool) fn new(allow_list: Arc<dyn AllowList>, loopback: bool, per_host: usize) -> Self {
        Self { allow_list, loopback, clients: Clients::default(), hosts: Hosts::new(per_host) }
    }

    async fn rules(&self, call: &Call) -> Result<Rules, ToolError> {
        match self.allow_list.allowed(call.tenant_id).await {
            Ok(entries) => Ok(Rules::new(self.loopback, &entries)),
            Err(error) => {
                tracing::warn!(%error, ?error, "a tenant's allow-list cannot be read");
                Err(ToolError::retryable("unavailable", "the tenant's allow-list cannot be read at the moment"))
            }
        }
    }
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
        request::schema()
    }

    fn output(&self) -> Value {
        response::schema()
    }

    fn effect(&self, arguments: &Value) -> Effect {
        request::effect(arguments)
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let request = Request::of(&call)?;
        let rules = unless_cancelled(&call, self.rules(&call)).await??;
        let client = self.clients.under(&rules)?;
        let exchange = Exchange { call: &call, rules: &rules, client: &client, hosts: &self.hosts };
        exchange.run(request).await.map(Outcome::done)
    }
}
