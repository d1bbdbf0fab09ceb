use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Prompt, Usage,
    document::{Document, DocumentKind},
};
use crate::{
    journal::{Estimate, LONGEST_ANSWER, WINDOW},
    kernel::{Error, Result, Span, is_name},
};

/// How to ask a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelConfig {
    /// A provider that this server knows; `GET /llm/providers` lists them.
    #[schema(example = "openai")]
    pub provider: String,
    /// The model, as the provider calls it.
    #[schema(example = "gpt-5.4", min_length = 1, max_length = 200)]
    pub model: String,
    /// Another place that speaks as the provider does: the URL its paths are appended to. The operator's key is never
    /// sent there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "https://models.example/v1/")]
    pub endpoint: Option<String>,
    /// The tenant's own key, by the name it was sealed under; the operator's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How freely it picks its words; the model's own way when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.0, maximum = 2.0)]
    pub temperature: Option<f64>,
    /// How much it thinks before it answers; as the provider has it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<Reasoning>,
    /// The most tokens of an answer, its thoughts counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub max_tokens: Option<u32>,
    /// The tokens that the model takes in all, question and answer; 128,000 when absent. Agents keep below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1000, maximum = 100_000_000, example = 200_000)]
    pub window: Option<u32>,
    /// The longest one call may take; the server's own bound when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// What it costs, in the tenant's unit; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// What an answer has to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expected>,
    /// Configurations that are tried in this order when this one gives no answer; theirs are not followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 8)]
    pub fallback: Option<Vec<String>>,
    /// Whether it may be used; it may when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
}

impl ModelConfig {
    /// Of a model and no more.
    #[must_use]
    pub fn of(provider: &str, model: &str) -> Self {
        Self {
            provider: provider.to_owned(),
            model: model.to_owned(),
            endpoint: None,
            key: None,
            temperature: None,
            reasoning: None,
            max_tokens: None,
            window: None,
            timeout: None,
            price: None,
            expect: None,
            fallback: None,
            active: None,
        }
    }

    /// Tokens of an answer at the longest.
    #[must_use]
    pub fn longest_answer(&self) -> u32 {
        self.max_tokens.unwrap_or_else(|| LONGEST_ANSWER + self.reasoning.map_or(0, Reasoning::tokens))
    }

    /// The most tokens of a question: what the longest answer leaves of the window, half of it at least.
    #[must_use]
    pub fn question_window(&self) -> u32 {
        let window = self.window.unwrap_or(WINDOW);
        window.saturating_sub(self.longest_answer()).max(window / 2)
    }

    /// What so many tokens, asked and said, take at most.
    #[must_use]
    pub fn estimate_of(&self, asked: u32, said: u32) -> Estimate {
        let usage = Usage { input_tokens: asked.into(), cached_tokens: 0, output_tokens: said.into() };
        let dearest = |price: &Price| Price { input: price.dearest_input(), ..*price };
        let cost = self.price.as_ref().map_or(0.0, |price| usage.cost(&dearest(price)));
        Estimate { cost, tokens: usage.input_tokens + usage.output_tokens, ..Estimate::default() }
    }

    /// Whether it may be used.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active.unwrap_or(true)
    }
}

impl Document<ModelConfig> {
    /// What asking this takes at most.
    #[must_use]
    pub fn estimate(&self, prompt: &Prompt) -> Estimate {
        let said = prompt.max_tokens.unwrap_or_else(|| self.body.longest_answer());
        self.body.estimate_of(prompt.most_tokens(&self.reference()), said)
    }
}

/// How much a model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reasoning {
    /// Little.
    Low,
    /// More.
    Medium,
    /// As much as it can.
    High,
}

impl Reasoning {
    /// About the most tokens of thoughts.
    const fn tokens(self) -> u32 {
        match self {
            Self::Low => 1024,
            Self::Medium => 8000,
            Self::High => 24_000,
        }
    }
}

/// Prices of a million tokens each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Price {
    /// Asked.
    #[schema(minimum = 0.0)]
    pub input: f64,
    /// Said.
    #[schema(minimum = 0.0)]
    pub output: f64,
    /// Asked and known to the provider's cache; as `input` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.0)]
    pub cached: Option<f64>,
}

impl Price {
    /// What a token asked costs at most, for a million: with some providers, what their cache writes is dearer.
    #[must_use]
    pub fn dearest_input(&self) -> f64 {
        self.input.max(self.cached.unwrap_or_default())
    }
}

/// What an answer has to be, besides not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Expected {
    /// The fewest characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_length: Option<u32>,
    /// Phrases that show that it is none, in any case of letters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub error_phrases: Vec<String>,
}

/// The longest a call may be given.
const LONGEST: Span = Span::seconds(3600);

impl DocumentKind for ModelConfig {
    const KIND: &'static str = "config";
    const NOUN: &'static str = "model configuration";
    const PUT: &'static str = "llm.config.put";
    const DELETE: &'static str = "llm.config.delete";

    fn model(&self) -> Option<(String, String)> {
        Some((self.provider.clone(), self.model.clone()))
    }

    fn check(&self, name: &str) -> Result<()> {
        let price = self.price.into_iter().flat_map(|price| [Some(price.input), Some(price.output), price.cached]);
        let endpoint = self.endpoint.as_deref().map(reqwest::Url::parse);
        let http = |url: &reqwest::Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        let texts = self.expect.as_ref().map_or(&[][..], |expect| &expect.error_phrases);
        let fallback = self.fallback.as_deref().unwrap_or_default();
        let rules = [
            ("model", (1..=200).contains(&self.model.chars().count()), "`model` has 1 to 200 characters"),
            (
                "endpoint",
                endpoint.is_none_or(|url| url.is_ok_and(|url| http(&url) && url.query().is_none())),
                "`endpoint` is an http or https URL, without a query",
            ),
            ("key", self.key.as_deref().is_none_or(is_name), "`key` is the name of a sealed key"),
            (
                "temperature",
                self.temperature.is_none_or(|t| (0.0..=2.0).contains(&t)),
                "`temperature` is from 0.0 to 2.0",
            ),
            (
                "maxTokens",
                self.max_tokens.is_none_or(|most| (1..=1_000_000).contains(&most)),
                "`maxTokens` is from 1 to 1,000,000",
            ),
            (
                "window",
                self.window.is_none_or(|all| (1000..=100_000_000).contains(&all)),
                "`window` is from 1,000 to 100,000,000",
            ),
            (
                "timeout",
                self.timeout.is_none_or(|t| (Span::seconds(1)..=LONGEST).contains(&t)),
                "`timeout` is from `1s` to `1h`",
            ),
            (
                "price",
                price.flatten().all(|price| price.is_finite() && price >= 0.0),
                "`price` has numbers from 0: `input`, `output`, `cached`",
            ),
            (
                "expect.errorPhrases",
                texts.len() <= 32 && texts.iter().all(|text| (1..=200).contains(&text.chars().count())),
                "`errorPhrases` are 32 at most, of 1 to 200 characters each",
            ),
            (
                "fallback",
                fallback.len() <= 8 && fallback.iter().all(|other| is_name(other) && other != name),
                "`fallback` names 8 other configurations at most",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            None => Ok(()),
            Some((field, _, rule)) => Err(Error::invalid(field, rule)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn field(change: &Value) -> Option<String> {
        let mut body = json!({ "provider": "openai", "model": "m" });
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let config: ModelConfig = serde_json::from_value(body).unwrap();
        config.check("mine").err().map(|error| error.members()["field"].as_str().unwrap().to_owned())
    }

    #[test]
    fn what_thinks_says_more_unless_that_is_bounded() {
        let longest = |more: Value| {
            let mut body = json!({ "provider": "openai", "model": "m" });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value::<ModelConfig>(body).map(|config| config.longest_answer()).ok()
        };
        assert_eq!(longest(json!({})), Some(LONGEST_ANSWER));
        assert_eq!(longest(json!({ "reasoning": "medium" })), Some(LONGEST_ANSWER + 8000));
        assert_eq!(longest(json!({ "reasoning": "high", "maxTokens": 100 })), Some(100));
        assert_eq!(longest(json!({ "reasoning": "much" })), None);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        for (change, wrong) in [
            (json!({}), None),
            (json!({ "temperature": 0.0 }), None),
            (json!({ "temperature": 2.0 }), None),
            (json!({ "temperature": 2.1 }), Some("temperature")),
            (json!({ "temperature": -0.1 }), Some("temperature")),
            (json!({ "model": "" }), Some("model")),
            (json!({ "maxTokens": 0 }), Some("maxTokens")),
            (json!({ "window": 1000 }), None),
            (json!({ "window": 999 }), Some("window")),
            (json!({ "timeout": "500ms" }), Some("timeout")),
            (json!({ "timeout": "2h" }), Some("timeout")),
            (json!({ "endpoint": "https://a.example/v1/" }), None),
            (json!({ "endpoint": "ftp://a.example/" }), Some("endpoint")),
            (json!({ "endpoint": "a.example" }), Some("endpoint")),
            (json!({ "endpoint": "https://a.example/?key=1" }), Some("endpoint")),
            (json!({ "price": { "output": -1 } }), Some("price")),
            (json!({ "fallback": ["other"] }), None),
            (json!({ "fallback": ["mine"] }), Some("fallback")),
            (json!({ "fallback": ["No Name"] }), Some("fallback")),
            (json!({ "expect": { "errorPhrases": [""] } }), Some("expect.errorPhrases")),
        ] {
            assert_eq!(field(&change).as_deref(), wrong, "{change}");
        }
    }
}
