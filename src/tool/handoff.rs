use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Call, Outcome, Tool, ToolError};
use crate::journal::{AGENT_HANDOFF, Effect};

/// `agent.handoff`: says that a conversation goes over to another agent. The turn after it is that agent's.
pub(super) struct Handoff;

#[async_trait]
impl Tool for Handoff {
    fn name(&self) -> &str {
        AGENT_HANDOFF
    }

    fn internal(&self) -> bool {
        true
    }

    fn description(&self) -> &str {
        "Hands the conversation over to another agent."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "required": ["agent"],
            "additionalProperties": false,
            "properties": { "agent": { "type": "string" } }
        })
    }

    fn output(&self) -> Value {
        json!({ "type": "object" })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Pure
    }

    fn at_once(&self) -> bool {
        true
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        Ok(Outcome::done(call.arguments.as_ref().clone()))
    }
}
