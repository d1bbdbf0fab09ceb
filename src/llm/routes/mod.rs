mod configs;
mod keys;
mod templates;

use std::sync::Arc;

use axum::{
    extract::{FromRef, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Document, DocumentKind, Keys, document, store, usual};
use crate::{
    config::LlmSettings,
    http::{
        Ctx, Front, Json, Permit, Query,
        permit::{SettingsRead, SettingsWrite},
    },
    kernel::{Error, Page, PageQuery, Reference, Result},
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

/// Which version.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct VersionQuery {
    /// A version; the newest when absent. One that was put stays, also when its name is deleted.
    #[param(minimum = 0, example = 3)]
    version: Option<i32>,
}

async fn put<T: DocumentKind>(ctx: &Ctx<SettingsWrite>, path: &str, name: String, body: T) -> Result<Response>
where
    Document<T>: Serialize,
{
    let mut tx = ctx.begin().await?;
    let (document, new) = document::put(&mut tx, ctx, name, body).await?;
    tx.commit().await?;
    if !new {
        return Ok(Json(document).into_response());
    }
    let location = format!("{path}/{}?version={}", document.name, document.version);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(document)).into_response())
}

/// The version that is meant, of the tenant's or of what the server brings along.
async fn get<T: DocumentKind, P: Permit>(
    ctx: &Ctx<P>,
    brought: Vec<Document<T>>,
    name: String,
    version: Option<i32>,
) -> Result<Document<T>> {
    let reference = Reference { name, version };
    let mut tx = ctx.begin().await?;
    let found = store::get(&mut tx, std::slice::from_ref(&reference)).await?.pop().flatten();
    found.or_else(|| usual::meant(brought, &reference)).ok_or_else(|| Error::not_found(T::NOUN))
}

/// The tenant's own, those first put latest first, and on the last page what the server brings along besides.
async fn list<T: DocumentKind>(
    ctx: &Ctx<SettingsRead>,
    brought: Vec<Document<T>>,
    query: &PageQuery,
) -> Result<Page<Document<T>>> {
    let (limit, after) = query.resolve()?;
    let mut tx = ctx.begin().await?;
    let page = Page::cut(store::list(&mut tx, limit, after).await?, limit, |(first, _)| *first);
    let mut items: Vec<_> = page.items.into_iter().map(|(_, document)| document).collect();
    if page.next_cursor.is_none() {
        let names: Vec<_> = brought.iter().map(|it| Reference { name: it.name.clone(), version: None }).collect();
        let own = store::get::<T>(&mut tx, &names).await?;
        items.extend(brought.into_iter().zip(own).filter(|(_, own)| own.is_none()).map(|(brought, _)| brought));
    }
    Ok(Page { items, next_cursor: page.next_cursor })
}

/// The versions that were put under a name, newest first.
async fn versions<T: DocumentKind>(
    ctx: &Ctx<SettingsRead>,
    name: &str,
    query: &PageQuery,
) -> Result<Page<Document<T>>> {
    let (limit, after) = query.resolve()?;
    // Here the place in the list is the version itself.
    let below = after.map(|place| i32::try_from(place.as_u128()).unwrap_or(i32::MAX));
    let mut tx = ctx.begin().await?;
    let rows = store::versions(&mut tx, name, limit, below).await?;
    if rows.is_empty() && store::newest::<T>(&mut tx, name).await?.is_none() {
        return Err(Error::not_found(T::NOUN));
    }
    Ok(Page::cut(rows, limit, |row| Uuid::from_u128(u128::from(row.version.unsigned_abs()))))
}

async fn delete<T: DocumentKind>(ctx: &Ctx<SettingsWrite>, name: &str) -> Result<StatusCode> {
    let mut tx = ctx.begin().await?;
    document::delete::<T, _>(&mut tx, ctx, name).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
