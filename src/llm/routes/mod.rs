mod configs;
mod keys;
mod templates;

use std::sync::Arc;

use axum::extract::{FromRef, State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Keys;
use crate::{
    config::LlmSettings,
    http::{Ctx, Front, Json, Query, permit::SettingsRead},
    kernel::{Page, PageQuery, Result},
};

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct LlmRoutes {
    /// Who asks, and the database.
    pub front: Front,
    /// What the operator has set.
    pub settings: Arc<LlmSettings>,
    /// The tenants' sealed keys.
    pub keys: Keys,
}

impl FromRef<LlmRoutes> for Front {
    fn from_ref(state: &LlmRoutes) -> Self {
        state.front.clone()
    }
}

/// Model configurations, prompt templates, sealed keys, and the providers there are.
pub fn routes(state: LlmRoutes) -> OpenApiRouter {
    OpenApiRouter::new()
        .merge(configs::routes())
        .merge(templates::routes())
        .merge(keys::routes())
        .routes(routes!(providers))
        .with_state(state)
}

/// A place that serves models.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Provider {
    /// What configurations call it.
    #[schema(example = "openai")]
    name: String,
    /// Whether it can be used without a key of the tenant's own.
    ready: bool,
}

/// The providers
///
/// What a configuration can name as its provider, in order of name.
#[utoipa::path(
    get, path = "/llm/providers", operation_id = "listProviders", tag = "models", params(PageQuery),
    responses((status = 200, description = "A page", body = Page<Provider>)),
    security(("bearer" = ["settings:read"])),
)]
async fn providers(
    State(state): State<LlmRoutes>,
    _: Ctx<SettingsRead>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Provider>>> {
    let ready = |provider: &crate::config::ProviderSettings| provider.key.is_some() || provider.keyless;
    let all = state.settings.providers.iter();
    query.cut(all.map(|(name, provider)| Provider { name: name.clone(), ready: ready(provider) }).collect()).map(Json)
}
