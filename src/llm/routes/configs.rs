use axum::{extract::State, http::StatusCode, response::Response};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::LlmRoutes;
use crate::{
    http::{
        Ctx, Json, Path, Query,
        permit::{SettingsRead, SettingsWrite},
    },
    kernel::{Error, Page, PageQuery, Result},
    llm::{
        Document, ModelConfig,
        shelf::{self, VersionQuery},
        usual,
    },
};

pub(super) fn routes() -> OpenApiRouter<LlmRoutes> {
    OpenApiRouter::new().routes(routes!(put, get, delete)).routes(routes!(list)).routes(routes!(versions))
}

/// Put a model configuration
///
/// It becomes the next version of its name and counts at once; versions never change. The newest version once more
/// changes nothing.
#[utoipa::path(
    put, path = "/llm/configs/{name}", operation_id = "putModelConfig", tag = "models",
    params(("name" = String, Path, description = "The configuration's name", example = "support")),
    request_body(content = ModelConfig, example = json!({"provider": "openai", "model": "gpt-5.4", "temperature": 0.2,
        "maxTokens": 2000, "price": {"input": 1.25, "output": 10.0, "cached": 0.125}, "fallback": ["default-fast"]})),
    responses(
        (status = 200, description = "The newest version was the same already", body = Document<ModelConfig>),
        (status = 201, description = "A new version", body = Document<ModelConfig>, headers(("Location" = String, description = "The new version"))),
    ),
    security(("bearer" = ["settings:write"])),
)]
async fn put(
    State(state): State<LlmRoutes>,
    ctx: Ctx<SettingsWrite>,
    Path(name): Path<String>,
    Json(config): Json<ModelConfig>,
) -> Result<Response> {
    if !state.settings.providers.contains_key(&config.provider) {
        let known = state.settings.providers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(Error::invalid("provider", format!("this server knows these providers: {known}")));
    }
    shelf::put(&ctx, "/llm/configs", name, config).await
}

/// One model configuration
#[utoipa::path(
    get, path = "/llm/configs/{name}", operation_id = "getModelConfig", tag = "models",
    params(("name" = String, Path, description = "The configuration's name", example = "support"), VersionQuery),
    responses((status = 200, description = "The newest version, or the one asked for", body = Document<ModelConfig>)),
    security(("bearer" = ["settings:read"])),
)]
async fn get(
    State(state): State<LlmRoutes>,
    ctx: Ctx<SettingsRead>,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
) -> Result<Json<Document<ModelConfig>>> {
    shelf::get(&ctx, usual::configs(&state.settings), name, query.version).await.map(Json)
}

/// Delete a model configuration
///
/// Nothing begins with it any more. Its versions stay for the runs that began with one.
#[utoipa::path(
    delete, path = "/llm/configs/{name}", operation_id = "deleteModelConfig", tag = "models",
    params(("name" = String, Path, description = "The configuration's name", example = "support")),
    responses((status = 204, description = "It is out of use")),
    security(("bearer" = ["settings:write"])),
)]
async fn delete(ctx: Ctx<SettingsWrite>, Path(name): Path<String>) -> Result<StatusCode> {
    shelf::delete::<ModelConfig, _>(&ctx, &name).await
}

/// List model configurations
///
/// The newest version of each: the tenant's own, those first put latest at the top, and after them what the server
/// brings along (version 0): `default-smart` and `default-fast`, where a provider of use has models for them.
#[utoipa::path(
    get, path = "/llm/configs", operation_id = "listModelConfigs", tag = "models", params(PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<ModelConfig>>)),
    security(("bearer" = ["settings:read"])),
)]
async fn list(
    State(state): State<LlmRoutes>,
    ctx: Ctx<SettingsRead>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Document<ModelConfig>>>> {
    shelf::list(&ctx, usual::configs(&state.settings), &query).await.map(Json)
}

/// The versions of a model configuration
///
/// Those that were put, newest first.
#[utoipa::path(
    get, path = "/llm/configs/{name}/versions", operation_id = "listModelConfigVersions", tag = "models",
    params(("name" = String, Path, description = "The configuration's name", example = "support"), PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<ModelConfig>>)),
    security(("bearer" = ["settings:read"])),
)]
async fn versions(
    ctx: Ctx<SettingsRead>,
    Path(name): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Document<ModelConfig>>>> {
    shelf::versions(&ctx, &name, &query).await.map(Json)
}
