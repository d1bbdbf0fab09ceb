use axum::extract::{FromRef, State};
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{Described, Toolbox};
use crate::{
    http::{Ctx, Front, Json, Query, permit::WorkflowsRead},
    kernel::{Page, PageQuery, Result},
};

#[derive(Clone)]
struct Tools {
    front: Front,
    tools: Toolbox,
}

impl FromRef<Tools> for Front {
    fn from_ref(tools: &Tools) -> Self {
        tools.front.clone()
    }
}

/// `GET /tools`.
#[must_use]
pub fn routes(front: Front, tools: Toolbox) -> OpenApiRouter {
    OpenApiRouter::new().routes(paths!(list)).with_state(Tools { front, tools })
}

/// What steps can use
///
/// The tools of this server in order of name, and then the tenant's own, with the JSON Schemas of their arguments and
/// outputs.
#[utoipa::path(
    get,
    path = "/tools",
    tag = "workflows",
    operation_id = "listTools",
    params(PageQuery),
    security(("bearer" = ["workflows:read"])),
    responses((status = 200, description = "A page of tools.", body = Page<Described>)),
)]
async fn list(
    State(state): State<Tools>,
    ctx: Ctx<WorkflowsRead>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Described>>> {
    query.cut(state.tools.of(ctx.tenant_id).await?.describe()).map(Json)
}
