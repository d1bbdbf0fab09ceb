//! Which configurations and templates are meant, and which versions of them a run stays with.

use serde_json::{Map, Value};

use super::{
    AskError, Document, DocumentKind, ModelConfig, Models, PromptTemplate,
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
    /// The words of a template with these variables in their places, and the template as `name@version`.
    ///
    /// # Errors
    /// When there is no such template, or it fails over them.
    pub async fn render(
        &self,
        tenant: TenantId,
        template: &Reference,
        variables: &Map<String, Value>,
    ) -> Result<(String, String), AskError> {
        let found = db::patiently(|| async {
            let mut tx = self.db.tenant(tenant).await?;
            store::get::<PromptTemplate>(&mut tx, std::slice::from_ref(template)).await
        });
        let found = found.await?.pop().flatten().or_else(|| usual::meant(&usual::templates(), template).cloned());
        let found = found
            .ok_or_else(|| AskError::new(UNKNOWN_TEMPLATE, format!("there is no prompt template `{template}`")))?;
        let text = found.body.render(variables)?;
        Ok((text, found.reference()))
    }

    /// The version of a configuration that is meant now.
    ///
    /// # Errors
    /// When there is none of that name, or it is not in use.
    pub async fn pin(&self, tenant: TenantId, config: &Reference) -> Result<Document<ModelConfig>, AskError> {
        let first = self.chain(tenant, &Choice::Named(config.clone())).await?.into_iter().next();
        first.ok_or_else(|| AskError::new("unknown_model_config", config.name.clone()))
    }

    /// What asking the models of the choice is expected to take at most, whichever of them answers; nothing where none can
    /// be asked: that says what is wrong itself.
    pub async fn expects(&self, tenant: TenantId, choice: &Choice, of: impl Fn(&ModelConfig) -> Estimate) -> Estimate {
        let chain = self.chain(tenant, choice).await.unwrap_or_default();
        chain.iter().fold(Estimate::default(), |most, config| most.most(of(&config.body)))
    }

    /// The configuration that is asked and, after it, those to fall back on which are there and in use.
    ///
    /// # Errors
    /// When the first is not there, or not in use.
    pub async fn chain(&self, tenant: TenantId, choice: &Choice) -> Result<Vec<Document<ModelConfig>>, AskError> {
        let wanted: Vec<Reference> = match choice {
            Choice::Named(reference) => vec![reference.clone()],
            Choice::Pinned(pinned) => pinned.iter().map(Reference::from).collect(),
        };
        let mut found = self.configs(tenant, &wanted).await?.into_iter();
        let first = found.next().flatten().ok_or_else(|| {
            let name = wanted.first().map(ToString::to_string).unwrap_or_default();
            AskError::new("unknown_model_config", format!("there is no model configuration `{name}`"))
        })?;
        if !first.body.is_active() {
            return Err(AskError::misconfigured(&first, "it is not in use".to_owned()));
        }
        let others: Vec<_> = match choice {
            Choice::Named(_) => self.configs(tenant, &fallback(&first.body)).await?,
            Choice::Pinned(_) => found.collect(),
        };
        let others = others.into_iter().flatten().filter(|config| config.body.is_active());
        Ok([first].into_iter().chain(others).collect())
    }

    async fn configs(&self, tenant: TenantId, wanted: &[Reference]) -> Result<Vec<Option<Document<ModelConfig>>>> {
        if wanted.is_empty() {
            return Ok(vec![]);
        }
        let found = db::patiently(|| async {
            let mut tx = self.db.tenant(tenant).await?;
            store::get::<ModelConfig>(&mut tx, wanted).await
        })
        .await?;
        let brought = usual::configs(&self.settings);
        let or_usual =
            |(found, reference): (Option<_>, _)| found.or_else(|| usual::meant(&brought, reference).cloned());
        Ok(found.into_iter().zip(wanted).map(or_usual).collect())
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

fn fallback(config: &ModelConfig) -> Vec<Reference> {
    config.fallback.iter().flatten().map(|name| Reference { name: name.clone(), version: None }).collect()
}

/// The version that is meant, or that the server brings along where there is none.
fn pinned<T>(meant: Meant, brought: &[Document<T>]) -> Option<Pinned> {
    let Meant { reference, version, active } = meant;
    let version = version.or_else(|| usual::meant(brought, &reference).map(|found| found.version))?;
    active.then_some(Pinned { name: reference.name, version })
}
