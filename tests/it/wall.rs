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
async fn who_is_not_let_in_is_told_why() {
    let world = World::new().await;
    let nowhere = world.logins().app.clone().database("nowhere");
    let error = Database::connect(nowhere, 1, PATIENCE).await.unwrap_err();
    let told = std::error::Error::source(&error).unwrap().to_string();
    assert!(told.contains("refuses the login") && told.contains("nowhere"), "{told}");
}
