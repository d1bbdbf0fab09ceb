use axum::extract::{FromRef, State};
use utoipa_axum::{router::OpenApiRouter, routes as paths};
use uuid::Uuid;

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
    page(tools.registry.describe(), &query).map(Json)
}

/// A tool's place in the list is its key: the list is the same for as long as the server runs.
fn page(tools: Vec<Described>, query: &PageQuery) -> Result<Page<Described>> {
    let (limit, after) = query.resolve()?;
    let first = after.map_or(0, |place| usize::try_from(place.as_u128()).unwrap_or(usize::MAX).saturating_add(1));
    let rows = (0_u128..).zip(tools).skip(first).take(limit + 1).collect();
    let Page { items, next_cursor } = Page::cut(rows, limit, |(place, _)| Uuid::from_u128(*place));
    Ok(Page { items: items.into_iter().map(|(_, tool)| tool).collect(), next_cursor })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn tool(name: &str) -> Described {
        Described {
            name: name.to_owned(),
            description: String::new(),
            version: String::new(),
            arguments: Value::Null,
            output: Value::Null,
        }
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let tools: Vec<_> = ["a", "b", "c", "d", "e"].map(tool).into();
        let mut query = PageQuery { limit: Some(2), cursor: None };
        let mut seen = Vec::new();
        for last in [false, false, true] {
            let page = page(tools.clone(), &query).unwrap();
            seen.extend(page.items);
            assert_eq!(page.next_cursor.is_none(), last);
            query.cursor = page.next_cursor;
        }
        assert_eq!(seen, tools);
    }
}
