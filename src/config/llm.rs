use std::collections::BTreeMap;

use figment::{
    Figment,
    providers::{Format, Toml},
};
use secrecy::SecretString;
use serde::Deserialize;

/// The providers everybody knows; a key makes one of use. Settings are laid over them.
pub(super) const PROVIDERS: &str = r#"
[llm.providers.openai]
api = "openai"
url = "https://api.openai.com/v1/"
smart = "gpt-5.4"
fast = "gpt-5.4-mini"
embed = "text-embedding-3-small"
speech = "gpt-4o-mini-tts"
transcribe = "gpt-4o-mini-transcribe"

[llm.providers.anthropic]
api = "anthropic"
url = "https://api.anthropic.com/v1/"
smart = "claude-sonnet-4-6"
fast = "claude-haiku-4-5"

[llm.providers.gemini]
api = "gemini"
url = "https://generativelanguage.googleapis.com/v1beta/"
smart = "gemini-3.5-flash"
fast = "gemini-3.5-flash-lite"
embed = "gemini-embedding-001"

[llm.providers.huggingface]
api = "openai"
url = "https://router.huggingface.co/v1/"
smart = "openai/gpt-oss-120b"
fast = "openai/gpt-oss-20b"
"#;

/// `[llm]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlmSettings {
    /// Where models are, by name (`[llm.providers.local]`), see [Models](models.md). `OPENAI_API_KEY`, `ANTHROPIC_API_KEY`
    /// and `GEMINI_API_KEY` are the keys of three. Default: `openai`, `anthropic`, `gemini`, `huggingface`, without keys.
    pub providers: BTreeMap<String, ProviderSettings>,
    /// The longest one call of a model may take where its configuration names no time-out. Also
    /// `LLM_DEFAULT_TIMEOUT_SECONDS`. Default 120.
    pub default_timeout_seconds: u32,
    /// How often a call that failed is made again, and how often an answer that will not do is asked for again. Also
    /// `LLM_MAX_RETRIES`. Default 3.
    pub max_retries: u32,
    /// Seconds before the first repetition, at most; they double with each. Also `LLM_RETRY_INITIAL_DELAY`. Default 1.0.
    pub retry_initial_delay: f64,
    /// Seconds before any repetition, at most, unless the provider asks for more. Also `LLM_RETRY_MAX_DELAY`. Default 60.0.
    pub retry_max_delay: f64,
    /// Calls at once with one key, on this process. Default 32.
    pub concurrency: usize,
    /// Tokens a minute with one key, on this process, prompts and answers counted; 0 sets no limit. Default 0.
    pub tokens_per_minute: u32,
    /// All images together that one question names by address and that are fetched for it. Default 10 MiB.
    pub image_bytes: usize,
    /// A recording that is named by address and fetched to be written down. Default 25 MiB.
    pub audio_bytes: usize,
}

/// `[llm.providers.<name>]`: a place that serves models.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderSettings {
    /// What it speaks.
    pub api: Api,
    /// Where it is: the URL its paths are appended to. May be on this machine or in its network, since the operator
    /// names it.
    pub url: String,
    /// The operator's key. It goes to `url` and nowhere else.
    pub key: Option<SecretString>,
    /// It needs no key.
    #[serde(default)]
    pub keyless: bool,
    /// The model behind `default-smart`, where this is the first provider of use.
    pub smart: Option<String>,
    /// The model behind `default-fast`.
    pub fast: Option<String>,
    /// The model behind `default-embed`.
    pub embed: Option<String>,
    /// The model behind `default-speech`.
    pub speech: Option<String>,
    /// The model behind `default-transcription`.
    pub transcribe: Option<String>,
}

impl ProviderSettings {
    /// Whether the operator names the model here.
    #[must_use]
    pub fn names(&self, model: &str) -> bool {
        let named = [&self.smart, &self.fast, &self.embed, &self.speech, &self.transcribe];
        named.into_iter().flatten().any(|it| it == model)
    }
}

/// A protocol that model providers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// OpenAI's chat completions, which most others speak too.
    Openai,
    /// OpenAI's responses.
    OpenaiResponses,
    /// Anthropic's messages.
    Anthropic,
    /// Gemini's generateContent.
    Gemini,
}

/// `[circuit_breaker]`: when a model that fails is left alone.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CircuitBreakerSettings {
    /// Failures in a row after which a model is not asked any more. Also `CIRCUIT_BREAKER_FAILURE_THRESHOLD`. Default 5.
    pub failure_threshold: u32,
    /// Answers in a row after which it is trusted again. Also `CIRCUIT_BREAKER_SUCCESS_THRESHOLD`. Default 2.
    pub success_threshold: u32,
    /// Seconds before it is tried again. Also `CIRCUIT_BREAKER_TIMEOUT_SECONDS`. Default 60.0.
    pub timeout_seconds: f64,
}

/// `[job]`: jobs, beyond the repetitions of single calls.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobSettings {
    /// How often a job that failed is tried again where it does not say. Also `JOB_DEFAULT_MAX_RETRIES`. Default 3.
    pub default_max_retries: u32,
    /// Seconds before a repetition, at least, and before the first one; the most doubles with each. Also
    /// `JOB_RETRY_DELAY_MIN`. Default 5.0.
    pub retry_delay_min: f64,
    /// Seconds before any repetition, at most; an hour where the provider asks for it. Also `JOB_RETRY_DELAY_MAX`. Default
    /// 300.0.
    pub retry_delay_max: f64,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self { default_max_retries: 3, retry_delay_min: 5.0, retry_delay_max: 300.0 }
    }
}

impl Default for LlmSettings {
    fn default() -> Self {
        let usual = Figment::from(Toml::string(PROVIDERS)).extract_inner("llm.providers");
        Self {
            providers: usual.unwrap_or_default(),
            default_timeout_seconds: 120,
            max_retries: 3,
            retry_initial_delay: 1.0,
            retry_max_delay: 60.0,
            concurrency: 32,
            tokens_per_minute: 0,
            image_bytes: 10 * 1024 * 1024,
            audio_bytes: 25 * 1024 * 1024,
        }
    }
}

impl Default for CircuitBreakerSettings {
    fn default() -> Self {
        Self { failure_threshold: 5, success_threshold: 2, timeout_seconds: 60.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_providers_can_be_read() {
        let providers = LlmSettings::default().providers;
        assert_eq!(providers.keys().collect::<Vec<_>>(), ["anthropic", "gemini", "huggingface", "openai"]);
        assert!(providers.values().all(|provider| provider.key.is_none() && provider.url.ends_with('/')));
    }
}
