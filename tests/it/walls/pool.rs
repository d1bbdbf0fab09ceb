//! Transactions of many tenants over few connections, broken off at any await: what one named, the next must not
//! inherit.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use fermata::{
    db::Database,
    kernel::{Clock, Result, TenantId},
};
use futures_util::future::join_all;
use sqlx::Row;
use uuid::Uuid;

use crate::world::{PATIENCE, World, campaign, within};

/// What a task ends with that was made to panic.
struct Meant;

/// How a future is broken off.
#[derive(Clone, Copy)]
enum Cut {
    Dropped,
    Panicking,
}

/// A future that is broken off after so many half steps: before it is polled, or right after it began to wait.
struct Doomed<F> {
    future: Pin<Box<F>>,
    left: usize,
    cut: Cut,
}

impl<F: Future> Doomed<F> {
    fn new(future: F, left: usize, cut: Cut) -> Self {
        Self { future: Box::pin(future), left, cut }
    }

    fn is_over(&mut self) -> bool {
        let over = self.left == 0;
        if over && matches!(self.cut, Cut::Panicking) {
            // Without the panic hook's noise.
            std::panic::resume_unwind(Box::new(Meant));
        }
        self.left = self.left.saturating_sub(1);
        over
    }
}

impl<F: Future> Future for Doomed<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.is_over() {
            return Poll::Ready(None);
        }
        match self.future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.is_over() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// One of these tenants' transactions: sees them and nobody else, and writes a row of the first.
async fn of_tenants(database: Database, tenants: Vec<TenantId>) -> Result<bool> {
    let mut tx = database.tenants(&tenants).await?;
    let mut seen: Vec<Uuid> = sqlx::query_scalar("select tenant_id from tenants").fetch_all(tx.conn()).await?;
    let mut named: Vec<Uuid> = tenants.iter().map(|tenant| tenant.uuid()).collect();
    seen.sort_unstable();
    named.sort_unstable();
    assert_eq!(seen, named, "a transaction sees other tenants than its own");
    let write = "insert into idempotency_keys (tenant_id, route, key, body_hash, created_at, expires_at)
                 values ($1, $1::text, $2, '', $3, $3 + interval '1 day')";
    let write = sqlx::query(write).bind(tenants[0].uuid()).bind(Uuid::now_v7().to_string()).bind(Clock::system().now());
    write.execute(tx.conn()).await?;
    if rand::random_bool(0.8) {
        tx.commit().await?;
        return Ok(true);
    }
    Ok(false)
}

/// A transaction of nobody: it inherits no tenant and sees no row.
async fn of_nobody(database: Database) -> Result<bool> {
    let mut tx = database.system().await?;
    let named = sqlx::query("select current_setting('fermata.tenants', true)").fetch_one(tx.conn()).await?;
    let named: Option<String> = named.get(0);
    assert_eq!(named.unwrap_or_default(), "", "a tenant outlived its transaction");
    let seen = sqlx::query("select from runs").fetch_all(tx.conn()).await.unwrap_err();
    assert_eq!(seen.as_database_error().and_then(|e| e.code()).as_deref(), Some("42501"), "{seen}");
    Ok(false)
}

#[derive(Debug, Default)]
struct Tally {
    committed: usize,
    let_go: usize,
    dropped: usize,
    panicked: usize,
}

/// So many transactions one after the other, each a task of its own.
async fn lane(database: Database, tenants: Vec<TenantId>, count: usize) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..count {
        let first = rand::random_range(0..tenants.len());
        let many = rand::random_range(1..=2);
        let named: Vec<_> = tenants.iter().cycle().skip(first).take(many).copied().collect();
        let (database, nobody) = (database.clone(), rand::random_ratio(1, 4));
        let work = async move { if nobody { of_nobody(database).await } else { of_tenants(database, named).await } };
        // Few enough for most, and for some more than there are.
        let left = if rand::random_bool(0.5) { rand::random_range(0..16) } else { usize::MAX };
        let cut = if rand::random_bool(0.5) { Cut::Dropped } else { Cut::Panicking };
        match tokio::spawn(Doomed::new(work, left, cut)).await {
            Ok(Some(Ok(true))) => tally.committed += 1,
            Ok(Some(done)) => tally.let_go += usize::from(!done.unwrap()),
            Ok(None) => tally.dropped += 1,
            Err(panic) => {
                let cause = panic.into_panic();
                if !cause.is::<Meant>() {
                    std::panic::resume_unwind(cause);
                }
                tally.panicked += 1;
            }
        }
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_transaction_outlives_it_however_it_ends() {
    const LANES: usize = 16;
    let count = campaign::scale(200_000, 20_000);
    let world = World::without_worker(|_| ()).await;
    let database = Database::connect(world.logins().app.clone(), 4, PATIENCE).await.unwrap();
    let tenants = [world.home(), world.abroad()].to_vec();
    let lanes = (0..LANES).map(|_| tokio::spawn(lane(database.clone(), tenants.clone(), count / LANES)));
    let tallies: Vec<Tally> = join_all(lanes).await.into_iter().map(Result::unwrap).collect();
    let sum = |part: fn(&Tally) -> usize| tallies.iter().map(part).sum::<usize>();
    let (committed, let_go) = (sum(|tally| tally.committed), sum(|tally| tally.let_go));
    let (dropped, panicked) = (sum(|tally| tally.dropped), sum(|tally| tally.panicked));
    println!("{count} transactions: {committed} committed, {let_go} let go, {dropped} dropped, {panicked} panicked");
    for part in [committed, let_go, dropped, panicked] {
        assert!(part > count / 20, "too few to prove anything");
    }
    let mut superuser = world.superuser().await;
    let (rows, strays): (i64, i64) =
        sqlx::query_as("select count(*), count(*) filter (where route <> tenant_id::text) from idempotency_keys")
            .fetch_one(&mut superuser)
            .await
            .unwrap();
    assert_eq!(strays, 0, "rows went to another tenant");
    assert!(rows >= i64::try_from(committed).unwrap(), "{rows} rows of {committed} commits");
    // And no connection keeps a transaction open, which would hold back the tenant streams.
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
    let settled = async { while sqlx::query_scalar::<_, i64>(open).fetch_one(&mut superuser).await.unwrap() > 0 {} };
    within("the end of every transaction", settled).await;
}
