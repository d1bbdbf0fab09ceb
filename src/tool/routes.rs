use axum::extract::{FromRef, State};
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{Described, Registry};
use crate::{
    http::{Ctx, Front, Json, Query, permit::WorkflowsRead},
    kernel::{Page, PageQuery, Result},
};

#[derive(Clone)]
struct Tools {
    front: Front,
    registry: Registry,
}

impl FromRef<Tools> for Front {
    fn from_ref(tools: &Tools) -> Self {
        tools.front.clone()
    }
}

/// `GET /tools`.
#[must_use]
pub fn routes(front: Front, registry: Registry) -> OpenApiRouter {
    OpenApiRouter::new().routes(paths!(list)).with_state(Tools { front, registry })
}

/// What steps can use
///
/// The tools of this server with the JSON Schemas of their arguments and outputs, in order of name.
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
    State(tools): State<Tools>,
    _: Ctx<WorkflowsRead>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Described>>> {
    query.cut(tools.registry.describe()).map(Json)
}
