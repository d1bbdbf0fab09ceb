use axum::{
    extract::{FromRef, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{McpEntry, McpServer, Servers, servers::McpServerView};
use crate::{
    http::{
        Ctx, Front, Json, Once, Path, Query, Reply,
        permit::{IntegrationsRead, IntegrationsWrite},
    },
    kernel::{Page, PageQuery, Result},
    llm::{
        Document,
        shelf::{self, VersionQuery},
    },
};

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct McpRoutes {
    /// Who asks, and the database.
    pub front: Front,
    /// The use cases.
    pub servers: Servers,
}

impl FromRef<McpRoutes> for Front {
    fn from_ref(state: &McpRoutes) -> Self {
        state.front.clone()
    }
}

/// Registering MCP servers, and approving of what their tools have become.
pub fn routes(state: McpRoutes) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(paths!(put, get, delete))
        .routes(paths!(list))
        .routes(paths!(versions))
        .routes(paths!(approve))
        .with_state(state)
}

/// Register an MCP server
///
/// It is connected to and asked for its tools, each of which is pinned as it is listed: what changes later is out of use
/// until somebody approves of it, which the inbox of approvals asks for. Where there is no way to the server that is 422, and nothing is kept. The same once more
/// changes nothing.
#[utoipa::path(
    put, path = "/tools/mcp/{name}", operation_id = "putMcpServer", tag = "tools",
    params(("name" = String, Path, description = "The server's name", example = "github")),
    request_body(content = McpServer, example = json!({
        "url": "https://mcp.example/mcp",
        "key": {"name": "our-github"},
        "tools": ["issue_*", "search"],
        "effects": {"search": "pure", "issue_get": "pure"},
        "approval": [{"tools": ["mcp:github/issue_delete"], "terms": {"reason": "It deletes an issue"}}],
        "timeout": "30s",
    })),
    responses(
        (status = 200, description = "The newest version was the same already", body = McpServerView),
        (status = 201, description = "A new version", body = McpServerView, headers(("Location" = String, description = "The new version"))),
    ),
    security(("bearer" = ["integrations:write"])),
)]
async fn put(
    State(state): State<McpRoutes>,
    ctx: Ctx<IntegrationsWrite>,
    Path(name): Path<String>,
    Json(body): Json<McpServer>,
) -> Result<Response> {
    let (view, new) = state.servers.put(&ctx, name, body).await?;
    if !new {
        return Ok(Json(view).into_response());
    }
    let location = format!("/tools/mcp/{}?version={}", view.document.name, view.document.version);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(view)).into_response())
}

/// One MCP server
///
/// With its tools as they were pinned, and those that have changed since.
#[utoipa::path(
    get, path = "/tools/mcp/{name}", operation_id = "getMcpServer", tag = "tools",
    params(("name" = String, Path, description = "The server's name", example = "github"), VersionQuery),
    responses((status = 200, description = "The newest version, or the one asked for", body = McpServerView)),
    security(("bearer" = ["integrations:read"])),
)]
async fn get(
    State(state): State<McpRoutes>,
    ctx: Ctx<IntegrationsRead>,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
) -> Result<Json<McpServerView>> {
    state.servers.view(&ctx, name, query.version).await.map(Json)
}

/// Delete an MCP server
///
/// Its tools are nobody's any more; its versions stay.
#[utoipa::path(
    delete, path = "/tools/mcp/{name}", operation_id = "deleteMcpServer", tag = "tools",
    params(("name" = String, Path, description = "The server's name", example = "github")),
    responses((status = 204, description = "It is out of use")),
    security(("bearer" = ["integrations:write"])),
)]
async fn delete(
    State(state): State<McpRoutes>,
    ctx: Ctx<IntegrationsWrite>,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    state.servers.delete(&ctx, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List MCP servers
///
/// The newest version of each, those first put latest at the top.
#[utoipa::path(
    get, path = "/tools/mcp", operation_id = "listMcpServers", tag = "tools", params(PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<McpEntry>>)),
    security(("bearer" = ["integrations:read"])),
)]
async fn list(ctx: Ctx<IntegrationsRead>, Query(query): Query<PageQuery>) -> Result<Json<Page<Document<McpEntry>>>> {
    shelf::list(&ctx, vec![], &query).await.map(Json)
}

/// The versions of an MCP server
///
/// Those that were put or approved, newest first.
#[utoipa::path(
    get, path = "/tools/mcp/{name}/versions", operation_id = "listMcpServerVersions", tag = "tools",
    params(("name" = String, Path, description = "The server's name", example = "github"), PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<McpEntry>>)),
    security(("bearer" = ["integrations:read"])),
)]
async fn versions(
    ctx: Ctx<IntegrationsRead>,
    Path(name): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Document<McpEntry>>>> {
    shelf::versions(&ctx, &name, &query).await.map(Json)
}

/// Which change is approved.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangeBody {
    /// The tool.
    tool: String,
    /// The digest of what it is now, as it is shown; or of what was pinned, to go back to that.
    digest: String,
}

/// Approve of what a tool has become
///
/// It is pinned as it is now, in the next version of the server, and in use again. Whoever has the approval that asks for it
/// may decide there instead; the one ends the other.
#[utoipa::path(
    post, path = "/tools/mcp/{name}/approve", operation_id = "approveMcpTool", tag = "tools",
    params(("name" = String, Path, description = "The server's name", example = "github"), Once),
    request_body(content = ChangeBody, example = json!({"tool": "issue_get",
        "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"})),
    responses((status = 200, description = "As it stands now", body = McpServerView)),
    extensions(("x-problems" = json!(["conflict"]))),
    security(("bearer" = ["integrations:write"])),
)]
async fn approve(
    State(state): State<McpRoutes>,
    ctx: Ctx<IntegrationsWrite>,
    once: Once,
    Path(name): Path<String>,
    Json(ChangeBody { tool, digest }): Json<ChangeBody>,
) -> Result<Response> {
    once.run(&ctx, async |tx| {
        Reply::json(StatusCode::OK, &state.servers.approve(tx, &ctx, &name, (&tool, &digest)).await?)
    })
    .await
}
