use std::{fmt, io, path::Path};

/// Why the database could not be made ready. For whoever started the process: it may be shown in full.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Another process works in the data directory.
    #[error("{0}")]
    Held(String),
    /// No server binaries, and none could be fetched.
    #[error(
        "no PostgreSQL server was found and none could be fetched: {0}. Install PostgreSQL 15 or newer \
         (Debian: `apt-get install postgresql`, macOS: `brew install postgresql@17`), or name a database with \
         --database-url"
    )]
    NoServer(String),
    /// No database lets us in there.
    #[error("the database at {place} {trouble}")]
    Unreachable {
        /// Host, or folder of the socket, and port.
        place: String,
        /// How it shows, and what to look at.
        trouble: String,
    },
    /// Something the operating system refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The server, or a program that comes with it, failed.
    #[error("{0}")]
    Server(String),
    /// A statement failed.
    #[error("{what}: {source}")]
    Statement {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// A migration failed; the database is as it was before it.
    #[error("a migration failed: {0}")]
    Migration(#[from] sea_orm::DbErr),
}

impl Failure {
    /// For `map_err`: what was tried on which path.
    pub(super) fn at(what: impl fmt::Display, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{what} {}", path.display());
        move |source| Self::System { what, source }
    }

    /// For `map_err`: what the statement was for.
    pub(super) fn of(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Statement { what, source }
    }
}
