use axum::{http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::LlmRoutes;
use crate::{
    http::{
        Ctx, Json, Path, Query,
        permit::{SettingsRead, SettingsWrite},
    },
    kernel::{Page, PageQuery, Result},
    llm::{
        Document, PromptTemplate,
        shelf::{self, VersionQuery},
        usual,
    },
};

pub(super) fn routes() -> OpenApiRouter<LlmRoutes> {
    OpenApiRouter::new()
        .routes(routes!(put, get, delete))
        .routes(routes!(list))
        .routes(routes!(versions))
        .routes(routes!(preview))
}

/// Put a prompt template
///
/// It is checked whole: what it names has to be declared. It becomes the next version of its name and counts at once;
/// versions never change. The newest version once more changes nothing.
#[utoipa::path(
    put, path = "/llm/templates/{name}", operation_id = "putPromptTemplate", tag = "models",
    params(("name" = String, Path, description = "The template's name", example = "refund")),
    request_body(content = PromptTemplate, example = json!({"content": "Answer in {{ language }}: {{ prompt }}",
        "variables": {"prompt": {"description": "What is asked"}, "language": {"default": "English"}}})),
    responses(
        (status = 200, description = "The newest version was the same already", body = Document<PromptTemplate>),
        (status = 201, description = "A new version", body = Document<PromptTemplate>, headers(("Location" = String, description = "The new version"))),
    ),
    security(("bearer" = ["settings:write"])),
)]
async fn put(ctx: Ctx<SettingsWrite>, Path(name): Path<String>, Json(body): Json<PromptTemplate>) -> Result<Response> {
    shelf::put(&ctx, "/llm/templates", name, body).await
}

/// One prompt template
#[utoipa::path(
    get, path = "/llm/templates/{name}", operation_id = "getPromptTemplate", tag = "models",
    params(("name" = String, Path, description = "The template's name", example = "refund"), VersionQuery),
    responses((status = 200, description = "The newest version, or the one asked for", body = Document<PromptTemplate>)),
    security(("bearer" = ["settings:read"])),
)]
async fn get(
    ctx: Ctx<SettingsRead>,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
) -> Result<Json<Document<PromptTemplate>>> {
    shelf::get(&ctx, usual::templates(), name, query.version).await.map(Json)
}

/// Delete a prompt template
///
/// Nothing begins with it any more. Its versions stay for the runs that began with one.
#[utoipa::path(
    delete, path = "/llm/templates/{name}", operation_id = "deletePromptTemplate", tag = "models",
    params(("name" = String, Path, description = "The template's name", example = "refund")),
    responses((status = 204, description = "It is out of use")),
    security(("bearer" = ["settings:write"])),
)]
async fn delete(ctx: Ctx<SettingsWrite>, Path(name): Path<String>) -> Result<StatusCode> {
    shelf::delete::<PromptTemplate, _>(&ctx, &name).await
}

/// List prompt templates
///
/// The newest version of each: the tenant's own, those first put latest at the top, and after them what the server
/// brings along (version 0): `default-assistant`.
#[utoipa::path(
    get, path = "/llm/templates", operation_id = "listPromptTemplates", tag = "models", params(PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<PromptTemplate>>)),
    security(("bearer" = ["settings:read"])),
)]
async fn list(ctx: Ctx<SettingsRead>, Query(query): Query<PageQuery>) -> Result<Json<Page<Document<PromptTemplate>>>> {
    shelf::list(&ctx, usual::templates(), &query).await.map(Json)
}

/// The versions of a prompt template
///
/// Those that were put, newest first.
#[utoipa::path(
    get, path = "/llm/templates/{name}/versions", operation_id = "listPromptTemplateVersions", tag = "models",
    params(("name" = String, Path, description = "The template's name", example = "refund"), PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<PromptTemplate>>)),
    security(("bearer" = ["settings:read"])),
)]
async fn versions(
    ctx: Ctx<SettingsRead>,
    Path(name): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Document<PromptTemplate>>>> {
    shelf::versions(&ctx, &name, &query).await.map(Json)
}

/// What to put in the places.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PreviewBody {
    /// The variables; those with a default may be left out.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    variables: Option<Map<String, Value>>,
}

/// What a model would be asked.
#[derive(Debug, Serialize, ToSchema)]
struct Preview {
    /// The words.
    text: String,
}

/// Preview a prompt template
///
/// The words that the template comes to with these variables. No model is asked.
#[utoipa::path(
    post, path = "/llm/templates/{name}/preview", operation_id = "previewPromptTemplate", tag = "models",
    params(("name" = String, Path, description = "The template's name", example = "refund"), VersionQuery),
    request_body(content = PreviewBody, example = json!({"variables": {"prompt": "Where is my order?"}})),
    responses((status = 200, description = "The words", body = Preview)),
    security(("bearer" = ["settings:read"])),
)]
async fn preview(
    ctx: Ctx<SettingsRead>,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
    Json(body): Json<PreviewBody>,
) -> Result<Json<Preview>> {
    let template = shelf::get(&ctx, usual::templates(), name, query.version).await?;
    Ok(Json(Preview { text: template.body.render(&body.variables.unwrap_or_default())? }))
}
