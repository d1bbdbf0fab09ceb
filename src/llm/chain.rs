//! Which configurations and templates are meant, and which versions of them a run stays with.

use serde_json::{Map, Value};

use super::{
    AskError, Document, DocumentKind, ModelConfig, Models, PromptTemplate, Worded,
    store::{self, Meant},
    usual,
};
use crate::{
    db::{self, TenantTx},
    journal::{Estimate, ModelPins},
    kernel::{Pinned, Reference, Result, TenantId},
};

/// The code of an asking with a template that is not there.
pub const UNKNOWN_TEMPLATE: &str = "unknown_template";

/// Which model configurations are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The one of that name, and what it falls back on, as they are now.
    Named(Reference),
    /// These, in this order.
    Pinned(Vec<Pinned>),
}

impl Models {
    /// A prompt in the words of a template with these variables in their places, and the template as `name@version`.
    ///
    /// # Errors
    /// When there is no such template, or it fails over them.
    pub async fn word(
        &self,
        tenant: TenantId,
        template: &Reference,
        variables: &Map<String, Value>,
        prompt: Option<&str>,
    ) -> Result<(Worded, String), AskError> {
        let found = self.templates(tenant, std::slice::from_ref(template)).await?.pop().flatten();
        let found = found
            .ok_or_else(|| AskError::new(UNKNOWN_TEMPLATE, format!("there is no prompt template `{template}`")))?;
        Ok((found.body.word(variables, prompt)?, found.reference()))
    }

    /// The templates that are meant, in the order of the references; none for what is not there.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn templates(
        &self,
        tenant: TenantId,
        wanted: &[Reference],
    ) -> Result<Vec<Option<Document<PromptTemplate>>>> {
        self.documents(tenant, wanted, &usual::templates()).await
    }

    /// The version of a configuration that is meant now.
    ///
    /// # Errors
    /// When there is none of that name, or it is not in use.
    pub async fn pin(&self, tenant: TenantId, config: &Reference) -> Result<Document<ModelConfig>, AskError> {
        let first = self.chain(tenant, &Choice::Named(config.clone())).await?.into_iter().next();
        first.ok_or_else(|| AskError::new("unknown_model_config", config.name.clone()))
    }

    /// What asking each of these is expected to take at most, whichever model of its choice answers. Nothing where nobody is
    /// asked, or can be: the asking itself says what is wrong.
    pub async fn expects<T>(
        &self,
        tenant: TenantId,
        asked: Vec<Option<(Choice, T)>>,
        of: impl Fn(&T, &Document<ModelConfig>) -> Estimate,
    ) -> Vec<Estimate> {
        let choices: Vec<_> = asked.iter().flatten().map(|(choice, _)| choice).collect();
        let mut chains = self.chains(tenant, &choices).await.unwrap_or_default().into_iter();
        let mut most = |(_, it): &(Choice, T)| {
            let chain = chains.next().and_then(Result::ok).unwrap_or_default();
            chain.iter().fold(Estimate::default(), |most, config| most.most(of(it, config)))
        };
        asked.iter().map(|asked| asked.as_ref().map(&mut most).unwrap_or_default()).collect()
    }

    /// The configuration that is asked and, after it, those to fall back on which are there and in use.
    ///
    /// # Errors
    /// When the first is not there, or not in use.
    pub async fn chain(&self, tenant: TenantId, choice: &Choice) -> Result<Vec<Document<ModelConfig>>, AskError> {
        self.chains(tenant, &[choice]).await?.pop().unwrap_or_else(|| Ok(vec![]))
    }

    /// The same of many choices, in their order, of each of which at least one can be called as things stand: its provider is
    /// known, and there is a key.
    ///
    /// # Errors
    /// When the first of one is not there or not in use; why it cannot be called, where none of a choice can.
    pub async fn usable(
        &self,
        tenant: TenantId,
        choices: &[&Choice],
    ) -> Result<Vec<Vec<Document<ModelConfig>>>, AskError> {
        let mut usable = Vec::with_capacity(choices.len());
        for chain in self.chains(tenant, choices).await? {
            usable.push(self.callable(tenant, chain?).await?);
        }
        Ok(usable)
    }

    async fn callable(
        &self,
        tenant: TenantId,
        chain: Vec<Document<ModelConfig>>,
    ) -> Result<Vec<Document<ModelConfig>>, AskError> {
        let mut why = None;
        for config in &chain {
            match self.providers.target(tenant, config.clone()).await {
                Ok(_) => return Ok(chain),
                Err(failure) => why = why.or(Some(failure)),
            }
        }
        why.map_or(Ok(chain), Err)
    }

    /// The same of many choices, in their order, read all at once.
    async fn chains(
        &self,
        tenant: TenantId,
        choices: &[&Choice],
    ) -> Result<Vec<Result<Vec<Document<ModelConfig>>, AskError>>> {
        let wanted: Vec<_> = choices.iter().map(|choice| choice.references()).collect();
        let mut found = self.configs(tenant, &wanted).await?;
        for (choice, found) in choices.iter().zip(&mut found) {
            choice.keep_models(found);
        }
        let fallbacks = choices.iter().zip(&found).map(|(choice, found)| match (choice, found.first()) {
            (Choice::Named(_), Some(Some(first))) => fallback(&first.body),
            _ => vec![],
        });
        let others = self.configs(tenant, &fallbacks.collect::<Vec<_>>()).await?;
        let all = wanted.iter().zip(found.into_iter().zip(others));
        Ok(all.map(|(wanted, (found, others))| in_use(wanted, found.into_iter().chain(others))).collect())
    }

    /// The configurations of each of these lists, with one query for all of them.
    async fn configs(
        &self,
        tenant: TenantId,
        wanted: &[Vec<Reference>],
    ) -> Result<Vec<Vec<Option<Document<ModelConfig>>>>> {
        let brought = usual::configs(&self.settings);
        let mut found = self.documents(tenant, &wanted.concat(), &brought).await?.into_iter();
        Ok(wanted.iter().map(|list| found.by_ref().take(list.len()).collect()).collect())
    }

    async fn documents<T: DocumentKind + Clone>(
        &self,
        tenant: TenantId,
        wanted: &[Reference],
        brought: &[Document<T>],
    ) -> Result<Vec<Option<Document<T>>>> {
        if wanted.is_empty() {
            return Ok(vec![]);
        }
        let found = db::patiently(|| async {
            let mut tx = self.db.tenant(tenant).await?;
            store::get::<T>(&mut tx, wanted).await
        });
        let or_usual = |(found, reference): (Option<_>, _)| found.or_else(|| usual::meant(brought, reference).cloned());
        Ok(found.await?.into_iter().zip(wanted).map(or_usual).collect())
    }

    /// The versions that these names of configurations and templates mean now, with what the configurations fall back
    /// on. What is not there, or not in use, is left out.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn pins(&self, tx: &mut TenantTx, configs: &[Reference], templates: &[Reference]) -> Result<ModelPins> {
        let of = |kind: &'static str| move |reference| (kind, reference);
        let wanted = configs.iter().map(of(ModelConfig::KIND)).chain(templates.iter().map(of(PromptTemplate::KIND)));
        let mut meant = store::meant(tx, &wanted.collect::<Vec<_>>()).await?.into_iter();
        let (brought, mut pins) = (usual::configs(&self.settings), ModelPins::default());
        for (reference, chain) in configs.iter().zip(meant.by_ref()) {
            let mut chain = chain.into_iter().map(|one| pinned(one, &brought));
            // Without the first nobody is asked.
            let Some(first) = chain.next().flatten() else { continue };
            let chain = [first].into_iter().chain(chain.flatten()).collect();
            pins.configs.insert(reference.to_string(), chain);
        }
        for (reference, template) in templates.iter().zip(meant) {
            let template = template.into_iter().next().and_then(|one| pinned(one, &usual::templates()));
            pins.templates.extend(template.map(|template| (reference.to_string(), template)));
        }
        Ok(pins)
    }
}

impl Choice {
    fn references(&self) -> Vec<Reference> {
        match self {
            Self::Named(reference) => vec![reference.clone()],
            Self::Pinned(pinned) => pinned.iter().map(Reference::from).collect(),
        }
    }

    /// Has what the server brought along be what it was when it was pinned, whatever the settings name now.
    fn keep_models(&self, found: &mut [Option<Document<ModelConfig>>]) {
        let Self::Pinned(pinned) = self else { return };
        for (pin, found) in pinned.iter().zip(found) {
            if let Some((provider, model)) = &pin.model {
                *found = Some(Document::brought(&pin.name, ModelConfig::of(provider, model)));
            }
        }
    }
}

/// Of what was found, the first and those after it that are in use.
fn in_use(
    wanted: &[Reference],
    mut found: impl Iterator<Item = Option<Document<ModelConfig>>>,
) -> Result<Vec<Document<ModelConfig>>, AskError> {
    let first = found.next().flatten().ok_or_else(|| {
        let name = wanted.first().map(ToString::to_string).unwrap_or_default();
        AskError::new("unknown_model_config", format!("there is no model configuration `{name}`"))
    })?;
    if !first.body.is_active() {
        return Err(AskError::misconfigured(&first, "it is not in use".to_owned()));
    }
    let others = found.flatten().filter(|config| config.body.is_active());
    Ok([first].into_iter().chain(others).collect())
}

fn fallback(config: &ModelConfig) -> Vec<Reference> {
    config.fallback.iter().flatten().map(|name| Reference { name: name.clone(), version: None }).collect()
}

/// The version that is meant, or that the server brings along where there is none.
fn pinned<T: DocumentKind>(meant: Meant, brought: &[Document<T>]) -> Option<Pinned> {
    let Meant { reference, version, active } = meant;
    let pinned = match version {
        Some(version) => Pinned { name: reference.name, version, model: None },
        None => usual::meant(brought, &reference)?.pinned(),
    };
    active.then_some(pinned)
}
