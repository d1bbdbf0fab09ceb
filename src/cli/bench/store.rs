use std::time::Instant;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Result, postgres::PgConnectOptions};
use uuid::Uuid;

/// About what an event is.
const BODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// What is committed again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// One row, in a transaction of its own.
    Row,
    /// The same with the tenant set in the transaction, under a policy that looks at it.
    RowOfTenant,
    /// A hundred rows at once.
    Hundred,
}

/// A schema of our own with a table in it, and another behind a policy like that of every tenant's table.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    database: PgConnectOptions,
    schema: String,
}

impl Ground {
    /// Makes it. The login must be allowed to.
    pub(super) async fn make(database: PgConnectOptions) -> Result<Self> {
        let schema = format!("fermata_bench_{}", std::process::id());
        let ground = Self { database, schema };
        let Self { schema, .. } = &ground;
        ground
            .say(format!(
                "create schema {schema};
                 create table {schema}.plain (
                   id bigint generated always as identity primary key, tenant_id uuid not null, body text not null);
                 create table {schema}.walled (like {schema}.plain including all);
                 alter table {schema}.walled enable row level security;
                 alter table {schema}.walled force row level security;
                 create policy tenant on {schema}.walled
                   using (tenant_id = any ((select public.current_tenants())::uuid[]))
                   with check (tenant_id = any ((select public.current_tenants())::uuid[]));"
            ))
            .await?;
        Ok(ground)
    }

    /// Drops it and everything in it.
    pub(super) async fn remove(&self) -> Result<()> {
        self.say(format!("drop schema if exists {} cascade", self.schema)).await
    }

    /// Commits pieces, one after the other, until then; returns how many.
    pub(super) async fn commit(self, piece: Piece, until: Instant) -> Result<u64> {
        let Self { database, schema } = self;
        let mut conn = PgConnection::connect_with(&database).await?;
        let (table, rows) = match piece {
            Piece::Row => ("plain", 1),
            Piece::RowOfTenant => ("walled", 1),
            Piece::Hundred => ("plain", 100),
        };
        let insert = match rows {
            1 => format!("insert into {schema}.{table} (tenant_id, body) values ($1, $2)"),
            _ => {
                format!("insert into {schema}.{table} (tenant_id, body) select $1, $2 from generate_series(1, {rows})")
            }
        };
        let (tenant, mut done) = (Uuid::now_v7(), 0);
        // As `db::TenantTx` does it.
        let begin = format!("begin; select set_config('fermata.tenants', '{tenant}', true)");
        while Instant::now() < until {
            let insert = sqlx::query(AssertSqlSafe(insert.as_str())).bind(tenant).bind(BODY);
            if piece == Piece::RowOfTenant {
                let mut tx = conn.begin_with(AssertSqlSafe(begin.clone())).await?;
                insert.execute(&mut *tx).await?;
                tx.commit().await?;
            } else {
                insert.execute(&mut conn).await?;
            }
            done += 1;
        }
        conn.close().await?;
        Ok(done)
    }

    async fn say(&self, sql: String) -> Result<()> {
        let mut conn = PgConnection::connect_with(&self.database).await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await?;
        conn.close().await
    }
}
