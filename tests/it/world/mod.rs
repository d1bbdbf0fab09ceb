//! What every test stands on: a server of its own on a database of its own ([`World`]), callers with roles
//! ([`Client`]), runs that are followed through their streams ([`Run`]), and the services that steps call
//! ([`Upstream`]).
//!
//! A test never sleeps: it waits for an event of a run, for a request at an upstream, or moves the clock.

pub mod campaign;
mod client;
mod contract;
mod follow;
mod frames;
mod ground;
mod mcp;
mod oauth;
mod operations;
mod place;
mod plain;
mod provider;
mod redact;
mod run;
mod upstream;

pub use client::{Answer, Client, Request};
pub use contract::{document, faults};
pub use follow::{Event, Follow};
pub use frames::{Midway, SEALED, outputs};
pub use ground::Ground;
pub use mcp::{Mcp, REVISIONS, Revision};
pub use oauth::{CLIENT, Oauth};
pub use operations::Operation;
pub use place::{SECRET, World};
pub use plain::SOUND;
pub use provider::{APIS, Asked, KEY, Provider, Turn};
pub use redact::Redactor;
pub use run::Run;
pub use upstream::{Reply, Upstream};

use std::time::Duration;

/// The longest anything may take before a test is failed; nothing waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What `wait` brings, or a failure that says what was missed.
pub async fn within<T>(what: impl std::fmt::Display, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}
