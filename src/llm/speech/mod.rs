//! Speech: texts read aloud, and recordings written down. Each is a trait of its own over what providers speak; so far
//! that is OpenAI's, which most who serve such models speak too.

mod openai;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AskError, Choice, Document, Given, ModelConfig, Models, Teller, Usage,
    fault::Fault,
    fetch::{Kind, essence},
    prompt,
    provider::Target,
    span,
    stack::Question,
};
use crate::{
    config::Api,
    journal::Estimate,
    kernel::{TenantId, Timestamp},
    telemetry::Span,
};
use openai::OpenAi;

/// A text that is to be read aloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Utterance {
    /// The words.
    pub text: String,
    /// In whose voice, as the provider calls it.
    pub voice: String,
    /// As what.
    pub format: AudioFormat,
    /// The most bytes there is room for.
    pub most: usize,
}

impl Utterance {
    /// About how many tokens its words are.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        prompt::tokens(self.text.len())
    }
}

/// A form of audio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AudioFormat {
    /// MP3.
    #[default]
    Mp3,
    /// Opus, in Ogg.
    Opus,
    /// AAC.
    Aac,
    /// FLAC.
    Flac,
    /// WAV.
    Wav,
    /// Samples alone: 16 bits, little-endian, 24 kHz.
    Pcm,
}

impl AudioFormat {
    /// What a provider calls it, and its media type.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Mp3 => ("mp3", "audio/mpeg"),
            Self::Opus => ("opus", "audio/ogg"),
            Self::Aac => ("aac", "audio/aac"),
            Self::Flac => ("flac", "audio/flac"),
            Self::Wav => ("wav", "audio/wav"),
            Self::Pcm => ("pcm", "audio/pcm"),
        }
    }
}

/// A sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audio {
    /// Its bytes.
    pub bytes: Bytes,
    /// What they are.
    pub media_type: String,
}

/// Speech that is to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The sound.
    pub sound: Sound,
    /// What it is.
    pub media_type: String,
    /// The language spoken (`en`, `id`), where it is known.
    pub language: Option<String>,
}

/// The bytes of a recording, or where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sound {
    /// They are here.
    Bytes(Bytes),
    /// They are fetched when a model is asked.
    Url(String),
}

/// The most tokens of a recording and of its transcript: Voxtral takes 40 minutes at 12.5 tokens a second, and what others
/// take is less.
const LONGEST_RECORDING: u32 = 32_768;
/// The fewest bytes that make one, where there is silence.
const SILENCE: usize = 4;

const RECORDING: Kind = Kind { name: "audio", all: "the recording", one: "the recording", is_of };

/// Reads texts aloud.
#[async_trait]
trait TextToSpeech: Send + Sync {
    async fn synthesize(&self, target: &Target, wanted: &Utterance, now: Timestamp) -> Result<(Audio, Usage), Fault>;
}

/// A recording that is here, and the language spoken.
struct Heard<'a> {
    audio: Audio,
    language: Option<&'a str>,
}

/// Writes down what is said.
#[async_trait]
trait SpeechToText: Send + Sync {
    async fn transcribe(&self, target: &Target, heard: &Heard<'_>, now: Timestamp) -> Result<(String, Usage), Fault>;
}

/// Who reads aloud at the provider.
fn voice(api: Api) -> Option<&'static dyn TextToSpeech> {
    match api {
        Api::Openai | Api::OpenaiResponses => Some(&OpenAi),
        Api::Anthropic | Api::Gemini => None,
    }
}

/// Who writes down.
fn ear(api: Api) -> Option<&'static dyn SpeechToText> {
    match api {
        Api::Openai | Api::OpenaiResponses => Some(&OpenAi),
        Api::Anthropic | Api::Gemini => None,
    }
}

/// A text, and who reads it.
struct Reading<'a>(&'a dyn TextToSpeech, &'a Utterance);

impl Question for Reading<'_> {
    type Given = Audio;

    fn expects(&self, config: &Document<ModelConfig>) -> Estimate {
        config.body.estimate_of(self.tokens(), 0)
    }

    fn tokens(&self) -> u32 {
        self.1.tokens()
    }

    fn span(&self, target: &Target) -> Span {
        span::of(target, "text_to_speech")
    }

    async fn call(&self, target: &Target, _: u32, now: Timestamp) -> Result<(Audio, Usage), Fault> {
        self.0.synthesize(target, self.1, now).await
    }
}

/// A recording, and who writes it down.
struct Dictation<'a>(&'a dyn SpeechToText, &'a Heard<'a>);

impl Question for Dictation<'_> {
    type Given = String;

    fn expects(&self, config: &Document<ModelConfig>) -> Estimate {
        let most = u32::try_from(self.1.audio.bytes.len() / SILENCE + 1).unwrap_or(u32::MAX).min(LONGEST_RECORDING);
        config.body.estimate_of(most, most)
    }

    fn tokens(&self) -> u32 {
        // How many a sound is, nobody knows before.
        1
    }

    fn span(&self, target: &Target) -> Span {
        span::of(target, "speech_to_text")
    }

    async fn call(&self, target: &Target, _: u32, now: Timestamp) -> Result<(String, Usage), Fault> {
        self.0.transcribe(target, self.1, now).await
    }
}

impl Models {
    /// A text read aloud, by the first model of the choice that does it.
    ///
    /// # Errors
    /// Why none did: of the last that was asked.
    pub async fn synthesize(
        &self,
        tenant: TenantId,
        choice: &Choice,
        wanted: &Utterance,
        teller: &Teller,
    ) -> Result<Given<Audio>, AskError> {
        let mut asking = self.asking(tenant, choice, teller).await?;
        loop {
            let target = self.next(&mut asking).await?;
            let Some(voice) = voice(target.api) else {
                asking.fail(mute(&target)).await?;
                continue;
            };
            match self.insist(&mut asking, &target, &Reading(voice, wanted)).await {
                Ok(audio) => return Ok(asking.given(audio)),
                Err(failure) => asking.fail(failure).await?,
            }
        }
    }

    /// What is said in a recording, as the first model of the choice that does it writes it down. One that is named by
    /// address is fetched first.
    ///
    /// # Errors
    /// Why none did: of the last that was asked. Why the recording is not to be had, and then nobody is asked.
    pub async fn transcribe(
        &self,
        tenant: TenantId,
        choice: &Choice,
        recording: &Recording,
        teller: &Teller,
    ) -> Result<Given<String>, AskError> {
        let mut asking = self.asking(tenant, choice, teller).await?;
        let heard = self.hear(tenant, recording).await?;
        // How long it is was not known before it was here.
        asking.foreseen = false;
        loop {
            let target = self.next(&mut asking).await?;
            let Some(ear) = ear(target.api) else {
                asking.fail(mute(&target)).await?;
                continue;
            };
            match self.insist(&mut asking, &target, &Dictation(ear, &heard)).await {
                Ok(text) => return Ok(asking.given(text)),
                Err(failure) => asking.fail(failure).await?,
            }
        }
    }
}

impl Models {
    /// The recording with its bytes, wherever they are.
    async fn hear<'a>(&self, tenant: TenantId, recording: &'a Recording) -> Result<Heard<'a>, AskError> {
        let Recording { sound, media_type, language } = recording;
        let bytes = match sound {
            Sound::Bytes(bytes) => bytes.clone(),
            Sound::Url(url) => {
                let fetch = self.fetch(tenant, &RECORDING, self.settings.audio_bytes).await?;
                fetch.in_time(fetch.get(url, media_type)).await?.into()
            }
        };
        Ok(Heard { audio: Audio { bytes, media_type: media_type.clone() }, language: language.as_deref() })
    }
}

/// What a recording of this type ends in as a file, which is one name for all that a type is called by.
fn extension(media_type: &str) -> String {
    let essence = essence(media_type);
    match essence.split_once('/').map_or(&*essence, |(_, kind)| kind) {
        "mpeg" | "mpga" => "mp3",
        "x-wav" | "wave" | "vnd.wave" => "wav",
        "x-m4a" | "mp4" | "aac" => "m4a",
        "x-flac" => "flac",
        "opus" => "ogg",
        other => other,
    }
    .to_owned()
}

fn is_of(told: &str, wanted: &str) -> bool {
    let kind = essence(told);
    // A sound may be in what else holds pictures as well.
    let is_sound = kind.starts_with("audio/") || kind.starts_with("video/") || kind == "application/ogg";
    is_sound && extension(told) == extension(wanted)
}

fn mute(target: &Target) -> AskError {
    AskError::misconfigured(&target.config, "what its provider speaks knows no speech".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_by_what_it_is() {
        for (media_type, ending) in [
            ("audio/mpeg", "mp3"),
            ("audio/ogg; codecs=opus", "ogg"),
            ("audio/webm", "webm"),
            ("audio/x-wav", "wav"),
            ("video/mp4", "m4a"),
        ] {
            assert_eq!(extension(media_type), ending, "{media_type}");
        }
    }

    #[test]
    fn a_recording_is_what_it_is_told_to_be_whatever_that_is_called() {
        for (told, wanted, fits) in [
            ("audio/mpeg", "audio/mpeg", true),
            ("Audio/MP3", "audio/mpeg", true),
            ("audio/ogg; codecs=opus", "audio/ogg", true),
            ("application/ogg", "audio/opus", true),
            ("video/webm", "audio/webm", true),
            ("audio/x-m4a", "audio/mp4", true),
            ("audio/wav", "audio/mpeg", false),
            ("application/octet-stream", "audio/mpeg", false),
            ("text/html", "text/html", false),
            ("", "audio/mpeg", false),
        ] {
            assert_eq!(is_of(told, wanted), fits, "{told} as {wanted}");
        }
    }
}
