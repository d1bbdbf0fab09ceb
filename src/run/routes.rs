use std::sync::Arc;

use axum::{
    extract::{FromRef, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    bell::Bell,
    definition,
    forecast::Foresight,
    fork, job,
    service::{Opening, Request, Runs, Source},
    steps::StepView,
    store, trial,
    view::{Run, RunSummary},
};
use crate::{
    agent::Agents,
    config::JobSettings,
    http::{
        Ctx, Front, Json, Once, Path, Prefer, Query, Reply,
        permit::{RunsRead, RunsWrite},
    },
    journal::{Budget, BudgetBody, Forecast, OnDenied, Plan, Status},
    kernel::{Error, Page, PageQuery, Reference, Result, RunId},
    llm::Models,
    tool::Toolbox,
    usage,
};

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct RunRoutes {
    /// The extractors' needs.
    pub front: Front,
    /// The use cases.
    pub runs: Runs,
    /// The tools that inline plans may use.
    pub tools: Toolbox,
    /// For callers that wait for news.
    pub bell: Arc<Bell>,
    /// The agents that runs begin with.
    pub agents: Agents,
    /// What jobs ask.
    pub models: Models,
    /// How jobs are tried again.
    pub jobs: JobSettings,
}

impl FromRef<RunRoutes> for Front {
    fn from_ref(state: &RunRoutes) -> Self {
        state.front.clone()
    }
}

/// Planning, executing, reading, cancelling, retrying and forking runs.
pub fn routes(state: RunRoutes) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(plan))
        .routes(routes!(execute))
        .routes(routes!(list))
        .routes(routes!(get, edit))
        .routes(routes!(foresee))
        .routes(routes!(steps))
        .routes(routes!(cancel))
        .routes(routes!(retry))
        .routes(routes!(fork::fork))
        .merge(job::routes())
        .merge(trial::routes())
        .with_state(state)
}

/// A run to be: one of `agent`, `workflow` and `plan`, or a `goal` alone, for which a model makes the plan.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlanBody {
    /// What is wanted, in words.
    #[schema(max_length = 4000)]
    pub goal: Option<String>,
    /// The agent that is to do it, `support` or `support@3`; then a `goal` is needed.
    #[schema(example = "support@3")]
    pub agent: Option<String>,
    /// A definition: `crm-sync`, or `crm-sync@3`.
    #[schema(example = "crm-sync")]
    pub workflow: Option<String>,
    /// Steps: `{steps, output?}`, or the list of steps alone.
    #[schema(value_type = Option<Plan>)]
    pub plan: Option<Value>,
    /// The input; `{}` when absent.
    #[schema(value_type = Option<Value>)]
    pub input: Option<Value>,
    /// What it may take: a number is the most it may cost, in the tenant's unit.
    pub budget: Option<BudgetBody>,
    /// What a denial means where a step does not say.
    pub on_denied: Option<OnDenied>,
    /// The caller's own notes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    /// Whether it begins at once.
    pub execute: Option<bool>,
}

/// A planned run, or one to plan and begin at once.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecuteBody {
    /// A planned run; then nothing else is given.
    pub run_id: Option<RunId>,
    /// What is wanted, in words.
    #[schema(max_length = 4000)]
    pub goal: Option<String>,
    /// The agent that is to do it, `support` or `support@3`; then a `goal` is needed.
    pub agent: Option<String>,
    /// A definition: `crm-sync`, or `crm-sync@3`.
    pub workflow: Option<String>,
    /// Steps: `{steps, output?}`, or the list of steps alone.
    #[schema(value_type = Option<Plan>)]
    pub plan: Option<Value>,
    /// The input; `{}` when absent.
    #[schema(value_type = Option<Value>)]
    pub input: Option<Value>,
    /// What it may take: a number is the most it may cost, in the tenant's unit.
    pub budget: Option<BudgetBody>,
    /// What a denial means where a step does not say.
    pub on_denied: Option<OnDenied>,
    /// The caller's own notes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
}

impl ExecuteBody {
    /// The planned run it names, or the run it describes.
    fn split(self) -> Result<Result<RunId, PlanBody>> {
        let Self { run_id, goal, agent, workflow, plan, input, budget, on_denied, metadata } = self;
        let body = PlanBody { goal, agent, workflow, plan, input, budget, on_denied, metadata, execute: Some(true) };
        match run_id {
            None => Ok(Err(body)),
            Some(run_id) if body.is_bare() => Ok(Ok(run_id)),
            Some(_) => Err(Error::invalid("runId", "give `runId` alone, or what is to be planned without it")),
        }
    }
}

impl PlanBody {
    fn is_bare(&self) -> bool {
        self.goal.is_none()
            && self.agent.is_none()
            && self.workflow.is_none()
            && self.plan.is_none()
            && self.input.is_none()
            && self.budget.is_none()
            && self.on_denied.is_none()
            && self.metadata.is_none()
    }

    async fn into_request(self, state: &RunRoutes, ctx: &Ctx<RunsWrite>) -> Result<Request> {
        let input = self.input.unwrap_or_else(|| json!({}));
        let metadata = self.metadata.unwrap_or_else(|| json!({}));
        if metadata.as_object().is_some_and(|notes| notes.keys().any(|name| name.starts_with("fermata."))) {
            return Err(Error::invalid("metadata", "`metadata` has no names that begin with `fermata.`"));
        }
        let execute = self.execute.unwrap_or(false);
        let source = match (self.agent, self.workflow, self.plan) {
            (Some(agent), None, None) => {
                let goal = self.goal.as_deref().unwrap_or_default();
                if goal.is_empty() {
                    return Err(Error::invalid("goal", "an `agent` needs a `goal`"));
                }
                // What is no name is nobody's name.
                let agent: Reference = agent.parse().map_err(|_| Error::not_found("agent"))?;
                match execute {
                    true => Source::Plan(state.agents.plan(ctx.tenant_id, &agent, goal, &input).await?),
                    false => Source::Goal(state.agents.planner_as(ctx.tenant_id, &agent, goal, &input).await?),
                }
            }
            (None, Some(name), None) => Source::Workflow(name),
            (None, None, Some(plan)) => {
                let tools = state.tools.with(ctx.tenant_id, definition::uses(&plan)).await?;
                Source::Plan(definition::check_plan(&plan, &tools)?)
            }
            (None, Some(_), Some(_)) => return Err(Error::invalid("plan", "give either `workflow` or `plan`")),
            (Some(_), ..) => return Err(Error::invalid("agent", "give an `agent` without `workflow` and `plan`")),
            (None, None, None) if self.goal.is_some() => {
                Source::Goal(state.agents.planner(ctx.tenant_id, execute).await?)
            }
            (None, None, None) => {
                return Err(Error::invalid("workflow", "a `goal`, an `agent`, a `workflow` or a `plan` is needed"));
            }
        };
        // Whoever begins it at once does not look at it before.
        let foresight = if execute { None } else { state.foresight(ctx, &source, &input).await? };
        Ok(Request {
            goal: self.goal,
            source,
            input,
            budget: self.budget.map(Budget::from),
            on_denied: self.on_denied,
            retry: None,
            metadata,
            foresight,
            execute,
        })
    }
}

/// What a run that has not begun is to do instead.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditBody {
    /// Steps: `{steps, output?}`, or the list of steps alone.
    #[schema(value_type = Plan)]
    pub plan: Value,
}

/// Why a run is cancelled.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelBody {
    /// Why.
    #[schema(max_length = 2000)]
    pub reason: Option<String>,
}

/// Which runs to list.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RunsQuery {
    /// Only those that stand so.
    pub status: Option<Status>,
    /// Only those of this definition, `crm-sync`, or of one version of it, `crm-sync@3`.
    #[param(value_type = Option<String>, example = "crm-sync@3")]
    pub workflow: Option<Reference>,
    /// Rows a page, 1 to 200 (50 when absent).
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u16>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}

/// Plan a run
///
/// The run is accepted; with a workflow or a plan its plan stands, with a goal a model makes it (the agent's, where one is
/// named), and `plan.ready` tells it with a forecast. It begins with `execute: true`, or later by `POST /agent/execute`; an
/// agent that begins at once plans as it goes. `Prefer: wait=N` answers once the run has its plan and is to be begun, has
/// ended or needs a decision, or after N seconds.
#[utoipa::path(post, path = "/agent/plan", operation_id = "planRun", tag = "agent", security(("bearer" = ["runs:write"])),
    request_body(content = PlanBody, example = json!({"workflow": "crm-sync", "input": {"account": "acme"}, "execute": true})),
    params(Once, Prefer),
    extensions(("x-problems" = json!(["not-found", "no-planner", "invalid-definition", "too-many-runs"]))),
    responses((status = 202, description = "The run", body = Run)))]
async fn plan(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    prefer: Prefer,
    Json(body): Json<PlanBody>,
) -> Result<Response> {
    match body.into_request(&state, &ctx).await {
        Ok(request) => state.open(&ctx, once, prefer, request).await,
        Err(refused) => once.again(&ctx, refused).await,
    }
}

/// Begin a run
///
/// Either a planned run by its id, or what `POST /agent/plan` takes, at once.
#[utoipa::path(post, path = "/agent/execute", operation_id = "executeRun", tag = "agent", security(("bearer" = ["runs:write"])),
    request_body(content = ExecuteBody, example = json!({"runId": "run_01kahx3c5qf8k9z4v7t2m6w8np"})),
    params(Once, Prefer),
    extensions(("x-problems" = json!(["not-found", "conflict", "no-planner", "invalid-definition", "too-many-runs", "unreadable-run"]))),
    responses((status = 202, description = "The run", body = Run)))]
async fn execute(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    prefer: Prefer,
    Json(body): Json<ExecuteBody>,
) -> Result<Response> {
    match body.split()? {
        Err(body) => match body.into_request(&state, &ctx).await {
            Ok(request) => state.open(&ctx, once, prefer, request).await,
            Err(refused) => once.again(&ctx, refused).await,
        },
        Ok(run_id) => {
            let work =
                async |tx: &mut _| Reply::json(StatusCode::ACCEPTED, &state.runs.execute(tx, &ctx, run_id).await?);
            let reply = once.command(&ctx, work).await?;
            state.after(&ctx, prefer, run_id, reply).await
        }
    }
}

/// List runs
#[utoipa::path(get, path = "/workflow/runs", operation_id = "listRuns", tag = "runs", security(("bearer" = ["runs:read"])), params(RunsQuery),
    responses((status = 200, description = "Newest first", body = Page<RunSummary>)))]
async fn list(ctx: Ctx<RunsRead>, Query(query): Query<RunsQuery>) -> Result<Json<Page<RunSummary>>> {
    let page = PageQuery { limit: query.limit, cursor: query.cursor }.resolve()?;
    let mut tx = ctx.begin().await?;
    let rows = store::list(&mut tx, ctx.tenant_id, query.status, query.workflow.as_ref(), page).await?;
    Ok(Json(Page::cut(rows, page.0, |row| row.run_id.uuid())))
}

/// One run
#[utoipa::path(get, path = "/workflow/runs/{id}", operation_id = "getRun", tag = "runs", security(("bearer" = ["runs:read"])),
    params(("id" = RunId, Path, description = "The run")),
    responses((status = 200, description = "As it stands", body = Run)))]
async fn get(State(state): State<RunRoutes>, ctx: Ctx<RunsRead>, Path(id): Path<RunId>) -> Result<Json<Run>> {
    let mut tx = ctx.begin().await?;
    state.runs.get(&mut tx, ctx.tenant_id, id).await.map(Json)
}

/// Another plan for a run
///
/// In the place of the one it has, as long as it has not begun. Calls that act are held only where the new plan says so:
/// it is the caller's.
#[utoipa::path(patch, path = "/workflow/runs/{id}", operation_id = "editRun", tag = "runs", security(("bearer" = ["runs:write"])),
    params(("id" = RunId, Path, description = "The run")),
    extensions(("x-problems" = json!(["conflict", "invalid-definition", "unreadable-run"]))),
    request_body(content = EditBody, example = json!({"plan": {"steps": [{"id": "hello", "uses": "data.transform", "with": {"value": 1}}]}})),
    responses((status = 200, description = "The run", body = Run)))]
async fn edit(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    Path(id): Path<RunId>,
    Json(body): Json<EditBody>,
) -> Result<Json<Run>> {
    let tools = state.tools.of(ctx.tenant_id).await?;
    let plan = definition::check_plan(&body.plan, &tools)?;
    let ((_, input), _, day) = state.runs.to_come(&mut ctx.begin().await?, ctx.tenant_id, id, ctx.now()).await?;
    let foresight = Foresight::of(&tools, ctx.tenant_id, (&plan, &input), day).await;
    let mut tx = ctx.begin().await?;
    let run = state.runs.edit(&mut tx, &ctx, id, (plan, foresight)).await?;
    tx.commit().await?;
    Ok(Json(run))
}

/// What would become of a run
///
/// For each step that has not ended, as things stand now: what the gate would say, what it would touch, what it is
/// expected to cost.
#[utoipa::path(get, path = "/workflow/runs/{id}/forecast", operation_id = "forecastRun", tag = "runs", security(("bearer" = ["runs:read"])),
    params(("id" = RunId, Path, description = "The run")), extensions(("x-problems" = json!(["unreadable-run"]))),
    responses((status = 200, description = "All of it, on one page", body = Page<Forecast>)))]
async fn foresee(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsRead>,
    Path(id): Path<RunId>,
) -> Result<Json<Page<Forecast>>> {
    let tools = state.tools.of(ctx.tenant_id).await?;
    let ((plan, input), left, day) = state.runs.to_come(&mut ctx.begin().await?, ctx.tenant_id, id, ctx.now()).await?;
    let items = Foresight::of(&tools, ctx.tenant_id, (&plan, &input), day).await.forecast(&plan.steps, left);
    Ok(Json(Page { items, next_cursor: None }))
}

/// The steps of a run
///
/// In the plan's order, each followed by its items. Those that have not begun are `pending`, and once the run is
/// over all that have not ended.
#[utoipa::path(get, path = "/workflow/runs/{id}/steps", operation_id = "listSteps", tag = "runs", security(("bearer" = ["runs:read"])),
    params(("id" = RunId, Path, description = "The run")), extensions(("x-problems" = json!(["unreadable-run"]))),
    responses((status = 200, description = "All steps, on one page", body = Page<StepView>)))]
async fn steps(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsRead>,
    Path(id): Path<RunId>,
) -> Result<Json<Page<StepView>>> {
    let mut tx = ctx.begin().await?;
    let items = state.runs.steps(&mut tx, ctx.tenant_id, id).await?;
    Ok(Json(Page { items, next_cursor: None }))
}

/// Cancel a run
///
/// Steps in flight are told, and their outcome is still recorded before the run is `cancelled`.
#[utoipa::path(post, path = "/workflow/runs/{id}/cancel", operation_id = "cancelRun", tag = "runs", security(("bearer" = ["runs:write"])),
    params(("id" = RunId, Path, description = "The run"), Once, Prefer), extensions(("x-problems" = json!(["conflict", "unreadable-run"]))),
    request_body(content = Option<CancelBody>, example = json!({"reason": "ordered twice"})),
    responses((status = 202, description = "The run", body = Run)))]
async fn cancel(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    prefer: Prefer,
    Path(id): Path<RunId>,
    body: Option<Json<CancelBody>>,
) -> Result<Response> {
    let reason = body.and_then(|Json(body)| body.reason);
    if reason.as_ref().is_some_and(|reason| reason.chars().count() > 2000) {
        return Err(Error::invalid("reason", "`reason` has more than 2,000 characters"));
    }
    let work = async |tx: &mut _| Reply::json(StatusCode::ACCEPTED, &state.runs.cancel(tx, &ctx, id, reason).await?);
    let reply = once.command(&ctx, work).await?;
    state.after(&ctx, prefer, id, reply).await
}

/// Retry a failed run
///
/// The steps that failed run again; what completed stays.
#[utoipa::path(post, path = "/workflow/runs/{id}/retry", operation_id = "retryRun", tag = "runs", security(("bearer" = ["runs:write"])),
    params(("id" = RunId, Path, description = "The run"), Once, Prefer), extensions(("x-problems" = json!(["conflict", "too-many-runs", "unreadable-run"]))),
    responses((status = 202, description = "The run", body = Run)))]
async fn retry(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    prefer: Prefer,
    Path(id): Path<RunId>,
) -> Result<Response> {
    let work = async |tx: &mut _| Reply::json(StatusCode::ACCEPTED, &state.runs.retry(tx, &ctx, id).await?);
    let reply = once.command(&ctx, work).await?;
    state.after(&ctx, prefer, id, reply).await
}

impl RunRoutes {
    /// What the plan of a run is forecast with, where it brings one along. The tools are asked outside of the transaction in
    /// which it is opened: they have some of their own.
    async fn foresight(&self, ctx: &Ctx<RunsWrite>, source: &Source, input: &Value) -> Result<Option<Foresight>> {
        let mut tx = ctx.begin().await?;
        let Some(plan) = self.runs.steps_of(&mut tx, ctx.tenant_id, source).await? else { return Ok(None) };
        let day = usage::left_of_day(&mut tx, ctx.tenant_id, ctx.now()).await?;
        drop(tx);
        let tools = self.tools.of(ctx.tenant_id).await?;
        Ok(Some(Foresight::of(&tools, ctx.tenant_id, (&plan, &Arc::new(input.clone())), day).await))
    }

    pub(super) async fn open(
        &self,
        ctx: &Ctx<RunsWrite>,
        once: Once,
        prefer: Prefer,
        request: Request,
    ) -> Result<Response> {
        let (opening, run_id) = Opening::by(ctx);
        let work = async |tx: &mut _| Reply::json(StatusCode::ACCEPTED, &self.runs.open(tx, opening, request).await?);
        let reply = once.command(ctx, work).await?;
        self.after(ctx, prefer, run_id, reply).await
    }

    /// The reply as it is, or, for a caller who would rather wait, the run once it has settled.
    pub(super) async fn after(
        &self,
        ctx: &Ctx<RunsWrite>,
        prefer: Prefer,
        run_id: RunId,
        reply: Response,
    ) -> Result<Response> {
        let Some(patience) = prefer.wait().filter(|_| reply.status() == StatusCode::ACCEPTED) else { return Ok(reply) };
        // A replayed reply is about the run of the first request, not about the id made for this one.
        if reply.headers().contains_key("idempotency-replayed") {
            return Ok(reply);
        }
        self.bell.settled(self.front.database(), ctx.tenant_id, run_id, patience).await?;
        let mut tx = ctx.begin().await?;
        let run = self.runs.get(&mut tx, ctx.tenant_id, run_id).await?;
        Ok(prefer.applied((StatusCode::ACCEPTED, Json(run))))
    }
}
