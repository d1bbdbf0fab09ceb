//! What a tool says while it is at work, a model's words above all.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Body, ToolProgress};

/// Payload of `message.delta`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MessageDelta {
    /// Which reply of the attempt it is part of, from 1. Replies before it broke off or would not do: their words do not
    /// count any more.
    pub reply: u32,
    /// How many bytes of the reply came before; from 0 again where the attempt is repeated.
    pub offset: u64,
    /// The next words.
    pub text: String,
    /// They are what the model thinks, apart from what it says, and have offsets of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reasoning: bool,
}

/// Payload of `message.completed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MessageCompleted {
    /// Which reply of the attempt it is.
    pub reply: u32,
    /// All of it; absent when it is too large for an event, or no text but vectors or speech: then the step's output has
    /// it. None either where what was said is of no use: then it only says what that took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its size in bytes.
    pub text_bytes: u64,
    /// The model configuration, as `name@version`.
    pub config: String,
    /// Who serves the model.
    pub provider: String,
    /// The model.
    pub model: String,
    /// Tokens asked, of all replies.
    pub input_tokens: u64,
    /// Those of them that the provider had in its cache.
    pub cached_tokens: u64,
    /// Tokens said.
    pub output_tokens: u64,
    /// What that cost, by the configuration's prices.
    pub cost: f64,
}

/// What a tool says while it is at work.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// How far it is.
    Progress(ToolProgress),
    /// What a model says.
    Delta(MessageDelta),
    /// What a model has said.
    Message(MessageCompleted),
}

impl From<ToolProgress> for Report {
    fn from(progress: ToolProgress) -> Self {
        Self::Progress(progress)
    }
}

impl From<MessageDelta> for Report {
    fn from(delta: MessageDelta) -> Self {
        Self::Delta(delta)
    }
}

impl From<MessageCompleted> for Report {
    fn from(message: MessageCompleted) -> Self {
        Self::Message(message)
    }
}

impl From<Report> for Body {
    fn from(report: Report) -> Self {
        match report {
            Report::Progress(progress) => progress.into(),
            Report::Delta(delta) => delta.into(),
            Report::Message(message) => message.into(),
        }
    }
}
