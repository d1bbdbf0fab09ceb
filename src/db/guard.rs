//! Proofs read from the catalogue: that the server's login cannot get round row-level security, and that
//! every table, thought of or not, is behind it.

use super::{Database, migrate};
use crate::kernel::Result;

/// Functions with more rights than their caller. Those that may look across tenants return ids and counts, and belong
/// to `fermata_system`; the journal's append alone writes events.
const DEFINERS: &[&str] = &[
    "append_events",
    "claim_runs",
    "count_runs",
    "find_tenant",
    "forget_expired",
    "forget_runs",
    "next_due",
    "release_dead_workers",
    "release_stray_runs",
];
/// Tables without tenant data.
const TENANTLESS: &[&str] = &["seaql_migrations", "workers"];

/// Something that must not be so, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub fault: String,
    /// What to do.
    pub remedy: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.fault, self.remedy)
    }
}

impl Finding {
    fn new((fault, remedy): (String, String)) -> Self {
        Self { fault, remedy }
    }
}

/// Why the server's login is too strong to serve with; empty when it is not.
///
/// # Errors
/// When the database is away.
pub async fn login(database: &Database) -> Result<Vec<Finding>> {
    findings(database, include_str!("guard/login.sql")).await
}

/// Which tables and functions are not behind the wall; empty when all are.
///
/// # Errors
/// When the database is away.
pub async fn schema(database: &Database) -> Result<Vec<Finding>> {
    findings(database, include_str!("guard/schema.sql")).await
}

/// Whether migrations are still to be run.
///
/// # Errors
/// When the database is away.
pub async fn version(database: &Database) -> Result<Vec<Finding>> {
    let mut tx = database.system().await?;
    let pending = migrate::pending(&mut tx).await?;
    tx.commit().await?;
    let finding = |newest: &String| Finding {
        fault: format!("{} migrations are pending, up to {newest}", pending.len()),
        remedy: "run `fermata migrate` with DATABASE_ADMIN_URL set to the owner's login".to_owned(),
    };
    Ok(pending.last().map(finding).into_iter().collect())
}

/// Whether the server's login may hold a transaction open for ever, which would hold back the tenant-wide
/// stream, or plans each statement anew; worth a warning, not a refusal.
///
/// # Errors
/// When the database is away.
pub async fn limits(database: &Database) -> Result<Vec<Finding>> {
    let mut tx = database.system().await?;
    let unlimited: Vec<String> = sqlx::query_scalar(
        "select name from pg_settings
         where name in ('statement_timeout', 'idle_in_transaction_session_timeout') and setting = '0'
            or name = 'plan_cache_mode' and setting = 'auto'
         order by name",
    )
    .fetch_all(tx.conn())
    .await?;
    tx.commit().await?;
    let finding = |name: String| Finding {
        fault: format!("the server's login has no {name} of its own"),
        remedy: "run deploy/roles.sql again, which sets it".to_owned(),
    };
    Ok(unlimited.into_iter().map(finding).collect())
}

// Both queries answer with (fault, remedy) and may use the two lists.
async fn findings(database: &Database, query: &'static str) -> Result<Vec<Finding>> {
    let mut tx = database.system().await?;
    let rows = sqlx::query_as(query).bind(DEFINERS).bind(TENANTLESS).fetch_all(tx.conn()).await?;
    tx.commit().await?;
    Ok(rows.into_iter().map(Finding::new).collect())
}
