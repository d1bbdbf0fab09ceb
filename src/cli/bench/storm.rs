//! W2, the step storm: durable steps a second.

use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    course::{Client, Length, Taken, Terms},
    figures::{Spread, Times, Window},
    limits::Compare,
    report::{self, Report},
    wire::Wire,
};
use crate::cli::client::failure::{Failure, Result};

/// Steps of one run, each of which needs the one before.
const STEPS: u32 = 100;

/// `bench w2`
#[derive(Debug, Args)]
pub struct Storm {
    /// Runs at once
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=128))]
    clients: u16,
    /// Steps that act: each call waits until its intent is journaled, and the next for its outcome
    #[arg(long)]
    acting: bool,
    #[command(flatten)]
    length: Length,
    #[command(flatten)]
    compare: Compare,
    #[command(flatten)]
    terms: Terms,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    steps_per_second: f64,
    runs_per_second: f64,
    run_ms: Spread,
    errors: u64,
}

/// Starts a run and waits for its end.
struct Starter {
    wire: Wire,
    start: Vec<u8>,
}

#[derive(Deserialize)]
struct Run {
    status: String,
}

impl Client<Taken> for Starter {
    async fn piece(&mut self) -> Result<Taken> {
        let from = Instant::now();
        let answer = self.wire.call(&self.start).await?;
        let run: Run = serde_json::from_slice(&answer).map_err(|e| Failure::Unreadable(e.to_string()))?;
        match run.status.as_str() {
            "completed" => Ok(Taken { from, to: Instant::now() }),
            status => Err(Failure::Unreadable(format!("a run is `{status}` and not completed within a minute"))),
        }
    }
}

impl Storm {
    pub(super) async fn run(self) -> Result<()> {
        let course = self.terms.course().await?;
        let body = course.define("fermata-bench-w2", &steps(self.acting)).await?;
        let start = course.request("POST /agent/execute", "prefer: wait=60\r\n", &body);
        let starters = (0..self.clients).map(|_| Starter { wire: Wire::new(&course.site), start: start.clone() });
        let probe = self.compare.begin(&self.terms).await?;
        let Length { seconds, warm_up } = self.length;
        let window = Window::after(Duration::from_secs(warm_up), Duration::from_secs(seconds));
        let outcome = course.keep_up(window, starters.collect()).await;
        let standard = probe.finish().await?;
        let outcome = outcome?;
        let runs: f64 = outcome.done.iter().map(|run| window.share(run.from, run.to)).sum();
        let mut times = Times::default();
        outcome.done.iter().filter(|run| window.has(run.from)).for_each(|run| times.add(run.to - run.from));
        let figures = Figures {
            steps_per_second: report::tenths(runs * f64::from(STEPS) / window.seconds()),
            runs_per_second: report::tenths(runs / window.seconds()),
            run_ms: times.spread(),
            errors: outcome.errors,
        };
        Report::new("w2", self.clients, seconds, figures, outcome.cost).beside(standard).print(self.terms.json)
    }
}

/// A chain of echoes; or of sleeps that take no time, which the engine does not know to touch nothing.
fn steps(acting: bool) -> Value {
    let (uses, argument) = if acting { ("debug.sleep", "ms") } else { ("debug.echo", "value") };
    let step = |number: u32| {
        let needs: Vec<_> = (number > 1).then(|| format!("s{}", number - 1)).into_iter().collect();
        json!({ "id": format!("s{number}"), "needs": needs, "uses": uses, "with": { argument: 0 } })
    };
    (1..=STEPS).map(step).collect()
}

impl report::Rows for Figures {
    fn rows(&self) -> Vec<report::Row> {
        vec![
            report::row("steps", report::rate(self.steps_per_second)),
            report::row("runs of 100", report::rate(self.runs_per_second)),
            report::row("one run", report::spread(&self.run_ms)),
            report::row("errors", self.errors.to_string()),
        ]
    }

    fn rates(&self) -> Vec<(&'static str, f64)> {
        vec![("stepsPerSecond", self.steps_per_second), ("runsPerSecond", self.runs_per_second)]
    }

    fn times(&self) -> Vec<(&'static str, f64)> {
        vec![("runMsP50", self.run_ms.p50)]
    }
}
