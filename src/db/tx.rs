use std::{error::Error as _, panic::Location, pin::Pin, time::Duration};

use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement, Values};
use sea_query_sqlx::SqlxValues;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, postgres::PgConnectOptions};
use tokio::sync::Mutex;

use super::{
    Lane,
    pool::{Loan, Pool, give_back},
    reach::reach,
};
use crate::kernel::{
    Error, Result, TenantId, Timestamp,
    crash::{self, Side},
};

/// The pool, hidden behind transactions that carry their tenant.
#[derive(Clone, Debug)]
pub struct Database {
    pub(super) pool: Pool,
}

impl Database {
    /// Opens a pool of at most `size` connections, each of which may take `patience`.
    ///
    /// # Errors
    /// When the first connection cannot be made; the source says why.
    pub async fn connect(options: PgConnectOptions, size: u32, patience: Duration) -> Result<Self> {
        reach(&options, patience).await.map_err(Error::unavailable)?;
        let pool = Pool::new(options, size, patience)?;
        give_back(pool.lend().await.map_err(database_error)?);
        Ok(Self { pool })
    }

    /// A pool that connects when it is first used, which for describing the API is never.
    ///
    /// # Errors
    /// Never, unless the wiring itself is wrong.
    pub fn lazy(options: PgConnectOptions) -> Result<Self> {
        Ok(Self { pool: Pool::new(options, 1, Duration::ZERO)? })
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
        let loan = self.begin(&format!("begin; set local fermata.tenants = '{named}'")).await?;
        Ok(TenantTx { loan: Mutex::new(loan), only_reads: false, write: None, after_commit: Vec::new() })
    }

    /// A transaction that sees the rows of `tenant` and writes none. What follows from them is written when it is
    /// over ([`TenantTx::follow_with`]).
    ///
    /// # Errors
    /// When no connection is to be had.
    pub async fn reader(&self, tenant: TenantId) -> Result<TenantTx> {
        let named = names(&[tenant]);
        let loan = self.begin(&format!("begin read only; set local fermata.tenants = '{named}'")).await?;
        Ok(TenantTx { loan: Mutex::new(loan), only_reads: true, write: None, after_commit: Vec::new() })
    }

    /// A connection apart from the pool, made when it is first used.
    #[must_use]
    pub fn lane(&self) -> Lane {
        Lane { options: self.pool.options().clone(), patience: self.pool.patience(), connection: None }
    }

    /// A transaction with no tenant: row-level security leaves it only the system functions.
    ///
    /// # Errors
    /// When no connection is to be had.
    pub async fn system(&self) -> Result<SystemTx> {
        Ok(SystemTx { loan: self.begin("begin").await? })
    }

    // After the server was away every pooled connection is dead, and finds out when it is used. Nothing has
    // happened yet at that point, so the next one is tried.
    async fn begin(&self, statement: &str) -> Result<Loan> {
        let (_, mut tries) = self.pool.usage();
        loop {
            match self.try_begin(statement).await {
                Err(error) if is_cut(&error) && tries > 0 => tries -= 1,
                // Nothing was asked yet, so whatever it is, it is not the caller's or this program's fault.
                begun => return begun.map_err(Error::unavailable),
            }
        }
    }

    async fn try_begin(&self, statement: &str) -> sqlx::Result<Loan> {
        let mut loan = self.pool.lend().await?;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut **loan).await?;
        Ok(loan)
    }

    /// The database's own time.
    ///
    /// # Errors
    /// When it is away.
    pub async fn clock(&self) -> Result<Timestamp> {
        let mut tx = self.system().await?;
        let now = sqlx::query_scalar("select clock_timestamp()").fetch_one(tx.conn()).await?;
        tx.commit().await?;
        Ok(now)
    }

    /// Connections in use and open, for the metrics.
    #[must_use]
    pub fn pool_use(&self) -> (u32, u32) {
        self.pool.usage()
    }

    /// Closes every connection; what is in flight may finish.
    pub fn close(&self) {
        self.pool.close();
    }
}

/// A transaction bound to its tenants by a transaction-local setting. Dropped, it rolls back.
///
/// `store.rs` files use it with sea-orm (it is a [`ConnectionTrait`]) or, on the hot path, with sqlx
/// through [`TenantTx::conn`].
pub struct TenantTx {
    loan: Mutex<Loan>,
    only_reads: bool,
    write: Option<Box<dyn FnOnce() -> Write + Send + Sync>>,
    after_commit: Vec<Box<dyn FnOnce() + Send + Sync>>,
}

type Write = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// What a transaction that only reads has found was not so any more when it came to writing.
#[derive(Debug, thiserror::Error)]
#[error("what was read has changed")]
pub struct Stale;

impl Stale {
    /// Whether that is what went wrong.
    #[must_use]
    pub fn is(error: &Error) -> bool {
        error.source().is_some_and(<dyn std::error::Error>::is::<Self>)
    }
}

impl TenantTx {
    /// The connection, for sqlx.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.loan.get_mut()
    }

    /// Registers what is to happen once the commit has succeeded; forgotten when it does not.
    pub fn after_commit(&mut self, act: impl FnOnce() + Send + Sync + 'static) {
        self.after_commit.push(Box::new(act));
    }

    /// Whether it is a [`Database::reader`].
    #[must_use]
    pub fn only_reads(&self) -> bool {
        self.only_reads
    }

    /// Registers the one write that follows from what was read here: it is made in another transaction when this one
    /// is committed, and fails as [`Stale`] where it no longer follows.
    pub fn follow_with<W>(&mut self, write: impl FnOnce() -> W + Send + Sync + 'static)
    where
        W: Future<Output = Result<()>> + Send + 'static,
    {
        self.write = Some(Box::new(|| Box::pin(write())));
    }

    /// Makes everything done through this transaction true at once, then acts on it.
    ///
    /// # Errors
    /// When the database refuses or is away.
    #[track_caller]
    pub fn commit(self) -> impl Future<Output = Result<()>> + Send {
        let caller = Location::caller();
        async move {
            match self.write {
                None => commit(self.loan.into_inner(), caller).await?,
                Some(write) => {
                    // Whoever waits for the connection does not wait for the write.
                    drop(self.loan);
                    write().await?;
                }
            }
            self.after_commit.into_iter().for_each(|act| act());
            Ok(())
        }
    }
}

/// A transaction for the `SECURITY DEFINER` functions and the tables without tenants.
#[derive(Debug)]
pub struct SystemTx {
    loan: Loan,
}

impl SystemTx {
    /// The connection, for sqlx.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.loan
    }

    /// Commits.
    ///
    /// # Errors
    /// When the database refuses or is away.
    #[track_caller]
    pub fn commit(self) -> impl Future<Output = Result<()>> + Send {
        commit(self.loan, Location::caller())
    }
}

/// To a bare commit after a statement that failed, the server answers that it rolled back, which the driver takes for
/// done. Any other statement before it is refused then.
const COMMIT: &str = "set constraints all immediate; commit";

/// The one place where anything becomes true.
async fn commit(mut loan: Loan, caller: &'static Location<'static>) -> Result<()> {
    crash::point("commit", Side::Before, caller);
    sqlx::raw_sql(COMMIT).execute(&mut **loan).await.map_err(database_error)?;
    give_back(loan);
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
        let mut loan = self.loan.lock().await;
        prepared(&statement).execute(&mut ***loan).await.map(Into::into).map_err(exec_error)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let mut loan = self.loan.lock().await;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut ***loan).await.map(Into::into).map_err(exec_error)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let mut loan = self.loan.lock().await;
        let row = prepared(&statement).fetch_optional(&mut ***loan).await.map_err(query_error)?;
        Ok(row.map(Into::into))
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut loan = self.loan.lock().await;
        let rows = prepared(&statement).fetch_all(&mut ***loan).await.map_err(query_error)?;
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
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => true,
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
