//! SQL of definitions: each put is the next version, and no version ever changes.

use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{DefinitionSummary, StoredDefinition};
use crate::{
    db::TenantTx,
    kernel::{Error, Result, TenantId, WorkflowId, is_name},
};

/// Makes puts of one name wait for each other until the transaction ends.
pub(super) async fn lock(tx: &mut TenantTx, tenant: TenantId, name: &str) -> Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtext($1), hashtext($2))")
        .bind(format!("workflow_definitions {}", tenant.uuid()))
        .bind(name)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Adds a version.
pub(super) async fn insert(tx: &mut TenantTx, tenant: TenantId, stored: &StoredDefinition) -> Result<()> {
    sqlx::query(
        "insert into workflow_definitions
           (tenant_id, name, version, workflow_id, source, media_type, definition, created_by, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(tenant.uuid())
    .bind(&stored.name)
    .bind(stored.version)
    .bind(stored.workflow_id.uuid())
    .bind(&stored.source)
    .bind(&stored.media_type)
    .bind(sqlx::types::Json(&stored.definition))
    .bind(stored.created_by.to_string())
    .bind(stored.created_at)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// One version, or the newest.
pub(super) async fn get(tx: &mut TenantTx, name: &str, version: Option<i32>) -> Result<Option<StoredDefinition>> {
    if !is_name(name) {
        return Ok(None);
    }
    let row = sqlx::query(
        "select name, version, workflow_id, definition, source, media_type, created_by, created_at
         from workflow_definitions
         where name = $1 and ($2::integer is null or version = $2) order by version desc limit 1",
    )
    .bind(name)
    .bind(version)
    .fetch_optional(tx.conn())
    .await?;
    row.map(|row| stored(&row)).transpose()
}

/// Those of the names under which something has been put.
pub(super) async fn taken(tx: &mut TenantTx, names: &[&str]) -> Result<Vec<String>> {
    let taken = sqlx::query_scalar("select name from workflow_definitions where name = any ($1) and version = 1")
        .bind(names)
        .fetch_all(tx.conn())
        .await?;
    Ok(taken)
}

/// The newest version of every name and the id of its first, by which the list is ordered and goes on: a
/// put in between moves nothing.
pub(super) async fn list(
    tx: &mut TenantTx,
    limit: usize,
    after: Option<Uuid>,
) -> Result<Vec<(Uuid, DefinitionSummary)>> {
    let rows = sqlx::query(
        "select f.workflow_id as first_id, d.name, d.version, d.workflow_id, d.definition ->> 'description' as description,
                d.media_type, d.created_by, d.created_at
         from (select name, workflow_id from workflow_definitions
               where version = 1 and ($1::uuid is null or workflow_id < $1) order by workflow_id desc limit $2) f
         cross join lateral (
           select * from workflow_definitions v where v.name = f.name order by v.version desc limit 1) d
         order by f.workflow_id desc",
    )
    .bind(after)
    .bind(i64::try_from(limit + 1).unwrap_or(i64::MAX))
    .fetch_all(tx.conn())
    .await?;
    rows.iter().map(|row| Ok((row.try_get("first_id")?, summary(row)?))).collect()
}

/// The versions of a name, newest first; `below` is the version to go on after.
pub(super) async fn versions(
    tx: &mut TenantTx,
    name: &str,
    limit: usize,
    below: Option<i32>,
) -> Result<Vec<DefinitionSummary>> {
    if !is_name(name) {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "select name, version, workflow_id, definition ->> 'description' as description, media_type, created_by, created_at
         from workflow_definitions
         where name = $1 and ($2::integer is null or version < $2) order by version desc limit $3",
    )
    .bind(name)
    .bind(below)
    .bind(i64::try_from(limit + 1).unwrap_or(i64::MAX))
    .fetch_all(tx.conn())
    .await?;
    rows.iter().map(summary).collect()
}

fn stored(row: &PgRow) -> Result<StoredDefinition> {
    let sqlx::types::Json(definition) = row.try_get("definition")?;
    Ok(StoredDefinition {
        name: row.try_get("name")?,
        version: row.try_get("version")?,
        workflow_id: WorkflowId::from_uuid(row.try_get("workflow_id")?),
        definition,
        source: row.try_get("source")?,
        media_type: row.try_get("media_type")?,
        created_by: row.try_get::<String, _>("created_by")?.parse().map_err(Error::internal)?,
        created_at: row.try_get("created_at")?,
    })
}

fn summary(row: &PgRow) -> Result<DefinitionSummary> {
    Ok(DefinitionSummary {
        name: row.try_get("name")?,
        version: row.try_get("version")?,
        workflow_id: WorkflowId::from_uuid(row.try_get("workflow_id")?),
        description: row.try_get("description")?,
        media_type: row.try_get("media_type")?,
        created_by: row.try_get::<String, _>("created_by")?.parse().map_err(Error::internal)?,
        created_at: row.try_get("created_at")?,
    })
}
