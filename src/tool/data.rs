use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Call, Outcome, Tool, ToolError};
use crate::journal::Effect;

/// `data.transform`: what the engine rendered is the output.
#[derive(Debug)]
pub(super) struct Transform;

#[async_trait]
impl Tool for Transform {
    fn name(&self) -> &str {
        "data.transform"
    }

    fn description(&self) -> &str {
        "Gives a value that later steps use: write it with templates over the input and earlier outputs."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "required": ["value"],
            "additionalProperties": false,
            "properties": { "value": { "description": "Any JSON; templates in it are rendered first." } }
        })
    }

    fn output(&self) -> Value {
        json!({ "description": "The value." })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Pure
    }

    fn at_once(&self) -> bool {
        true
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        Ok(Outcome::done(call.arguments.get("value").cloned().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_value_is_the_output() {
        let value = json!({"a": [1, null, "x"]});
        let call = crate::tool::tests::call(json!({ "value": value }));
        assert_eq!(Transform.call(call).await, Ok(Outcome::done(value)));
    }
}
