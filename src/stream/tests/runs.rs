use std::time::Duration;

use axum::http::StatusCode;
use chrono::TimeDelta;
use http_body_util::BodyExt;

use super::process::{Open, Process, World, problem};
use crate::{
    config::StreamSettings,
    kernel::{RunId, Span, TenantId},
};

const HELLO: &str = "retry: 1000\n\n";

fn path(run: RunId) -> String {
    format!("/workflow/runs/{run}/events")
}

#[tokio::test]
async fn a_client_gets_what_the_table_has_whoever_wrote_it() {
    let world = World::start("runs").await;
    let tenant = world.tenant("one").await;
    let one = world.process(StreamSettings::default(), true);
    let two = world.process(StreamSettings::default(), true);
    // This one hears nothing and has to look.
    let deaf = world.process(StreamSettings::default(), false);
    live_and_to_the_end(&world, tenant, &one).await;
    across_processes(&world, tenant, [&one, &two, &deaf]).await;
    a_long_history(&world, tenant, &one).await;
    a_page(&world, tenant, &one).await;
    refusals(&world, tenant, &one).await;
    the_end_of_a_token(&world, tenant, &one).await;
    let (run, mut open) = started(&world, tenant, &two).await;
    open.events(1).await;
    two.stopping.cancel();
    assert_eq!(open.rest().await, "");
    assert_eq!(problem(two.get(tenant, &path(run), &[]).await).await.0, 503);
    world.stop(vec![one, two, deaf]).await;
}

async fn started(world: &World, tenant: TenantId, process: &Process) -> (RunId, Open) {
    let run = world.run(tenant).await;
    process.commit(world, tenant, run, &["idle"]).await;
    let open = process.open(tenant, &path(run), &[]).await;
    (run, open)
}

async fn live_and_to_the_end(world: &World, tenant: TenantId, process: &Process) {
    let (run, mut open) = started(world, tenant, process).await;
    let first = open.events(1).await;
    process.commit(world, tenant, run, &["planning", "plan.ready"]).await;
    let more = open.events(2).await;
    process.commit(world, tenant, run, &["failed"]).await;
    // The end, and not the end: another process retries the run while the client reads.
    let rest = open.rest().await;
    assert_eq!(format!("{first}{more}{rest}"), format!("{HELLO}{}", world.table(tenant, run, 0).await));
    let again = process.get(tenant, &path(run), &[("last-event-id", "evt_4")]).await;
    assert_eq!(again.status(), StatusCode::NO_CONTENT);
    world.write(tenant, run, &["executing", "completed"]).await;
    let rest = process.open(tenant, &format!("{}?lastEventId=evt_4", path(run)), &[]).await.rest().await;
    assert_eq!(rest, format!("{HELLO}{}", world.table(tenant, run, 4).await));
    let all = process.open(tenant, &path(run), &[]).await.rest().await;
    assert_eq!(all, format!("{HELLO}{}", world.table(tenant, run, 0).await));
}

async fn across_processes(world: &World, tenant: TenantId, processes: [&Process; 3]) {
    let run = world.run(tenant).await;
    processes[0].commit(world, tenant, run, &["idle"]).await;
    let mut open = Vec::new();
    for process in processes {
        for _ in 0..3 {
            open.push(process.open(tenant, &path(run), &[]).await);
        }
    }
    for round in 0..20 {
        processes[round % 3].commit(world, tenant, run, &["tool.progress", "tool.progress"]).await;
    }
    processes[1].commit(world, tenant, run, &["completed"]).await;
    let expected = format!("{HELLO}{}", world.table(tenant, run, 0).await);
    for open in open {
        assert_eq!(open.rest().await, expected);
    }
}

async fn a_long_history(world: &World, tenant: TenantId, process: &Process) {
    let run = world.run(tenant).await;
    for _ in 0..6 {
        world.write(tenant, run, &["tool.progress"; 500]).await;
    }
    let mut open = process.open(tenant, &path(run), &[("last-event-id", "evt_700")]).await;
    process.commit(world, tenant, run, &["completed"]).await;
    let some = open.events(1).await;
    assert_eq!(some + &open.rest().await, format!("{HELLO}{}", world.table(tenant, run, 700).await));
}

async fn a_page(world: &World, tenant: TenantId, process: &Process) {
    let run = world.run(tenant).await;
    world.write(tenant, run, &["idle", "planning", "executing"]).await;
    let json = [("accept", "application/json")];
    let read = async |query: &str| {
        let response = process.get(tenant, &format!("{}?{query}", path(run)), &json).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()
    };
    let first = read("limit=2").await;
    assert_eq!(first["items"][1]["eventId"], "evt_2");
    assert_eq!(first["nextCursor"], "evt_2");
    let last = read("limit=2&cursor=evt_2").await;
    assert_eq!(last["items"].as_array().map(Vec::len), Some(1));
    assert!(last.get("nextCursor").is_none());
}

async fn refusals(world: &World, tenant: TenantId, process: &Process) {
    let run = world.run(tenant).await;
    world.write(tenant, run, &["idle"]).await;
    let (events, stranger) = (path(run), world.tenant("stranger").await);
    let json = [("accept", "application/json")];
    for (who, path, headers, expected) in [
        (tenant, events.clone(), vec![("last-event-id", "evt_x")], (400, "malformed-cursor")),
        (tenant, format!("{events}?lastEventId="), vec![], (400, "malformed-cursor")),
        (tenant, events.clone(), vec![("last-event-id", "evt_2")], (409, "cursor-beyond-head")),
        (tenant, format!("{events}?cursor=evt_2"), json.to_vec(), (409, "cursor-beyond-head")),
        (tenant, format!("{events}?cursor=p2"), json.to_vec(), (400, "malformed-cursor")),
        (tenant, format!("{events}?limit=201"), json.to_vec(), (422, "invalid-input")),
        (tenant, format!("{events}?limit=2"), vec![], (400, "malformed-request")),
        (tenant, format!("{events}?lastEventId=evt_1"), json.to_vec(), (400, "malformed-request")),
        (tenant, events.clone(), vec![("accept", "text/html")], (406, "not-acceptable")),
        (tenant, format!("{events}?offset=2"), vec![], (400, "malformed-request")),
        (tenant, "/workflow/runs/wf_1/events".to_owned(), vec![], (400, "malformed-request")),
        (tenant, self::path(RunId::new(world.clock.now())), vec![], (404, "not-found")),
        (stranger, events.clone(), vec![], (404, "not-found")),
        (stranger, events.clone(), json.to_vec(), (404, "not-found")),
    ] {
        let (status, slug) = problem(process.get(who, &path, &headers).await).await;
        assert_eq!((status, slug.as_str()), expected, "{path} {headers:?}");
    }
}

async fn the_end_of_a_token(world: &World, tenant: TenantId, process: &Process) {
    let (run, mut open) = started(world, tenant, process).await;
    open.events(1).await;
    world.moved.send(TimeDelta::seconds(16)).unwrap();
    // Nothing was said for 15 s.
    while open.text.is_empty() {
        open.piece().await;
    }
    assert_eq!(std::mem::take(&mut open.text), ":\n\n");
    world.moved.send(TimeDelta::seconds(3601)).unwrap();
    process.commit(world, tenant, run, &["planning"]).await;
    assert!(!open.rest().await.contains("planning"));
}

#[tokio::test]
async fn shares_of_open_streams_are_kept() {
    let world = World::start("shares").await;
    let tenant = world.tenant("one").await;
    let settings = StreamSettings { per_tenant: 2, poll: Span(Duration::from_millis(50)), ..StreamSettings::default() };
    let process = world.process(settings, false);
    let (run, first) = started(&world, tenant, &process).await;
    let _second = process.open(tenant, "/workflow/events", &[]).await;
    let full = process.get(tenant, &path(run), &[]).await;
    assert_eq!(full.headers().get("retry-after").map(|v| v.as_bytes()), Some(b"1".as_slice()));
    assert_eq!(problem(full).await, (429, "too-many-streams".to_owned()));
    drop(first);
    process.open(tenant, &path(run), &[]).await;
    world.stop(vec![process]).await;
}
