//! SQL of usage: the books, reservations, and the budgets of days.

use std::time::Duration;

use chrono::NaiveDate;
use sqlx::{AssertSqlSafe, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Amounts, DayStanding, GroupBy, Share, Usage, report::Wanted};
use crate::{
    db::{Rider, TenantTx, composite},
    journal::{Append, Budget, Cap, Estimate, ModelUse, Raise, Spending, StepKey},
    kernel::{Actor, Error, Result, RunId, Span, TenantId, Timestamp},
};

/// An entry of the books as its function takes it.
#[derive(Clone, Default)]
pub(super) struct Note {
    tenant_id: Uuid,
    run_id: Uuid,
    /// Empty for what belongs to none.
    step_id: String,
    attempt: Option<i32>,
    kind: &'static str,
    day: NaiveDate,
    cap: Option<&'static str>,
    config: String,
    provider: String,
    model: String,
    calls: i64,
    input_tokens: i64,
    cached_tokens: i64,
    output_tokens: i64,
    cost: f64,
    at: Timestamp,
}

composite! {
    Note = "usage_entry"
        (tenant_id, run_id, step_id, attempt, kind, day, cap, config, provider, model, calls, input_tokens,
         cached_tokens, output_tokens, cost, at);
}

impl Note {
    pub(super) fn of(append: &Append, entry: &Spending) -> Self {
        let (tenant_id, run_id) = (append.tenant_id.uuid(), append.run_id.uuid());
        let blank = Self { tenant_id, run_id, day: append.at.date_naive(), at: append.at, ..Self::default() };
        let of = |step: &StepKey, attempt: u32| Self {
            step_id: step.to_string(),
            attempt: i32::try_from(attempt).ok(),
            ..blank.clone()
        };
        match entry {
            Spending::Spent { by, model, cost } => {
                let by = by.as_ref().map_or_else(|| blank.clone(), |(step, attempt)| of(step, *attempt));
                let spent = Self { kind: "spent", calls: 1, cost: *cost, ..by };
                model.iter().fold(spent, Self::on)
            }
            Spending::Over { step, attempt, called } => {
                Self { kind: "over", calls: i64::from(*called), ..of(step, *attempt) }
            }
            Spending::Held { step, attempt } => Self { kind: "held", ..of(step, *attempt) },
            Spending::Ended => Self { kind: "ended", ..blank },
            Spending::Raised(Raise { cap, by, day }) => {
                let (cap, day) = (Some(cap.name()), day.unwrap_or(blank.day));
                Self { kind: "raised", cap, cost: *by, day, ..blank }
            }
        }
    }

    fn on(self, it: &ModelUse) -> Self {
        Self {
            config: it.config.clone(),
            provider: it.provider.clone(),
            model: it.model.clone(),
            input_tokens: signed(it.input_tokens),
            cached_tokens: signed(it.cached_tokens),
            output_tokens: signed(it.output_tokens),
            ..self
        }
    }
}

/// Enters the notes, where there are any.
pub(super) fn rider(notes: Vec<Note>) -> Option<Rider> {
    (!notes.is_empty()).then(|| Rider::new("keep_usage", notes))
}

/// The budget of the tenant's days.
pub(super) async fn budget(tx: &mut TenantTx, tenant: TenantId) -> Result<Option<Budget>> {
    let row = sqlx::query("select cost, tokens, tool_calls, wall_time from usage_budgets where tenant_id = $1")
        .bind(tenant.uuid())
        .fetch_optional(tx.conn())
        .await?;
    row.as_ref().map(read_budget).transpose()
}

fn read_budget(row: &PgRow) -> Result<Budget> {
    let count = |column| -> Result<Option<u64>> { Ok(row.try_get::<Option<i64>, _>(column)?.map(unsigned)) };
    let wall_time = row.try_get::<Option<f64>, _>("wall_time")?.map(Duration::try_from_secs_f64);
    let wall_time = wall_time.transpose().map_err(Error::internal)?.map(Span);
    Ok(Budget { cost: row.try_get("cost")?, tokens: count("tokens")?, tool_calls: count("tool_calls")?, wall_time })
}

/// Puts the budget in place of what was there.
pub(super) async fn put_budget(
    tx: &mut TenantTx,
    tenant: TenantId,
    budget: &Budget,
    by: &Actor,
    at: Timestamp,
) -> Result<()> {
    let lifted = "delete from usage_budgets where tenant_id = $1";
    if budget.is_empty() {
        sqlx::query(lifted).bind(tenant.uuid()).execute(tx.conn()).await?;
        return Ok(());
    }
    sqlx::query(
        "insert into usage_budgets (tenant_id, cost, tokens, tool_calls, wall_time, updated_by, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (tenant_id) do update
         set cost = excluded.cost, tokens = excluded.tokens, tool_calls = excluded.tool_calls,
             wall_time = excluded.wall_time, updated_by = excluded.updated_by, updated_at = excluded.updated_at",
    )
    .bind(tenant.uuid())
    .bind(budget.cost)
    .bind(budget.tokens.map(signed))
    .bind(budget.tool_calls.map(signed))
    .bind(budget.wall_time.map(|span| span.0.as_secs_f64()))
    .bind(by.to_string())
    .bind(at)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The budget, and how today stands. Where its book is not open yet, what was spent is in those of the runs.
pub(super) async fn standing(tx: &mut TenantTx, tenant: TenantId, now: Timestamp) -> Result<DayStanding> {
    let day = now.date_naive();
    let row = sqlx::query(
        "select b.cost, b.tokens, b.tool_calls, b.wall_time, b.updated_by, b.updated_at,
                coalesce(d.spent_cost, u.cost) as spent_cost, coalesce(d.spent_tokens, u.tokens) as spent_tokens,
                coalesce(d.spent_tool_calls, 0) as spent_tool_calls,
                coalesce(d.spent_wall_time, 0) as spent_wall_time, r.reserved_cost, r.reserved_tokens,
                r.reserved_tool_calls, r.reserved_wall_time, coalesce(d.raised_cost, 0) as raised_cost,
                coalesce(d.raised_tokens, 0) as raised_tokens, coalesce(d.raised_tool_calls, 0) as raised_tool_calls,
                coalesce(d.raised_wall_time, 0) as raised_wall_time
         from (select coalesce(sum(cost), 0) as cost, coalesce(sum(input_tokens + output_tokens), 0)::bigint as tokens
               from run_usage where tenant_id = $1 and day = $2) as u
         cross join (select coalesce(sum(cost), 0) as reserved_cost, coalesce(sum(tokens), 0)::bigint as reserved_tokens,
                            coalesce(sum(tool_calls), 0)::bigint as reserved_tool_calls,
                            coalesce(sum(usage_seconds(since, $3)), 0) as reserved_wall_time
                     from usage_reservations where tenant_id = $1 and day = $2) as r
         left join usage_budgets b on b.tenant_id = $1
         left join usage_days d on d.tenant_id = $1 and d.day = $2",
    )
    .bind(tenant.uuid())
    .bind(day)
    .bind(now)
    .fetch_one(tx.conn())
    .await?;
    let amounts = |kind: &str| -> Result<Amounts> {
        let count = |what: &str| -> Result<u64> { Ok(unsigned(row.try_get(format!("{kind}_{what}").as_str())?)) };
        let number = |what: &str| -> Result<f64> { Ok(row.try_get(format!("{kind}_{what}").as_str())?) };
        let (cost, wall_time) = (number("cost")?, number("wall_time")?);
        Ok(Amounts { cost, tokens: count("tokens")?, tool_calls: count("tool_calls")?, wall_time })
    };
    let by: Option<String> = row.try_get("updated_by")?;
    Ok(DayStanding {
        budget: read_budget(&row)?,
        updated_by: by.map(|by| by.parse()).transpose().map_err(Error::internal)?,
        updated_at: row.try_get("updated_at")?,
        day,
        spent: amounts("spent")?,
        reserved: amounts("reserved")?,
        raised: amounts("raised")?,
    })
}

/// Reserves, if there is room.
pub(super) async fn reserve(
    tx: &mut TenantTx,
    (tenant, run): (TenantId, RunId),
    (step, attempt): (&StepKey, u32),
    call: &Estimate,
    at: Timestamp,
) -> Result<Share> {
    let row = sqlx::query("select reserved, cap, lacks from reserve_usage($1, $2, $3, $4, $5, $6, $7, $8)")
        .bind(tenant.uuid())
        .bind(run.uuid())
        .bind(step.to_string())
        .bind(i32::try_from(attempt).unwrap_or(i32::MAX))
        .bind(at)
        .bind(call.cost)
        .bind(signed(call.tokens))
        .bind(signed(call.tool_calls))
        .fetch_one(tx.conn())
        .await?;
    let cap = row.try_get::<Option<&str>, _>("cap")?.and_then(Cap::named);
    let by: Option<f64> = row.try_get("lacks")?;
    Ok(match cap.zip(by) {
        Some((cap, by)) => Share::Lacks(Raise { cap, by, day: Some(at.date_naive()) }),
        None if row.try_get("reserved")? => Share::Reserved,
        None => Share::Unbounded,
    })
}

/// Since when an attempt takes time of what it has reserved.
pub(super) async fn since(
    tx: &mut TenantTx,
    (tenant, run): (TenantId, RunId),
    (step, attempt): (&StepKey, u32),
) -> Result<Option<Timestamp>> {
    let since = sqlx::query_scalar::<_, Option<Timestamp>>(
        "select since from usage_reservations where tenant_id = $1 and run_id = $2 and step_id = $3 and attempt = $4",
    )
    .bind(tenant.uuid())
    .bind(run.uuid())
    .bind(step.to_string())
    .bind(i32::try_from(attempt).unwrap_or(i32::MAX))
    .fetch_optional(tx.conn())
    .await?;
    Ok(since.flatten())
}

/// Puts that right.
pub(super) async fn begun(
    tx: &mut TenantTx,
    (tenant, run): (TenantId, RunId),
    (step, attempt): (&StepKey, u32),
    since: Timestamp,
) -> Result<()> {
    sqlx::query(
        "update usage_reservations set since = $5
         where tenant_id = $1 and run_id = $2 and step_id = $3 and attempt = $4",
    )
    .bind(tenant.uuid())
    .bind(run.uuid())
    .bind(step.to_string())
    .bind(i32::try_from(attempt).unwrap_or(i32::MAX))
    .bind(since)
    .execute(tx.conn())
    .await?;
    Ok(())
}

const SUMS: &str = "sum(calls)::bigint as calls, sum(input_tokens)::bigint as input_tokens,
     sum(cached_tokens)::bigint as cached_tokens, sum(output_tokens)::bigint as output_tokens, sum(cost) as cost";

/// Only what was asked for stands in the statement: its plan is one for any values.
fn which(wanted: &Wanted) -> String {
    let asked = [(wanted.from.is_some(), " and day >= $3"), (wanted.run.is_some(), " and run_id = $4")];
    let asked: String = asked.into_iter().filter_map(|(is_asked, clause)| is_asked.then_some(clause)).collect();
    format!("from run_usage where tenant_id = $1 and day <= $2{asked}")
}

/// The sums by run, newest first; one more than `limit` where there are more.
pub(super) async fn by_run(
    tx: &mut TenantTx,
    tenant: TenantId,
    wanted: Wanted,
    (limit, after): (usize, Option<Uuid>),
) -> Result<Vec<Usage>> {
    let (which, on) = (which(&wanted), after.map_or("", |_| " and run_id < $5"));
    let sql = format!("select run_id, {SUMS} {which}{on} group by run_id order by run_id desc limit $6");
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(wanted.to)
        .bind(wanted.from)
        .bind(wanted.run.map(|run| run.uuid()))
        .bind(after)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1))
        .fetch_all(tx.conn())
        .await?;
    let read = |row: &PgRow| Ok(Usage { run_id: Some(RunId::from_uuid(row.try_get("run_id")?)), ..sums(row)? });
    rows.iter().map(read).collect()
}

/// The sums by day, by step of one run, or by model.
pub(super) async fn grouped(tx: &mut TenantTx, tenant: TenantId, wanted: Wanted, by: GroupBy) -> Result<Vec<Usage>> {
    let (columns, order) = match by {
        GroupBy::Day => ("day", "day desc"),
        GroupBy::Run | GroupBy::Step => ("run_id, step_id", "min(day), step_id"),
        GroupBy::Model => ("config, provider, model", "cost desc, config, provider, model"),
    };
    let sql = format!("select {columns}, {SUMS} {} group by {columns} order by {order}", which(&wanted));
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(wanted.to)
        .bind(wanted.from)
        .bind(wanted.run.map(|run| run.uuid()))
        .fetch_all(tx.conn())
        .await?;
    let text = |row: &PgRow, column: &str| -> Result<Option<String>> {
        Ok(Some(row.try_get::<String, _>(column)?).filter(|text| !text.is_empty()))
    };
    let read = |row: &PgRow| {
        let sums = sums(row)?;
        Ok(match by {
            GroupBy::Day => Usage { day: Some(row.try_get("day")?), ..sums },
            GroupBy::Run | GroupBy::Step => {
                let run_id = Some(RunId::from_uuid(row.try_get("run_id")?));
                Usage { run_id, step_id: text(row, "step_id")?, ..sums }
            }
            GroupBy::Model => {
                let (config, provider, model) = (text(row, "config")?, text(row, "provider")?, text(row, "model")?);
                Usage { config, provider, model, ..sums }
            }
        })
    };
    rows.iter().map(read).collect()
}

fn sums(row: &PgRow) -> Result<Usage> {
    let count = |column: &str| -> Result<u64> { Ok(unsigned(row.try_get(column)?)) };
    Ok(Usage {
        calls: count("calls")?,
        input_tokens: count("input_tokens")?,
        cached_tokens: count("cached_tokens")?,
        output_tokens: count("output_tokens")?,
        cost: row.try_get("cost")?,
        ..Usage::default()
    })
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}
