//! Figures for a program and for a person.

use serde::Serialize;

use super::{figures::Spread, vitals::Cost};
use crate::cli::client::{
    failure::{Failure, Result},
    output, text,
};

/// What a workload came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report<F> {
    pub(super) workload: &'static str,
    pub(super) clients: u16,
    pub(super) seconds: u64,
    #[serde(flatten)]
    pub(super) figures: F,
    /// Processors kept busy.
    pub(super) cpu: Cost,
}

/// A name and what belongs to it.
pub(super) type Row = Vec<String>;

/// The figures of a workload, for a person.
pub(super) trait Rows {
    fn rows(&self) -> Vec<Row>;
}

impl<F: Serialize + Rows> Report<F> {
    pub(super) fn print(&self, json: bool) -> Result<()> {
        if json {
            let text = serde_json::to_string(self).map_err(|e| Failure::Unreadable(e.to_string()))?;
            return output::line(&text);
        }
        let head = format!("{}, clients: {}, seconds: {}", self.workload, self.clients, self.seconds);
        let mut rows = self.figures.rows();
        rows.push(row("processors busy", cost(&self.cpu)));
        output::lines([head, String::new()].into_iter().chain(text::table(&rows)))
    }
}

pub(super) fn row(name: &str, value: String) -> Row {
    vec![format!("  {name}"), value]
}

/// A rate, with the digits that mean something.
pub(super) fn rate(per_second: f64) -> String {
    if per_second < 100.0 { format!("{per_second:.1} a second") } else { format!("{per_second:.0} a second") }
}

pub(super) fn spread(ms: &Spread) -> String {
    let Spread { p50, p95, p99, max } = ms;
    format!("p50 {p50:.1} ms, p95 {p95:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
}

fn cost(cost: &Cost) -> String {
    let known = |name: &str, value: Option<f64>| value.map(|value| format!(", {name} {value:.2}")).unwrap_or_default();
    format!("the load {:.2}{}{}", cost.client, known("the server", cost.server), known("everything", cost.machine))
}

pub(super) fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
