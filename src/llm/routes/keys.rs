use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use secrecy::SecretString;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::LlmRoutes;
use crate::{
    http::{
        Ctx, Json, Path, Query,
        permit::{KeysRead, KeysWrite},
    },
    kernel::{Page, PageQuery, Result},
    llm::{KeySummary, store},
};

pub(super) fn routes() -> OpenApiRouter<LlmRoutes> {
    OpenApiRouter::new().routes(routes!(put, delete)).routes(routes!(list))
}

/// A key to be sealed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeyBody {
    /// The key itself: 1 to 8,192 visible ASCII characters.
    #[schema(value_type = String, write_only, min_length = 1, max_length = 8192)]
    secret: SecretString,
}

/// Seal a key
///
/// A key of the tenant's own for its models. It takes the place of what was there under its name; nobody can read it
/// back.
#[utoipa::path(
    put, path = "/llm/keys/{name}", operation_id = "putModelKey", tag = "models",
    params(("name" = String, Path, description = "The key's name", example = "our-openai")),
    request_body(content = KeyBody, example = json!({"secret": "sk-0123456789"})),
    responses(
        (status = 200, description = "It took the place of another", body = KeySummary),
        (status = 201, description = "It is new", body = KeySummary),
    ),
    extensions(("x-problems" = json!(["conflict"]))),
    security(("bearer" = ["keys:write"])),
)]
async fn put(
    State(state): State<LlmRoutes>,
    ctx: Ctx<KeysWrite>,
    Path(name): Path<String>,
    Json(KeyBody { secret }): Json<KeyBody>,
) -> Result<Response> {
    let mut tx = ctx.begin().await?;
    let (key, new) = state.keys.put(&mut tx, &ctx, name, &secret).await?;
    tx.commit().await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(key)).into_response())
}

/// Delete a sealed key
///
/// The next call with a configuration that names it fails.
#[utoipa::path(
    delete, path = "/llm/keys/{name}", operation_id = "deleteModelKey", tag = "models",
    params(("name" = String, Path, description = "The key's name", example = "our-openai")),
    responses((status = 204, description = "It is gone")),
    security(("bearer" = ["keys:write"])),
)]
async fn delete(State(state): State<LlmRoutes>, ctx: Ctx<KeysWrite>, Path(name): Path<String>) -> Result<StatusCode> {
    let mut tx = ctx.begin().await?;
    state.keys.delete(&mut tx, &ctx, &name).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List sealed keys
///
/// Their names, in order; never what they are.
#[utoipa::path(
    get, path = "/llm/keys", operation_id = "listModelKeys", tag = "models", params(PageQuery),
    responses((status = 200, description = "A page", body = Page<KeySummary>)),
    security(("bearer" = ["keys:read"])),
)]
async fn list(ctx: Ctx<KeysRead>, Query(query): Query<PageQuery>) -> Result<Json<Page<KeySummary>>> {
    let mut tx = ctx.begin().await?;
    query.cut(store::keys(&mut tx).await?).map(Json)
}
