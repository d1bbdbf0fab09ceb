use axum::{extract::State, http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{Standing, Task, prompt};
use crate::{
    http::{
        Ctx, Json, Once, Path, Reply,
        permit::{RunsRead, RunsWrite},
    },
    journal::Status,
    kernel::{Error, Result, RunId},
    run::{routes::RunRoutes, service::Opening},
};

const TEXT: &str = "generate_text";
const IMAGE: &str = "describe_image";

pub(super) fn routes() -> OpenApiRouter<RunRoutes> {
    OpenApiRouter::new().routes(paths!(generate_text)).routes(paths!(describe_image)).routes(paths!(get))
}

/// A text to be generated.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TextBody {
    /// What is asked.
    #[schema(min_length = 1, max_length = 65_536)]
    prompt: String,
    /// The model configuration (`default-smart` when absent).
    config_name: Option<String>,
}

/// An image to be described.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ImageBody {
    /// The image, in base64.
    #[schema(min_length = 4)]
    image: String,
    /// What it is.
    #[schema(example = "image/png", pattern = "^image/[a-z0-9.+-]+$")]
    media_type: String,
    /// What is asked about it (what it shows, when absent).
    #[schema(min_length = 1, max_length = 65_536)]
    prompt: Option<String>,
    /// The model configuration (`default-smart` when absent).
    config_name: Option<String>,
}

/// A task that was taken.
#[derive(Debug, Serialize, ToSchema)]
struct Taken {
    /// Its id, which is that of its run.
    task_id: RunId,
}

/// How a background task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
enum TaskStatus {
    /// It is not done.
    Pending,
    /// It has its result.
    Success,
    /// It came to nothing.
    Failure,
}

/// A background task.
#[derive(Debug, Serialize, ToSchema)]
struct BackgroundTask {
    /// Its id, which is that of its run.
    task_id: RunId,
    /// How it stands.
    status: TaskStatus,
    /// What the model said.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<String>,
    /// Why it came to nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Generate a text in the background
#[utoipa::path(post, path = "/background/generate_text", operation_id = "generateText", tag = "jobs", security(("bearer" = ["runs:write"])),
    params(Once), request_body(content = TextBody, example = json!({"prompt": "Write a haiku about programming"})),
    extensions(("x-problems" = json!(["no-planner", "too-many-runs"]))),
    responses((status = 202, description = "It is taken", body = Taken)))]
async fn generate_text(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    Json(body): Json<TextBody>,
) -> Result<Response> {
    let with = Map::from_iter([("prompt".to_owned(), Value::String(prompt(body.prompt)?))]);
    begin(&state, &ctx, once, TEXT, body.config_name, with).await
}

/// Describe an image in the background
#[utoipa::path(post, path = "/background/describe_image", operation_id = "describeImage", tag = "jobs", security(("bearer" = ["runs:write"])),
    params(Once), request_body(content = ImageBody, example = json!({"image": "iVBORw0KGgo=", "media_type": "image/png"})),
    extensions(("x-problems" = json!(["no-planner", "too-many-runs"]))),
    responses((status = 202, description = "It is taken", body = Taken)))]
async fn describe_image(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    Json(body): Json<ImageBody>,
) -> Result<Response> {
    let (image, media_type) = (image(body.image)?, media_type(body.media_type)?);
    let asked = prompt(body.prompt.unwrap_or_else(|| "What does this image show?".to_owned()))?;
    let images = json!([{ "mediaType": media_type, "data": image }]);
    let with = Map::from_iter([("prompt".to_owned(), Value::String(asked)), ("images".to_owned(), images)]);
    begin(&state, &ctx, once, IMAGE, body.config_name, with).await
}

/// One background task
#[utoipa::path(get, path = "/background/tasks/{id}", operation_id = "getTask", tag = "jobs", security(("bearer" = ["runs:read"])),
    params(("id" = RunId, Path, description = "The task")), extensions(("x-problems" = json!(["unreadable-run"]))),
    responses((status = 200, description = "As it stands", body = BackgroundTask)))]
async fn get(ctx: Ctx<RunsRead>, Path(id): Path<RunId>) -> Result<Json<BackgroundTask>> {
    let mut tx = ctx.begin().await?;
    let standing = Standing::find(&mut tx, ctx.tenant_id, id, &[TEXT, IMAGE]).await?;
    let status = match standing.status() {
        Status::Completed => TaskStatus::Success,
        Status::Failed | Status::Cancelled => TaskStatus::Failure,
        Status::Idle | Status::Planning | Status::Executing | Status::AwaitingApproval => TaskStatus::Pending,
    };
    let result = standing.result().filter(|_| status == TaskStatus::Success);
    Ok(Json(BackgroundTask { task_id: id, status, result, error: standing.error() }))
}

async fn begin(
    state: &RunRoutes,
    ctx: &Ctx<RunsWrite>,
    once: Once,
    kind: &'static str,
    config: Option<String>,
    with: Map<String, Value>,
) -> Result<Response> {
    let config = ("config_name", config.unwrap_or_else(|| "default-smart".to_owned()));
    let request = Task { kind, config, with, retry: None }.request(state, ctx).await?;
    let (opening, task_id) = Opening::by(ctx);
    let work = async |tx: &mut _| {
        state.runs.open(tx, opening, request).await?;
        Reply::json(StatusCode::ACCEPTED, &Taken { task_id })
    };
    once.command(ctx, work).await
}

fn image(data: String) -> Result<String> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    match BASE64_STANDARD.decode(&data) {
        Ok(bytes) if bytes.len() >= 3 => Ok(data),
        _ => Err(Error::invalid("image", "`image` is base64 of an image")),
    }
}

fn media_type(text: String) -> Result<String> {
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-');
    match text.strip_prefix("image/") {
        Some(kind) if !kind.is_empty() && kind.bytes().all(is_letter) => Ok(text),
        _ => Err(Error::invalid("media_type", "`media_type` is one of an image, as `image/png`")),
    }
}
