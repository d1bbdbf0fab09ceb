use axum::{extract::FromRef, http::StatusCode, response::Response};
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{AgentDefinition, usual};
use crate::{
    http::{
        Ctx, Front, Json, Path, Query,
        permit::{SettingsRead, SettingsWrite},
    },
    kernel::{Page, PageQuery, Result},
    llm::{
        Document,
        shelf::{self, VersionQuery},
    },
};

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct AgentRoutes {
    /// Who asks, and the database.
    pub front: Front,
}

impl FromRef<AgentRoutes> for Front {
    fn from_ref(state: &AgentRoutes) -> Self {
        state.front.clone()
    }
}

/// Putting and reading agents.
pub fn routes(state: AgentRoutes) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(paths!(put, get, delete))
        .routes(paths!(list))
        .routes(paths!(versions))
        .with_state(state)
}

/// Put an agent
///
/// It becomes the next version of its name; runs that have begun go on with theirs. The newest version once more changes
/// nothing.
#[utoipa::path(
    put, path = "/agents/{name}", operation_id = "putAgent", tag = "agent",
    params(("name" = String, Path, description = "The agent's name", example = "support")),
    request_body(content = AgentDefinition, example = json!({
        "description": "Looks after refunds",
        "instructions": "You look after refunds. Look an order up before you refund it.",
        "tools": ["http.request"],
        "approval": [{"tools": ["http.request"], "terms": {"reason": "It reaches the shop", "expires": "4h"}}],
        "maxTurns": 12,
    })),
    responses(
        (status = 200, description = "The newest version was the same already", body = Document<AgentDefinition>),
        (status = 201, description = "A new version", body = Document<AgentDefinition>, headers(("Location" = String, description = "The new version"))),
    ),
    security(("bearer" = ["settings:write"])),
)]
async fn put(ctx: Ctx<SettingsWrite>, Path(name): Path<String>, Json(body): Json<AgentDefinition>) -> Result<Response> {
    shelf::put(&ctx, "/agents", name, body).await
}

/// One agent
#[utoipa::path(
    get, path = "/agents/{name}", operation_id = "getAgent", tag = "agent",
    params(("name" = String, Path, description = "The agent's name", example = "support"), VersionQuery),
    responses((status = 200, description = "The newest version, or the one asked for; version 0 is what the server brings along", body = Document<AgentDefinition>)),
    security(("bearer" = ["settings:read"])),
)]
async fn get(
    ctx: Ctx<SettingsRead>,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
) -> Result<Json<Document<AgentDefinition>>> {
    shelf::get(&ctx, usual::agents(), name, query.version).await.map(Json)
}

/// Delete an agent
///
/// No run begins with it any more. Its versions stay for those that did; one that the server brings along under the name is there again.
#[utoipa::path(
    delete, path = "/agents/{name}", operation_id = "deleteAgent", tag = "agent",
    params(("name" = String, Path, description = "The agent's name", example = "support")),
    responses((status = 204, description = "It is out of use")),
    security(("bearer" = ["settings:write"])),
)]
async fn delete(ctx: Ctx<SettingsWrite>, Path(name): Path<String>) -> Result<StatusCode> {
    shelf::delete::<AgentDefinition, _>(&ctx, &name).await
}

/// List agents
///
/// The newest version of each, those first put latest at the top, and last those that the server brings along.
#[utoipa::path(
    get, path = "/agents", operation_id = "listAgents", tag = "agent", params(PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<AgentDefinition>>)),
    security(("bearer" = ["settings:read"])),
)]
async fn list(ctx: Ctx<SettingsRead>, Query(query): Query<PageQuery>) -> Result<Json<Page<Document<AgentDefinition>>>> {
    shelf::list(&ctx, usual::agents(), &query).await.map(Json)
}

/// The versions of an agent
///
/// Those that were put, newest first.
#[utoipa::path(
    get, path = "/agents/{name}/versions", operation_id = "listAgentVersions", tag = "agent",
    params(("name" = String, Path, description = "The agent's name", example = "support"), PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<AgentDefinition>>)),
    security(("bearer" = ["settings:read"])),
)]
async fn versions(
    ctx: Ctx<SettingsRead>,
    Path(name): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Document<AgentDefinition>>>> {
    shelf::versions(&ctx, &name, &query).await.map(Json)
}
