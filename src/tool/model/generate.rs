use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{PATIENCE, answered, ask, choice, failure, reference, unless_cancelled};
use crate::{
    journal::{Effect, Estimate, ModelPins},
    kernel::{Reference, TenantId},
    llm::{Answer, Image, Message, Models, Prompt, Worded},
    tool::{Call, Outcome, Tool, ToolError},
};

pub(super) const NAME: &str = "llm.generate";
pub(super) const USUAL: &str = "default-smart";

/// `llm.generate`: one question to a model.
pub(in crate::tool) struct Generate {
    models: Models,
}

impl Generate {
    pub(in crate::tool) fn new(models: Models) -> Self {
        Self { models }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Arguments {
    #[serde(default = "usual")]
    config: Reference,
    template: Option<Reference>,
    #[serde(default)]
    variables: Map<String, Value>,
    system: Option<String>,
    prompt: Option<String>,
    #[serde(default)]
    images: Vec<Image>,
    schema: Option<Arc<Value>>,
    max_tokens: Option<u32>,
    #[serde(default)]
    reasoning: bool,
}

fn usual() -> Reference {
    Reference { name: USUAL.to_owned(), version: None }
}

#[async_trait]
impl Tool for Generate {
    fn name(&self) -> &str {
        NAME
    }

    fn description(&self) -> &str {
        "Asks a language model and gives its answer, as text or as JSON of a schema."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "anyOf": [{ "required": ["prompt"] }, { "required": ["template"] }],
            "dependentRequired": { "variables": ["template"] },
            "properties": {
                "config": { "$ref": "#/$defs/reference", "default": USUAL, "description": "A model configuration." },
                "template": { "$ref": "#/$defs/reference", "description": "A prompt template. Where it has no variable `prompt`, it says who the model is to be." },
                "variables": { "type": "object", "description": "The template's other variables." },
                "system": { "type": "string", "minLength": 1, "maxLength": 65536, "description": "Who the model is to be." },
                "prompt": { "type": "string", "minLength": 1, "description": "What it is asked." },
                "images": {
                    "type": "array",
                    "maxItems": 16,
                    "items": {
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["mediaType"],
                        "oneOf": [{ "required": ["data"] }, { "required": ["url"] }],
                        "properties": {
                            "mediaType": { "type": "string", "pattern": "^image/[a-z0-9.+-]+$" },
                            "data": { "type": "string", "contentEncoding": "base64", "minLength": 4 },
                            "url": { "type": "string", "pattern": "^https?://", "description": "It is fetched when the model is asked." }
                        }
                    }
                },
                "schema": { "type": "object", "description": "JSON Schema: the answer is JSON that fits it." },
                "maxTokens": { "type": "integer", "minimum": 1, "maximum": 1_000_000 },
                "reasoning": { "type": "boolean", "default": false, "description": "Tell what the model thinks, too." }
            },
            "$defs": { "reference": reference() }
        })
    }

    fn output(&self) -> Value {
        let fields = json!({
            "text": { "type": "string" },
            "json": { "description": "The answer as JSON, where a schema was given." },
            "reasoning": { "type": "string" },
            "template": { "type": "string", "description": "The template, with its version." },
            "stop": { "enum": ["done", "length"], "description": "`length`: cut off at the most tokens." }
        });
        answered(&["text", "stop"], fields)
    }

    fn effect(&self, _: &Value) -> Effect {
        // An answer that was not heard is asked for again; nothing else comes of it.
        Effect::Repeatable
    }

    fn timeout(&self) -> Duration {
        PATIENCE
    }

    fn touches(&self, arguments: &Value) -> Option<String> {
        let images = arguments["images"].as_array()?;
        let fetched: Vec<_> =
            images.iter().filter_map(|image| Some(format!("GET {}", image["url"].as_str()?))).collect();
        (!fetched.is_empty()).then(|| fetched.join(", "))
    }

    async fn expects_each(&self, tenant: TenantId, calls: &[&Value], models: Option<&ModelPins>) -> Vec<Estimate> {
        let calls: Vec<_> = calls.iter().map(|arguments| Arguments::deserialize(*arguments).ok()).collect();
        let wanted: Vec<_> = calls.iter().flatten().filter_map(|call| call.template(models)).collect();
        let mut found = self.models.templates(tenant, &wanted).await.unwrap_or_default().into_iter();
        let asked = calls.into_iter().map(|call| {
            let call = call?;
            let words = match &call.template {
                Some(_) => found.next().flatten()?.body.word(&call.variables, call.prompt.as_deref()).ok()?,
                None => call.plain(),
            };
            Some((choice(models, call.config.clone()), call.asking(words)))
        });
        self.models.expects(tenant, asked.collect(), |prompt, config| config.estimate(prompt)).await
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        self.generate(&call).await
    }
}

impl Generate {
    async fn generate(&self, call: &Call) -> Result<Outcome, ToolError> {
        let arguments: Arguments = call.read()?;
        let (pins, tenant) = (call.models.as_deref(), call.tenant_id);
        let choice = choice(pins, arguments.config.clone());
        let (words, template) = match arguments.template(pins) {
            Some(template) => {
                let (variables, prompt) = (&arguments.variables, arguments.prompt.as_deref());
                let wording = self.models.word(tenant, &template, variables, prompt);
                let (words, version) = unless_cancelled(call, async { wording.await.map_err(failure) }).await?;
                (words, Some(version))
            }
            None => (arguments.plain(), None),
        };
        let answer = ask(&self.models, call, &choice, &arguments.asking(words)).await?;
        Ok(Outcome::Done { cost: Some(answer.spent), output: output(answer, template) })
    }
}

impl Arguments {
    /// The template, of the version that its name means in this run.
    fn template(&self, pins: Option<&ModelPins>) -> Option<Reference> {
        let template = self.template.as_ref()?;
        let pinned = pins.and_then(|pins| pins.templates.get(&template.to_string()));
        Some(pinned.map_or_else(|| template.clone(), Reference::from))
    }

    /// The prompt as it stands.
    fn plain(&self) -> Worded {
        Worded { system: None, text: self.prompt.clone().unwrap_or_default() }
    }

    /// The question, in these words.
    fn asking(self, Worded { system: told, text }: Worded) -> Prompt {
        let Self { system, images, schema, max_tokens, reasoning, .. } = self;
        let system = [system, told].into_iter().flatten().reduce(|own, told| format!("{own}\n\n{told}"));
        let messages = vec![Message::User { text, images }];
        Prompt { system, messages, schema, max_tokens, reasoning, ..Prompt::default() }
    }
}

fn output(answer: Answer, template: Option<String>) -> Value {
    let Answer { text, json, reasoning, stop, usage, config, provider, model, .. } = answer;
    let mut output = json!({
        "text": text, "config": config, "provider": provider, "model": model, "stop": stop, "usage": usage,
    });
    let more = [("json", json), ("template", template.map(Value::String)), ("reasoning", reasoning.map(Value::String))];
    if let Some(output) = output.as_object_mut() {
        output.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    }
    output
}
