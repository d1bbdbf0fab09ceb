//! Workers that stand still past their lease and wake.

use std::time::Duration;

use fermata::auth::Role;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use sqlx::PgConnection;

use super::{
    audit,
    load::Load,
    patient::Patient,
    scale,
    site::{Server, Site},
};
use crate::world::{Upstream, within};

/// How often the database is asked about other processes, which tell nobody of it.
const LOOK: Duration = Duration::from_millis(10);

/// A worker that is given up soon.
fn worker(site: &Site) -> Server {
    let mut worker = site.server("worker");
    worker.set("FERMATA_WORKER_LEASE", "600ms");
    worker.set("FERMATA_WORKER_POLL", "200ms");
    worker
}

/// Those taken for alive.
async fn living(database: &mut PgConnection) -> Vec<uuid::Uuid> {
    let query = "select worker_id from workers where alive_until > clock_timestamp() order by 1";
    sqlx::query_scalar(query).fetch_all(database).await.unwrap()
}

/// Waits until the living fit.
async fn until(database: &mut PgConnection, what: &str, fits: impl Fn(&[uuid::Uuid]) -> bool) -> Vec<uuid::Uuid> {
    let waiting = async {
        loop {
            let living = living(database).await;
            if fits(&living) {
                return living;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    within(what, waiting).await
}

/// Waits until the answer to `query` is yes.
async fn until_so(database: &mut PgConnection, what: &str, query: &'static str, workers: &[uuid::Uuid]) {
    let waiting = async {
        while !sqlx::query_scalar::<_, bool>(query).bind(workers).fetch_one(&mut *database).await.unwrap() {
            tokio::time::sleep(LOOK).await;
        }
    };
    within(what, waiting).await;
}

async fn until_given_up(database: &mut PgConnection, workers: &[uuid::Uuid]) {
    let query = "select not exists (select from workers where worker_id = any ($1) and alive_until > '-infinity')";
    until_so(database, "a worker that is given up", query, workers).await;
}

#[tokio::test]
async fn workers_that_freeze_past_their_lease_commit_nothing_twice() {
    let (site, sink) = (Site::new().await, Upstream::start().await);
    let mut api = site.server("api");
    let mut workers = [worker(&site), worker(&site)];
    api.start().await;
    for worker in &mut workers {
        worker.start().await;
    }
    let mut database = site.superuser().await;
    let load = Load::begin(&site, &[&api], &sink, 24);
    let cycles = scale(500, 8);
    let mut held = 0;
    for cycle in 0..cycles {
        let before = until(&mut database, "two living workers", |living| living.len() == 2).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..100))).await;
        let frozen = &workers[cycle % 2];
        frozen.signal(Signal::STOP);
        let left = until(&mut database, "the end of a lease", |living| {
            living.iter().filter(|id| before.contains(id)).count() < 2
        })
        .await;
        let gone: Vec<_> = before.into_iter().filter(|id| !left.contains(id)).collect();
        let holds = "select count(*) from run_leases where worker_id = any ($1)";
        held += sqlx::query_scalar::<_, i64>(holds).bind(&gone).fetch_one(&mut database).await.unwrap();
        until_given_up(&mut database, &gone).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..100))).await;
        frozen.signal(Signal::CONT);
    }
    assert!(held > 0, "no worker froze with work in its hands");
    // Every run of the load came to the end it had to come to, or this panics.
    let facts = load.finish().await;
    let found = audit::all_is_well(&site, &sink, &facts).await;
    println!("frozen: {cycles} cycles, {held} runs held by a worker given up; {found}");
}

#[tokio::test]
async fn a_worker_that_wakes_after_its_lease_does_not_make_the_call_it_was_about_to_make() {
    let (site, sink) = (Site::new().await, Upstream::start().await);
    let (mut api, mut first, mut second) = (site.server("api"), worker(&site), worker(&site));
    api.start().await;
    first.start().await;
    let (mut database, mut blocker) = (site.superuser().await, site.superuser().await);
    let operator = Patient::new(&site.client("", site.tenants[0], &[Role::Operator]), &[&api]);
    let before = until(&mut database, "a living worker", |living| living.len() == 1).await;
    let call = json!({ "method": "POST", "url": sink.url("/act"), "json": {} });
    let body = json!({ "plan": [{ "id": "before", "uses": "debug.sleep", "with": { "ms": 1000 } },
                                { "id": "act", "needs": ["before"], "uses": "http.request", "with": call }] });
    let run = operator.ask(|client| client.request(Method::POST, "/agent/execute").json(&body)).await.expect(202);
    let path = format!("/workflow/runs/{}/events", run["runId"].as_str().unwrap());
    within("the step before", operator.follow(&path, None, |event| event.name == "step.started")).await;
    // The intent cannot be journaled to its end as long as this table is locked.
    sqlx::raw_sql("begin; lock table run_events in share mode").execute(&mut blocker).await.unwrap();
    let waits = "select $1::uuid[] is not null and exists
                 (select from pg_locks where relation = 'run_events'::regclass and not granted)";
    until_so(&mut database, "an intent that waits", waits, &[]).await;
    first.signal(Signal::STOP);
    second.start().await;
    until(&mut database, "the end of the lease", |living| !living.contains(&before[0]) && living.len() == 1).await;
    until_given_up(&mut database, &before).await;
    sqlx::raw_sql("rollback").execute(&mut blocker).await.unwrap();
    first.signal(Signal::CONT);
    let asked = operator.follow(&path, None, |event| event.name == "awaiting_approval");
    let events = within("the question", asked).await;
    assert_eq!(events.last().unwrap().data["payload"]["question"], "repeat");
    assert!(sink.requests().is_empty(), "it was called after the lease");
}
