//! What a provider is asked for besides words, and gives in one piece: vectors, speech and transcripts.

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{
    Turn,
    provider::{refusal, wrong},
};

/// What the fake voice says, whatever it is to read.
pub const SOUND: &[u8] = b"ID3 a sound";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    OpenAiVectors,
    GeminiVectors,
    Speech,
    Transcript,
}

impl Plain {
    /// What is asked for at a path, if it is none of words.
    pub(super) fn at(path: &str) -> Option<Self> {
        [
            ("/embeddings", Self::OpenAiVectors),
            (":batchEmbedContents", Self::GeminiVectors),
            ("/audio/speech", Self::Speech),
            ("/audio/transcriptions", Self::Transcript),
        ]
        .into_iter()
        .find_map(|(end, plain)| path.ends_with(end).then_some(plain))
    }

    /// A question as it arrived; a form is shown as the text that it is.
    pub(super) fn read(self, body: &Bytes) -> Value {
        match self {
            Self::Transcript => json!({ "form": String::from_utf8_lossy(body) }),
            _ => serde_json::from_slice(body).unwrap(),
        }
    }

    /// What is given, or goes wrong. Words stand for a transcript of them, and elsewhere for whatever is asked for.
    pub(super) async fn give(self, turn: Turn, asked: &Value, key: &str) -> Response {
        match turn {
            Turn::Status(status, extra) => refusal(status, extra, key),
            Turn::Hang => std::future::pending().await,
            Turn::WrongJson => wrong(),
            Turn::Cut(_) => {
                let broken = stream::once(async { Err(std::io::Error::other("cut")) });
                let body = Body::from_stream(stream::iter([Ok(r#"{"te"#)]).chain(broken));
                ([(header::CONTENT_TYPE, self.media_type())], body).into_response()
            }
            Turn::Garbled(_) => ([(header::CONTENT_TYPE, "application/json")], r#"{"te"#).into_response(),
            Turn::Empty => self.whole(&[], asked, b""),
            Turn::Sound(bytes) => self.whole(&[], asked, &bytes),
            Turn::Say(words) => self.whole(&words, asked, SOUND),
            other => panic!("{other:?} is not for {self:?}"),
        }
    }

    fn media_type(self) -> &'static str {
        if self == Self::Speech { "audio/mpeg" } else { "application/json" }
    }

    fn whole(self, words: &[String], asked: &Value, sound: &[u8]) -> Response {
        let texts = match self {
            Self::GeminiVectors => asked["requests"].as_array(),
            _ => asked["input"].as_array(),
        };
        let count = texts.map_or(0, Vec::len) * usize::from(!words.is_empty());
        let vector = |place: usize| json!([0.1, place, -0.25]);
        match self {
            Self::OpenAiVectors => {
                // In any order: each says its place.
                let data = (0..count).rev().map(|place| json!({ "index": place, "embedding": vector(place) }));
                let usage = json!({ "prompt_tokens": 10, "total_tokens": 10 });
                axum::Json(json!({ "data": data.collect::<Value>(), "model": "m", "usage": usage })).into_response()
            }
            Self::GeminiVectors => {
                let all: Value = (0..count).map(|place| json!({ "values": vector(place) })).collect();
                axum::Json(json!({ "embeddings": all, "usageMetadata": { "promptTokenCount": 10 } })).into_response()
            }
            Self::Speech => ([(header::CONTENT_TYPE, "audio/mpeg")], sound.to_vec()).into_response(),
            Self::Transcript => {
                let usage = json!({ "type": "tokens", "input_tokens": 10, "output_tokens": words.len() });
                axum::Json(json!({ "text": words.concat(), "usage": usage })).into_response()
            }
        }
    }
}
