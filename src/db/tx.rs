use std::{panic::Location, time::Duration};

use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement, Values};
use sea_query_sqlx::SqlxValues;
use sqlx::{
    AssertSqlSafe, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::Mutex;

use super::{Lane, reach::reach};
use crate::kernel::{
    Error, Result, TenantId, Timestamp,
    crash::{self, Side},
};

/// The pool, hidden behind transactions that carry their tenant.
#[derive(Clone, Debug)]
pub struct Database {
    pub(super) pool: PgPool,
    patience: Duration,
}

impl Database {
    /// Opens a pool of at most `size` connections, each of which may take `patience`.
    ///
    /// # Errors
    /// When the first connection cannot be made; the source says why.
    pub async fn connect(options: PgConnectOptions, size: u32, patience: Duration) -> Result<Self> {
        reach(&options, patience).await.map_err(Error::unavailable)?;
        let pool = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(patience)
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .map_err(database_error)?;
        Ok(Self { pool, patience })
    }

    /// A pool that connects when it is first used, which for describing the API is never.
    #[must_use]
    pub fn lazy(options: PgConnectOptions) -> Self {
        Self { pool: PgPoolOptions::new().connect_lazy_with(options), patience: Duration::ZERO }
    }

    /// A transaction that sees and writes the rows of `tenant` only.
    ///
    /// # Errors
    /// When no connection is to be had.
    pub async fn tenant(&self, tenant: TenantId) -> Result<TenantTx> {
        self.tenants(&[tenant]).await
    }

    /// A transaction over exactly the tenants named; for the journal's shared appends and the hub's
    /// reads, which serve several tenants in one round trip.
    ///
    /// # Errors
    /// When no connection is to be had.
    pub async fn tenants(&self, tenants: &[TenantId]) -> Result<TenantTx> {
        // Ids have no quotes in them; one round trip begins the transaction and names its tenants.
        let named = names(tenants);
        let tx = self.begin(format!("begin; set local fermata.tenants = '{named}'")).await?;
        Ok(TenantTx { tx: Mutex::new(tx), after_commit: Vec::new() })
    }

    /// A connection apart from the pool, made when it is first used.
    #[must_use]
    pub fn lane(&self) -> Lane {
        Lane { options: self.pool.connect_options(), patience: self.patience, connection: None }
    }

    /// A transaction with no tenant: row-level security leaves it only the system functions.
    ///
    /// # Errors
    /// When no connection is to be had.
    pub async fn system(&self) -> Result<SystemTx> {
        Ok(SystemTx { tx: self.begin("begin".to_owned()).await? })
    }

    // After the server was away every pooled connection is dead, and finds out when it is used. Nothing has
    // happened yet at that point, so the next one is tried.
    async fn begin(&self, statement: String) -> Result<Transaction<'static, Postgres>> {
        let mut tries = self.pool.size();
        loop {
            match self.begin_whole(statement.clone()).await {
                Err(error) if is_cut(&error) && tries > 0 => tries -= 1,
                // Nothing was asked yet, so whatever it is, it is not the caller's or this program's fault.
                begun => return begun.map_err(Error::unavailable),
            }
        }
    }

    // The driver rolls back what it knows to have begun. A begin whose caller goes away before its answer would
    // take its open transaction back to the pool, and the tenants it named to whoever comes next. So it is a task
    // of its own, which ends in any case; a transaction that nobody takes from it is rolled back.
    async fn begin_whole(&self, statement: String) -> sqlx::Result<Transaction<'static, Postgres>> {
        let connection = self.pool.acquire().await?;
        let begin = Transaction::begin(connection, Some(AssertSqlSafe(statement).into_sql_str()));
        tokio::spawn(begin).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }

    /// The database's own time.
    ///
    /// # Errors
    /// When it is away.
    pub async fn clock(&self) -> Result<Timestamp> {
        Ok(sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool).await?)
    }

    /// Connections in use and open, for the metrics.
    #[must_use]
    pub fn pool_use(&self) -> (u32, u32) {
        let open = self.pool.size();
        (open.saturating_sub(u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX)), open)
    }

    /// Closes every connection; what is in flight may finish.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A transaction bound to its tenants by a transaction-local setting. Dropped, it rolls back.
///
/// `store.rs` files use it with sea-orm (it is a [`ConnectionTrait`]) or, on the hot path, with sqlx
/// through [`TenantTx::conn`].
pub struct TenantTx {
    tx: Mutex<Transaction<'static, Postgres>>,
    after_commit: Vec<Box<dyn FnOnce() + Send + Sync>>,
}

impl TenantTx {
    /// The connection, for sqlx.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.tx.get_mut()
    }

    /// Registers what is to happen once the commit has succeeded; forgotten when it does not.
    pub fn after_commit(&mut self, act: impl FnOnce() + Send + Sync + 'static) {
        self.after_commit.push(Box::new(act));
    }

    /// Makes everything done through this transaction true at once, then acts on it.
    ///
    /// # Errors
    /// When the database refuses or is away.
    #[track_caller]
    pub fn commit(self) -> impl Future<Output = Result<()>> + Send {
        let committed = commit(self.tx.into_inner(), Location::caller());
        async move {
            committed.await?;
            self.after_commit.into_iter().for_each(|act| act());
            Ok(())
        }
    }
}

/// A transaction for the `SECURITY DEFINER` functions and the tables without tenants.
#[derive(Debug)]
pub struct SystemTx {
    tx: Transaction<'static, Postgres>,
}

impl SystemTx {
    /// The connection, for sqlx.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Commits.
    ///
    /// # Errors
    /// When the database refuses or is away.
    #[track_caller]
    pub fn commit(self) -> impl Future<Output = Result<()>> + Send {
        commit(self.tx, Location::caller())
    }
}

/// The one place where anything becomes true.
async fn commit(tx: Transaction<'static, Postgres>, caller: &'static Location<'static>) -> Result<()> {
    crash::point("commit", Side::Before, caller);
    tx.commit().await.map_err(database_error)?;
    crash::point("commit", Side::After, caller);
    Ok(())
}

impl std::fmt::Debug for TenantTx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantTx").finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for TenantTx {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let mut tx = self.tx.lock().await;
        prepared(&statement).execute(&mut **tx).await.map(Into::into).map_err(exec_error)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let mut tx = self.tx.lock().await;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut **tx).await.map(Into::into).map_err(exec_error)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let mut tx = self.tx.lock().await;
        let row = prepared(&statement).fetch_optional(&mut **tx).await.map_err(query_error)?;
        Ok(row.map(Into::into))
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut tx = self.tx.lock().await;
        let rows = prepared(&statement).fetch_all(&mut **tx).await.map_err(query_error)?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}

pub(super) fn names(tenants: &[TenantId]) -> String {
    tenants.iter().map(|tenant| tenant.uuid().to_string()).collect::<Vec<_>>().join(",")
}

fn prepared(statement: &Statement) -> sqlx::query::Query<'_, Postgres, SqlxValues> {
    let values = statement.values.clone().unwrap_or(Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(statement.sql.as_str()), SqlxValues(values))
}

fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(error.into()))
}

fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

// The connection is gone, as opposed to: the statement was refused.
pub(super) fn is_cut(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        // Shut down, crashed, or idle in a transaction for too long.
        sqlx::Error::Database(e) => {
            e.code().is_some_and(|code| ["57P01", "57P02", "57P03", "25P03", "25P04"].contains(&&*code))
        }
        _ => false,
    }
}

// The server, or a lock, is not to be had just now.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        cut if is_cut(cut) => true,
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
        // Connection exceptions, lock and statement time-outs, resources, operator intervention, serialisation.
        sqlx::Error::Database(e) => e.code().is_some_and(|code| {
            ["08", "53", "57"].iter().any(|class| code.starts_with(class))
                || ["40001", "40P01", "55P03"].contains(&&*code)
        }),
        _ => false,
    }
}

/// Sorts a driver's failure into ours: away (503) or a fault (500). Constraint names and values of
/// other rows stay in the private half.
pub(super) fn database_error(error: sqlx::Error) -> Error {
    if is_away(&error) { Error::unavailable(error) } else { Error::internal(error) }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        database_error(error)
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        match error {
            DbErr::Exec(RuntimeErr::SqlxError(e))
            | DbErr::Query(RuntimeErr::SqlxError(e))
            | DbErr::Conn(RuntimeErr::SqlxError(e)) => {
                if is_away(&e) {
                    Error::unavailable(e)
                } else {
                    Error::internal(e)
                }
            }
            other => Error::internal(other),
        }
    }
}
