use std::time::Duration;

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{PATIENCE, answered, choice, given, reference, telling};
use crate::{
    journal::{Effect, Estimate, ModelPins},
    kernel::{Reference, TenantId},
    llm::{Audio, AudioFormat, Models, Recording, Sound, Teller, Utterance},
    tool::{Call, Outcome, Tool, ToolError},
};

pub(super) const SYNTHESIZE: &str = "speech.synthesize";
pub(super) const USUAL_VOICE: &str = "default-speech";
pub(super) const TRANSCRIBE: &str = "speech.transcribe";
pub(super) const USUAL_EAR: &str = "default-transcription";

/// Of an output, what is left to everything but the audio, in bytes.
const BESIDES: usize = 1024;

/// `speech.synthesize`: a text read aloud.
pub(in crate::tool) struct Synthesize {
    models: Models,
    /// The most bytes of JSON that an output may take.
    most: usize,
}

impl Synthesize {
    pub(in crate::tool) fn new(models: Models, most: usize) -> Self {
        Self { models, most }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Words {
    #[serde(default = "usual_voice")]
    config: Reference,
    text: String,
    #[serde(default = "alloy")]
    voice: String,
    #[serde(default)]
    format: AudioFormat,
}

impl Words {
    /// The configuration, and what is wanted where an output may have so many bytes of JSON.
    fn split(self, most: usize) -> (Reference, Utterance) {
        let Self { config, text, voice, format } = self;
        // Four letters of base64 are three bytes.
        let most = most.saturating_sub(BESIDES) / 4 * 3;
        (config, Utterance { text, voice, format, most })
    }
}

fn usual_voice() -> Reference {
    Reference { name: USUAL_VOICE.to_owned(), version: None }
}

fn alloy() -> String {
    "alloy".to_owned()
}

#[async_trait]
impl Tool for Synthesize {
    fn name(&self) -> &str {
        SYNTHESIZE
    }

    fn description(&self) -> &str {
        "Reads a text aloud and gives the audio."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["text"],
            "properties": {
                "config": { "$ref": "#/$defs/reference", "default": USUAL_VOICE, "description": "A model configuration." },
                "text": { "type": "string", "minLength": 1, "maxLength": 65536 },
                "voice": {
                    "type": "string", "minLength": 1, "maxLength": 200, "default": "alloy",
                    "description": "Whose, as the provider calls it."
                },
                "format": { "enum": ["mp3", "opus", "aac", "flac", "wav", "pcm"], "default": "mp3" }
            },
            "$defs": { "reference": reference() }
        })
    }

    fn output(&self) -> Value {
        let audio = json!({ "type": "string", "contentEncoding": "base64" });
        answered(&["audio", "mediaType"], json!({ "audio": audio, "mediaType": { "type": "string" } }))
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Repeatable
    }

    fn timeout(&self) -> Duration {
        PATIENCE
    }

    async fn expects_each(&self, tenant: TenantId, calls: &[&Value], models: Option<&ModelPins>) -> Vec<Estimate> {
        let asked = calls.iter().map(|arguments| {
            let (config, wanted) = Words::deserialize(*arguments).ok()?.split(self.most);
            Some((choice(models, config), wanted.tokens()))
        });
        self.models.expects(tenant, asked.collect(), |tokens, config| config.body.estimate_of(*tokens, 0)).await
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        self.synthesize(&call).await
    }
}

impl Synthesize {
    async fn synthesize(&self, call: &Call) -> Result<Outcome, ToolError> {
        let (config, wanted) = call.read::<Words>()?.split(self.most);
        let choice = choice(call.models.as_deref(), config);
        let (models, choice, wanted) = (&self.models, &choice, &wanted);
        let asking = |teller: Teller| async move { models.synthesize(call.tenant_id, choice, wanted, &teller).await };
        let speech = telling(call, asking).await?;
        let Audio { bytes, media_type } = &speech.it;
        let fields = json!({ "audio": BASE64_STANDARD.encode(bytes), "mediaType": media_type });
        Ok(given(call, speech, None, fields).await)
    }
}

/// `speech.transcribe`: what is said in a recording.
pub(in crate::tool) struct Transcribe {
    models: Models,
}

impl Transcribe {
    pub(in crate::tool) fn new(models: Models) -> Self {
        Self { models }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Dictation {
    #[serde(default = "usual_ear")]
    config: Reference,
    audio: Option<String>,
    audio_url: Option<String>,
    media_type: String,
    language: Option<String>,
}

fn usual_ear() -> Reference {
    Reference { name: USUAL_EAR.to_owned(), version: None }
}

#[async_trait]
impl Tool for Transcribe {
    fn name(&self) -> &str {
        TRANSCRIBE
    }

    fn description(&self) -> &str {
        "Writes down what is said in a recording."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["mediaType"],
            "oneOf": [{ "required": ["audio"] }, { "required": ["audioUrl"] }],
            "properties": {
                "config": { "$ref": "#/$defs/reference", "default": USUAL_EAR, "description": "A model configuration." },
                "audio": { "type": "string", "contentEncoding": "base64", "minLength": 4 },
                "audioUrl": { "type": "string", "pattern": "^https?://", "description": "It is fetched when the model is asked." },
                "mediaType": { "type": "string", "pattern": "^(audio|video)/[a-z0-9.+-]+$" },
                "language": {
                    "type": "string", "pattern": "^[a-z]{2,3}$", "description": "What is spoken (`en`, `id`), where it is known."
                }
            },
            "$defs": { "reference": reference() }
        })
    }

    fn output(&self) -> Value {
        answered(&["text"], json!({ "text": { "type": "string" } }))
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Repeatable
    }

    fn timeout(&self) -> Duration {
        PATIENCE
    }

    async fn expects_each(&self, tenant: TenantId, calls: &[&Value], models: Option<&ModelPins>) -> Vec<Estimate> {
        let asked = calls.iter().map(|arguments| {
            let Dictation { config, .. } = Dictation::deserialize(*arguments).ok()?;
            Some((choice(models, config), ()))
        });
        // How long it is nobody knows before it is here; that it takes something is known.
        self.models.expects(tenant, asked.collect(), |(), config| config.body.estimate_of(1, 1)).await
    }

    fn touches(&self, arguments: &Value) -> Option<String> {
        Some(format!("GET {}", arguments["audioUrl"].as_str()?))
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        self.transcribe(&call).await
    }
}

impl Transcribe {
    async fn transcribe(&self, call: &Call) -> Result<Outcome, ToolError> {
        let Dictation { config, audio, audio_url, media_type, language } = call.read()?;
        let none = || ToolError::failed("invalid_arguments", "`audio` is no base64 of a recording");
        let decode = |text: String| BASE64_STANDARD.decode(text).ok().filter(|bytes| !bytes.is_empty());
        let sound = match audio_url {
            Some(url) => Sound::Url(url),
            None => Sound::Bytes(audio.and_then(decode).ok_or_else(none)?.into()),
        };
        let heard = Recording { sound, media_type, language };
        let choice = choice(call.models.as_deref(), config);
        let (models, choice, heard) = (&self.models, &choice, &heard);
        let asking = |teller: Teller| async move { models.transcribe(call.tenant_id, choice, heard, &teller).await };
        let written = telling(call, asking).await?;
        let text = written.it.clone();
        Ok(given(call, written, Some(&text), json!({ "text": text })).await)
    }
}
