use std::sync::Arc;

use reqwest::header::{HeaderName, HeaderValue};
use serde_json::Value;

use super::{
    exchange::{Exchange, unless_cancelled},
    hosts::Hosts,
    request::Request,
};
use crate::{
    http::{Door, Outbound},
    kernel::Problem,
    tool::{Call, ToolError, sealed::Sealed},
};

/// How many requests of one tenant to one host may be open at once.
const PER_HOST: usize = 16;

/// Sends the requests of a tool, or of a tenant's own.
pub(in crate::tool) struct Sender {
    outbound: Arc<Outbound>,
    hosts: Hosts,
    /// The largest output of a step.
    output_limit: usize,
}

impl Sender {
    /// Reaches what is to be reached through `outbound`.
    pub(in crate::tool) fn new(outbound: Arc<Outbound>, output_limit: usize) -> Self {
        Self { outbound, hosts: Hosts::new(PER_HOST), output_limit }
    }

    pub(super) fn output_limit(&self) -> usize {
        self.output_limit
    }

    /// Sends what the arguments of `http.request` say, and a header that nobody is told of: what is sealed of it is hidden
    /// where the answer is cut or encoded, and by the caller where it stands in plain text.
    pub(super) async fn send(
        &self,
        call: &Call,
        arguments: &Value,
        secret: Option<(HeaderName, HeaderValue)>,
        sealed: &Sealed,
    ) -> Result<Value, ToolError> {
        let mut request = Request::of(call, arguments, self.output_limit)?;
        request.headers.extend(secret);
        let door = unless_cancelled(call, self.door(call)).await??;
        Exchange { call, door: &door, hosts: &self.hosts, sealed }.run(request).await
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
