//! `fermata run plan` and `run execute`: have a model plan, look at what would become of it, and let it begin.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use console::style;
use serde_json::{Value, json};

use super::{
    api::Api,
    connection::{Connection, Role},
    failure::{Failure, Result},
    follow::{News, Terms, follow},
    input, line, output, runs, text, watch,
};
use crate::{
    journal::{Body, Forecast, Outlook, PlanReady},
    kernel::RunId,
};

/// `run plan`
#[derive(Debug, Args)]
pub struct Plan {
    /// What is wanted, in words
    #[arg(value_name = "GOAL")]
    goal: String,
    /// The agent that plans it, with its own instructions, tools and rules, NAME or NAME@VERSION
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// A value of the input, JSON where it parses as JSON; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = input::pair)]
    input: Vec<(String, Value)>,
    /// A YAML or JSON file with the input; single values go over it
    #[arg(long, value_name = "FILE")]
    input_file: Option<PathBuf>,
    /// Print the plan with its forecast as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `run execute`
#[derive(Debug, Args)]
pub struct Execute {
    #[arg(value_name = "RUN", value_parser = input::id::<RunId>)]
    run: RunId,
    /// Follow the run to its end
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    watching: watch::Watching,
    #[command(flatten)]
    connection: Connection,
}

impl Plan {
    pub(super) async fn run(self) -> Result<()> {
        let input = input::merged(self.input_file.as_deref(), &self.input)?;
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let body = json!({ "goal": self.goal, "agent": self.agent, "input": input });
        let reply = api.post(&["agent", "plan"], &body, None).await?;
        let run = runs::id_of(&reply)?;
        let ready = ready(api, run).await?;
        if self.json {
            let whole = json!({ "runId": run, "plan": ready.plan, "forecast": ready.forecast });
            return output::document(&whole.to_string());
        }
        output::line(&format!("{}  {}", style(run).bold(), text::safe(&self.goal)))?;
        let steps = ready.plan.steps.iter().map(|step| {
            let one = ready.forecast.iter().find(|one| one.step_id == step.id);
            let name = step.name.as_deref().unwrap_or_default();
            let reach = vec![outlook(one), cost(one), touches(one), text::cut(&text::safe(name), 60)];
            [vec![text::safe(&step.id), text::safe(&step.uses)], reach].concat()
        });
        output::lines(text::table(&steps.collect::<Vec<_>>()).iter().map(|row| format!("  {row}")))?;
        output::hint(&format!("let it begin with `fermata run execute {run} --watch`"));
        Ok(())
    }
}

/// The plan, once it stands.
async fn ready(api: Api, run: RunId) -> Result<PlanReady> {
    let mut news = follow(api, run, Terms { after: 0, patience: Duration::from_secs(60) });
    while let Some(news) = news.recv().await {
        let News::Event(record) = news? else { continue };
        match record.body {
            Some(Body::PlanReady(ready)) => return Ok(ready),
            Some(Body::PlanRefused(_)) => output::hint(&line::line(&record)),
            Some(Body::Failed(_)) => {
                output::hint(&line::line(&record));
                return Err(Failure::RunFailed);
            }
            Some(Body::Cancelled(_)) => return Err(Failure::RunCancelled),
            _ => {}
        }
    }
    Err(Failure::RunFailed)
}

fn outlook(forecast: Option<&Forecast>) -> String {
    let Some(forecast) = forecast else { return String::new() };
    let why = forecast.reason.as_ref().map(|reason| format!(": {}", text::safe(reason))).unwrap_or_default();
    match forecast.verdict {
        Outlook::Allow => style("passes".to_owned()).green().to_string(),
        Outlook::Hold => style(format!("is held{why}")).yellow().to_string(),
        Outlook::Forbid => style(format!("is forbidden{why}")).red().to_string(),
    }
}

/// What it is expected to cost.
fn cost(forecast: Option<&Forecast>) -> String {
    forecast.and_then(|one| one.cost).map(|cost| format!("costs {cost:.4}")).unwrap_or_default()
}

/// Whom it would reach.
fn touches(forecast: Option<&Forecast>) -> String {
    let touches = forecast.and_then(|one| one.touches.as_deref());
    touches.map(|touches| text::cut(&text::safe(touches), 60)).unwrap_or_default()
}

impl Execute {
    pub(super) async fn run(self) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let reply = api.post(&["agent", "execute"], &json!({ "runId": self.run }), None).await?;
        runs::begun(api, &reply, self.watch, &self.watching).await
    }
}
