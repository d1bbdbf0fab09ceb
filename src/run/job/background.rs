use axum::{extract::State, response::Response};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{BESIDES, Kind, Standing, WaitingFor, words};
use crate::{
    http::{
        Ctx, Json, Once, Path,
        permit::{RunsRead, RunsWrite},
    },
    journal::Status,
    kernel::{Error, Result, RunId},
    llm::AudioFormat,
    run::routes::RunRoutes,
};

const KINDS: [&str; 4] = [TEXT.name, IMAGE.name, SPEECH.name, TRANSCRIPT.name];

const TEXT: Kind = Kind { name: "generate_text", usual: &[("config_name", "default-smart")] };
const IMAGE: Kind = Kind {
    name: "describe_image",
    usual: &[("config_name", "default-smart"), ("prompt", "What does this image show?")],
};
const SPEECH: Kind = Kind {
    name: "synthesize_speech",
    usual: &[("config_name", "default-speech"), ("voice", "alloy"), ("format", "mp3")],
};
const TRANSCRIPT: Kind = Kind { name: "transcribe_speech", usual: &[("config_name", "default-transcription")] };

pub(super) fn routes() -> OpenApiRouter<RunRoutes> {
    OpenApiRouter::new()
        .routes(paths!(generate_text))
        .routes(paths!(describe_image))
        .routes(paths!(synthesize_speech))
        .routes(paths!(transcribe_speech))
        .routes(paths!(get))
}

/// A text to be generated.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TextBody {
    /// What is asked.
    #[schema(min_length = 1, max_length = 65_536)]
    prompt: String,
    /// The model configuration (`default-smart` when absent).
    config_name: Option<String>,
}

/// An image to be described.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ImageBody {
    /// The image, in base64; or `image_url`.
    #[schema(min_length = 4)]
    image: Option<String>,
    /// Where it is, by `http` or `https`.
    #[schema(example = "https://shop.example/parcel.png", pattern = "^https?://")]
    image_url: Option<String>,
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
#[derive(Debug, Deserialize, Serialize, ToSchema)]
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
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RecordingBody {
    /// The recording, in base64; or `audio_url`.
    #[schema(min_length = 4)]
    audio: Option<String>,
    /// Where it is, by `http` or `https`.
    #[schema(example = "https://shop.example/voice-note.ogg", pattern = "^https?://")]
    audio_url: Option<String>,
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

impl Taken {
    fn of(task_id: RunId) -> Self {
        Self { task_id }
    }
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
    /// What the model said, or its speech in base64; or what the workflow gives that somebody put in its place.
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
    words("prompt", &body.prompt)?;
    TEXT.take(&state, &ctx, once, (body, None), Taken::of).await
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
    either(&state, ("image", &body.image), ("image_url", &body.image_url))?;
    media_type(&["image"], "image/png", &body.media_type)?;
    body.prompt.as_deref().map_or(Ok(()), |prompt| words("prompt", prompt))?;
    IMAGE.take(&state, &ctx, once, (body, None), Taken::of).await
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
    words("text", &body.text)?;
    body.voice.as_deref().map_or(Ok(()), voice)?;
    SPEECH.take(&state, &ctx, once, (body, None), Taken::of).await
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
    either(&state, ("audio", &body.audio), ("audio_url", &body.audio_url))?;
    media_type(&["audio", "video"], "audio/mpeg", &body.media_type)?;
    body.language.as_deref().map_or(Ok(()), language)?;
    TRANSCRIPT.take(&state, &ctx, once, (body, None), Taken::of).await
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
    Ok(Json(BackgroundTask {
        task_id: id,
        status,
        waiting_for: standing.waiting_for(),
        result: standing.result(),
        media_type: standing.part("mediaType"),
        error: standing.error(),
    }))
}

/// What is shown or played to a model: itself, or where it is.
fn either(state: &RunRoutes, (field, data): Field<'_>, (url_field, url): Field<'_>) -> Result<()> {
    match (data, url) {
        (Some(data), None) => base64(state, (field, data), url_field),
        (None, Some(url)) => address(url_field, url),
        (None, None) => Err(Error::invalid(field, format!("`{field}` or `{url_field}` is needed"))),
        (Some(_), Some(_)) => Err(Error::invalid(url_field, format!("give either `{field}` or `{url_field}`"))),
    }
}

/// A field that may be left out.
type Field<'a> = (&'static str, &'a Option<String>);

/// The thing itself. With everything else it is an argument of a call, which is bounded.
fn base64(state: &RunRoutes, (field, data): (&'static str, &str), instead: &str) -> Result<()> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let most = state.runs.limits().arguments.saturating_sub(BESIDES);
    if data.len() > most {
        let what = format!("`{field}` has more than {most} bytes of base64, which is what a call takes");
        let detail = format!("{what}: say where it is instead, by `{instead}`");
        return Err(Error::invalid(field, detail));
    }
    match BASE64_STANDARD.decode(data) {
        Ok(bytes) if bytes.len() >= 3 => Ok(()),
        _ => Err(Error::invalid(field, format!("`{field}` is base64 of what `media_type` says"))),
    }
}

fn address(field: &'static str, text: &str) -> Result<()> {
    let is_web = text.starts_with("https://") || text.starts_with("http://");
    if is_web && Url::parse(text).is_ok() {
        Ok(())
    } else {
        Err(Error::invalid(field, format!("`{field}` is an address, as `https://shop.example/parcel.png`")))
    }
}

fn media_type(of: &[&str], example: &str, text: &str) -> Result<()> {
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-');
    match text.split_once('/') {
        Some((family, kind)) if of.contains(&family) && !kind.is_empty() && kind.bytes().all(is_letter) => Ok(()),
        _ => Err(Error::invalid("media_type", format!("`media_type` is one of {}, as `{example}`", of.join(" or ")))),
    }
}

fn voice(name: &str) -> Result<()> {
    let letters = name.chars().count();
    if (1..=200).contains(&letters) { Ok(()) } else { Err(Error::invalid("voice", "`voice` has 1 to 200 characters")) }
}

fn language(code: &str) -> Result<()> {
    if matches!(code.len(), 2 | 3) && code.bytes().all(|b| b.is_ascii_lowercase()) {
        Ok(())
    } else {
        Err(Error::invalid("language", "`language` is a code of two or three letters, as `en` or `id`"))
    }
}
