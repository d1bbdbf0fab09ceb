//! SQL of what tools have become since they were pinned, and of whom that was asked about.

use sqlx::{Row, types::Json};

use super::{change::Change, pin::Pinned};
use crate::{
    db::TenantTx,
    kernel::{Error, Result, RunId, TenantId, Timestamp},
};

/// Notes what a tool is now, in place of what was noted before.
pub(super) async fn note(
    tx: &mut TenantTx,
    tenant: TenantId,
    server: &str,
    seen: &Pinned,
    at: Timestamp,
) -> Result<()> {
    sqlx::query(
        "insert into mcp_changes (tenant_id, server, tool, seen, digest, seen_at) values ($1, $2, $3, $4, $5, $6)
         on conflict (tenant_id, server, tool) do update
           set seen = excluded.seen, digest = excluded.digest, seen_at = excluded.seen_at
         where mcp_changes.digest <> excluded.digest",
    )
    .bind(tenant.uuid())
    .bind(server)
    .bind(&seen.tool.name)
    .bind(Json(seen))
    .bind(&seen.digest)
    .bind(at)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// What is noted of the tools of a server, or of all servers, by name.
pub(super) async fn changes(tx: &mut TenantTx, server: Option<&str>) -> Result<Vec<(String, Change)>> {
    let rows = sqlx::query(
        "select server, seen, seen_at from mcp_changes where $1::text is null or server = $1 order by server, tool",
    )
    .bind(server)
    .fetch_all(tx.conn())
    .await?;
    let read = |row: &sqlx::postgres::PgRow| {
        let Json(seen): Json<Pinned> = row.try_get("seen").map_err(Error::internal)?;
        Ok((row.try_get("server")?, Change { pinned: None, seen, seen_at: row.try_get("seen_at")? }))
    };
    rows.iter().map(read).collect()
}

/// Forgets what is noted of a tool, or of all tools of a server.
pub(super) async fn forget(tx: &mut TenantTx, server: &str, tool: Option<&str>) -> Result<()> {
    sqlx::query("delete from mcp_changes where server = $1 and ($2::text is null or tool = $2)")
        .bind(server)
        .bind(tool)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Keeps that the run asks about what a tool has become; not, where that was asked already, so many changes of the tool
/// were, or so many questions about the server's tools wait for somebody.
pub(super) async fn ask(
    tx: &mut TenantTx,
    tenant: TenantId,
    server: &str,
    seen: &Pinned,
    (run, most): (RunId, i64),
    at: Timestamp,
) -> Result<bool> {
    let asked = sqlx::query(
        "insert into mcp_questions (tenant_id, server, tool, digest, run_id, asked_at)
         select $1, $2, $3, $4, $5, $6
         where (select count(*) from mcp_questions where server = $2 and tool = $3) < $7
           and (select count(*) from mcp_questions join runs using (tenant_id, run_id) where server = $2
                and status in ('idle', 'planning', 'executing', 'awaiting_approval')) < $7
         on conflict do nothing",
    )
    .bind(tenant.uuid())
    .bind(server)
    .bind(&seen.tool.name)
    .bind(&seen.digest)
    .bind(run.uuid())
    .bind(at)
    .bind(most)
    .execute(tx.conn())
    .await?;
    Ok(asked.rows_affected() > 0)
}

/// Forgets that this run was to ask.
pub(super) async fn unask(tx: &mut TenantTx, run: RunId) -> Result<()> {
    sqlx::query("delete from mcp_questions where run_id = $1").bind(run.uuid()).execute(tx.conn()).await?;
    Ok(())
}

/// Forgets what was asked about a tool, or about all tools of a server but those that are still asked about; gives the runs
/// that asked.
pub(super) async fn take_questions(
    tx: &mut TenantTx,
    server: &str,
    tool: Option<&str>,
    still: &[&str],
) -> Result<Vec<RunId>> {
    let rows = sqlx::query(
        "delete from mcp_questions where server = $1 and ($2::text is null or tool = $2) and tool <> all ($3)
         returning run_id",
    )
    .bind(server)
    .bind(tool)
    .bind(still)
    .fetch_all(tx.conn())
    .await?;
    rows.iter().map(|row| Ok(RunId::from_uuid(row.try_get("run_id")?))).collect()
}
