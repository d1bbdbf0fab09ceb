use chrono::{Datelike, Days, NaiveDate};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::store;
use crate::{
    db::TenantTx,
    kernel::{Error, Page, PageQuery, Result, RunId, TenantId},
};

/// The longest time that one report is about, in days.
const LONGEST: i64 = 366;

/// By what usage is summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum GroupBy {
    /// By day (UTC), the last one first.
    #[default]
    Day,
    /// By run, the newest first.
    Run,
    /// By the steps of one run.
    Step,
    /// By model configuration and model, the dearest first.
    Model,
}

/// Which usage, and how it is summed.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// The first day (UTC); 30 days before the last one when absent, or the run's first.
    #[param(value_type = Option<String>, format = Date)]
    pub from: Option<NaiveDate>,
    /// The last day (UTC); today when absent.
    #[param(value_type = Option<String>, format = Date)]
    pub to: Option<NaiveDate>,
    /// By what it is summed, `day` when absent; `step` needs a `runId`.
    #[param(inline)]
    pub group_by: Option<GroupBy>,
    /// Only that of one run.
    pub run_id: Option<RunId>,
    /// Rows a page, 1 to 200 (50 when absent).
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u16>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}

/// What something took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The day (UTC), by day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Date)]
    pub day: Option<NaiveDate>,
    /// The run, by run and by step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// Its step, by step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "turn-1")]
    pub step_id: Option<String>,
    /// The model configuration as `name@version`, by model; absent for what is no model.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "default-smart@0")]
    pub config: Option<String>,
    /// Its provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Its model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Calls that took something.
    pub calls: u64,
    /// Tokens asked.
    pub input_tokens: u64,
    /// Those of them that the providers had in their caches.
    pub cached_tokens: u64,
    /// Tokens said.
    pub output_tokens: u64,
    /// Money, in the tenant's unit.
    pub cost: f64,
}

/// What usage is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) from: Option<NaiveDate>,
    pub(super) to: NaiveDate,
    pub(super) run: Option<RunId>,
}

impl UsageQuery {
    fn wanted(&self, today: NaiveDate) -> Result<Wanted> {
        let to = self.to.unwrap_or(today);
        let usual = || to.checked_sub_days(Days::new(30)).filter(|_| self.run_id.is_none());
        let from = self.from.or_else(usual);
        // Beyond are days that the database does not know.
        let strange = |day: NaiveDate| !(1..=9999).contains(&day.year());
        if let Some((field, _)) =
            [("from", from), ("to", Some(to))].into_iter().find(|(_, day)| day.is_some_and(strange))
        {
            return Err(Error::invalid(field, format!("`{field}` is a day of the years 1 to 9999")));
        }
        if from.is_some_and(|from| from > to) {
            return Err(Error::invalid("from", "`from` comes after `to`"));
        }
        if self.run_id.is_none() && from.is_none_or(|from| (to - from).num_days() > LONGEST) {
            return Err(Error::invalid("from", format!("`from` is {LONGEST} days before `to` at most")));
        }
        Ok(Wanted { from, to, run: self.run_id })
    }
}

/// A page of the report.
pub(super) async fn usage(
    tx: &mut TenantTx,
    tenant: TenantId,
    query: &UsageQuery,
    today: NaiveDate,
) -> Result<Page<Usage>> {
    let wanted = query.wanted(today)?;
    let page = PageQuery { limit: query.limit, cursor: query.cursor.clone() };
    match (query.group_by.unwrap_or_default(), query.run_id) {
        (GroupBy::Run, _) => {
            let (limit, after) = page.resolve()?;
            let rows = store::by_run(tx, tenant, wanted, (limit, after)).await?;
            Ok(Page::cut(rows, limit, |row| row.run_id.map(|run| run.uuid()).unwrap_or_default()))
        }
        (GroupBy::Step, None) => Err(Error::invalid("runId", "by `step` it is the usage of one run: give its `runId`")),
        // As many as there are days in a report, steps in a run, or models in use.
        (by, _) => page.cut(store::grouped(tx, tenant, wanted, by).await?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Id;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn wanted(from: Option<&str>, to: Option<&str>, of_a_run: bool) -> Result<Wanted> {
        let run_id = of_a_run.then(|| Id::new(chrono::DateTime::UNIX_EPOCH));
        let (from, to) = (from.map(day), to.map(day));
        UsageQuery { from, to, group_by: None, run_id, limit: None, cursor: None }.wanted(day("2026-11-27"))
    }

    #[test]
    fn a_report_is_about_the_last_month_or_what_was_asked_and_of_a_run_about_all_of_it() {
        let usual = wanted(None, None, false).unwrap();
        assert_eq!((usual.from, usual.to), (Some(day("2026-10-28")), day("2026-11-27")));
        assert_eq!(wanted(None, None, true).unwrap().from, None);
        assert_eq!(wanted(None, Some("2026-03-31"), false).unwrap().from, Some(day("2026-03-01")));
        assert!(wanted(Some("2025-11-26"), None, false).is_ok());
        for (from, to) in [(Some("2025-11-25"), None), (Some("2026-11-28"), None)] {
            assert_eq!(wanted(from, to, false).unwrap_err().members()["field"], "from");
        }
    }
}
