use axum::{extract::State, http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{STEP, Standing, Task, WaitingFor, words};
use crate::{
    http::{
        Ctx, Json, Once, Path, Query, Reply,
        permit::{RunsRead, RunsWrite},
    },
    journal::{Retry, Stage, Status, StepKey},
    kernel::{Error, Page, PageQuery, Result, RunId, Span, Timestamp, wire_time},
    run::{routes::RunRoutes, service::Opening, store},
};

const KIND: &str = "job";

pub(super) fn routes() -> OpenApiRouter<RunRoutes> {
    OpenApiRouter::new().routes(paths!(submit, list)).routes(paths!(get)).routes(paths!(cancel))
}

/// A job to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct JobBody {
    /// What is asked.
    #[schema(min_length = 1, max_length = 65_536)]
    prompt: String,
    /// The model configuration (`default-smart` when absent).
    #[schema(example = "default-smart")]
    config_name: Option<String>,
    /// The prompt template, with `prompt` as one of its variables; the prompt as it is when absent.
    #[schema(example = "default-assistant")]
    template_name: Option<String>,
    /// The template's other variables.
    #[schema(value_type = Option<Object>)]
    variables: Option<Map<String, Value>>,
    /// How often the whole job is tried again (`job.default_max_retries` when absent).
    #[schema(maximum = 20)]
    max_retries: Option<u32>,
}

/// A job that was taken.
#[derive(Debug, Serialize, ToSchema)]
struct Submitted {
    /// Its id, which is that of its run.
    job_id: RunId,
    /// `QUEUED`.
    status: JobStatus,
}

/// A job that is cancelled.
#[derive(Debug, Serialize, ToSchema)]
struct Cancelling {
    /// Its id.
    job_id: RunId,
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
enum JobStatus {
    /// Nobody is at it.
    Queued,
    /// A model is being asked, or its run waits for somebody's decision.
    Processing,
    /// It failed and is tried again.
    Retrying,
    /// It has its result.
    Completed,
    /// It failed.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// A job.
#[derive(Debug, Serialize, ToSchema)]
struct Job {
    /// Its id, which is that of its run.
    job_id: RunId,
    /// How it stands.
    status: JobStatus,
    /// What it cannot go on without: `approval`, where its run is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<WaitingFor>,
    /// What the model said.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<String>,
    /// Why it came to nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// How often it has been tried again.
    retry_count: u32,
    /// When it is tried again.
    #[serde(with = "wire_time::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    next_retry_at: Option<Timestamp>,
    /// When it was taken.
    #[serde(with = "wire_time")]
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it moved last.
    #[serde(with = "wire_time")]
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
struct Jobs {
    /// Newest first.
    items: Vec<Job>,
    /// Send it back as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

impl Job {
    fn of(standing: &Standing) -> Self {
        let step = standing.run.state.steps.get(&StepKey::whole(STEP));
        let next_retry_at = match standing.stage() {
            Some(Stage::Retrying { at }) if !standing.status().is_terminal() => Some(*at),
            _ => None,
        };
        let status = match (standing.status(), standing.stage()) {
            (Status::Completed, _) => JobStatus::Completed,
            (Status::Failed, _) => JobStatus::Failed,
            (Status::Cancelled, _) => JobStatus::Cancelled,
            (_, Some(Stage::Retrying { .. })) => JobStatus::Retrying,
            (Status::AwaitingApproval, _) | (_, Some(Stage::Running { .. } | Stage::Completed { .. })) => {
                JobStatus::Processing
            }
            _ => JobStatus::Queued,
        };
        Self {
            job_id: standing.summary.run_id,
            status,
            waiting_for: standing.waiting_for(),
            result: standing.result(),
            error: standing.error(),
            retry_count: step.map_or(0, |step| step.attempt.saturating_sub(1)),
            next_retry_at,
            created_at: standing.summary.created_at,
            updated_at: standing.summary.updated_at,
        }
    }
}

/// Submit a job
///
/// A model is asked in the background, by a run whose events stream like any run's.
#[utoipa::path(post, path = "/jobs", operation_id = "submitJob", tag = "jobs", security(("bearer" = ["runs:write"])), params(Once),
    request_body(content = JobBody, example = json!({"prompt": "Write a haiku about programming",
        "config_name": "default-smart", "template_name": "default-assistant"})),
    extensions(("x-problems" = json!(["no-planner", "too-many-runs"]))),
    responses((status = 202, description = "It is taken", body = Submitted)))]
async fn submit(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    Json(body): Json<JobBody>,
) -> Result<Response> {
    let request = body.task(&state)?.request(&state, &ctx).await?;
    let (opening, run_id) = Opening::by(&ctx);
    let work = async |tx: &mut _| {
        state.runs.open(tx, opening, request).await?;
        Reply::json(StatusCode::ACCEPTED, &Submitted { job_id: run_id, status: JobStatus::Queued })
    };
    once.command(&ctx, work).await
}

impl JobBody {
    fn task(self, state: &RunRoutes) -> Result<Task> {
        let retries = self.max_retries.unwrap_or(state.jobs.default_max_retries);
        if retries > 20 {
            return Err(Error::invalid("max_retries", "`max_retries` is 20 at most"));
        }
        let mut with = Map::from_iter([("prompt".to_owned(), Value::String(words("prompt", self.prompt)?))]);
        with.extend(self.template_name.map(|template| ("template".to_owned(), Value::String(template))));
        with.extend(self.variables.map(|variables| ("variables".to_owned(), Value::Object(variables))));
        let span = |seconds: f64| Some(Span(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default()));
        Ok(Task {
            kind: KIND,
            uses: "llm.generate",
            config: ("config_name", self.config_name.unwrap_or_else(|| "default-smart".to_owned())),
            with,
            output: Some("text"),
            retry: Some(Retry {
                attempts: retries + 1,
                backoff: span(state.jobs.retry_delay_min),
                max_backoff: span(state.jobs.retry_delay_max),
            }),
        })
    }
}

/// One job
#[utoipa::path(get, path = "/jobs/{id}", operation_id = "getJob", tag = "jobs", security(("bearer" = ["runs:read"])),
    params(("id" = RunId, Path, description = "The job")), extensions(("x-problems" = json!(["unreadable-run"]))),
    responses((status = 200, description = "As it stands", body = Job)))]
async fn get(ctx: Ctx<RunsRead>, Path(id): Path<RunId>) -> Result<Json<Job>> {
    let mut tx = ctx.begin().await?;
    Ok(Json(Job::of(&Standing::find(&mut tx, ctx.tenant_id, id, &[KIND]).await?)))
}

/// List jobs
#[utoipa::path(get, path = "/jobs", operation_id = "listJobs", tag = "jobs", security(("bearer" = ["runs:read"])), params(PageQuery),
    extensions(("x-problems" = json!(["unreadable-run"]))),
    responses((status = 200, description = "Newest first", body = Jobs)))]
async fn list(ctx: Ctx<RunsRead>, Query(query): Query<PageQuery>) -> Result<Json<Jobs>> {
    let page = query.resolve()?;
    let mut tx = ctx.begin().await?;
    let rows = store::tasks(&mut tx, ctx.tenant_id, KIND, page).await?;
    let page = Page::cut(rows, page.0, |row| row.run_id.uuid());
    let items = Standing::of(&mut tx, ctx.tenant_id, page.items).await?.iter().map(Job::of).collect();
    Ok(Json(Jobs { items, next_cursor: page.next_cursor }))
}

/// Cancel a job
#[utoipa::path(post, path = "/jobs/{id}/cancel", operation_id = "cancelJob", tag = "jobs", security(("bearer" = ["runs:write"])),
    params(("id" = RunId, Path, description = "The job"), Once), extensions(("x-problems" = json!(["conflict", "unreadable-run"]))),
    responses((status = 202, description = "It is cancelled, or will be once the model has been told", body = Cancelling)))]
async fn cancel(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    Path(id): Path<RunId>,
) -> Result<Response> {
    let work = async |tx: &mut _| {
        Standing::find(tx, ctx.tenant_id, id, &[KIND]).await?;
        state.runs.cancel(tx, &ctx, id, None).await?;
        Reply::json(StatusCode::ACCEPTED, &Cancelling { job_id: id })
    };
    once.command(&ctx, work).await
}
