use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::store;
use crate::{
    audit,
    db::TenantTx,
    http::{Ctx, Permit},
    journal::Estimate,
    kernel::{Actor, Error, Result, Timestamp, wire_time},
};

/// The most that all runs of a tenant may take together in a day (UTC); what is absent is not bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DayBudget {
    /// Money, in the tenant's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub cost: Option<f64>,
    /// Tokens, asked and said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub tokens: Option<u64>,
    /// Calls of tools; an agent's turns are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub tool_calls: Option<u64>,
}

impl DayBudget {
    /// Whether it bounds anything that the call is expected to take.
    pub(super) fn bounds(&self, call: &Estimate) -> bool {
        self.cost.is_some() && call.cost > 0.0
            || self.tokens.is_some() && call.tokens > 0
            || self.tool_calls.is_some() && call.tool_calls > 0
    }

    fn check(&self) -> Result<()> {
        let most = u64::try_from(i64::MAX).unwrap_or_default();
        let rules = [
            ("cost", self.cost.is_none_or(|cost| cost.is_finite() && cost >= 0.0), "`cost` is a number from 0"),
            ("tokens", self.tokens.is_none_or(|tokens| tokens <= most), "`tokens` is a number below 2^63"),
            ("toolCalls", self.tool_calls.is_none_or(|calls| calls <= most), "`toolCalls` is a number below 2^63"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            None => Ok(()),
            Some((field, _, rule)) => Err(Error::invalid(field, rule)),
        }
    }
}

/// So much of each thing that a day's budget can cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Amounts {
    /// Money, in the tenant's unit.
    pub cost: f64,
    /// Tokens, asked and said.
    pub tokens: u64,
    /// Calls of tools; counted while their number is capped.
    pub tool_calls: u64,
}

/// The budget of a tenant's day, and how today stands.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DayStanding {
    /// What each day may take.
    pub budget: DayBudget,
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

/// Puts the budget, with its entry in the audit log; an empty one lifts it.
pub(super) async fn put<P: Permit>(tx: &mut TenantTx, ctx: &Ctx<P>, budget: DayBudget) -> Result<DayStanding> {
    budget.check()?;
    let (tenant, by, now) = (ctx.tenant_id, ctx.actor(), ctx.now());
    store::put_budget(tx, tenant, &budget, &by, now).await?;
    let entry = audit::Entry {
        tenant_id: tenant,
        actor: &by,
        action: "usage.budget.put",
        target: "day",
        detail: json!({ "budget": budget }),
        request_id: Some(&ctx.request_id),
        at: now,
    };
    audit::record(tx, &entry).await?;
    store::standing(tx, tenant, now.date_naive()).await
}
