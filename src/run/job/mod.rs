//! Jobs and background tasks: runs of one question to a model, seen as those know them who come from a queue of jobs
//! (snake case, as their documents have it). Their events stream like any run's.

mod background;
mod jobs;

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use super::{
    routes::RunRoutes,
    service::{Request, Source},
    store,
    view::RunSummary,
};
use crate::{
    db::TenantTx,
    http::{Ctx, permit::RunsWrite},
    journal::{self, Loaded, Lock, Phase, Plan, Retry, Stage, Status, Step, StepKey},
    kernel::{Error, Problem, Reference, Result, RunId, TenantId},
    llm::UNKNOWN_TEMPLATE,
    tool,
};

/// Where a run's metadata says which kind of task it is. Callers cannot set it.
pub(super) const TASK: &str = "fermata.task";
/// Of the arguments of a call, what is left at least to everything but a task's own words, in bytes.
const BESIDES: usize = 1024;
/// The one step of a task.
const STEP: &str = "ask";

/// Submitting, reading, listing and cancelling jobs; submitting and reading background tasks.
pub(super) fn routes() -> OpenApiRouter<RunRoutes> {
    jobs::routes().merge(background::routes())
}

/// What a model is to be asked.
struct Task {
    kind: &'static str,
    /// The tool that asks.
    uses: &'static str,
    /// The field that names the configuration, and the name.
    config: (&'static str, String),
    /// The tool's arguments, but for the configuration.
    with: Map<String, Value>,
    /// The part of the step's output that is the run's.
    output: Option<&'static str>,
    retry: Option<Retry>,
}

impl Task {
    /// The run that asks.
    ///
    /// # Errors
    /// Invalid (422), naming the field of what cannot be; no-planner (422) where the configuration is of no use.
    async fn request(self, state: &RunRoutes, ctx: &Ctx<RunsWrite>) -> Result<Request> {
        let Self { kind, uses, config: (field, config), mut with, output, retry } = self;
        let wanted: Reference = config.parse().map_err(|reason: &str| Error::invalid(field, reason))?;
        state.models.pin(ctx.tenant_id, &wanted).await.map_err(|error| {
            let detail = format!("{}: put the configuration, or have the operator set a key", error.message);
            Error::new(Problem::NoPlanner, detail).with("field", field)
        })?;
        check_template(state, ctx, &with).await?;
        check_room(state, &with)?;
        with.insert("config".to_owned(), Value::String(config));
        // A caller's words are no templates.
        let step = Step { with, retry, verbatim: true, ..Step::of(STEP, uses) };
        let output = output.map(|part| Value::String(format!("{{{{ steps.{STEP}.output.{part} }}}}")));
        Ok(Request {
            goal: None,
            source: Source::Plan(Plan { steps: vec![Arc::new(step)], output, ..Plan::default() }),
            input: json!({}),
            budget: None,
            on_denied: None,
            retry: None,
            metadata: Value::Object(Map::from_iter([(TASK.to_owned(), Value::from(kind))])),
            foresight: None,
            execute: true,
        })
    }
}

/// Whether the template is there and takes the variables.
async fn check_template(state: &RunRoutes, ctx: &Ctx<RunsWrite>, with: &Map<String, Value>) -> Result<()> {
    let invalid = |field, why: String| Error::invalid(field, format!("`{field}`: {why}"));
    let Some(template) = with.get("template").and_then(Value::as_str) else {
        let has_variables = with.contains_key("variables");
        return if has_variables {
            Err(invalid("variables", "they need a `template_name`".to_owned()))
        } else {
            Ok(())
        };
    };
    let template: Reference = template.parse().map_err(|why: &str| invalid("template_name", why.to_owned()))?;
    let mut variables = with.get("variables").and_then(Value::as_object).cloned().unwrap_or_default();
    variables.extend(with.get("prompt").map(|prompt| ("prompt".to_owned(), prompt.clone())));
    let rendered = state.models.render(ctx.tenant_id, &template, &variables).await;
    rendered.map(drop).map_err(|error| match error.code.as_str() {
        UNKNOWN_TEMPLATE => invalid("template_name", error.message),
        _ if error.retryable => Error::unavailable(error.message),
        _ => invalid("variables", error.message),
    })
}

/// Whether all of it together is no more than a call takes, naming the largest part.
fn check_room(state: &RunRoutes, with: &Map<String, Value>) -> Result<()> {
    let most = state.tools.server().limits().arguments.saturating_sub(BESIDES);
    if tool::fits(&json!(with), most) {
        return Ok(());
    }
    let largest = with.iter().max_by_key(|(_, value)| value.to_string().len()).map(|(name, _)| name.as_str());
    let field = match largest {
        Some("images") => "image",
        Some(name) => name,
        None => "prompt",
    };
    Err(Error::invalid(field, format!("`{field}` is too large: all of it may have {most} bytes of JSON together")))
}

fn words(field: &'static str, text: String) -> Result<String> {
    if (1..=65_536).contains(&text.len()) {
        Ok(text)
    } else {
        Err(Error::invalid(field, format!("`{field}` has 1 to 65,536 bytes")))
    }
}

/// What a task cannot go on without.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum WaitingFor {
    /// Somebody's decision: `GET /approvals` has the question.
    Approval,
}

/// A task as it stands.
struct Standing {
    summary: RunSummary,
    run: Loaded,
}

impl Standing {
    /// The tasks of these runs, in their order.
    async fn of(tx: &mut TenantTx, tenant: TenantId, summaries: Vec<RunSummary>) -> Result<Vec<Self>> {
        let ids: Vec<_> = summaries.iter().map(|summary| (tenant, summary.run_id)).collect();
        let mut runs = journal::load(tx, &ids, Lock::Free).await?;
        let standing = summaries.into_iter().filter_map(|summary| {
            let at = runs.iter().position(|run| run.state.run_id == summary.run_id)?;
            Some(Self { summary, run: runs.swap_remove(at) })
        });
        Ok(standing.collect())
    }

    /// One task, if the run is one of these kinds.
    async fn find(tx: &mut TenantTx, tenant: TenantId, id: RunId, kinds: &[&str]) -> Result<Self> {
        let not_found = || Error::not_found("task");
        let run = store::get(tx, tenant, id).await?.ok_or_else(not_found)?;
        if !run.metadata.get(TASK).and_then(Value::as_str).is_some_and(|kind| kinds.contains(&kind)) {
            return Err(not_found());
        }
        Self::of(tx, tenant, vec![run.summary]).await?.pop().ok_or_else(not_found)
    }

    fn stage(&self) -> Option<&Stage> {
        self.run.state.stage(&StepKey::whole(STEP))
    }

    fn status(&self) -> Status {
        self.run.state.status()
    }

    /// What has to come before it goes on.
    fn waiting_for(&self) -> Option<WaitingFor> {
        (self.status() == Status::AwaitingApproval).then_some(WaitingFor::Approval)
    }

    /// A part of what the model gave, once it has given it.
    fn part(&self, name: &str) -> Option<String> {
        match self.stage() {
            Some(Stage::Completed { output: Some(output) }) => output[name].as_str().map(str::to_owned),
            _ => None,
        }
    }

    /// What the model gave: its words, or a sound in base64.
    fn result(&self) -> Option<String> {
        self.part("text").or_else(|| self.part("audio"))
    }

    /// Why it came to nothing.
    fn error(&self) -> Option<String> {
        match &self.run.state.phase {
            Phase::Failed(failure) => Some(format!("{}: {}", failure.code, failure.message)),
            Phase::Cancelled => Some("cancelled".to_owned()),
            _ => None,
        }
    }
}
