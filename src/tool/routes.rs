use axum::extract::FromRef;
use utoipa_axum::router::OpenApiRouter;

use super::{Toolbox, http};
use crate::http::Front;

/// What the handlers need.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    pub(super) front: Front,
    pub(super) tools: Toolbox,
}

impl FromRef<Tools> for Front {
    fn from_ref(tools: &Tools) -> Self {
        tools.front.clone()
    }
}

/// Putting and reading the tools of tenants.
#[must_use]
pub fn routes(front: Front, tools: Toolbox) -> OpenApiRouter {
    OpenApiRouter::new().merge(http::routes()).with_state(Tools { front, tools })
}
