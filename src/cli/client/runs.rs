//! `fermata run …`: start, see, watch and steer runs.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use console::style;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    api::{Api, Reply},
    connection::{Connection, Role},
    failure::{Failure, Result},
    input, output, plans, text, watch, workflows,
};
use crate::kernel::{Clock, Page, RunId, Timestamp};

/// What can be done with runs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a run of a workflow, of an agent, or from a goal alone
    Start(Start),
    /// Have a model plan a goal, and show what would become of it
    Plan(plans::Plan),
    /// Let a planned run begin
    Execute(plans::Execute),
    /// Show a run with its steps
    Get(Get),
    /// List runs, newest first
    List(List),
    /// Follow a run to its end; see the exit codes under `fermata --help`
    Watch(Watch),
    /// Cancel a run
    Cancel(Cancel),
    /// Retry a failed run from the steps that failed
    Retry(Retry),
    /// Begin a new run with the past of another, and another future
    Fork(Box<Fork>),
}

/// `run start`
#[derive(Debug, Args)]
pub struct Start {
    /// A YAML or JSON file with a definition, which is put first, or the NAME[@VERSION] of one that was put
    #[arg(value_name = "FILE|NAME", required_unless_present_any = ["agent", "goal"], conflicts_with = "agent")]
    workflow: Option<String>,
    /// The agent that is to do it, NAME or NAME@VERSION
    #[arg(long, value_name = "NAME", requires = "goal")]
    agent: Option<String>,
    /// A value of the input, JSON where it parses as JSON; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = input::pair)]
    input: Vec<(String, Value)>,
    /// A YAML or JSON file with the input; single values go over it
    #[arg(long, value_name = "FILE")]
    input_file: Option<PathBuf>,
    /// What the run is for
    #[arg(long)]
    goal: Option<String>,
    /// Something to remember with the run; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = input::pair)]
    metadata: Vec<(String, Value)>,
    /// The same key starts the same run only once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Follow the run to its end
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    watching: watch::Watching,
    #[command(flatten)]
    connection: Connection,
}

/// `run get`
#[derive(Debug, Args)]
pub struct Get {
    #[arg(value_name = "RUN", value_parser = input::id::<RunId>)]
    run: RunId,
    /// Print the run as the server sends it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `run list`
#[derive(Debug, Args)]
pub struct List {
    /// Only runs of this status, e.g. awaiting_approval
    #[arg(long)]
    status: Option<String>,
    /// Only runs of this workflow, or of one version of it
    #[arg(long, value_name = "NAME[@VERSION]")]
    workflow: Option<String>,
    /// The most runs to list
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200))]
    limit: u16,
    /// Print the page as the server sends it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `run watch`
#[derive(Debug, Args)]
pub struct Watch {
    #[arg(value_name = "RUN", value_parser = input::id::<RunId>)]
    run: RunId,
    /// Only what came after this event
    #[arg(long, value_name = "EVENT", value_parser = watch::event_id, default_value = "evt_0", hide_default_value = true)]
    after: u64,
    #[command(flatten)]
    watching: watch::Watching,
    #[command(flatten)]
    connection: Connection,
}

/// `run cancel`
#[derive(Debug, Args)]
pub struct Cancel {
    #[arg(value_name = "RUN", value_parser = input::id::<RunId>)]
    run: RunId,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Print the run as the server sends it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `run retry`
#[derive(Debug, Args)]
pub struct Retry {
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

/// `run fork`
#[derive(Debug, Args)]
pub struct Fork {
    #[arg(value_name = "RUN", value_parser = input::id::<RunId>)]
    run: RunId,
    /// The step that is the first to begin anew: the past ends before it began
    #[arg(long, value_name = "STEP", required_unless_present = "event", conflicts_with = "event")]
    step: Option<String>,
    /// The last event of the past
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    /// Another goal
    #[arg(long)]
    goal: Option<String>,
    /// A value of another input, JSON where it parses as JSON; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = input::pair)]
    input: Vec<(String, Value)>,
    /// A YAML or JSON file with another input; single values go over it
    #[arg(long, value_name = "FILE")]
    input_file: Option<PathBuf>,
    /// A YAML or JSON file with other steps, in which those of the past are the same
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// What the step is taken to have given
    #[arg(long, value_name = "JSON|@FILE", value_parser = input::json, requires = "step")]
    output: Option<Value>,
    /// The same key forks the run only once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Follow the new run to its end
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    watching: watch::Watching,
    #[command(flatten)]
    connection: Connection,
}

/// The body of `POST /agent/plan`.
#[derive(Debug, Serialize)]
struct Beginning {
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Value>,
    input: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    metadata: Map<String, Value>,
    execute: bool,
}

/// A run, as far as it is shown.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    run_id: RunId,
    status: String,
    goal: Option<String>,
    workflow: Option<String>,
    output: Option<Value>,
    error: Option<Trouble>,
    #[serde(default)]
    pending_approvals: Vec<Value>,
    created_by: String,
    created_at: Timestamp,
    finished_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    step_id: String,
    #[serde(default)]
    uses: String,
    status: String,
    #[serde(default)]
    attempt: u32,
    error: Option<Trouble>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
}

/// Why a step or run failed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trouble {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        match self {
            Self::Start(start) => start.run().await,
            Self::Plan(plan) => plan.run().await,
            Self::Execute(execute) => execute.run().await,
            Self::Get(get) => get.run().await,
            Self::List(list) => list.run().await,
            Self::Watch(watch) => {
                let api = Api::new(watch.connection.target(Role::Operator)?)?;
                watch::watch(api, watch.run, &watch.watching, watch.after).await
            }
            Self::Cancel(cancel) => cancel.run().await,
            Self::Retry(retry) => retry.run().await,
            Self::Fork(fork) => fork.run().await,
        }
    }
}

impl Start {
    async fn run(self) -> Result<()> {
        let input = input::merged(self.input_file.as_deref(), &self.input)?;
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let document = self.workflow.as_deref().map(definition).transpose()?.flatten();
        let (workflow, plan) = match document {
            None => (self.workflow, None),
            Some(document) => match document.name().map(str::to_owned) {
                Some(name) => (Some(workflows::put(&api, &name, document).await?.reference()), None),
                None => (None, Some(document.value)),
            },
        };
        let metadata = self.metadata.into_iter().collect();
        let body = Beginning { agent: self.agent, workflow, plan, input, goal: self.goal, metadata, execute: true };
        let reply = api.post(&["agent", "plan"], &body, self.idempotency_key.as_deref()).await?;
        begun(api, &reply, self.watch, &self.watching).await
    }
}

/// The run of a reply.
pub(super) fn id_of(reply: &Reply) -> Result<RunId> {
    reply.json::<Run>().map(|run| run.run_id)
}

/// Follows the run of a reply, or says what it is and how to follow it.
pub(super) async fn begun(api: Api, reply: &Reply, follow: bool, watching: &watch::Watching) -> Result<()> {
    let run: Run = reply.json()?;
    if follow {
        return watch::watch(api, run.run_id, watching, 0).await;
    }
    if watching.json {
        return reply.print();
    }
    output::line(&run.headline())?;
    output::hint(&format!("follow it with `fermata run watch {}`", run.run_id));
    Ok(())
}

/// The file, where the argument means one.
fn definition(argument: &str) -> Result<Option<input::Document>> {
    let path = Path::new(argument);
    let is_path = argument.contains(['/', '\\'])
        || path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
    match (path.is_file(), is_path) {
        (true, _) => input::document(path).map(Some),
        (false, true) => Err(Failure::Usage(format!("{argument}: there is no such file"))),
        (false, false) => Ok(None),
    }
}

impl Get {
    async fn run(self) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let id = self.run.to_string();
        let reply = api.get(&["workflow", "runs", &id]).await?;
        if self.json {
            return reply.print();
        }
        let steps: Page<Step> = api.get(&["workflow", "runs", &id, "steps"]).await?.json()?;
        output::lines(described(&reply.json()?, &steps.items, Clock::system().now()))
    }
}

fn described(run: &Run, steps: &[Step], now: Timestamp) -> Vec<String> {
    let until = run.finished_at.unwrap_or(now);
    let mut lines = vec![run.headline()];
    lines.push(text::safe(&format!(
        "started by {}, {} ago",
        run.created_by,
        text::whole_duration(now - run.created_at)
    )));
    lines.push(format!(
        "{} {}",
        if run.finished_at.is_some() { "took" } else { "for" },
        text::duration(until - run.created_at)
    ));
    lines.extend(
        text::table(&steps.iter().map(|step| step.cells(now)).collect::<Vec<_>>()).iter().map(|row| format!("  {row}")),
    );
    for approval in run.pending_approvals.iter().filter_map(approval_id) {
        lines.push(text::safe(&format!("waits for a decision: fermata approvals {approval}")));
    }
    lines.extend(run.error.as_ref().map(Trouble::text));
    lines.extend(run.output.as_ref().map(text::json_lines).unwrap_or_default());
    lines
}

/// A pending approval is listed by its id, or with it.
fn approval_id(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("approvalId")?.as_str())
}

impl List {
    async fn run(self) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let mut query = vec![("limit", self.limit.to_string())];
        query.extend(self.status.map(|status| ("status", status)));
        query.extend(self.workflow.map(|workflow| ("workflow", workflow)));
        let reply = api.list(&["workflow", "runs"], &query).await?;
        if self.json {
            return reply.print();
        }
        let page: Page<Run> = reply.json()?;
        let now = Clock::system().now();
        output::lines(text::table(&page.items.iter().map(|run| run.cells(now)).collect::<Vec<_>>()))?;
        match (page.items.is_empty(), page.next_cursor) {
            (true, _) => output::hint("no runs"),
            (false, Some(_)) => output::hint("there are more; --limit lists up to 200"),
            (false, None) => {}
        }
        Ok(())
    }
}

impl Cancel {
    async fn run(self) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let body = self.reason.map_or_else(|| json!({}), |reason| json!({"reason": reason}));
        let reply = api.post(&["workflow", "runs", &self.run.to_string(), "cancel"], &body, None).await?;
        if self.json {
            return reply.print();
        }
        output::line(&reply.json::<Run>()?.headline())
    }
}

impl Retry {
    async fn run(self) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let reply = api.post(&["workflow", "runs", &self.run.to_string(), "retry"], &json!({}), None).await?;
        begun(api, &reply, self.watch, &self.watching).await
    }
}

impl Fork {
    async fn run(self) -> Result<()> {
        let mut edit = Map::new();
        if self.input_file.is_some() || !self.input.is_empty() {
            edit.insert("input".to_owned(), input::merged(self.input_file.as_deref(), &self.input)?.into());
        }
        let plan = self.plan.as_deref().map(input::document).transpose()?;
        edit.extend(plan.map(|document| ("plan".to_owned(), document.value)));
        edit.extend(self.goal.map(|goal| ("goal".to_owned(), goal.into())));
        edit.extend(self.output.map(|output| ("output".to_owned(), output)));
        let end = [("stepId", self.step), ("eventId", self.event)];
        let end = end.into_iter().filter_map(|(name, end)| Some((name.to_owned(), Value::from(end?))));
        let body: Map<_, _> = end.chain([("edit".to_owned(), edit.into())]).collect();
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let path = ["workflow", "runs", &self.run.to_string(), "fork"];
        let reply = api.post(&path, &body, self.idempotency_key.as_deref()).await?;
        begun(api, &reply, self.watch, &self.watching).await
    }
}

impl Run {
    fn headline(&self) -> String {
        let mut line = format!("{}  {}", style(self.run_id).bold(), status(&self.status));
        for what in [&self.workflow, &self.goal].into_iter().flatten() {
            line.push_str(&format!("  {}", text::safe(what)));
        }
        line
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.run_id.to_string(),
            status(&self.status),
            text::safe(self.workflow.as_deref().unwrap_or("–")),
            format!("{} ago", text::whole_duration(now - self.created_at)),
            text::cut(&text::safe(self.goal.as_deref().unwrap_or_default()), 60),
        ]
    }
}

impl Step {
    fn cells(&self, now: Timestamp) -> Vec<String> {
        let took = self.started_at.map(|since| text::duration(self.finished_at.unwrap_or(now) - since));
        let attempt = (self.attempt > 1).then(|| format!("attempt {}", self.attempt));
        let rest = [attempt, took, self.error.as_ref().map(Trouble::text)];
        vec![
            text::safe(&self.step_id),
            text::safe(&self.uses),
            status(&self.status),
            rest.into_iter().flatten().collect::<Vec<_>>().join(" · "),
        ]
    }
}

impl Trouble {
    fn text(&self) -> String {
        text::safe(&format!("{}: {}", self.code, self.message))
    }
}

/// A status in its colour.
pub(super) fn status(status: &str) -> String {
    let shown = text::safe(status);
    match status {
        "completed" | "approved" => style(shown).green().to_string(),
        "failed" | "denied" => style(shown).red().to_string(),
        "awaiting_approval" | "retrying" | "cancelled" | "expired" => style(shown).yellow().to_string(),
        _ => shown,
    }
}
