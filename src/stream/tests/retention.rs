//! What retention drops is never missing in silence.

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::process::{Open, Process, World, last_id, problem, write};
use crate::{
    config::StreamSettings,
    kernel::{RunId, Span, TenantId},
};

const HELLO: &str = "retry: 1000\n\n";
const TENANT: &str = "/workflow/events";

fn path(run: RunId) -> String {
    format!("/workflow/runs/{run}/events")
}

/// A run of so many events, the last of which ended it now.
async fn ended(world: &World, tenant: TenantId, events: usize) -> RunId {
    let run = world.run(tenant).await;
    for begun in (1..events).step_by(500) {
        world.write(tenant, run, &vec!["tool.progress"; 500.min(events - begun)]).await;
    }
    world.write(tenant, run, &["completed"]).await;
    end(world, tenant, run).await;
    run
}

async fn end(world: &World, tenant: TenantId, run: RunId) {
    let mut tx = world.database.tenant(tenant).await.unwrap();
    let ended = sqlx::query("update runs set finished_at = '-infinity' where run_id = $1").bind(run.uuid());
    ended.execute(tx.conn()).await.unwrap();
    tx.commit().await.unwrap();
}

/// Drops at most so many rows of what has ended.
async fn forget(world: &World, most: i64) {
    let mut tx = world.database.system().await.unwrap();
    let query = sqlx::query("select forget_runs($1, $2)").bind(world.clock.now()).bind(most);
    query.execute(tx.conn()).await.unwrap();
    tx.commit().await.unwrap();
}

/// The word of a run's missing events.
fn gap(run: RunId, first: u64, last: u64) -> String {
    let payload = format!(r#"{{"firstMissing":"evt_{first}","lastMissing":"evt_{last}"}}"#);
    let json = format!(r#"{{"runId":"{run}","step":"gap","level":"warn","payload":{payload}}}"#);
    format!("id: evt_{last}\nevent: gap\ndata: {json}\n\n")
}

#[tokio::test]
async fn a_run_s_stream_says_what_is_missing_and_goes_on_with_what_is_left() {
    let world = World::start("retention-run").await;
    let tenant = world.tenant("one").await;
    let process = world.process(StreamSettings::default(), true);
    let other = world.process(StreamSettings::default(), true);
    let run = ended(&world, tenant, 3000).await;
    let whole = world.table(tenant, run, 0).await;
    // Both have had a page of it when the rest is dropped, one of them up to the middle of what is left.
    let mut half = process.open(tenant, &path(run), &[]).await;
    let begun = half.events(1024).await;
    let mut most = process.open(tenant, &path(run), &[("last-event-id", "evt_1030")]).await;
    let read = most.events(1).await;
    forget(&world, 2500).await;
    let left = world.table(tenant, run, 0).await;
    assert_eq!(begun + &half.rest().await, format!("{HELLO}{}{}{left}", until(&whole, 2048), gap(run, 2049, 2500)));
    let seen = until(&whole, 2048)[until(&whole, 1030).len()..].to_owned();
    assert_eq!(read + &most.rest().await, format!("{HELLO}{seen}{}{left}", gap(run, 2049, 2500)));
    // Who comes back, or comes for the first time, hears of it once, and behind it not again.
    for (last, missing) in
        [(None, gap(run, 1, 2500)), (Some("evt_7"), gap(run, 8, 2500)), (Some("evt_2500"), String::new())]
    {
        let headers = last.map(|last| ("last-event-id", last));
        let all = other.open(tenant, &path(run), headers.as_slice()).await.rest().await;
        assert_eq!(all, format!("{HELLO}{missing}{left}"));
    }
    assert_eq!(
        page(&other, tenant, run, "").await["gap"],
        json!({ "firstMissing": "evt_1", "lastMissing": "evt_2500" })
    );
    assert_eq!(page(&other, tenant, run, "?cursor=evt_2500").await["gap"], Value::Null);

    // All but the row of the run, and then that too.
    let fresh = world.process(StreamSettings::default(), false);
    let behind = fresh.open(tenant, &path(run), &[("last-event-id", "evt_2400")]).await;
    forget(&world, 500).await;
    let empty = page(&other, tenant, run, "?cursor=evt_2990").await;
    assert_eq!(empty, json!({ "gap": { "firstMissing": "evt_2991", "lastMissing": "evt_3000" }, "items": [] }));
    let late = fresh.open(tenant, &path(run), &[("last-event-id", "evt_2990")]).await;
    forget(&world, 500).await;
    assert_eq!(late.rest().await, format!("{HELLO}{}", gap(run, 2991, 3000)));
    assert_eq!(behind.rest().await, format!("{HELLO}{}", gap(run, 2401, 3000)));
    assert_eq!(problem(other.get(tenant, &path(run), &[("last-event-id", "evt_7")]).await).await.0, 404);
    world.stop(vec![process, other, fresh]).await;
}

/// The events up to that number, as they are sent.
fn until(whole: &str, seq: u64) -> String {
    let next = whole.find(&format!("id: evt_{}\n", seq + 1)).unwrap();
    whole[..next].to_owned()
}

async fn page(process: &Process, tenant: TenantId, run: RunId, query: &str) -> Value {
    let response = process.get(tenant, &format!("{}{query}", path(run)), &[("accept", "application/json")]).await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn a_stream_ends_whose_run_went_before_its_end_was_heard_of() {
    let world = World::start("retention-deaf").await;
    let tenant = world.tenant("one").await;
    let settings = StreamSettings { poll: Span(Duration::from_millis(20)), ..StreamSettings::default() };
    let process = world.process(settings, false);
    let run = world.run(tenant).await;
    process.commit(&world, tenant, run, &["idle"]).await;
    let mut open = process.open(tenant, &path(run), &[]).await;
    open.events(1).await;
    // All at once, so that no look at the table comes between.
    let mut tx = world.database.tenant(tenant).await.unwrap();
    write(&mut tx, tenant, run, &["completed"]).await;
    for statement in ["update runs set finished_at = '-infinity'", "select forget_runs(now(), 1000)"] {
        sqlx::query(statement).execute(tx.conn()).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(open.rest().await, "");
    world.stop(vec![process]).await;
}

/// The tenant's events, in the order of commits.
async fn table(world: &World, tenant: TenantId) -> Vec<String> {
    let mut tx = world.database.tenant(tenant).await.unwrap();
    sqlx::query_scalar("select data::text from run_events order by xact, run_id, seq")
        .fetch_all(tx.conn())
        .await
        .unwrap()
}

/// The events of the text by name and data.
fn events(text: &str) -> Vec<(&str, &str)> {
    let field = |event: &'_ str, name: &str| event.find(name).map(|at| at + name.len());
    let line = |event, name| field(event, name).and_then(|at| event.get(at..)?.lines().next());
    text.split("\n\n").filter_map(|event| Some((line(event, "event: ")?, line(event, "data: ")?))).collect()
}

#[tokio::test]
async fn a_tenant_s_stream_says_that_something_is_missing_before_what_is_left() {
    let world = World::start("retention-tenant").await;
    let (tenant, other) = (world.tenant("one").await, world.tenant("other").await);
    let process = world.process(StreamSettings::default(), true);
    let live = world.run(tenant).await;
    world.write(tenant, live, &["idle"]).await;
    ended(&world, tenant, 1500).await;
    world.write(tenant, live, &["planning"]).await;
    ended(&world, tenant, 10).await;
    world.write(tenant, live, &["executing"]).await;
    let untouched = world.run(other).await;
    world.write(other, untouched, &["idle"]).await;
    // It has had a part when the rest is dropped; the present is behind all of it.
    let mut open = process.open(tenant, "/workflow/events?from=start", &[]).await;
    let mut begun = open.events(512).await;
    let mut now = process.open(tenant, TENANT, &[]).await;
    forget_all(&world, tenant).await;
    world.write(tenant, live, &["completed"]).await;
    assert_eq!(table(&world, tenant).await.len(), 4);

    // What was read before it was dropped still comes, and then the word of what was not.
    let mut gap = open.events(1).await;
    while !gap.contains("\nevent: gap\n") {
        begun += &std::mem::replace(&mut gap, open.events(1).await);
    }
    let rest = gap + &open.events(3).await;
    let names: Vec<_> = events(&rest).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["gap", "planning", "executing", "completed"]);
    let said = events(&now.events(1).await).into_iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(said, ["completed"]);
    resumed(&process, tenant, &begun, &rest).await;
    once_in_many_pages(&world, &process).await;

    let mut open = process.open(other, "/workflow/events?from=start", &[]).await;
    assert_eq!(events(&open.events(1).await)[0].0, "idle");
    world.stop(vec![process]).await;
}

/// Drops in small steps all there is to drop.
async fn forget_all(world: &World, tenant: TenantId) {
    while table(world, tenant).await.len() > 3 {
        forget(world, 400).await;
    }
}

/// Any cursor is good for exactly the rest; those before the last missing event hear of it.
async fn resumed(process: &Process, tenant: TenantId, begun: &str, rest: &str) {
    let after = async |cursor: &str, query: &str, count: usize| {
        let mut open: Open = process.open(tenant, &format!("{TENANT}{query}"), &[("last-event-id", cursor)]).await;
        open.events(count).await
    };
    let names = |text: &str| events(text).iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
    let ids: Vec<_> = rest.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert_eq!(names(&after(&last_id(begun), "", 4).await), ["gap", "planning", "executing", "completed"]);
    // Something is missing before `executing` too, so who comes back with the gap's own id is told again.
    assert_eq!(names(&after(ids[0], "", 4).await), ["gap", "planning", "executing", "completed"]);
    assert_eq!(names(&after(ids[1], "", 3).await), ["gap", "executing", "completed"]);
    assert_eq!(names(&after(ids[2], "", 1).await), ["completed"]);
    // Behind `until` nothing is missing.
    let (_, data) = events(rest)[0];
    let gap: Value = serde_json::from_str(data).unwrap();
    assert_eq!((&gap["tenantId"], &gap["step"]), (&json!(tenant), &json!("gap")));
    assert_eq!(names(&after(gap["payload"]["until"].as_str().unwrap(), "", 2).await), ["executing", "completed"]);
    // A filter lets the word through and is kept by its cursor.
    let mut some = process.open(tenant, "/workflow/events?from=start&types=completed", &[]).await;
    let some = some.events(2).await;
    assert_eq!(names(&some), ["gap", "completed"]);
    let id = some.lines().filter_map(|line| line.strip_prefix("id: ")).nth(1).unwrap();
    assert!(id.ends_with("~completed"), "{id}");
    assert_eq!(names(&after(id, "", 1).await), ["completed"]);
}

async fn once_in_many_pages(world: &World, process: &Process) {
    let tenant = world.tenant("long").await;
    let live = world.run(tenant).await;
    for _ in 0..3 {
        world.write(tenant, live, &["tool.progress"; 500]).await;
    }
    ended(world, tenant, 10).await;
    forget(world, 1000).await;
    let mut open = process.open(tenant, "/workflow/events?from=start", &[]).await;
    let text = open.events(1501).await;
    let names: Vec<_> = events(&text).into_iter().map(|(name, _)| name).collect();
    assert_eq!((names[0], names.iter().filter(|name| **name == "gap").count(), names.len()), ("gap", 1, 1501));
}

#[tokio::test]
async fn what_went_before_the_horizon_reached_it_is_missed_by_those_who_kept_up() {
    let world = World::start("retention-hidden").await;
    let tenant = world.tenant("one").await;
    let process = world.process(StreamSettings::default(), true);
    let live = world.run(tenant).await;
    let mut slow = world.database.tenant(tenant).await.unwrap();
    write(&mut slow, tenant, live, &["idle"]).await;
    let mut open = process.open(tenant, TENANT, &[]).await;
    ended(&world, tenant, 5).await;
    forget(&world, 1000).await;
    slow.commit().await.unwrap();
    world.write(tenant, live, &["planning"]).await;
    let text = open.events(3).await;
    let mut names: Vec<_> = events(&text).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.iter().filter(|name| **name == "gap").count(), 1);
    names.retain(|name| *name != "gap");
    assert_eq!(names, ["idle", "planning"]);
    world.stop(vec![process]).await;
}
