//! SQL of model configurations, prompt templates and sealed keys.

use serde::de::DeserializeOwned;
use sqlx::{Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{Document, DocumentKind, KeySummary};
use crate::{
    auth::Sealed,
    db::TenantTx,
    kernel::{Actor, Error, Id, Kind, Reference, Result, TenantId, Timestamp},
};

#[derive(Debug)]
enum DocumentId {}

impl Kind for DocumentId {
    const PREFIX: &'static str = "doc";
    const NOUN: &'static str = "document";
}

/// Makes puts of one name wait for each other until the transaction ends.
pub(super) async fn lock(tx: &mut TenantTx, tenant: TenantId, kind: &str, name: &str) -> Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtext($1), hashtext($2))")
        .bind(format!("llm_documents {kind} {}", tenant.uuid()))
        .bind(name)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Adds a version.
pub(super) async fn insert<T: DocumentKind>(tx: &mut TenantTx, tenant: TenantId, it: &Document<T>) -> Result<()> {
    add::<T>(tx, tenant, (&it.name, it.version), Some(Json(&it.body)), (&it.created_by, it.created_at)).await
}

/// Adds the version that says it was deleted.
pub(super) async fn bury<T: DocumentKind>(
    tx: &mut TenantTx,
    tenant: TenantId,
    name: &str,
    version: i32,
    by: &Actor,
    at: Timestamp,
) -> Result<()> {
    add::<T>(tx, tenant, (name, version), None, (by, at)).await
}

async fn add<T: DocumentKind>(
    tx: &mut TenantTx,
    tenant: TenantId,
    (name, version): (&str, i32),
    body: Option<Json<&T>>,
    (by, at): (&Actor, Timestamp),
) -> Result<()> {
    sqlx::query(
        "insert into llm_documents (tenant_id, kind, name, version, document_id, body, created_by, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.uuid())
    .bind(T::KIND)
    .bind(name)
    .bind(version)
    .bind(Id::<DocumentId>::new(at).uuid())
    .bind(body)
    .bind(by.to_string())
    .bind(at)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The newest version of a name, and the document unless that version says it was deleted.
pub(super) async fn newest<T: DocumentKind>(
    tx: &mut TenantTx,
    name: &str,
) -> Result<Option<(i32, Option<Document<T>>)>> {
    let row = sqlx::query(
        "select name, version, body, created_by, created_at from llm_documents
         where kind = $1 and name = $2 order by version desc limit 1",
    )
    .bind(T::KIND)
    .bind(name)
    .fetch_optional(tx.conn())
    .await?;
    row.map(|row| Ok((row.try_get("version")?, document(&row)?))).transpose()
}

/// The versions that are meant, in the order of the references; none for what is not there or deleted.
pub(super) async fn get<T: DocumentKind>(tx: &mut TenantTx, wanted: &[Reference]) -> Result<Vec<Option<Document<T>>>> {
    let names: Vec<_> = wanted.iter().map(|reference| reference.name.as_str()).collect();
    let versions: Vec<_> = wanted.iter().map(|reference| reference.version).collect();
    let rows = sqlx::query(
        "select w.place, d.name, d.version, d.body, d.created_by, d.created_at
         from unnest($2::text[], $3::integer[]) with ordinality as w (name, version, place)
         cross join lateral (
           select * from llm_documents v
           where v.kind = $1 and v.name = w.name and (w.version is null or v.version = w.version)
           order by v.version desc limit 1) d",
    )
    .bind(T::KIND)
    .bind(names)
    .bind(versions)
    .fetch_all(tx.conn())
    .await?;
    let mut found: Vec<Option<Document<T>>> = wanted.iter().map(|_| None).collect();
    for row in rows {
        let place = usize::try_from(row.try_get::<i64, _>("place")? - 1).unwrap_or(usize::MAX);
        if let Some(slot) = found.get_mut(place) {
            *slot = document(&row)?;
        }
    }
    Ok(found)
}

/// What a name means now.
#[derive(Debug)]
pub(super) struct Meant {
    /// The name, with its version where one is asked for.
    pub(super) reference: Reference,
    /// The version that is there.
    pub(super) version: Option<i32>,
    /// Whether it may be used.
    pub(super) active: bool,
}

/// What the names of these kinds of documents mean, each followed by what it falls back on.
pub(super) async fn meant(tx: &mut TenantTx, wanted: &[(&str, &Reference)]) -> Result<Vec<Vec<Meant>>> {
    let kinds: Vec<_> = wanted.iter().map(|(kind, _)| *kind).collect();
    let names: Vec<_> = wanted.iter().map(|(_, reference)| reference.name.as_str()).collect();
    let versions: Vec<_> = wanted.iter().map(|(_, reference)| reference.version).collect();
    let rows = sqlx::query(
        "with meant as (
           select w.kind, w.name, w.version as asked, w.place, d.version, d.body
           from unnest($1::text[], $2::text[], $3::integer[]) with ordinality as w (kind, name, version, place)
           left join lateral (
             select v.version, v.body from llm_documents v
             where v.kind = w.kind and v.name = w.name and (w.version is null or v.version = w.version)
             order by v.version desc limit 1) d on true)
         select place, 0::bigint as rank, name, asked, version, body from meant
         union all
         select m.place, f.rank, f.name, null, d.version, d.body
         from meant m
         cross join lateral jsonb_array_elements_text(coalesce(m.body -> 'fallback', '[]')) with ordinality as f (name, rank)
         left join lateral (
           select v.version, v.body from llm_documents v
           where v.kind = m.kind and v.name = f.name order by v.version desc limit 1) d on true
         order by place, rank",
    )
    .bind(kinds)
    .bind(names)
    .bind(versions)
    .fetch_all(tx.conn())
    .await?;
    let mut found: Vec<Vec<Meant>> = wanted.iter().map(|_| vec![]).collect();
    for row in rows {
        let place = usize::try_from(row.try_get::<i64, _>("place")? - 1).unwrap_or(usize::MAX);
        let body: Option<serde_json::Value> = row.try_get("body")?;
        let active = body.as_ref().and_then(|body| body.get("active")?.as_bool()).unwrap_or(true);
        let version = row.try_get::<Option<i32>, _>("version")?.filter(|_| body.is_some());
        let reference = Reference { name: row.try_get("name")?, version: row.try_get("asked")? };
        if let Some(chain) = found.get_mut(place) {
            chain.push(Meant { reference, version, active });
        }
    }
    Ok(found)
}

/// The newest version of every name that is in use and the id of its first, by which the list is ordered and goes on.
pub(super) async fn list<T: DocumentKind>(
    tx: &mut TenantTx,
    limit: usize,
    after: Option<Uuid>,
) -> Result<Vec<(Uuid, Document<T>)>> {
    let rows = sqlx::query(
        "select f.document_id as first_id, d.name, d.version, d.body, d.created_by, d.created_at
         from llm_documents f
         cross join lateral (
           select * from llm_documents v where v.kind = f.kind and v.name = f.name
           order by v.version desc limit 1) d
         where f.kind = $1 and f.version = 1 and d.body is not null and ($2::uuid is null or f.document_id < $2)
         order by f.document_id desc limit $3",
    )
    .bind(T::KIND)
    .bind(after)
    .bind(i64::try_from(limit + 1).unwrap_or(i64::MAX))
    .fetch_all(tx.conn())
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(document) = document(row)? {
            found.push((row.try_get("first_id")?, document));
        }
    }
    Ok(found)
}

/// The most documents of one kind that are looked through.
const ALL: i32 = 1000;

/// The newest version of every name that is in use, in order of name; a thousand at most.
pub(super) async fn all<T: DocumentKind>(tx: &mut TenantTx) -> Result<Vec<Document<T>>> {
    let rows = sqlx::query(
        "select * from (
           select distinct on (name) name, version, body, created_by, created_at from llm_documents
           where kind = $1 order by name, version desc
         ) newest
         where body is not null order by name limit $2",
    )
    .bind(T::KIND)
    .bind(ALL)
    .fetch_all(tx.conn())
    .await?;
    rows.iter().filter_map(|row| document(row).transpose()).collect()
}

/// The versions of a name, newest first, without those that say it was deleted; `below` is the version to go on after.
pub(super) async fn versions<T: DocumentKind>(
    tx: &mut TenantTx,
    name: &str,
    limit: usize,
    below: Option<i32>,
) -> Result<Vec<Document<T>>> {
    let rows = sqlx::query(
        "select name, version, body, created_by, created_at from llm_documents
         where kind = $1 and name = $2 and body is not null and ($3::integer is null or version < $3)
         order by version desc limit $4",
    )
    .bind(T::KIND)
    .bind(name)
    .bind(below)
    .bind(i64::try_from(limit + 1).unwrap_or(i64::MAX))
    .fetch_all(tx.conn())
    .await?;
    rows.iter().filter_map(|row| document(row).transpose()).collect()
}

fn document<T: DeserializeOwned>(row: &PgRow) -> Result<Option<Document<T>>> {
    let Some(body) = row.try_get::<Option<serde_json::Value>, _>("body")? else { return Ok(None) };
    Ok(Some(Document {
        name: row.try_get("name")?,
        version: row.try_get("version")?,
        body: serde_json::from_value(body).map_err(Error::internal)?,
        created_by: row.try_get::<String, _>("created_by")?.parse().map_err(Error::internal)?,
        created_at: row.try_get("created_at")?,
    }))
}

/// Puts a sealed key, in place of what was there under its name; says whether the name is new.
pub(super) async fn put_key(tx: &mut TenantTx, tenant: TenantId, key: &KeySummary, sealed: &Sealed) -> Result<bool> {
    let new = sqlx::query_scalar(
        "insert into llm_keys (tenant_id, name, key_id, sealed, created_by, created_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (tenant_id, name) do update
           set key_id = excluded.key_id, sealed = excluded.sealed,
               created_by = excluded.created_by, created_at = excluded.created_at
         returning xmax = 0",
    )
    .bind(tenant.uuid())
    .bind(&key.name)
    .bind(&sealed.key_id)
    .bind(&sealed.bytes)
    .bind(key.created_by.to_string())
    .bind(key.created_at)
    .fetch_one(tx.conn())
    .await?;
    Ok(new)
}

/// The sealed key of that name.
pub(super) async fn key(tx: &mut TenantTx, name: &str) -> Result<Option<Sealed>> {
    let row =
        sqlx::query("select key_id, sealed from llm_keys where name = $1").bind(name).fetch_optional(tx.conn()).await?;
    row.map(|row| Ok(Sealed { key_id: row.try_get("key_id")?, bytes: row.try_get("sealed")? })).transpose()
}

/// Every key's name, in order.
pub(super) async fn keys(tx: &mut TenantTx) -> Result<Vec<KeySummary>> {
    let rows =
        sqlx::query("select name, created_by, created_at from llm_keys order by name").fetch_all(tx.conn()).await?;
    let read = |row: &PgRow| {
        Ok(KeySummary {
            name: row.try_get("name")?,
            created_by: row.try_get::<String, _>("created_by")?.parse().map_err(Error::internal)?,
            created_at: row.try_get("created_at")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Deletes a key; says whether it was there.
pub(super) async fn delete_key(tx: &mut TenantTx, name: &str) -> Result<bool> {
    let deleted = sqlx::query("delete from llm_keys where name = $1").bind(name).execute(tx.conn()).await?;
    Ok(deleted.rows_affected() > 0)
}
