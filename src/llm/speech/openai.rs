//! OpenAI's audio endpoints.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::{
    RequestBuilder, Response,
    header::CONTENT_TYPE,
    multipart::{Form, Part},
};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::json;

use super::{Audio, Heard, SpeechToText, TextToSpeech, Utterance, extension};
use crate::{
    kernel::Timestamp,
    llm::{
        Usage,
        fault::{Fault, FaultKind, place},
        prompt,
        provider::Target,
    },
};

/// The most that is read of anything but audio, in bytes.
const TEXT: usize = 1024 * 1024;

/// Speaks OpenAI's protocol.
pub(super) struct OpenAi;

#[async_trait]
impl TextToSpeech for OpenAi {
    async fn synthesize(&self, target: &Target, wanted: &Utterance, now: Timestamp) -> Result<(Audio, Usage), Fault> {
        let (format, media_type) = wanted.format.names();
        let body = json!({ "model": target.config.body.model, "input": wanted.text, "voice": wanted.voice,
            "response_format": format });
        let response = answered(target, request(target, "audio/speech").json(&body), now).await?;
        let told = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let told = told.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        // Some serve everything as bytes; what says that it is a text is none.
        if !(told.is_empty() || told.starts_with("audio/") || told == "application/octet-stream") {
            return Err(Fault::broken(target, &format!("it gave no audio, but `{told}`")));
        }
        // It was read aloud, whether or not all of it arrives.
        let usage = Usage { input_tokens: prompt::tokens(wanted.text.len()).into(), ..Usage::default() };
        let bytes = read(target, response, wanted.most).await.map_err(|fault| fault.having_taken(usage))?;
        if bytes.is_empty() {
            return Err(Fault::broken(target, "its audio is empty").having_taken(usage));
        }
        let media_type = if told.starts_with("audio/") { told } else { media_type.to_owned() };
        Ok((Audio { bytes, media_type }, usage))
    }
}

#[derive(Deserialize)]
struct Transcript {
    text: String,
    usage: Option<Tokens>,
}

/// What a transcription took, where it is told in tokens and not in seconds.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Tokens {
    input_tokens: u64,
    output_tokens: u64,
}

#[async_trait]
impl SpeechToText for OpenAi {
    async fn transcribe(&self, target: &Target, heard: &Heard<'_>, now: Timestamp) -> Result<(String, Usage), Fault> {
        let Audio { bytes, media_type } = &heard.audio;
        let file = Part::stream_with_length(bytes.clone(), bytes.len() as u64)
            // Some providers go by its name.
            .file_name(format!("audio.{}", extension(media_type)))
            .mime_str(media_type)
            .map_err(|_| Fault::plain(FaultKind::Refused, format!("`{media_type}` is no media type")))?;
        let mut form = Form::new()
            .part("file", file)
            .text("model", target.config.body.model.clone())
            .text("response_format", "json");
        if let Some(language) = heard.language {
            form = form.text("language", language.to_owned());
        }
        let response = answered(target, request(target, "audio/transcriptions").multipart(form), now).await?;
        let body = read(target, response, TEXT).await?;
        let transcript = serde_json::from_slice::<Transcript>(&body);
        let Transcript { text, usage } =
            transcript.map_err(|_| Fault::broken(target, "its transcript cannot be read"))?;
        let Tokens { input_tokens, output_tokens } = usage.unwrap_or_default();
        Ok((text, Usage { input_tokens, output_tokens, cached_tokens: 0 }))
    }
}

fn request(target: &Target, path: &str) -> RequestBuilder {
    let request = target.client.post(format!("{}{path}", target.url));
    match &target.key {
        Some(key) => request.bearer_auth(key.expose_secret()),
        None => request,
    }
}

/// The response, where its status is one of success.
async fn answered(target: &Target, request: RequestBuilder, now: Timestamp) -> Result<Response, Fault> {
    let response = request.send().await.map_err(|error| Fault::transport(target, &error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let (status, headers) = (response.status(), response.headers().clone());
    // The status says what happened, also where its reason cannot be read.
    let body = read(target, response, TEXT).await.unwrap_or_default();
    Err(Fault::answered(target, (status, &headers), &String::from_utf8_lossy(&body), now))
}

/// The body, up to so many bytes.
async fn read(target: &Target, mut response: Response, most: usize) -> Result<Bytes, Fault> {
    let mut all = BytesMut::new();
    while let Some(some) = response.chunk().await.map_err(|error| Fault::transport(target, &error))? {
        if all.len() + some.len() > most {
            let message = format!("{} gives more than the {most} bytes there is room for", place(target));
            return Err(Fault::plain(FaultKind::TooLarge, message));
        }
        all.extend_from_slice(&some);
    }
    Ok(all.freeze())
}
