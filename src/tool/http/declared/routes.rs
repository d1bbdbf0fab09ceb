use axum::{extract::State, http::StatusCode, response::Response};
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{HttpTool, put::HttpToolBody};
use crate::{
    auth::Permission,
    http::{
        Ctx, Json, Path, Query,
        permit::{IntegrationsRead, IntegrationsWrite},
    },
    kernel::{Error, Page, PageQuery, Problem, Result},
    llm::{
        Document,
        shelf::{self, VersionQuery},
    },
    tool::routes::Tools,
};

/// So many may a tenant have.
const MOST: usize = 200;

pub(in crate::tool) fn routes() -> OpenApiRouter<Tools> {
    OpenApiRouter::new().routes(paths!(put, get, delete)).routes(paths!(list)).routes(paths!(versions))
}

/// Put an HTTP tool
///
/// It becomes the next version of its name, and counts at once: consent to a call of the version before it is none to
/// one of this. The newest version once more changes nothing. Who names a sealed key needs `keys:write` besides.
#[utoipa::path(
    put, path = "/tools/http/{name}", operation_id = "putHttpTool", tag = "tools",
    params(("name" = String, Path, description = "The tool's name in `uses`", example = "shop.refund")),
    request_body(content = HttpToolBody, example = json!({
        "description": "Refunds an order",
        "method": "POST",
        "url": "https://shop.example/orders/{order}/refunds",
        "arguments": {
            "type": "object",
            "required": ["order", "amount"],
            "properties": {"order": {"type": "string"}, "amount": {"type": "number", "exclusiveMinimum": 0}},
            "additionalProperties": false,
        },
        "key": {"name": "shop"},
        "scope": ["orders"],
        "cost": 1.5,
    })),
    responses(
        (status = 200, description = "The newest version was the same already", body = Document<HttpTool>),
        (status = 201, description = "A new version", body = Document<HttpTool>, headers(("Location" = String, description = "The new version"))),
    ),
    extensions(("x-problems" = json!(["conflict"]))),
    security(("bearer" = ["integrations:write"])),
)]
async fn put(
    State(state): State<Tools>,
    ctx: Ctx<IntegrationsWrite>,
    Path(name): Path<String>,
    Json(body): Json<HttpToolBody>,
) -> Result<Response> {
    state.tools.server().check_own(&name)?;
    // To send a key somewhere is to hand it out.
    if body.shows_key() && !ctx.permissions.contains(Permission::KeysWrite) {
        let detail = "a tool that shows a sealed key needs the permission `keys:write` besides";
        return Err(Error::new(Problem::Forbidden, detail).with("permission", Permission::KeysWrite.name()));
    }
    room(&ctx, &name).await?;
    shelf::put(&ctx, "/tools/http", name, body.into_tool()?).await
}

/// Refuses what would be one tool too many: all of a tenant's are read wherever one is used.
async fn room(ctx: &Ctx<IntegrationsWrite>, name: &str) -> Result<()> {
    let others = shelf::all::<HttpTool>(&mut ctx.begin_reading().await?, vec![]).await?;
    if others.iter().filter(|other| other.name != name).count() < MOST {
        return Ok(());
    }
    Err(Error::conflict(format!("the tenant has {MOST} tools: delete one first")).with("limit", MOST))
}

/// One HTTP tool
#[utoipa::path(
    get, path = "/tools/http/{name}", operation_id = "getHttpTool", tag = "tools",
    params(("name" = String, Path, description = "The tool's name", example = "shop.refund"), VersionQuery),
    responses((status = 200, description = "The newest version, or the one asked for", body = Document<HttpTool>)),
    security(("bearer" = ["integrations:read"])),
)]
async fn get(
    ctx: Ctx<IntegrationsRead>,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
) -> Result<Json<Document<HttpTool>>> {
    shelf::get(&ctx, vec![], name, query.version).await.map(Json)
}

/// Delete an HTTP tool
///
/// The next step that uses it fails with `unknown_tool`. Its versions stay.
#[utoipa::path(
    delete, path = "/tools/http/{name}", operation_id = "deleteHttpTool", tag = "tools",
    params(("name" = String, Path, description = "The tool's name", example = "shop.refund")),
    responses((status = 204, description = "It is out of use")),
    security(("bearer" = ["integrations:write"])),
)]
async fn delete(ctx: Ctx<IntegrationsWrite>, Path(name): Path<String>) -> Result<StatusCode> {
    shelf::delete::<HttpTool, _>(&ctx, &name).await
}

/// List HTTP tools
///
/// The newest version of each, those first put latest at the top.
#[utoipa::path(
    get, path = "/tools/http", operation_id = "listHttpTools", tag = "tools", params(PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<HttpTool>>)),
    security(("bearer" = ["integrations:read"])),
)]
async fn list(ctx: Ctx<IntegrationsRead>, Query(query): Query<PageQuery>) -> Result<Json<Page<Document<HttpTool>>>> {
    shelf::list(&ctx, vec![], &query).await.map(Json)
}

/// The versions of an HTTP tool
///
/// Those that were put, newest first.
#[utoipa::path(
    get, path = "/tools/http/{name}/versions", operation_id = "listHttpToolVersions", tag = "tools",
    params(("name" = String, Path, description = "The tool's name", example = "shop.refund"), PageQuery),
    responses((status = 200, description = "A page", body = Page<Document<HttpTool>>)),
    security(("bearer" = ["integrations:read"])),
)]
async fn versions(
    ctx: Ctx<IntegrationsRead>,
    Path(name): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Document<HttpTool>>>> {
    shelf::versions(&ctx, &name, &query).await.map(Json)
}
