use axum::{
    extract::{FromRef, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Definition, DefinitionSummary, Media, SCHEMA, StoredDefinition, check, put, store, usual};
use crate::{
    http::{
        Ctx, Front, Json, Path, Query, media_type,
        permit::{WorkflowsRead, WorkflowsWrite},
        read_body,
    },
    kernel::{Error, Page, PageQuery, Problem, Result},
    tool::Toolbox,
};

#[derive(Clone)]
struct Definitions {
    front: Front,
    tools: Toolbox,
}

impl FromRef<Definitions> for Front {
    fn from_ref(state: &Definitions) -> Self {
        state.front.clone()
    }
}

/// Putting and reading definitions, and their JSON Schema.
pub fn routes(front: Front, tools: Toolbox) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(put_definition))
        .routes(routes!(get_definition))
        .routes(routes!(list_definitions))
        .routes(routes!(list_versions))
        .routes(routes!(schema))
        .with_state(Definitions { front, tools })
}

/// Which version.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct VersionQuery {
    /// A version; the newest when absent. 0 is what the server brings along.
    #[param(minimum = 0, example = 3)]
    version: Option<i32>,
}

/// Put a definition
///
/// YAML or JSON. It is checked whole: a refusal lists every mistake with its path, line and column. What is
/// right becomes the next version; versions never change. The newest version once more changes nothing.
#[utoipa::path(
    put, path = "/workflow/definitions/{name}", operation_id = "putDefinition", tag = "workflows",
    params(("name" = String, Path, description = "The definition's name, as in its `name`", example = "crm-sync")),
    request_body(description = "At most 256 KiB", content(
        (Definition = "application/json", example = json!({"name": "hello", "steps": [{"id": "echo", "uses": "data.transform", "with": {"value": "{{ input.who }}"}}]})),
        (String = "application/yaml", example = "name: hello\nsteps:\n  - id: echo\n    uses: data.transform\n    with: { value: \"{{ input.who }}\" }\n"),
    )),
    responses(
        (status = 200, description = "The newest version was the same already", body = StoredDefinition),
        (status = 201, description = "A new version", body = StoredDefinition, headers(("Location" = String, description = "The new version"))),
    ),
    extensions(("x-problems" = json!(["invalid-definition"]))),
    security(("bearer" = ["workflows:write"])),
)]
async fn put_definition(
    State(state): State<Definitions>,
    ctx: Ctx<WorkflowsWrite>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response> {
    let media = media_type(request.headers()).and_then(|kind| Media::of_content_type(&kind)).ok_or_else(|| {
        Error::new(Problem::UnsupportedMediaType, "send `Content-Type: application/yaml` or `application/json`")
    })?;
    let body = read_body(request, state.front.settings()).await?;
    let definition = check(&body, media, Some(&name), &state.tools.of(ctx.tenant_id).await?)?;
    let source = String::from_utf8(body.into()).map_err(Error::internal)?;
    let mut tx = ctx.begin().await?;
    let (stored, new) = put::put(&mut tx, &ctx, definition, source, media).await?;
    tx.commit().await?;
    if !new {
        return Ok(Json(stored).into_response());
    }
    let location = format!("/workflow/definitions/{}?version={}", stored.name, stored.version);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(stored)).into_response())
}

/// One definition
#[utoipa::path(
    get, path = "/workflow/definitions/{name}", operation_id = "getDefinition", tag = "workflows",
    params(("name" = String, Path, description = "The definition's name", example = "crm-sync"), VersionQuery),
    responses((status = 200, description = "The newest version, or the one asked for", body = StoredDefinition)),
    security(("bearer" = ["workflows:read"])),
)]
async fn get_definition(
    ctx: Ctx<WorkflowsRead>,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
) -> Result<Json<StoredDefinition>> {
    let mut tx = ctx.begin().await?;
    let stored = usual::get(&mut tx, &name, query.version).await?;
    stored.map(Json).ok_or_else(|| Error::not_found("workflow"))
}

/// List definitions
///
/// The newest version of each, those that were put first most lately at the top, and last those that the server brings
/// along.
#[utoipa::path(
    get, path = "/workflow/definitions", operation_id = "listDefinitions", tag = "workflows", params(PageQuery),
    responses((status = 200, description = "A page", body = Page<DefinitionSummary>)),
    security(("bearer" = ["workflows:read"])),
)]
async fn list_definitions(
    ctx: Ctx<WorkflowsRead>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<DefinitionSummary>>> {
    let (limit, after) = query.resolve()?;
    let mut tx = ctx.begin().await?;
    let mut rows = store::list(&mut tx, limit, after).await?;
    if rows.len() <= limit {
        rows.extend(usual::besides(&mut tx, after).await?);
    }
    let Page { items, next_cursor } = Page::cut(rows, limit, |(first, _)| *first);
    Ok(Json(Page { items: items.into_iter().map(|(_, summary)| summary).collect(), next_cursor }))
}

/// The versions of a definition
///
/// Those that were put, newest first.
#[utoipa::path(
    get, path = "/workflow/definitions/{name}/versions", operation_id = "listDefinitionVersions", tag = "workflows",
    params(("name" = String, Path, description = "The definition's name", example = "crm-sync"), PageQuery),
    responses((status = 200, description = "A page", body = Page<DefinitionSummary>)),
    security(("bearer" = ["workflows:read"])),
)]
async fn list_versions(
    ctx: Ctx<WorkflowsRead>,
    Path(name): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<DefinitionSummary>>> {
    let (limit, after) = query.resolve()?;
    // Here the place in the list is the version itself.
    let below = after.map(|place| i32::try_from(place.as_u128()).unwrap_or(i32::MAX));
    let mut tx = ctx.begin().await?;
    let rows = store::versions(&mut tx, &name, limit, below).await?;
    if rows.is_empty() && usual::get(&mut tx, &name, None).await?.is_none() {
        return Err(Error::not_found("workflow"));
    }
    Ok(Json(Page::cut(rows, limit, |row| Uuid::from_u128(u128::from(row.version.unsigned_abs())))))
}

/// The JSON Schema of a definition
///
/// For editors: the schema (2020-12) that a definition is checked against first.
#[utoipa::path(
    get, path = "/schemas/workflow.json", operation_id = "definitionSchema", tag = "workflows",
    responses((status = 200, description = "The schema", content_type = "application/schema+json", body = Object)),
)]
async fn schema() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/schema+json"), (header::CACHE_CONTROL, "public, max-age=3600")], SCHEMA)
}
