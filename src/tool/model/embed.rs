use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Number, Value, json};

use super::{PATIENCE, answered, choice, given, reference, telling};
use crate::{
    journal::{Effect, Estimate, ModelPins},
    kernel::{Reference, TenantId},
    llm::{Models, Teller, Texts},
    tool::{Call, Outcome, Tool, ToolError, fits},
};

pub(super) const NAME: &str = "llm.embed";
pub(super) const USUAL: &str = "default-embed";

/// `llm.embed`: texts as vectors.
pub(in crate::tool) struct Embed {
    models: Models,
    /// The most bytes of JSON that an output may take.
    most: usize,
}

impl Embed {
    pub(in crate::tool) fn new(models: Models, most: usize) -> Self {
        Self { models, most }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Arguments {
    #[serde(default = "usual")]
    config: Reference,
    text: Option<String>,
    #[serde(default)]
    texts: Vec<String>,
    dimensions: Option<u32>,
}

impl Arguments {
    fn split(self) -> (Reference, Texts) {
        let Self { config, text, texts, dimensions } = self;
        (config, Texts { texts: text.into_iter().chain(texts).collect(), dimensions })
    }
}

fn usual() -> Reference {
    Reference { name: USUAL.to_owned(), version: None }
}

#[async_trait]
impl Tool for Embed {
    fn name(&self) -> &str {
        NAME
    }

    fn description(&self) -> &str {
        "Turns texts into vectors, which lie close together where the texts mean alike."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "oneOf": [{ "required": ["text"] }, { "required": ["texts"] }],
            "properties": {
                "config": { "$ref": "#/$defs/reference", "default": USUAL, "description": "A model configuration." },
                "text": { "type": "string", "minLength": 1 },
                "texts": { "type": "array", "minItems": 1, "maxItems": 256, "items": { "type": "string", "minLength": 1 } },
                "dimensions": {
                    "type": "integer", "minimum": 1, "maximum": 16384,
                    "description": "How many numbers a vector has, where the model leaves a choice."
                }
            },
            "$defs": { "reference": reference() }
        })
    }

    fn output(&self) -> Value {
        let embeddings = json!({
            "type": "array",
            "items": { "type": "array", "items": { "type": "number" } },
            "description": "A vector for each text, in their order."
        });
        answered(&["embeddings"], json!({ "embeddings": embeddings }))
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Repeatable
    }

    fn timeout(&self) -> Duration {
        PATIENCE
    }

    async fn expects_each(&self, tenant: TenantId, calls: &[&Value], models: Option<&ModelPins>) -> Vec<Estimate> {
        let asked = calls.iter().map(|arguments| {
            let (config, texts) = Arguments::deserialize(*arguments).ok()?.split();
            Some((choice(models, config), texts.most_tokens()))
        });
        self.models.expects(tenant, asked.collect(), |tokens, config| config.body.estimate_of(*tokens, 0)).await
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        self.embed(&call).await
    }
}

impl Embed {
    async fn embed(&self, call: &Call) -> Result<Outcome, ToolError> {
        let (config, texts) = call.read::<Arguments>()?.split();
        let choice = choice(call.models.as_deref(), config);
        let (models, choice, texts) = (&self.models, &choice, &texts);
        let asking = |teller: Teller| async move { models.embed(call.tenant_id, choice, texts, &teller).await };
        let vectors = telling(call, asking).await?;
        let fields = json!({ "embeddings": vectors.it.iter().map(|vector| numbers(vector)).collect::<Value>() });
        let outcome = given(call, vectors, None, fields).await;
        match &outcome {
            Outcome::Done { output, .. } if !fits(output, self.most) => {
                let message = format!(
                    "the vectors take more than the {} bytes of JSON that an output may have (`limits.output`): \
                     fewer texts at once, or fewer `dimensions`, take less",
                    self.most
                );
                Err(ToolError::failed("output_too_large", message))
            }
            _ => Ok(outcome),
        }
    }
}

/// A vector as JSON, with no more digits than its numbers have.
fn numbers(vector: &[f32]) -> Value {
    let number = |one: &f32| Number::from_f64(one.to_string().parse().ok()?);
    vector.iter().map(|one| number(one).map_or(Value::Null, Value::Number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_more_digits_than_they_need() {
        assert_eq!(numbers(&[0.1, -0.25, 1.0, 3e-7]).to_string(), "[0.1,-0.25,1.0,3e-7]");
    }
}
