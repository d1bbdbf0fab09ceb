use axum::extract::{FromRef, State};
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{DayStanding, Days, Usage, UsageQuery, budget, report, store};
use crate::{
    http::{
        Ctx, Front, Json, Query,
        permit::{RunsRead, SettingsRead, SettingsWrite},
    },
    journal::Budget,
    kernel::{Page, Result},
};

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct UsageRoutes {
    /// Who asks, and the database.
    pub front: Front,
    /// What is remembered of budgets.
    pub days: Days,
}

impl FromRef<UsageRoutes> for Front {
    fn from_ref(state: &UsageRoutes) -> Self {
        state.front.clone()
    }
}

/// Usage, and the budget of a day.
pub fn routes(state: UsageRoutes) -> OpenApiRouter {
    OpenApiRouter::new().routes(paths!(usage)).routes(paths!(put, get)).with_state(state)
}

/// Usage
///
/// What runs took, summed by day, run, step or model. What a child run took is its own.
#[utoipa::path(
    get, path = "/usage", operation_id = "listUsage", tag = "usage", params(UsageQuery),
    responses((status = 200, description = "A page", body = Page<Usage>)),
    security(("bearer" = ["runs:read"])),
)]
async fn usage(ctx: Ctx<RunsRead>, Query(query): Query<UsageQuery>) -> Result<Json<Page<Usage>>> {
    let mut tx = ctx.begin().await?;
    report::usage(&mut tx, ctx.tenant_id, &query, ctx.now().date_naive()).await.map(Json)
}

/// Put the budget of a day
///
/// The most that all runs of the tenant may take together in a day (UTC), in place of what was there; an empty one lifts
/// it. It counts for calls that begin five seconds later at the latest, and all that was spent today counts with it.
#[utoipa::path(
    put, path = "/usage/budget", operation_id = "putDayBudget", tag = "usage",
    request_body(content = Budget, example = json!({"cost": 50.0, "tokens": 20_000_000, "toolCalls": 5000, "wallTime": "20h"})),
    responses((status = 200, description = "The budget, and how today stands", body = DayStanding)),
    security(("bearer" = ["settings:write"])),
)]
async fn put(
    State(state): State<UsageRoutes>,
    ctx: Ctx<SettingsWrite>,
    Json(body): Json<Budget>,
) -> Result<Json<DayStanding>> {
    let mut tx = ctx.begin().await?;
    let standing = budget::put(&mut tx, &ctx, body).await?;
    tx.commit().await?;
    state.days.forget(ctx.tenant_id);
    Ok(Json(standing))
}

/// The budget of a day
///
/// The most that a day may take, and what of today is spent, reserved and raised.
#[utoipa::path(
    get, path = "/usage/budget", operation_id = "getDayBudget", tag = "usage",
    responses((status = 200, description = "As it stands", body = DayStanding)),
    security(("bearer" = ["settings:read"])),
)]
async fn get(ctx: Ctx<SettingsRead>) -> Result<Json<DayStanding>> {
    let mut tx = ctx.begin().await?;
    store::standing(&mut tx, ctx.tenant_id, ctx.now()).await.map(Json)
}
