//! Forks: `POST /workflow/runs/{id}/fork`, a new run with the same past up to some point, and another future.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    definition,
    routes::RunRoutes,
    service::{Opening, check_goal, check_size},
    view::{FORKED_FROM, Run},
};
use crate::{
    http::{Ctx, Json, Once, Path, Prefer, Reply, permit::RunsWrite},
    journal::{
        self, Budget, Edited, Event, ForkedFrom, Loaded, OnDenied, Past, Plan, RunHead, event_id, event_number,
        present, turn_of,
    },
    kernel::{Error, Result, RunId},
    tool::ToolError,
};

/// Where the past ends, by exactly one of `stepId` and `eventId`, and what is to be otherwise.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForkBody {
    /// A step that has begun: the past ends before it first did.
    #[schema(example = "sync")]
    pub step_id: Option<String>,
    /// The last event of the past.
    #[schema(example = "evt_7")]
    pub event_id: Option<String>,
    /// What is otherwise.
    pub edit: Option<ForkEdit>,
}

/// What a fork has otherwise than the run it comes from.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkEdit {
    /// Another goal.
    #[schema(max_length = 4000)]
    pub goal: Option<String>,
    /// Another input.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Value>)]
    pub input: Option<Value>,
    /// Other steps, `{steps, output?}` or the list of steps alone, in which those of the past are the same. Not for an
    /// agent's run.
    #[schema(value_type = Option<Plan>)]
    pub plan: Option<Value>,
    /// What the step of `stepId` is taken to have given: then it belongs to the past.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Value>)]
    pub output: Option<Value>,
}

/// A fork that can be opened.
#[derive(Clone, Debug)]
pub(super) struct Fork {
    /// Whose past it has.
    pub(super) from: ForkedFrom,
    /// What is taken over.
    pub(super) past: Past,
    /// What was asked for and with what, as it is to be now.
    pub(super) head: RunHead,
    pub(super) on_denied: OnDenied,
    /// What it may take, which is what the other might.
    pub(super) budget: Budget,
}

/// Fork a run
///
/// A new run begins at once with the same past up to some point: the plan as it stood and the outcomes of the steps that had
/// ended by then, which cost it nothing. All other steps begin anew in it, under its own approvals. The run that it comes
/// from may stand anywhere, and goes its own way.
#[utoipa::path(post, path = "/workflow/runs/{id}/fork", operation_id = "forkRun", tag = "runs", security(("bearer" = ["runs:write"])),
    params(("id" = RunId, Path, description = "The run"), Once, Prefer),
    request_body(content = ForkBody, example = json!({"stepId": "sync", "edit": {"input": {"account": "acme"}}})),
    extensions(("x-problems" = json!(["not-found", "invalid-definition", "too-many-runs", "unreadable-run"]))),
    responses((status = 202, description = "The new run", body = Run)))]
pub(super) async fn fork(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    prefer: Prefer,
    Path(id): Path<RunId>,
    Json(body): Json<ForkBody>,
) -> Result<Response> {
    let (opening, run_id) = Opening::by(&ctx);
    let fork = body.prepare(&state, &ctx, id).await?;
    let work = async |tx: &mut _| Reply::json(StatusCode::ACCEPTED, &state.runs.fork(tx, opening, fork).await?);
    let reply = once.command(&ctx, work).await?;
    state.after(&ctx, prefer, run_id, reply).await
}

impl ForkBody {
    async fn prepare(self, state: &RunRoutes, ctx: &Ctx<RunsWrite>, run_id: RunId) -> Result<Fork> {
        let cut = Cut::of(self.step_id, self.event_id.as_deref())?;
        let edit = self.edit.unwrap_or_default();
        let (Loaded { mut head, state: source }, event_id) = cut.load(ctx, run_id).await?;
        let no_plan = || Error::invalid("eventId", format!("the run had no plan yet at `{event_id}`"));
        let mut past = Past::of(&source).ok_or_else(no_plan)?;
        let edited = edit.parts();
        if let Some(output) = edit.output {
            let step = cut.step().ok_or_else(|| Error::invalid("edit.output", "an `output` is that of a `stepId`"))?;
            give(state, &mut past, step, output)?;
        }
        if let Some(goal) = edit.goal {
            check_goal("edit.goal", &goal)?;
            head.goal = Some(goal);
        }
        if let Some(input) = edit.input {
            check_size("edit.input", &input, state.runs.limits().input)?;
            head.input = Arc::new(input);
        }
        if let Some(plan) = &edit.plan {
            replan(state, ctx, &mut past, (plan, &head.input)).await?;
        }
        if edited.iter().any(|part| matches!(part, Edited::Goal | Edited::Input)) {
            retell(state, ctx, &mut past, &head).await?;
        }
        let from = ForkedFrom { run_id, event_id, step_id: cut.step().map(str::to_owned), edited };
        head.metadata = Arc::new(notes(&head.metadata, &from));
        let budget = source.purse.budget;
        Ok(Fork { from, past, head, on_denied: source.on_denied, budget })
    }
}

impl ForkEdit {
    fn parts(&self) -> Vec<Edited> {
        let parts = [
            (Edited::Goal, self.goal.is_some()),
            (Edited::Input, self.input.is_some()),
            (Edited::Plan, self.plan.is_some()),
            (Edited::Output, self.output.is_some()),
        ];
        parts.into_iter().filter_map(|(part, is_there)| is_there.then_some(part)).collect()
    }
}

/// Where a past ends.
enum Cut {
    /// Before the step first began.
    Before(String),
    /// With that event.
    With(u64),
}

impl Cut {
    fn of(step: Option<String>, event: Option<&str>) -> Result<Self> {
        match (step, event) {
            (Some(step), None) => Ok(Self::Before(step)),
            (None, Some(event)) => event_number(event)
                .map(Self::With)
                .ok_or_else(|| Error::invalid("eventId", "an event's id is written `evt_7`")),
            (None, None) => Err(Error::invalid("stepId", "a `stepId` or an `eventId` says where the past ends")),
            (Some(_), Some(_)) => Err(Error::invalid("eventId", "give either `stepId` or `eventId`")),
        }
    }

    fn step(&self) -> Option<&str> {
        match self {
            Self::Before(step) => Some(step),
            Self::With(_) => None,
        }
    }

    /// The run as it stood there, and the last event before.
    async fn load(&self, ctx: &Ctx<RunsWrite>, run: RunId) -> Result<(Loaded, String)> {
        let mut reached = false;
        let past = |seq: u64, event: &Event| {
            let is_past = match self {
                Self::Before(step) => event.step.as_ref().is_none_or(|key| key.id != *step),
                Self::With(last) => seq <= *last,
            };
            reached |= !is_past;
            is_past
        };
        let mut tx = ctx.begin_reading().await?;
        let loaded = journal::load_past(&mut tx, ctx.tenant_id, run, past).await?;
        let loaded = loaded.ok_or_else(|| Error::not_found("run"))?;
        match self {
            Self::Before(step) if !reached => {
                let known = loaded.state.plan.as_ref().is_some_and(|plan| plan.step(step).is_some());
                let what = if known { "has not begun" } else { "is none of the run's" };
                Err(Error::invalid("stepId", format!("the step `{step}` {what}")))
            }
            Self::With(last) if *last > loaded.state.seq => {
                let detail = format!("the run's last event is `{}`", event_id(loaded.state.seq));
                Err(Error::invalid("eventId", detail))
            }
            Self::Before(_) => {
                let last = event_id(loaded.state.seq);
                Ok((loaded, last))
            }
            Self::With(last) => Ok((loaded, event_id(*last))),
        }
    }
}

/// Takes the step to have given that output.
fn give(state: &RunRoutes, past: &mut Past, step: &str, output: Value) -> Result<()> {
    if past.plan().step(step).is_some_and(|step| turn_of(step).is_some()) {
        return Err(Error::invalid("edit.output", "what a model says in a turn is its own to say"));
    }
    state.tools.server().check_output(&output).map_err(|error| {
        let (ToolError::Failed(failure) | ToolError::Unknown(failure)) = error;
        Error::invalid("edit.output", failure.message)
    })?;
    past.give(step, output);
    Ok(())
}

async fn replan(
    state: &RunRoutes,
    ctx: &Ctx<RunsWrite>,
    past: &mut Past,
    (plan, input): (&Value, &Arc<Value>),
) -> Result<()> {
    if past.plan().agent.is_some() {
        return Err(Error::invalid("edit.plan", "an agent's plan grows by what its model answers"));
    }
    let tools = state.tools.with(ctx.tenant_id, definition::uses(plan)).await?;
    let changed = |step| Error::invalid("edit.plan", format!("the step `{step}` has ended and has to stay as it is"));
    let plan = definition::check_plan(plan, &tools)?;
    let plan = state.runs.pin(&mut ctx.begin_reading().await?, plan, input).await?;
    past.replan(plan).map_err(changed)
}

/// Instructions of agents name the goal and input, and names of models may be the input's: they are others now.
async fn retell(state: &RunRoutes, ctx: &Ctx<RunsWrite>, past: &mut Past, head: &RunHead) -> Result<()> {
    let mut plan = Plan::clone(past.plan());
    let mut tx = ctx.begin_reading().await?;
    if plan.agent.is_none() {
        plan = state.runs.pin(&mut tx, plan, &head.input).await?;
    } else {
        let goal = head.goal.as_deref().unwrap_or_default();
        let pins = plan.agent.iter_mut().chain(&mut plan.agents).collect();
        state.agents.retell(&mut tx, pins, goal, &head.input).await?;
    }
    past.replan(plan).map_err(|step| Error::internal(format!("the step {step} changed by itself")))
}

/// The caller's own notes, without what the server noted of the other run.
fn notes(notes: &Value, from: &ForkedFrom) -> Value {
    let own = notes.as_object().into_iter().flatten().filter(|(name, _)| !name.starts_with("fermata."));
    let own = own.map(|(name, note)| (name.clone(), note.clone()));
    let forked = [(FORKED_FROM.to_owned(), json!(from))];
    Value::Object(own.chain(forked).collect::<Map<_, _>>())
}
