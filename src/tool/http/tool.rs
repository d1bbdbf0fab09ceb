use async_trait::async_trait;
use serde_json::Value;

use super::{Sender, request, response};
use crate::{
    journal::Effect,
    tool::{Call, Outcome, Tool, ToolError, sealed::Sealed},
};

/// The tool.
pub(in crate::tool) struct HttpRequest {
    sender: Sender,
}

impl HttpRequest {
    /// Sends through `sender`.
    pub(in crate::tool) fn new(sender: Sender) -> Self {
        Self { sender }
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
        request::schema(self.sender.output_limit())
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

    fn touches(&self, arguments: &Value) -> Option<String> {
        let method = arguments["method"].as_str().unwrap_or("GET");
        Some(format!("{method} {}", arguments["url"].as_str()?))
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        self.sender.send(&call, &call.arguments, None, &Sealed::default()).await.map(Outcome::done)
    }
}
