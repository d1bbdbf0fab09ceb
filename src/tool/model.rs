//! `llm.generate`: one question to a model, whose words are told as they come.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::{Call, Outcome, Progress, Tool, ToolError};
use crate::{
    journal::{Effect, Failure, MessageCompleted, MessageDelta, ToolProgress},
    kernel::{Reference, wire_time},
    llm::{Answer, AskError, Image, Message, Models, News, Prompt},
};

/// Words wait for company at most this long, or until there are so many bytes of them.
const COALESCE: Duration = Duration::from_millis(50);
const ENOUGH: usize = 1024;
/// News that may wait to be told; then the model is read more slowly.
const NEWS: usize = 64;
/// The longest text that its event carries.
const INLINE: usize = 128 * 1024;

/// The tool.
pub(super) struct Generate {
    models: Models,
}

impl Generate {
    pub(super) fn new(models: Models) -> Self {
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
    Reference { name: "default-smart".to_owned(), version: None }
}

#[async_trait]
impl Tool for Generate {
    fn name(&self) -> &str {
        "llm.generate"
    }

    fn description(&self) -> &str {
        "Asks a language model and gives its answer, as text or as JSON of a schema."
    }

    fn arguments(&self) -> Value {
        let reference = json!({ "type": "string", "pattern": "^[a-z][a-z0-9._-]{0,62}(@[0-9]{1,9})?$" });
        json!({
            "type": "object",
            "additionalProperties": false,
            "anyOf": [{ "required": ["prompt"] }, { "required": ["template"] }],
            "dependentRequired": { "variables": ["template"] },
            "properties": {
                "config": { "$ref": "#/$defs/reference", "default": "default-smart", "description": "A model configuration." },
                "template": { "$ref": "#/$defs/reference", "description": "A prompt template; `prompt` is one of its variables." },
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
                            "url": { "type": "string", "pattern": "^https?://" }
                        }
                    }
                },
                "schema": { "type": "object", "description": "JSON Schema: the answer is JSON that fits it." },
                "maxTokens": { "type": "integer", "minimum": 1, "maximum": 1_000_000 },
                "reasoning": { "type": "boolean", "default": false, "description": "Tell what the model thinks, too." }
            },
            "$defs": { "reference": reference }
        })
    }

    fn output(&self) -> Value {
        json!({
            "type": "object",
            "required": ["text", "config", "provider", "model", "stop", "usage"],
            "properties": {
                "text": { "type": "string" },
                "json": { "description": "The answer as JSON, where a schema was given." },
                "reasoning": { "type": "string" },
                "config": { "type": "string", "description": "The configuration that answered, with its version." },
                "template": { "type": "string", "description": "The template, with its version." },
                "provider": { "type": "string" },
                "model": { "type": "string" },
                "stop": { "enum": ["done", "length"], "description": "`length`: cut off at the most tokens." },
                "usage": {
                    "type": "object",
                    "properties": {
                        "inputTokens": { "type": "integer" },
                        "cachedTokens": { "type": "integer" },
                        "outputTokens": { "type": "integer" }
                    }
                }
            }
        })
    }

    fn effect(&self, _: &Value) -> Effect {
        // An answer that was not heard is asked for again; nothing else comes of it.
        Effect::Repeatable
    }

    fn timeout(&self) -> Duration {
        // Repetitions and fallbacks have time-outs of their own.
        Duration::from_secs(1800)
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        tokio::select! {
            biased;
            () = call.cancel.cancelled() => Err(ToolError::cancelled()),
            answered = self.generate(&call) => answered,
        }
    }
}

impl Generate {
    async fn generate(&self, call: &Call) -> Result<Outcome, ToolError> {
        let arguments: Arguments = call.read()?;
        let (config, reasoning) = (arguments.config.clone(), arguments.reasoning);
        let (prompt, template) = self.prompt(call, arguments).await?;
        let (teller, news) = mpsc::channel(NEWS);
        let asking = async {
            // Dropped with the question, so that whoever tells the news knows when it was the last.
            let teller = teller;
            self.models.ask(call.tenant_id, &config, &prompt, &teller).await
        };
        let (answered, ()) = tokio::join!(asking, tell(news, &call.progress, reasoning));
        let answer = answered.map_err(failure)?;
        call.progress.report(completed(&answer)).await;
        Ok(Outcome::Done { cost: Some(answer.cost), output: output(answer, template, reasoning) })
    }

    async fn prompt(&self, call: &Call, arguments: Arguments) -> Result<(Prompt, Option<String>), ToolError> {
        let Arguments { template, mut variables, system, prompt, images, schema, max_tokens, .. } = arguments;
        let (text, template) = match template {
            Some(template) => {
                variables.extend(prompt.map(|prompt| ("prompt".to_owned(), Value::String(prompt))));
                let rendered = self.models.render(call.tenant_id, &template, &variables).await;
                let (text, version) = rendered.map_err(failure)?;
                (text, Some(version))
            }
            None => (prompt.unwrap_or_default(), None),
        };
        let messages = vec![Message::User { text, images }];
        Ok((Prompt { system, messages, tools: vec![], schema, max_tokens }, template))
    }
}

fn failure(error: AskError) -> ToolError {
    let AskError { code, message, retryable, retry_after } = error;
    let retry_after_seconds = retry_after.and_then(|after| {
        std::num::NonZeroU32::new(u32::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX))
    });
    ToolError::Failed(Failure { retryable, retry_after_seconds, ..Failure::new(&code, message) })
}

fn completed(answer: &Answer) -> MessageCompleted {
    MessageCompleted {
        reply: answer.reply,
        text: (answer.text.len() <= INLINE).then(|| answer.text.clone()),
        text_bytes: answer.text.len() as u64,
        config: answer.config.clone(),
        provider: answer.provider.clone(),
        model: answer.model.clone(),
        input_tokens: answer.usage.input_tokens,
        cached_tokens: answer.usage.cached_tokens,
        output_tokens: answer.usage.output_tokens,
        cost: answer.cost,
    }
}

fn output(answer: Answer, template: Option<String>, reasoning: bool) -> Value {
    let Answer { text, json, reasoning: thoughts, stop, usage, config, provider, model, .. } = answer;
    let mut output = json!({
        "text": text, "config": config, "provider": provider, "model": model, "stop": stop, "usage": usage,
    });
    let more = [
        ("json", json),
        ("template", template.map(Value::String)),
        ("reasoning", thoughts.filter(|_| reasoning).map(Value::String)),
    ];
    if let Some(output) = output.as_object_mut() {
        output.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    }
    output
}

/// Words that have not been told.
#[derive(Default)]
struct Spoken {
    reply: u32,
    reasoning: bool,
    text: String,
    /// Where they begin, in what is said and in what is thought.
    offsets: [u64; 2],
}

impl Spoken {
    /// Whether these words can go with those that wait.
    fn goes_with(&self, reply: u32, reasoning: bool) -> bool {
        self.text.is_empty() || (self.reply, self.reasoning) == (reply, reasoning)
    }

    fn add(&mut self, reply: u32, reasoning: bool, text: &str) {
        if self.reply != reply {
            self.offsets = [0; 2];
        }
        (self.reply, self.reasoning) = (reply, reasoning);
        self.text.push_str(text);
    }

    async fn flush(&mut self, progress: &Progress) {
        if self.text.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.text);
        let [said, thought] = &mut self.offsets;
        let offset = if self.reasoning { thought } else { said };
        let delta = MessageDelta { reply: self.reply, offset: *offset, reasoning: self.reasoning, text };
        *offset += delta.text.len() as u64;
        progress.report(delta).await;
    }
}

/// Tells what happens while a model is asked: words in company, everything else at once.
async fn tell(mut news: mpsc::Receiver<News>, progress: &Progress, reasoning: bool) {
    let mut spoken = Spoken::default();
    let mut due = None;
    loop {
        let next = match due {
            Some(at) => match tokio::time::timeout_at(at, news.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    spoken.flush(progress).await;
                    due = None;
                    continue;
                }
            },
            None => news.recv().await,
        };
        let (reply, thought, text) = match next {
            Some(News::Words { reply, text }) => (reply, false, text),
            Some(News::Thoughts { reply, text }) if reasoning => (reply, true, text),
            Some(News::Thoughts { .. }) => continue,
            other => {
                spoken.flush(progress).await;
                due = None;
                match other {
                    Some(other) => progress.report(trouble(other)).await,
                    None => return,
                }
                continue;
            }
        };
        if !spoken.goes_with(reply, thought) {
            spoken.flush(progress).await;
        }
        spoken.add(reply, thought, &text);
        if spoken.text.len() >= ENOUGH {
            spoken.flush(progress).await;
            due = None;
        } else {
            due = due.or_else(|| Some(tokio::time::Instant::now() + COALESCE));
        }
    }
}

/// What went wrong on the way, for whoever watches.
fn trouble(news: News) -> ToolProgress {
    let (message, data) = match news {
        News::Retrying { because, at } => {
            let at = wire_time::format(&at);
            (format!("asking again: {because}"), json!({ "model": "retrying", "because": because, "at": at }))
        }
        News::AskedAgain { because } => {
            (format!("asking for another answer: {because}"), json!({ "model": "asked_again", "because": because }))
        }
        News::FellBack { because, to } => {
            (format!("asking {to} instead: {because}"), json!({ "model": "fell_back", "because": because, "to": to }))
        }
        News::Words { text, .. } | News::Thoughts { text, .. } => (text, Value::Null),
    };
    ToolProgress { message: Some(message), fraction: None, data: Some(data) }
}
