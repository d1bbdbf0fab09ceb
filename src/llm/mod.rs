//! Language models: where they are and what they are asked (configurations, templates and keys of tenants), and the
//! one way to ask them, which holds out against what providers do.

mod answer;
mod ask;
mod breaker;
mod config;
mod document;
mod examine;
mod key;
mod prompt;
mod provider;
mod quota;
mod routes;
pub mod shelf;
mod span;
mod store;
mod template;
mod usual;
mod wire;

pub use answer::{Answer, Stop, ToolCall, Usage};
pub use ask::{AskError, Models, News};
pub use config::{Expected, ModelConfig, Price};
pub use document::{Document, DocumentKind};
pub use key::{KeySummary, Keys};
pub use prompt::{Image, Message, Prompt, ToolSpec};
pub use routes::{LlmRoutes, routes};
pub use template::PromptTemplate;
