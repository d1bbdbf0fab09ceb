//! Texts as vectors: of texts that mean alike they lie close together.

use genai::{
    adapter::AdapterKind,
    embed::{EmbedOptions, EmbedRequest},
};

use super::{
    AskError, Choice, Document, Given, ModelConfig, Models, Teller, Usage,
    fault::Fault,
    prompt,
    provider::Target,
    span,
    stack::{Asking, Question},
    wire,
};
use crate::{
    config::Api,
    journal::Estimate,
    kernel::{TenantId, Timestamp},
    telemetry::Span,
};

/// What is to become vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    /// Each of them.
    pub texts: Vec<String>,
    /// How many numbers a vector has, where the model leaves a choice.
    pub dimensions: Option<u32>,
}

impl Texts {
    /// The most tokens that they can have: one for each byte.
    #[must_use]
    pub fn most_tokens(&self) -> u32 {
        most_tokens(&self.texts)
    }
}

fn tokens(texts: &[String]) -> u32 {
    texts.iter().map(|text| prompt::tokens(text.len())).fold(0, u32::saturating_add)
}

fn most_tokens(texts: &[String]) -> u32 {
    // Some models put a token before each text, and one behind it.
    texts.iter().map(|text| u32::try_from(text.len() + 2).unwrap_or(u32::MAX)).fold(0, u32::saturating_add)
}

impl Models {
    /// A vector for each text, in their order, of the first model of the choice that gives them.
    ///
    /// # Errors
    /// Why none did: of the last that was asked.
    pub async fn embed(
        &self,
        tenant: TenantId,
        choice: &Choice,
        texts: &Texts,
        teller: &Teller,
    ) -> Result<Given<Vec<Vec<f32>>>, AskError> {
        let mut asking = self.asking(tenant, choice, teller).await?;
        loop {
            let target = self.next(&mut asking).await?;
            match self.embed_with(&mut asking, &target, texts).await {
                Ok(vectors) => return Ok(asking.given(vectors)),
                Err(failure) => asking.fail(failure).await?,
            }
        }
    }

    async fn embed_with(
        &self,
        asking: &mut Asking<'_>,
        target: &Target,
        texts: &Texts,
    ) -> Result<Vec<Vec<f32>>, AskError> {
        let (adapter, most) = adapter(target)?;
        let mut vectors = Vec::with_capacity(texts.texts.len());
        for some in texts.texts.chunks(most) {
            let batch = Batch { adapter, texts: some, dimensions: texts.dimensions };
            vectors.extend(self.insist(asking, target, &batch).await?);
        }
        Ok(vectors)
    }
}

/// What speaks to the provider, and how many texts it takes at once.
fn adapter(target: &Target) -> Result<(AdapterKind, usize), AskError> {
    match target.api {
        // The protocol of responses has none of its own.
        Api::Openai | Api::OpenaiResponses => Ok((AdapterKind::OpenAI, 256)),
        Api::Gemini => Ok((AdapterKind::Gemini, 100)),
        Api::Anthropic => {
            Err(AskError::misconfigured(&target.config, "what its provider speaks knows no embeddings".to_owned()))
        }
    }
}

/// As many texts as a provider takes at once.
struct Batch<'a> {
    adapter: AdapterKind,
    texts: &'a [String],
    dimensions: Option<u32>,
}

impl Question for Batch<'_> {
    type Given = Vec<Vec<f32>>;

    fn expects(&self, config: &Document<ModelConfig>) -> Estimate {
        config.body.estimate_of(most_tokens(self.texts), 0)
    }

    fn tokens(&self) -> u32 {
        tokens(self.texts)
    }

    fn span(&self, target: &Target) -> Span {
        span::of(target, "embeddings")
    }

    async fn call(&self, target: &Target, _: u32, now: Timestamp) -> Result<(Self::Given, Usage), Fault> {
        let options = EmbedOptions {
            dimensions: self.dimensions.and_then(|many| usize::try_from(many).ok()),
            capture_raw_body: Some(true),
            ..EmbedOptions::default()
        };
        let (client, service) = (wire::client(target, now)?, wire::service(target, self.adapter));
        let request = EmbedRequest::new_batch(self.texts.to_vec());
        let embedding = client.exec_embed(service, request, Some(&options)).await;
        let mut given = embedding.map_err(|error| Fault::of(target, &error, now))?;
        given.embeddings.sort_by_key(|embedding| embedding.index);
        let told = given.usage.prompt_tokens.and_then(|tokens| u64::try_from(tokens).ok());
        // Gemini tells as well, but the adapter does not read it.
        let raw = given.captured_raw_body.as_ref();
        let told = told.or_else(|| raw?.pointer("/usageMetadata/promptTokenCount")?.as_u64());
        let usage = Usage { input_tokens: told.unwrap_or_else(|| self.tokens().into()), ..Usage::default() };
        let vectors = given.into_vectors();
        if !will_do(&vectors, self.texts.len()) {
            let why = format!("it gave no {} vectors of one length", self.texts.len());
            return Err(Fault::broken(target, &why).having_taken(usage));
        }
        Ok((vectors, usage))
    }
}

/// Whether there are so many, all of one length.
fn will_do(vectors: &[Vec<f32>], count: usize) -> bool {
    let length = vectors.first().map_or(0, Vec::len);
    vectors.len() == count && length > 0 && vectors.iter().all(|vector| vector.len() == length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_as_many_as_texts_and_of_one_length() {
        for (vectors, count, will) in [
            (vec![vec![0.1, 0.2], vec![0.3, 0.4]], 2, true),
            (vec![vec![0.1, 0.2]], 2, false),
            (vec![vec![0.1, 0.2], vec![0.3]], 2, false),
            (vec![vec![], vec![]], 2, false),
        ] {
            assert_eq!(will_do(&vectors, count), will, "{vectors:?}");
        }
    }
}
