//! SQL of connections and of authorizations that were begun.

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::connection::{Client, Connection, ConnectionStatus, GrantSummary};
use crate::{
    auth::Sealed,
    db::TenantTx,
    kernel::{Actor, ConnectionId, Error, Result, TenantId, Timestamp},
};

/// A connection as it is kept.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) connection: Connection,
    /// The secret of the client that was registered beforehand.
    pub(super) client_secret: Option<Sealed>,
    pub(super) grant: Option<Sealed>,
    pub(super) renew_at: Option<Timestamp>,
}

/// The connection of that name.
pub(super) async fn find(tx: &mut TenantTx, name: &str) -> Result<Option<Kept>> {
    let row = sqlx::query("select * from connections where name = $1").bind(name).fetch_optional(tx.conn()).await?;
    row.as_ref().map(read).transpose()
}

/// The same, which nobody else changes until the transaction ends.
pub(super) async fn held(tx: &mut TenantTx, name: &str) -> Result<Option<Kept>> {
    let query = sqlx::query("select * from connections where name = $1 for update");
    query.bind(name).fetch_optional(tx.conn()).await?.as_ref().map(read).transpose()
}

/// All connections, by name.
pub(super) async fn all(tx: &mut TenantTx) -> Result<Vec<Kept>> {
    sqlx::query("select * from connections order by name").fetch_all(tx.conn()).await?.iter().map(read).collect()
}

/// Writes a connection in place of what was there under its name.
///
/// # Errors
/// Conflict, where another was put under the name at the same time.
pub(super) async fn write(tx: &mut TenantTx, tenant: TenantId, kept: &Kept) -> Result<()> {
    let Kept { connection, client_secret, grant, renew_at } = kept;
    let broken = (connection.status == ConnectionStatus::Broken).then_some(connection.updated_at);
    let granted = connection.grant.as_ref();
    let written: Uuid = sqlx::query_scalar(
        "insert into connections (
           tenant_id, name, connection_id, url, scopes, client_id, client_issuer, client_key_id, client_sealed,
           grant_key_id, grant_sealed, grant_issuer, granted, renew_at, connected_by, connected_at, broken_at,
           created_by, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
         on conflict (tenant_id, name) do update set
           url = excluded.url, scopes = excluded.scopes, client_id = excluded.client_id,
           client_issuer = excluded.client_issuer, client_key_id = excluded.client_key_id,
           client_sealed = excluded.client_sealed, grant_key_id = excluded.grant_key_id,
           grant_sealed = excluded.grant_sealed, grant_issuer = excluded.grant_issuer, granted = excluded.granted,
           renew_at = excluded.renew_at, connected_by = excluded.connected_by, connected_at = excluded.connected_at,
           broken_at = excluded.broken_at, updated_at = excluded.updated_at
         returning connection_id",
    )
    .bind(tenant.uuid())
    .bind(&connection.name)
    .bind(connection.connection_id.uuid())
    .bind(&connection.url)
    .bind(&connection.scopes)
    .bind(connection.client.as_ref().map(|client| &client.id))
    .bind(connection.client.as_ref().map(|client| &client.issuer))
    .bind(client_secret.as_ref().map(|sealed| &sealed.key_id))
    .bind(client_secret.as_ref().map(|sealed| &sealed.bytes))
    .bind(grant.as_ref().map(|sealed| &sealed.key_id))
    .bind(grant.as_ref().map(|sealed| &sealed.bytes))
    .bind(granted.map(|grant| &grant.issuer))
    .bind(granted.map(|grant| &grant.scopes))
    .bind(renew_at)
    .bind(granted.map(|grant| grant.connected_by.to_string()))
    .bind(granted.map(|grant| grant.connected_at))
    .bind(broken)
    .bind(connection.created_by.to_string())
    .bind(connection.created_at)
    .bind(connection.updated_at)
    .fetch_one(tx.conn())
    .await?;
    // Its secrets are sealed for its id.
    let other = || Error::conflict("another connection was put under this name at the same time: put it again");
    (written == connection.connection_id.uuid()).then_some(()).ok_or_else(other)
}

/// Deletes a connection with what was begun for it.
pub(super) async fn delete(tx: &mut TenantTx, name: &str) -> Result<()> {
    sqlx::query("delete from connections where name = $1").bind(name).execute(tx.conn()).await?;
    Ok(())
}

/// Takes it on to renew the grant, alone until then; says whether nobody else is at it.
pub(super) async fn claim(tx: &mut TenantTx, id: ConnectionId, now: Timestamp, until: Timestamp) -> Result<bool> {
    let claimed = sqlx::query(
        "update connections set renewed_until = $3
         where connection_id = $1 and renew_at <= $2 and broken_at is null and (renewed_until is null or renewed_until <= $2)",
    )
    .bind(id.uuid())
    .bind(now)
    .bind(until)
    .execute(tx.conn())
    .await?;
    Ok(claimed.rows_affected() > 0)
}

/// Has the grant renewed as soon as a token is needed.
pub(super) async fn renew_from(tx: &mut TenantTx, id: ConnectionId, at: Timestamp) -> Result<()> {
    let query = sqlx::query("update connections set renew_at = $2 where connection_id = $1");
    query.bind(id.uuid()).bind(at).execute(tx.conn()).await?;
    Ok(())
}

/// Lets go of it, so that the next one may renew it.
pub(super) async fn let_go(tx: &mut TenantTx, id: ConnectionId) -> Result<()> {
    let query = sqlx::query("update connections set renewed_until = null where connection_id = $1");
    query.bind(id.uuid()).execute(tx.conn()).await?;
    Ok(())
}

/// An authorization that was begun.
pub(super) struct Begun {
    pub(super) state_hash: [u8; 32],
    pub(super) connection: ConnectionId,
    pub(super) actor: Actor,
    pub(super) sealed: Sealed,
    pub(super) expires_at: Timestamp,
}

/// Keeps what was begun, in place of what the same actor has begun before and of what is too late.
pub(super) async fn begin(tx: &mut TenantTx, tenant: TenantId, begun: &Begun, now: Timestamp) -> Result<()> {
    sqlx::query("delete from connection_attempts where connection_id = $1 and (actor = $2 or expires_at <= $3)")
        .bind(begun.connection.uuid())
        .bind(begun.actor.to_string())
        .bind(now)
        .execute(tx.conn())
        .await?;
    sqlx::query(
        "insert into connection_attempts (tenant_id, state_hash, connection_id, actor, key_id, sealed, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(tenant.uuid())
    .bind(begun.state_hash.as_slice())
    .bind(begun.connection.uuid())
    .bind(begun.actor.to_string())
    .bind(&begun.sealed.key_id)
    .bind(&begun.sealed.bytes)
    .bind(begun.expires_at)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Takes out what the actor has begun, so that nobody finishes it twice; none where it is too late.
pub(super) async fn take(
    tx: &mut TenantTx,
    (state_hash, connection): ([u8; 32], ConnectionId),
    actor: &Actor,
    now: Timestamp,
) -> Result<Option<Sealed>> {
    let row = sqlx::query(
        "delete from connection_attempts
         where state_hash = $1 and connection_id = $2 and actor = $3 and expires_at > $4
         returning key_id, sealed",
    )
    .bind(state_hash.as_slice())
    .bind(connection.uuid())
    .bind(actor.to_string())
    .bind(now)
    .fetch_optional(tx.conn())
    .await?;
    row.map(|row| Ok(Sealed { key_id: row.try_get("key_id")?, bytes: row.try_get("sealed")? })).transpose()
}

/// Forgets everything that was begun for a connection.
pub(super) async fn forget(tx: &mut TenantTx, connection: ConnectionId) -> Result<()> {
    let query = sqlx::query("delete from connection_attempts where connection_id = $1");
    query.bind(connection.uuid()).execute(tx.conn()).await?;
    Ok(())
}

fn read(row: &PgRow) -> Result<Kept> {
    let client: (Option<String>, Option<String>) = (row.try_get("client_id")?, row.try_get("client_issuer")?);
    let grant = sealed(row, "grant_key_id", "grant_sealed")?;
    let broken: Option<Timestamp> = row.try_get("broken_at")?;
    let summary = match &grant {
        None => None,
        Some(_) => Some(GrantSummary {
            issuer: row.try_get("grant_issuer")?,
            scopes: row.try_get("granted")?,
            connected_by: actor(row, "connected_by")?,
            connected_at: row.try_get("connected_at")?,
        }),
    };
    let connection = Connection {
        connection_id: ConnectionId::from_uuid(row.try_get("connection_id")?),
        name: row.try_get("name")?,
        url: row.try_get("url")?,
        status: match (&grant, broken) {
            (None, _) => ConnectionStatus::Pending,
            (Some(_), Some(_)) => ConnectionStatus::Broken,
            (Some(_), None) => ConnectionStatus::Connected,
        },
        scopes: row.try_get("scopes")?,
        client: client.0.zip(client.1).map(|(id, issuer)| Client { id, issuer }),
        grant: summary,
        created_by: actor(row, "created_by")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    };
    let client_secret = sealed(row, "client_key_id", "client_sealed")?;
    Ok(Kept { connection, client_secret, grant, renew_at: row.try_get("renew_at")? })
}

fn sealed(row: &PgRow, key_id: &str, bytes: &str) -> Result<Option<Sealed>> {
    let parts: (Option<String>, Option<Vec<u8>>) = (row.try_get(key_id)?, row.try_get(bytes)?);
    Ok(parts.0.zip(parts.1).map(|(key_id, bytes)| Sealed { key_id, bytes }))
}

fn actor(row: &PgRow, column: &str) -> Result<Actor> {
    row.try_get::<String, _>(column)?.parse().map_err(Error::internal)
}
