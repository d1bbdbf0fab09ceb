//! What every tenant finds in place: configurations of the models that the operator has keys for, and a template.
//! They are version 0; a put of the same name comes over them.

use std::collections::BTreeMap;

use super::{Document, ModelConfig, PromptTemplate, template::Variable};
use crate::{
    config::{LlmSettings, ProviderSettings},
    kernel::Reference,
};

/// Which provider is taken first, of those that are usual.
const ORDER: [&str; 4] = ["openai", "anthropic", "gemini", "huggingface"];

/// A name, and the setting with the model behind it.
type Default = (&'static str, fn(&ProviderSettings) -> Option<&String>);

const DEFAULTS: [Default; 5] = [
    ("default-smart", |provider| provider.smart.as_ref()),
    ("default-fast", |provider| provider.fast.as_ref()),
    ("default-embed", |provider| provider.embed.as_ref()),
    ("default-speech", |provider| provider.speech.as_ref()),
    ("default-transcription", |provider| provider.transcribe.as_ref()),
];

/// The configurations `default-smart`, `default-fast` and so on, where a provider of use has models for them.
pub(super) fn configs(settings: &LlmSettings) -> Vec<Document<ModelConfig>> {
    let model = |(name, of): Default| {
        let (provider, model) = of_use(settings).find_map(|(name, provider)| Some((name, of(provider)?)))?;
        Some(Document::brought(name, ModelConfig::of(provider, model)))
    };
    DEFAULTS.into_iter().filter_map(model).collect()
}

/// The template `default-assistant`: the prompt as it is.
pub(super) fn templates() -> Vec<Document<PromptTemplate>> {
    let prompt = Variable { description: Some("What is asked.".to_owned()), default: None };
    let body = PromptTemplate {
        content: "You are a helpful assistant. Answer in the language of the question, briefly and to the point.\n\n\
                  {{ prompt }}"
            .to_owned(),
        variables: Some(BTreeMap::from([("prompt".to_owned(), prompt)])),
        description: Some("Asks as it stands, of an assistant.".to_owned()),
    };
    vec![Document::brought("default-assistant", body)]
}

/// The one that is meant, where the server brings it along.
pub(super) fn meant<'a, T>(all: &'a [Document<T>], reference: &Reference) -> Option<&'a Document<T>> {
    let is_meant = |it: &&Document<T>| it.name == reference.name && reference.version.is_none_or(|v| v == it.version);
    all.iter().find(is_meant)
}

/// The providers that can be asked, the usual ones first.
fn of_use(settings: &LlmSettings) -> impl Iterator<Item = (&str, &ProviderSettings)> {
    let known = ORDER.iter().filter_map(|name| settings.providers.get_key_value(*name));
    let others = settings.providers.iter().filter(|(name, _)| !ORDER.contains(&name.as_str()));
    let of_use = |(_, provider): &(&String, &ProviderSettings)| provider.key.is_some() || provider.keyless;
    known.chain(others).filter(of_use).map(|(name, provider)| (name.as_str(), provider))
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::llm::DocumentKind;

    #[test]
    fn there_are_defaults_when_there_is_a_key() {
        let mut settings = LlmSettings::default();
        assert!(configs(&settings).is_empty());
        for name in ["gemini", "anthropic"] {
            settings.providers.get_mut(name).unwrap().key = Some(SecretString::from("k"));
        }
        let found = configs(&settings);
        let named: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.body.provider.as_str())).collect();
        let (smart, fast) = (("default-smart", "anthropic"), ("default-fast", "anthropic"));
        assert_eq!(named, [smart, fast, ("default-embed", "gemini")], "each of the first that has a model for it");
        let mut settings = LlmSettings::default();
        settings.providers.get_mut("huggingface").unwrap().key = Some(SecretString::from("k"));
        let named: Vec<_> = configs(&settings).into_iter().map(|it| it.name).collect();
        assert_eq!(named, ["default-smart", "default-fast"], "whoever has the key");
        assert!(found.iter().all(|it| it.body.check(&it.name).is_ok()));
        assert!(templates().iter().all(|it| it.body.check(&it.name).is_ok()));
    }
}
