use std::time::Duration;

use chrono::NaiveDate;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::store;
use crate::{
    audit,
    db::TenantTx,
    http::{Ctx, Permit},
    journal::{Budget, Estimate},
    kernel::{Actor, Error, Result, Span, TenantId, Timestamp, wire_time},
};

/// Whether a day's budget bounds anything that the call is expected to take. Every call takes time.
pub(super) fn bounds(budget: &Budget, call: &Estimate) -> bool {
    budget.cost.is_some() && call.cost > 0.0
        || budget.tokens.is_some() && call.tokens > 0
        || budget.tool_calls.is_some() && call.tool_calls > 0
        || budget.wall_time.is_some()
}

/// So much of each thing that a day's budget can cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Amounts {
    /// Money, in the tenant's unit.
    pub cost: f64,
    /// Tokens, asked and said.
    pub tokens: u64,
    /// Calls of tools; counted while anything that they take is capped.
    pub tool_calls: u64,
    /// Seconds that calls were under way, of those side by side each for itself; counted while anything that they take is
    /// capped. Waiting for a person does not count.
    pub wall_time: f64,
}

/// The budget of a tenant's day, and how today stands.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DayStanding {
    /// What all runs together may take each day; what is absent is not bounded.
    pub budget: Budget,
    /// Who put it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_by: Option<Actor>,
    /// When.
    #[serde(with = "wire_time::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Timestamp>,
    /// Today, in UTC.
    #[schema(value_type = String, format = Date)]
    pub day: NaiveDate,
    /// What was spent today.
    pub spent: Amounts,
    /// What calls that are out are expected to take.
    pub reserved: Amounts,
    /// By how much today's budget was raised.
    pub raised: Amounts,
}

/// What is left of the tenant's day, of each thing that its budget bounds.
///
/// # Errors
/// When the database is away.
pub async fn left_of_day(tx: &mut TenantTx, tenant: TenantId, now: Timestamp) -> Result<Budget> {
    if store::budget(tx, tenant).await?.is_none() {
        return Ok(Budget::default());
    }
    let DayStanding { budget, spent, reserved, raised, .. } = store::standing(tx, tenant, now).await?;
    let count = |most: u64, raised: u64, gone: [u64; 2]| (most + raised).saturating_sub(gone[0] + gone[1]);
    let left = |most: f64, raised: f64, gone: [f64; 2]| (most + raised - gone[0] - gone[1]).max(0.0);
    let time = |most: Span| left(most.0.as_secs_f64(), raised.wall_time, [spent.wall_time, reserved.wall_time]);
    Ok(Budget {
        cost: budget.cost.map(|most| left(most, raised.cost, [spent.cost, reserved.cost])),
        tokens: budget.tokens.map(|most| count(most, raised.tokens, [spent.tokens, reserved.tokens])),
        tool_calls: budget
            .tool_calls
            .map(|most| count(most, raised.tool_calls, [spent.tool_calls, reserved.tool_calls])),
        wall_time: budget.wall_time.map(|most| Span(Duration::try_from_secs_f64(time(most)).unwrap_or_default())),
    })
}

/// Puts the budget, with its entry in the audit log; an empty one lifts it.
pub(super) async fn put<P: Permit>(tx: &mut TenantTx, ctx: &Ctx<P>, budget: Budget) -> Result<DayStanding> {
    if let Some((cap, rule)) = budget.flaw() {
        return Err(Error::invalid(cap.name(), rule));
    }
    let (tenant, now) = (ctx.tenant_id, ctx.now());
    store::put_budget(tx, tenant, &budget, &ctx.actor(), now).await?;
    audit::deed(tx, ctx, "usage.budget.put", "day", json!({ "budget": budget })).await?;
    store::standing(tx, tenant, now).await
}
