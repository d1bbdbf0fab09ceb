//! What an operator can set. Three layers, the later wins: the defaults written here, an optional
//! `fermata.toml`, and the environment (`FERMATA_HTTP_LISTEN` sets `http.listen`). The database's
//! addresses are also read from the bare `DATABASE_URL`, `DATABASE_ADMIN_URL` and `DATABASE_DIRECT_URL`.

mod load;
mod settings;

pub use load::load;
pub use settings::{
    AuthKey, AuthSettings, DatabaseSettings, HttpSettings, KeyMaterial, LimitSettings, RetentionSettings, Settings,
    StreamSettings, ToolSettings, WorkerSettings,
};
