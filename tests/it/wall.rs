//! The wall between tenants, as the database's own catalogue has it.

use fermata::db::{Database, guard};
use sqlx::{AssertSqlSafe, Connection, postgres::PgConnectOptions};

use crate::world::{PATIENCE, World};

async fn open(login: &PgConnectOptions) -> Database {
    Database::connect(login.clone(), 1, PATIENCE).await.unwrap()
}

async fn findings(login: &PgConnectOptions) -> String {
    let database = open(login).await;
    let found = guard::login(&database).await.unwrap();
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn every_table_is_behind_it() {
    let world = World::new().await;
    assert_eq!(guard::schema(world.database()).await.unwrap(), []);
    assert_eq!(guard::version(world.database()).await.unwrap(), []);
    assert_eq!(guard::limits(world.database()).await.unwrap(), []);
}

#[tokio::test]
async fn a_table_nobody_thought_of_is_found() {
    let world = World::new().await;
    for (statement, table) in [
        ("create table loose (tenant_id uuid not null)", "loose"),
        ("alter table runs no force row level security", "runs"),
        ("create policy open on approvals for select to fermata_app using (true)", "approvals"),
    ] {
        let mut superuser = world.superuser().await;
        let mut tx = superuser.begin().await.unwrap();
        let owned = format!("set local role fermata_owner; {statement}; reset role");
        sqlx::raw_sql(AssertSqlSafe(owned)).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let found = guard::schema(world.database()).await.unwrap();
        assert!(found.iter().any(|finding| finding.fault.contains(table)), "{statement}: {found:#?}");
    }
}

#[tokio::test]
async fn too_strong_a_login_is_refused() {
    let world = World::new().await;
    let logins = world.logins();
    assert_eq!(findings(&logins.app).await, "");
    assert!(findings(&logins.superuser).await.contains("superuser"), "{}", findings(&logins.superuser).await);
    assert!(findings(&logins.owner).await.contains("own"), "{}", findings(&logins.owner).await);
}

#[tokio::test]
async fn a_transaction_sees_its_tenant_and_nobody_else() {
    let world = World::new().await;
    world.operator().start(serde_json::json!([{ "id": "a", "uses": "debug.echo" }])).await.completes().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid
         where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace and a.attname = 'tenant_id'
           and has_table_privilege('fermata_app', c.oid, 'select')",
    )
    .fetch_all(&mut world.superuser().await)
    .await
    .unwrap();
    assert!(tables.len() >= 8, "{tables:?}");
    for table in tables {
        let count = format!("select count(*) from {table} where tenant_id <> $1");
        let mut tx = world.database().tenant(world.abroad()).await.unwrap();
        let foreign: i64 =
            sqlx::query_scalar(AssertSqlSafe(count)).bind(world.abroad().uuid()).fetch_one(tx.conn()).await.unwrap();
        assert_eq!(foreign, 0, "{table}");
        let mut tx = world.database().system().await.unwrap();
        let all = sqlx::query_scalar::<_, i64>(AssertSqlSafe(format!("select count(*) from {table}")));
        let seen = all.fetch_one(tx.conn()).await;
        assert!(!matches!(seen, Ok(1..)), "without a tenant {table} shows rows: {seen:?}");
    }
}
