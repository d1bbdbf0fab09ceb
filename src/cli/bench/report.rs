//! Figures for a program and for a person.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{figures::Spread, limits::CLIENTS, vitals::Cost};
use crate::cli::client::{
    failure::{Failure, Result},
    output, text,
};

/// What a workload came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report<F> {
    workload: &'static str,
    clients: u16,
    seconds: u64,
    #[serde(flatten)]
    figures: F,
    /// Processors kept busy.
    cpu: Cost,
    /// What the database could do at the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Standard>,
    /// The figures in units of that: rates as its parts, times as multiples of one of its commits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ratios: BTreeMap<&'static str, f64>,
}

/// One-row commits a second of eight clients, right before a workload and right after it.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Standard {
    pub(super) before: f64,
    pub(super) after: f64,
    /// The mean of the two.
    pub(super) commits_per_second: f64,
}

/// A name and what belongs to it.
pub(super) type Row = Vec<String>;

/// The figures of a workload, for a person.
pub(super) trait Rows {
    fn rows(&self) -> Vec<Row>;

    /// What is compared with the database's commits a second.
    fn rates(&self) -> Vec<(&'static str, f64)>;

    /// The medians that are compared with the time of one commit.
    fn times(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

impl<F: Serialize + Rows> Report<F> {
    pub(super) fn new(workload: &'static str, clients: u16, seconds: u64, figures: F, cpu: Cost) -> Self {
        Self { workload, clients, seconds, figures, cpu, limits: None, ratios: BTreeMap::new() }
    }

    /// Compares the figures with what the database could do.
    pub(super) fn beside(mut self, standard: Option<Standard>) -> Self {
        if let Some(Standard { commits_per_second, .. }) = standard {
            // Each of the eight waits for its own commits only.
            let commit_ms = CLIENTS as f64 * 1000.0 / commits_per_second;
            let rates = self.figures.rates().into_iter().map(|(name, rate)| (name, rate / commits_per_second));
            let times = self.figures.times().into_iter().map(|(name, ms)| (name, ms / commit_ms));
            self.ratios = rates.chain(times).map(|(name, ratio)| (name, (ratio * 1000.0).round() / 1000.0)).collect();
        }
        Self { limits: standard, ..self }
    }

    pub(super) fn print(&self, json: bool) -> Result<()> {
        if json {
            let text = serde_json::to_string(self).map_err(|e| Failure::Unreadable(e.to_string()))?;
            return output::line(&text);
        }
        let head = format!("{}, clients: {}, seconds: {}", self.workload, self.clients, self.seconds);
        let mut rows = self.figures.rows();
        rows.push(row("processors busy", cost(&self.cpu)));
        if let Some(Standard { before, after, .. }) = self.limits {
            rows.push(row("one-row commits", format!("{} before, {after:.0} after", rate(before))));
        }
        rows.extend(self.ratios.iter().map(|(name, ratio)| row(&format!("{name}, as a ratio"), ratio.to_string())));
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
