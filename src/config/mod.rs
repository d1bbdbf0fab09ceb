//! What an operator can set. Three layers, the later wins: the defaults written here, an optional
//! `fermata.toml`, and the environment (`FERMATA_HTTP_LISTEN` sets `http.listen`). What
//! everybody calls by one name (`DATABASE_URL`, `OPENAI_API_KEY`) is also read without the prefix.

mod llm;
mod load;
mod settings;

pub use llm::{Api, CircuitBreakerSettings, JobSettings, LlmSettings, ProviderSettings};
pub use load::load;
pub use settings::{
    AuthKey, AuthSettings, DatabaseSettings, HttpSettings, KeyMaterial, LimitSettings, McpCommand, OauthSettings,
    RetentionSettings, Settings, StreamSettings, TelemetrySettings, ToolSettings, VaultSettings, WorkerSettings,
};
