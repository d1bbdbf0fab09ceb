//! For tests over a real database.

use std::{fs, path::PathBuf, time::Duration};

use chrono::TimeDelta;
use sqlx::{PgConnection, Row, postgres::PgConnectOptions};
use tokio::sync::watch;

use super::{
    Database,
    cluster::{Cluster, DataDir, Durability},
    migrate,
};
use crate::kernel::{Clock, RunId, TenantId, WorkerId};

/// A server of its own, migrated twice at once, a clock that can be moved, and what tests do over and over.
pub struct Fixture {
    pub cluster: Cluster,
    pub database: Database,
    pub clock: Clock,
    pub moved: watch::Sender<TimeDelta>,
    path: PathBuf,
}

impl Fixture {
    pub async fn start(name: &str) -> Self {
        let fixture = Self::unmigrated(name).await;
        fixture.migrate_twice_at_once().await;
        fixture
    }

    /// A server whose database is empty.
    pub async fn unmigrated(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fermata-{name}-{}", std::process::id()));
        let (clock, moved) = Clock::adjustable();
        let cluster = Cluster::start(DataDir::claim(&path, &clock).unwrap(), Durability::None).await.unwrap();
        let database = connect(cluster.app_options()).await;
        Self { cluster, database, clock, moved, path }
    }

    pub async fn migrate_twice_at_once(&self) {
        let (one, other) = tokio::join!(migrate(self.cluster.admin_options()), migrate(self.cluster.admin_options()));
        one.unwrap();
        other.unwrap();
    }

    pub async fn stop(self) {
        self.database.close();
        self.cluster.stop().await.unwrap();
        fs::remove_dir_all(&self.path).unwrap();
    }

    pub async fn tenant(&self, name: &str) -> TenantId {
        let id = TenantId::new(self.clock.now());
        let mut tx = self.database.tenant(id).await.unwrap();
        sqlx::query("insert into tenants (tenant_id, name, created_at) values ($1, $2, $3)")
            .bind(id.uuid())
            .bind(name)
            .bind(self.clock.now())
            .execute(tx.conn())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// A run that nothing has happened to.
    pub async fn run(&self, tenant: TenantId) -> RunId {
        let id = RunId::new(self.clock.now());
        let mut tx = self.database.tenant(tenant).await.unwrap();
        insert_run(tx.conn(), tenant, id, &self.clock).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// A live run: due now, or waiting for a command.
    pub async fn live_run(&self, tenant: TenantId, due: bool) -> RunId {
        let id = self.run(tenant).await;
        let mut tx = self.database.tenant(tenant).await.unwrap();
        sqlx::query("insert into run_leases (tenant_id, run_id, due_at) values ($1, $2, $3)")
            .bind(tenant.uuid())
            .bind(id.uuid())
            .bind(due.then(|| self.clock.now()))
            .execute(tx.conn())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        id
    }

    pub async fn worker(&self, key: i64) -> WorkerId {
        let id = WorkerId::new(self.clock.now());
        let mut tx = self.database.system().await.unwrap();
        sqlx::query("insert into workers (worker_id, lock_key, alive_until) values ($1, $2, $3)")
            .bind(id.uuid())
            .bind(key)
            .bind(self.clock.now() + Duration::from_secs(60))
            .execute(tx.conn())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        id
    }

    pub async fn claim(&self, worker: WorkerId, most: i32, tenant_most: i32) -> Vec<(uuid::Uuid, uuid::Uuid)> {
        let mut tx = self.database.system().await.unwrap();
        let claimed = sqlx::query("select tenant_id, run_id from claim_runs($1, $2, $3, $4)")
            .bind(worker.uuid())
            .bind(most)
            .bind(tenant_most)
            .bind(self.clock.now())
            .fetch_all(tx.conn())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        claimed.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    pub async fn release_strays(&self, worker: WorkerId, known: &[(uuid::Uuid, uuid::Uuid)]) -> i64 {
        let known: Vec<_> = known.iter().map(|(_, run)| *run).collect();
        let mut tx = self.database.system().await.unwrap();
        let query = sqlx::query_scalar("select release_stray_runs($1, $2, $3)").bind(worker.uuid());
        let freed = query.bind(known).bind(self.clock.now()).fetch_one(tx.conn()).await.unwrap();
        tx.commit().await.unwrap();
        freed
    }

    pub async fn number(&self, query: &'static str) -> i64 {
        let mut tx = self.database.system().await.unwrap();
        let query = sqlx::query_scalar(query).bind(self.clock.now());
        let number = query.fetch_one(tx.conn()).await.unwrap();
        tx.commit().await.unwrap();
        number
    }
}

pub async fn connect(options: PgConnectOptions) -> Database {
    Database::connect(options, 8, Duration::from_secs(20)).await.unwrap()
}

pub async fn insert_run(conn: &mut PgConnection, tenant: TenantId, run: RunId, clock: &Clock) -> sqlx::Result<()> {
    sqlx::query(
        "insert into runs (tenant_id, run_id, status, last_seq, input, created_by, created_at, updated_at)
         values ($1, $2, 'executing', 0, '{}', 'user_1', $3, $3)",
    )
    .bind(tenant.uuid())
    .bind(run.uuid())
    .bind(clock.now())
    .execute(conn)
    .await
    .map(drop)
}
