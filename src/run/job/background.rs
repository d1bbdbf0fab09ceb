use axum::{extract::State, http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{BESIDES, Standing, Task, WaitingFor, words};
use crate::{
    http::{
        Ctx, Json, Once, Path, Reply,
        permit::{RunsRead, RunsWrite},
    },
    journal::Status,
    kernel::{Error, Result, RunId},
    llm::AudioFormat,
    run::{routes::RunRoutes, service::Opening},
};

const KINDS: [&str; 4] = [TEXT.name, IMAGE.name, SPEECH.name, TRANSCRIPT.name];

/// A kind of task: what its run is marked with, the tool that asks, the configuration where none is named, and the part
/// of the step's output that is the run's. A sound stays with its step: twice is too much of it.
struct Kind {
    name: &'static str,
    uses: &'static str,
    config: &'static str,
    output: Option<&'static str>,
}

const TEXT: Kind = Kind { name: "generate_text", uses: "llm.generate", config: "default-smart", output: Some("text") };
const IMAGE: Kind = Kind { name: "describe_image", ..TEXT };
const SPEECH: Kind =
    Kind { name: "synthesize_speech", uses: "speech.synthesize", config: "default-speech", output: None };
const TRANSCRIPT: Kind = Kind {
    name: "transcribe_speech",
    uses: "speech.transcribe",
    config: "default-transcription",
    output: Some("text"),
};

pub(super) fn routes() -> OpenApiRouter<RunRoutes> {
    OpenApiRouter::new()
        .routes(paths!(generate_text))
        .routes(paths!(describe_image))
        .routes(paths!(synthesize_speech))
        .routes(paths!(transcribe_speech))
        .routes(paths!(get))
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

/// A text to be read aloud.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SpeechBody {
    /// The words.
    #[schema(min_length = 1, max_length = 65_536)]
    text: String,
    /// In whose voice, as the provider calls it (`alloy` when absent).
    #[schema(min_length = 1, max_length = 200, example = "alloy")]
    voice: Option<String>,
    /// As what (`mp3` when absent).
    format: Option<AudioFormat>,
    /// The model configuration (`default-speech` when absent).
    config_name: Option<String>,
}

/// A recording to be written down.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RecordingBody {
    /// The recording, in base64.
    #[schema(min_length = 4)]
    audio: String,
    /// What it is.
    #[schema(example = "audio/mpeg", pattern = "^(audio|video)/[a-z0-9.+-]+$")]
    media_type: String,
    /// What is spoken, where it is known.
    #[schema(example = "id", pattern = "^[a-z]{2,3}$")]
    language: Option<String>,
    /// The model configuration (`default-transcription` when absent).
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
    /// What it cannot go on without: `approval`, where its run is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<WaitingFor>,
    /// What the model said, or its speech in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<String>,
    /// What the speech is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "audio/mpeg")]
    media_type: Option<String>,
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
    let with = Map::from_iter([("prompt".to_owned(), Value::String(words("prompt", body.prompt)?))]);
    begin(&state, &ctx, once, &TEXT, body.config_name, with).await
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
    let image = base64(&state, "image", body.image)?;
    let media_type = media_type(&["image"], "image/png", body.media_type)?;
    let asked = words("prompt", body.prompt.unwrap_or_else(|| "What does this image show?".to_owned()))?;
    let images = json!([{ "mediaType": media_type, "data": image }]);
    let with = Map::from_iter([("prompt".to_owned(), Value::String(asked)), ("images".to_owned(), images)]);
    begin(&state, &ctx, once, &IMAGE, body.config_name, with).await
}

/// Read a text aloud in the background
#[utoipa::path(post, path = "/background/synthesize_speech", operation_id = "synthesizeSpeech", tag = "jobs", security(("bearer" = ["runs:write"])),
    params(Once), request_body(content = SpeechBody, example = json!({"text": "Your order is in the post.", "voice": "alloy", "format": "opus"})),
    extensions(("x-problems" = json!(["no-planner", "too-many-runs"]))),
    responses((status = 202, description = "It is taken", body = Taken)))]
async fn synthesize_speech(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    Json(body): Json<SpeechBody>,
) -> Result<Response> {
    let text = words("text", body.text)?;
    let format = body.format.map(|format| json!(format));
    let voice = body.voice.map(voice).transpose()?.map(Value::String);
    let with = [("text", Some(Value::String(text))), ("voice", voice), ("format", format)];
    begin(&state, &ctx, once, &SPEECH, body.config_name, given(with)).await
}

/// Write down a recording in the background
#[utoipa::path(post, path = "/background/transcribe_speech", operation_id = "transcribeSpeech", tag = "jobs", security(("bearer" = ["runs:write"])),
    params(Once), request_body(content = RecordingBody, example = json!({"audio": "SUQzBAAAAAAA", "media_type": "audio/mpeg", "language": "id"})),
    extensions(("x-problems" = json!(["no-planner", "too-many-runs"]))),
    responses((status = 202, description = "It is taken", body = Taken)))]
async fn transcribe_speech(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    Json(body): Json<RecordingBody>,
) -> Result<Response> {
    let audio = base64(&state, "audio", body.audio)?;
    let media_type = media_type(&["audio", "video"], "audio/mpeg", body.media_type)?;
    let language = body.language.map(language).transpose()?.map(Value::String);
    let with =
        [("audio", Some(Value::String(audio))), ("mediaType", Some(Value::String(media_type))), ("language", language)];
    begin(&state, &ctx, once, &TRANSCRIPT, body.config_name, given(with)).await
}

/// One background task
#[utoipa::path(get, path = "/background/tasks/{id}", operation_id = "getTask", tag = "jobs", security(("bearer" = ["runs:read"])),
    params(("id" = RunId, Path, description = "The task")), extensions(("x-problems" = json!(["unreadable-run"]))),
    responses((status = 200, description = "As it stands", body = BackgroundTask)))]
async fn get(ctx: Ctx<RunsRead>, Path(id): Path<RunId>) -> Result<Json<BackgroundTask>> {
    let mut tx = ctx.begin().await?;
    let standing = Standing::find(&mut tx, ctx.tenant_id, id, &KINDS).await?;
    let status = match standing.status() {
        Status::Completed => TaskStatus::Success,
        Status::Failed | Status::Cancelled => TaskStatus::Failure,
        Status::Idle | Status::Planning | Status::Executing | Status::AwaitingApproval => TaskStatus::Pending,
    };
    let done = status == TaskStatus::Success;
    let result = standing.result().filter(|_| done);
    let media_type = standing.part("mediaType").filter(|_| done);
    Ok(Json(BackgroundTask {
        task_id: id,
        status,
        waiting_for: standing.waiting_for(),
        result,
        media_type,
        error: standing.error(),
    }))
}

async fn begin(
    state: &RunRoutes,
    ctx: &Ctx<RunsWrite>,
    once: Once,
    kind: &Kind,
    config: Option<String>,
    with: Map<String, Value>,
) -> Result<Response> {
    let Kind { name, uses, config: usual, output } = *kind;
    let config = ("config_name", config.unwrap_or_else(|| usual.to_owned()));
    let request = Task { kind: name, uses, config, with, output, retry: None }.request(state, ctx).await?;
    let (opening, task_id) = Opening::by(ctx);
    let work = async |tx: &mut _| {
        state.runs.open(tx, opening, request).await?;
        Reply::json(StatusCode::ACCEPTED, &Taken { task_id })
    };
    once.command(ctx, work).await
}

/// The arguments that are given.
fn given<const N: usize>(fields: [(&str, Option<Value>); N]) -> Map<String, Value> {
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// What is shown or played to a model. With everything else it is an argument of a call, which is bounded.
fn base64(state: &RunRoutes, field: &'static str, data: String) -> Result<String> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let most = state.tools.server().limits().arguments.saturating_sub(BESIDES);
    if data.len() > most {
        let detail = format!("`{field}` has more than {most} bytes of base64, which is what a call takes");
        return Err(Error::invalid(field, detail));
    }
    match BASE64_STANDARD.decode(&data) {
        Ok(bytes) if bytes.len() >= 3 => Ok(data),
        _ => Err(Error::invalid(field, format!("`{field}` is base64 of what `media_type` says"))),
    }
}

fn media_type(of: &[&str], example: &str, text: String) -> Result<String> {
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-');
    match text.split_once('/') {
        Some((family, kind)) if of.contains(&family) && !kind.is_empty() && kind.bytes().all(is_letter) => Ok(text),
        _ => Err(Error::invalid("media_type", format!("`media_type` is one of {}, as `{example}`", of.join(" or ")))),
    }
}

fn voice(name: String) -> Result<String> {
    let letters = name.chars().count();
    if (1..=200).contains(&letters) {
        Ok(name)
    } else {
        Err(Error::invalid("voice", "`voice` has 1 to 200 characters"))
    }
}

fn language(code: String) -> Result<String> {
    if matches!(code.len(), 2 | 3) && code.bytes().all(|b| b.is_ascii_lowercase()) {
        Ok(code)
    } else {
        Err(Error::invalid("language", "`language` is a code of two or three letters, as `en` or `id`"))
    }
}
