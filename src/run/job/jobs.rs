use axum::{extract::State, http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{Kind, Standing, WaitingFor, words};
use crate::{
    config::JobSettings,
    http::{
        Ctx, Json, Once, Path, Query, Reply,
        permit::{RunsRead, RunsWrite},
    },
    journal::{Retry, Stage, Status},
    kernel::{Error, Page, PageQuery, Result, RunId, Span, Timestamp, wire_time},
    run::{routes::RunRoutes, store},
};

const JOB: Kind = Kind { name: "job", usual: &[("config_name", "default-smart")] };

pub(super) fn routes() -> OpenApiRouter<RunRoutes> {
    OpenApiRouter::new().routes(paths!(submit, list)).routes(paths!(get)).routes(paths!(cancel))
}

/// A job to be.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct JobBody {
    /// What is asked.
    #[schema(min_length = 1, max_length = 65_536)]
    prompt: String,
    /// The model configuration (`default-smart` when absent).
    #[schema(example = "default-smart")]
    config_name: Option<String>,
    /// The prompt template: the question, where it has the variable `prompt`, else who the model is to be; the prompt as it is
    /// when absent.
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
    /// Its run is at it, or waits for somebody's decision.
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
    /// What came of it: what the model said, or what the workflow gives that somebody put in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<String>,
    /// Why it came to nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// How often any of it has been tried again.
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
        let steps = &standing.state().steps;
        let retries = steps.values().filter_map(|step| match step.stage {
            Stage::Retrying { at } if !standing.status().is_terminal() => Some(at),
            _ => None,
        });
        let next_retry_at = retries.min();
        let status = match standing.status() {
            Status::Completed => JobStatus::Completed,
            Status::Failed => JobStatus::Failed,
            Status::Cancelled => JobStatus::Cancelled,
            _ if next_retry_at.is_some() => JobStatus::Retrying,
            _ if steps.is_empty() => JobStatus::Queued,
            _ => JobStatus::Processing,
        };
        Self {
            job_id: standing.summary.run_id,
            status,
            waiting_for: standing.waiting_for(),
            result: standing.result(),
            error: standing.error(),
            retry_count: steps.values().map(|step| step.attempt.saturating_sub(1)).sum(),
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
    Json(mut body): Json<JobBody>,
) -> Result<Response> {
    words("prompt", &body.prompt)?;
    let retry = body.take_retry(&state.jobs)?;
    let submitted = |job_id| Submitted { job_id, status: JobStatus::Queued };
    JOB.take(&state, &ctx, once, (body, Some(retry)), submitted).await
}

impl JobBody {
    /// How its steps are tried again, which is told to the run and is not a part of its input.
    fn take_retry(&mut self, settings: &JobSettings) -> Result<Retry> {
        let retries = self.max_retries.take().unwrap_or(settings.default_max_retries);
        if retries > 20 {
            return Err(Error::invalid("max_retries", "`max_retries` is 20 at most"));
        }
        let span = |seconds: f64| Some(Span(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default()));
        let (least, most) = (span(settings.retry_delay_min), span(settings.retry_delay_max));
        Ok(Retry { attempts: retries + 1, backoff: least, max_backoff: most, min_backoff: least })
    }
}

/// One job
#[utoipa::path(get, path = "/jobs/{id}", operation_id = "getJob", tag = "jobs", security(("bearer" = ["runs:read"])),
    params(("id" = RunId, Path, description = "The job")), extensions(("x-problems" = json!(["unreadable-run"]))),
    responses((status = 200, description = "As it stands", body = Job)))]
async fn get(ctx: Ctx<RunsRead>, Path(id): Path<RunId>) -> Result<Json<Job>> {
    let mut tx = ctx.begin().await?;
    Ok(Json(Job::of(&Standing::find(&mut tx, ctx.tenant_id, id, &[JOB.name]).await?)))
}

/// List jobs
#[utoipa::path(get, path = "/jobs", operation_id = "listJobs", tag = "jobs", security(("bearer" = ["runs:read"])), params(PageQuery),
    extensions(("x-problems" = json!(["unreadable-run"]))),
    responses((status = 200, description = "Newest first", body = Jobs)))]
async fn list(ctx: Ctx<RunsRead>, Query(query): Query<PageQuery>) -> Result<Json<Jobs>> {
    let page = query.resolve()?;
    let mut tx = ctx.begin().await?;
    let rows = store::tasks(&mut tx, ctx.tenant_id, JOB.name, page).await?;
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
        Standing::find(tx, ctx.tenant_id, id, &[JOB.name]).await?;
        state.runs.cancel(tx, &ctx, id, None).await?;
        Reply::json(StatusCode::ACCEPTED, &Cancelling { job_id: id })
    };
    once.command(&ctx, work).await
}
