use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::{
    exchange::{Exchange, unless_cancelled},
    hosts::Hosts,
    request::{self, Request},
    response,
};
use crate::{
    http::{Door, Outbound},
    journal::Effect,
    kernel::Problem,
    tool::{Call, Outcome, Tool, ToolError},
};

/// How many requests of one tenant to one host may be open at once.
const PER_HOST: usize = 16;

/// The tool.
pub(in crate::tool) struct HttpRequest {
    outbound: Arc<Outbound>,
    hosts: Hosts,
    /// The largest output of a step.
    output_limit: usize,
}

impl HttpRequest {
    /// Reaches what is to be reached through `outbound`.
    pub(in crate::tool) fn new(outbound: Arc<Outbound>, output_limit: usize) -> Self {
        Self { outbound, hosts: Hosts::new(PER_HOST), output_limit }
    }

    async fn door(&self, call: &Call) -> Result<Door, ToolError> {
        call.patiently(|| self.outbound.door(call.tenant_id)).await.map_err(|error| {
            tracing::warn!(%error, ?error, "a tenant's requests cannot go out");
            let message = match error.problem() {
                Problem::Unavailable => "the tenant's allow-list cannot be read at the moment",
                _ => error.detail(),
            };
            ToolError::retryable("unavailable", message)
        })
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
        request::schema(self.output_limit)
    }

    fn output(&self) -> Value {
        response::schema()
    }

    fn effect(&self, arguments: &Value) -> Effect {
        request::effect(arguments)
    }

    fn effects(&self) -> Vec<Effect> {
        vec![Effect::Pure, Effect::Repeatable, Effect::Once]
    }

    fn effect_unvouched(&self, arguments: &Value) -> Effect {
        request::effect_of_method(arguments)
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let request = Request::of(&call, self.output_limit)?;
        let door = unless_cancelled(&call, self.door(&call)).await??;
        let exchange = Exchange { call: &call, door: &door, hosts: &self.hosts };
        exchange.run(request).await.map(Outcome::done)
    }
}
