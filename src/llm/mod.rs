//! Language models: where they are and what they are asked (configurations, templates and keys of tenants), and the
//! one way to ask them, which holds out against what providers do.

mod answer;
mod ask;
mod breaker;
mod chain;
mod config;
mod document;
mod embed;
mod examine;
mod fault;
mod fetch;
mod image;
mod key;
mod parameters;
mod prompt;
mod provider;
mod quota;
mod routes;
pub mod shelf;
mod span;
mod speech;
mod stack;
mod store;
mod template;
mod thoughts;
mod usual;
mod wire;

pub use answer::{Answer, Given, Stop, ToolCall, Usage};
pub use ask::{AskError, BUDGET_EXCEEDED, Models, News, Teller};
pub use breaker::Turned;
pub use chain::{Choice, UNKNOWN_TEMPLATE};
pub use config::{Expected, ModelConfig, Price, Reasoning};
pub use document::{Author, Document, DocumentKind};
pub use embed::Texts;
pub use key::{KeySummary, Keys};
pub use prompt::{Counted, Image, Message, Prompt, ToolSpec};
pub use routes::{LlmRoutes, routes};
pub use speech::{Audio, AudioFormat, Recording, Sound, Utterance};
pub use template::{PromptTemplate, Worded};
pub use thoughts::Thoughts;
