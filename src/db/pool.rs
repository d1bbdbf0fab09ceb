//! The connections behind the transactions. One goes back to the pool only when it is known to be clean.

use std::{fmt, io, sync::Arc, time::Duration};

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use scopeguard::{ScopeGuard, guard};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::time::{sleep, timeout};

use crate::kernel::{Error, Result};

/// How old a connection may get: what the server has cached for it grows.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// How long it may lie idle: what stands between here and the server forgets those that say nothing.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// The longest pause between two attempts to reach a server that is starting.
const PAUSE: Duration = Duration::from_secs(1);

/// A connection on loan. Dropped, it is taken to be in the middle of something, and a task of its own rolls that
/// back before anybody else gets it: so whoever has it may go away at any await.
pub(super) type Loan = ScopeGuard<Object<Connector>, fn(Object<Connector>)>;

/// Connections that are lent to one transaction at a time.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    connections: managed::Pool<Connector>,
    patience: Duration,
}

impl Pool {
    /// At most `size` connections, made when they are first used. Whoever waits for one does so for `patience`.
    pub(super) fn new(options: PgConnectOptions, size: u32, patience: Duration) -> Result<Self> {
        let size = usize::try_from(size).map_err(Error::internal)?;
        // The last one used has the warmest caches.
        let pool = managed::Pool::builder(Connector(Arc::new(options))).max_size(size).queue_mode(QueueMode::Lifo);
        Ok(Self { connections: pool.build().map_err(Error::internal)?, patience })
    }

    pub(super) async fn lend(&self) -> sqlx::Result<Loan> {
        match timeout(self.patience, self.connections.get()).await {
            Ok(Ok(connection)) => Ok(guard(connection, roll_back)),
            Ok(Err(PoolError::Backend(error))) => Err(error),
            Ok(Err(PoolError::Closed)) => Err(sqlx::Error::PoolClosed),
            Ok(Err(_)) | Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    pub(super) fn options(&self) -> &Arc<PgConnectOptions> {
        &self.connections.manager().0
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Connections in use and open.
    pub(super) fn usage(&self) -> (u32, u32) {
        let status = self.connections.status();
        let count = |connections| u32::try_from(connections).unwrap_or(u32::MAX);
        (count(status.size - status.available), count(status.size))
    }

    /// Closes what is idle at once, and what is on loan when it comes back.
    pub(super) fn close(&self) {
        self.connections.close();
    }
}

/// Gives back a connection in which nothing is open.
pub(super) fn give_back(clean: Loan) {
    drop(ScopeGuard::into_inner(clean));
}

// Answers that nobody waits for any more are read first. What does not get through this is closed, and so is what
// the end of the runtime breaks off.
fn roll_back(connection: Object<Connector>) {
    let mut unclean = guard(connection, |lost| drop(Object::take(lost)));
    tokio::spawn(async move {
        match sqlx::raw_sql("rollback").execute(&mut **unclean).await {
            Ok(_) => drop(ScopeGuard::into_inner(unclean)),
            Err(error) => tracing::debug!(%error, "a connection is closed instead of rolled back"),
        }
    });
}

pub(super) struct Connector(Arc<PgConnectOptions>);

impl managed::Manager for Connector {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<PgConnection> {
        let mut pause = Duration::from_millis(10);
        loop {
            match self.0.connect().await {
                Err(error) if is_starting(&error) => sleep(pause).await,
                made => return made,
            }
            pause = (pause * 2).min(PAUSE);
        }
    }

    // Whether it is still there shows when it is used, for no round trip more.
    async fn recycle(&self, _: &mut PgConnection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        let fresh = metrics.age() < LIFETIME && metrics.last_used() < IDLE;
        fresh.then_some(()).ok_or(RecycleError::message("too old"))
    }
}

// The options have a password in them.
impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

// Nobody listens there yet, or there is no room; whoever waits says for how long.
fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| ["53300", "57P03"].contains(&&*code)),
        _ => false,
    }
}
