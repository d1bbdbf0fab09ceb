use std::time::Duration;

use migration::{Migrator, MigratorTrait};
use sea_orm::SqlxPostgresConnector;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{Failure, SystemTx, reach::reach};

/// The session advisory lock of whoever migrates: "fermata" in ASCII.
const LOCK: i64 = 0x66_65_72_6d_61_74_61;
/// How long the database may take to let the owner in.
const PATIENCE: Duration = Duration::from_secs(5);

/// Brings the schema to the newest migration. `owner` is the login that owns the tables, on a connection of
/// its own (no transaction pooler). Two processes may call it at once: the second waits, then finds nothing
/// to do.
///
/// # Errors
/// When the database lets nobody in; when a migration fails, in which case it has left nothing behind; or when the
/// database is of a newer version than this program.
pub async fn migrate(owner: PgConnectOptions) -> Result<(), Failure> {
    advance(owner, None).await
}

/// Applies the next `steps` migrations; all when it does not say.
pub(super) async fn advance(owner: PgConnectOptions, steps: Option<u32>) -> Result<(), Failure> {
    reach(&owner, PATIENCE).await?;
    // One connection, never replaced: it holds the lock.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        // "… already exists, skipping" is nothing to tell.
        .connect_with(owner.options([("client_min_messages", "warning")]))
        .await
        .map_err(Failure::of("connecting as the owner"))?;
    let done = locked(&pool, steps).await;
    pool.close().await;
    done
}

async fn locked(pool: &PgPool, steps: Option<u32>) -> Result<(), Failure> {
    let lock = sqlx::query("select pg_advisory_lock($1)").bind(LOCK);
    lock.execute(pool).await.map_err(Failure::of("waiting for another migration"))?;
    // The end of the session frees the lock.
    let database = SqlxPostgresConnector::from_sqlx_postgres_pool(pool.clone());
    Ok(Migrator::up(&database, steps).await?)
}

/// The migrations this program knows and the database has not had, oldest first.
///
/// # Errors
/// When the database is away.
pub(super) async fn pending(tx: &mut SystemTx) -> Result<Vec<String>, sqlx::Error> {
    let begun: bool =
        sqlx::query_scalar("select to_regclass('public.seaql_migrations') is not null").fetch_one(tx.conn()).await?;
    let applied: Vec<String> = if begun {
        sqlx::query_scalar("select version from public.seaql_migrations").fetch_all(tx.conn()).await?
    } else {
        Vec::new()
    };
    let known = Migrator::migrations().into_iter().map(|migration| migration.name().to_owned());
    Ok(known.filter(|name| !applied.contains(name)).collect())
}
