use axum::{
    extract::{FromRef, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{
    Connection, ConnectionBody, Connections,
    attempt::{AuthorizationUrl, CallbackBody},
    connections,
};
use crate::{
    http::{
        Ctx, Front, Json, Path, Query,
        permit::{IntegrationsRead, IntegrationsWrite},
    },
    kernel::{Page, PageQuery, Result},
};

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct IntegrationRoutes {
    /// Who asks, and the database.
    pub front: Front,
    /// The use cases.
    pub connections: Connections,
}

impl FromRef<IntegrationRoutes> for Front {
    fn from_ref(state: &IntegrationRoutes) -> Self {
        state.front.clone()
    }
}

/// Putting, connecting and reading connections.
pub fn routes(state: IntegrationRoutes) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(paths!(put, get, delete))
        .routes(paths!(list))
        .routes(paths!(authorize))
        .routes(paths!(callback))
        .with_state(state)
}

/// Put a connection
///
/// What access is wanted to, and as whom. Nothing is granted by that: somebody has to connect it. What was granted before
/// stays if it is for the same resource and client; else its tokens are gone from here, and the provider is told so as when
/// the connection is deleted.
#[utoipa::path(
    put, path = "/integrations/{name}", operation_id = "putConnection", tag = "integrations",
    params(("name" = String, Path, description = "The connection's name", example = "github")),
    request_body(content = ConnectionBody, example = json!({"url": "https://mcp.example/mcp", "scopes": ["issues:read"]})),
    responses(
        (status = 200, description = "It was there already", body = Connection),
        (status = 201, description = "It is new", body = Connection, headers(("Location" = String, description = "The connection"))),
    ),
    extensions(("x-problems" = json!(["conflict"]))),
    security(("bearer" = ["integrations:write"])),
)]
async fn put(
    State(state): State<IntegrationRoutes>,
    ctx: Ctx<IntegrationsWrite>,
    Path(name): Path<String>,
    Json(body): Json<ConnectionBody>,
) -> Result<Response> {
    let (connection, new) = state.connections.put(&ctx, name, body).await?;
    if !new {
        return Ok(Json(connection).into_response());
    }
    let location = format!("/integrations/{}", connection.name);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(connection)).into_response())
}

/// One connection
///
/// How far it is, who has granted what; never a token.
#[utoipa::path(
    get, path = "/integrations/{name}", operation_id = "getConnection", tag = "integrations",
    params(("name" = String, Path, description = "The connection's name", example = "github")),
    responses((status = 200, description = "As it stands", body = Connection)),
    security(("bearer" = ["integrations:read"])),
)]
async fn get(ctx: Ctx<IntegrationsRead>, Path(name): Path<String>) -> Result<Json<Connection>> {
    connections::get(&ctx, &name).await.map(Json)
}

/// Delete a connection
///
/// Its tokens are gone from here, and a provider that can be told so is (RFC 7009), as far as it listens. Calls that need the
/// connection fail from then on; one that is under way goes on.
#[utoipa::path(
    delete, path = "/integrations/{name}", operation_id = "deleteConnection", tag = "integrations",
    params(("name" = String, Path, description = "The connection's name", example = "github")),
    responses((status = 204, description = "It is gone")),
    security(("bearer" = ["integrations:write"])),
)]
async fn delete(
    State(state): State<IntegrationRoutes>,
    ctx: Ctx<IntegrationsWrite>,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    state.connections.delete(&ctx, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List connections
///
/// By name.
#[utoipa::path(
    get, path = "/integrations", operation_id = "listConnections", tag = "integrations", params(PageQuery),
    responses((status = 200, description = "A page", body = Page<Connection>)),
    security(("bearer" = ["integrations:read"])),
)]
async fn list(ctx: Ctx<IntegrationsRead>, Query(query): Query<PageQuery>) -> Result<Json<Page<Connection>>> {
    connections::list(&ctx, &query).await.map(Json)
}

/// Where the provider's answer is to go.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AuthorizeBody {
    /// The page that the provider sends the person back to: one that the operator lists under `oauth.redirects`, or
    /// `http://127.0.0.1:{port}/…` of the person's own machine. Whatever is there brings the answer to `…/oauth/callback`.
    redirect_url: String,
}

/// Begin to connect
///
/// Finds out who grants access to the connection's URL, registers a client there if none was named, and answers where to
/// send the person who is to grant it. Whoever begins has to finish, within ten minutes.
#[utoipa::path(
    post, path = "/integrations/{name}/oauth/authorize", operation_id = "authorizeConnection", tag = "integrations",
    params(("name" = String, Path, description = "The connection's name", example = "github")),
    request_body(content = AuthorizeBody, example = json!({"redirectUrl": "http://127.0.0.1:4711/callback"})),
    responses((status = 200, description = "Where to go", body = AuthorizationUrl)),
    extensions(("x-problems" = json!(["conflict"]))),
    security(("bearer" = ["integrations:write"])),
)]
async fn authorize(
    State(state): State<IntegrationRoutes>,
    ctx: Ctx<IntegrationsWrite>,
    Path(name): Path<String>,
    Json(AuthorizeBody { redirect_url }): Json<AuthorizeBody>,
) -> Result<Json<AuthorizationUrl>> {
    state.connections.authorize(&ctx, &name, &redirect_url).await.map(Json)
}

/// Finish connecting
///
/// Brings the provider's answer, by whoever has begun. It is good once. What was granted before is gone from here, and the
/// provider is told so, unless the same person has granted it to the same client: some providers would take back both.
#[utoipa::path(
    post, path = "/integrations/{name}/oauth/callback", operation_id = "connectConnection", tag = "integrations",
    params(("name" = String, Path, description = "The connection's name", example = "github")),
    request_body(content = CallbackBody, example = json!({"code": "SplxlOBeZQQYbYS6WxSbIA", "state": "af0ifjsldkj", "iss": "https://login.example"})),
    responses((status = 200, description = "It is connected", body = Connection)),
    extensions(("x-problems" = json!(["conflict"]))),
    security(("bearer" = ["integrations:write"])),
)]
async fn callback(
    State(state): State<IntegrationRoutes>,
    ctx: Ctx<IntegrationsWrite>,
    Path(name): Path<String>,
    Json(answer): Json<CallbackBody>,
) -> Result<Json<Connection>> {
    state.connections.finish(&ctx, &name, answer).await.map(Json)
}
