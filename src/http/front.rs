use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{auth::Verifier, config::HttpSettings, db::Database, kernel::Clock};

/// What the extractors need. A module's state hands it out (`impl FromRef<State> for Front`).
#[derive(Clone, Debug)]
pub struct Front {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    verifier: Verifier,
    database: Database,
    clock: Clock,
    settings: HttpSettings,
    stopping: CancellationToken,
}

impl Front {
    /// `stopping` is cancelled when the server is told to stop; open streams end then.
    #[must_use]
    pub fn new(
        verifier: Verifier,
        database: Database,
        clock: Clock,
        settings: HttpSettings,
        stopping: CancellationToken,
    ) -> Self {
        Self { inner: Arc::new(Inner { verifier, database, clock, settings, stopping }) }
    }

    /// Verifies bearer tokens.
    #[must_use]
    pub fn verifier(&self) -> &Verifier {
        &self.inner.verifier
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.inner.database
    }

    /// The time.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Limits, public URL, origins.
    #[must_use]
    pub fn settings(&self) -> &HttpSettings {
        &self.inner.settings
    }

    /// Cancelled when the server is told to stop.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.inner.stopping
    }
}
