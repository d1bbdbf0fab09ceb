//! What ended long ago goes, with everything of its own and nothing of anybody else's.

use std::time::Duration;

use fermata::{app::Role, kernel::Span};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Client, Run, World, within};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A world that keeps its runs for ten days.
async fn ten_days() -> World {
    World::with(|settings| settings.retention.runs = Some(Span(10 * DAY))).await
}

/// A step whose output is too large for its event, and has a row.
fn large() -> Value {
    json!({ "id": "large", "uses": "debug.echo", "forEach": [1, 2, 3], "with": { "value": "x".repeat(100_000) } })
}

/// A run that has ended.
async fn ended(client: &Client) -> Run {
    let run = client.start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    run.completes().await;
    run
}

async fn is_gone(world: &World, run: &Run) -> bool {
    world.viewer().get(&run.path("")).await.status == 404
}

/// Housekeeping has woken with the clock; waits until it has come as far as this run.
async fn gone(world: &World, run: &Run) {
    within(format!("the end of {}", run.id), async { while !is_gone(world, run).await {} }).await;
}

/// One turn of housekeeping by hand: drops at most so many rows of what has ended.
async fn forget(world: &World, most: i64) -> i64 {
    let mut tx = world.database().system().await.unwrap();
    let query = sqlx::query_scalar("select forget_runs($1, $2)").bind(world.now()).bind(most);
    let rows = query.fetch_one(tx.conn()).await.unwrap();
    tx.commit().await.unwrap();
    rows
}

/// How many rows the run has, by table.
async fn rows(world: &World, run: &Run) -> Value {
    let id = run.id.parse::<fermata::kernel::RunId>().unwrap().uuid();
    sqlx::query_scalar(
        "select jsonb_build_object(
           'events', (select count(*) from run_events where run_id = $1),
           'steps', (select count(*) from run_steps where run_id = $1),
           'approvals', (select count(*) from approvals where run_id = $1),
           'decisions', (select count(*) from approval_decisions join approvals using (approval_id) where run_id = $1),
           'audit', (select count(*) from audit_log where target = $2))",
    )
    .bind(id)
    .bind(&run.id)
    .fetch_one(&mut world.superuser().await)
    .await
    .unwrap()
}

#[tokio::test]
async fn what_ended_long_ago_goes_and_everything_else_stays() {
    let world = ten_days().await;
    let hold = json!([{ "id": "a", "uses": "debug.echo", "approval": {} }]);
    let decided = world.operator().start(json!([hold[0], large()])).await;
    let approval = decided.hold().await;
    world.approver().approve(&approval).await;
    decided.completes().await;
    let (live, foreign) = (world.operator().start(hold).await, ended(&world.stranger()).await);
    let held = live.hold().await;
    let before = rows(&world, &decided).await;
    assert!(before.as_object().unwrap().values().all(|count| *count != 0), "{before}");

    world.advance(7 * DAY);
    let (young, of_another) = (ended(&world.operator()).await, ended(&world.stranger()).await);
    let events = young.events().await;
    world.advance(4 * DAY);
    gone(&world, &decided).await;
    within("the other tenant's", async { while world.stranger().get(&foreign.path("")).await.status != 404 {} }).await;
    let left = json!({ "events": 0, "steps": 0, "approvals": 0, "decisions": 0, "audit": before["audit"] });
    assert_eq!(rows(&world, &decided).await, left);
    let viewer = world.viewer();
    for path in [decided.path("/steps"), decided.path("/events"), format!("/approvals/{approval}")] {
        viewer.get(&path).await.problem(404, "not-found");
    }
    world.operator().run(&decided.id).retry().await.problem(404, "not-found");
    let list = viewer.get("/workflow/runs").await.expect(200);
    let listed: Vec<_> = list["items"].as_array().unwrap().iter().map(|run| run["runId"].clone()).collect();
    assert_eq!(listed, [json!(young.id), json!(live.id)]);

    assert_eq!(young.events().await, events);
    assert_eq!(of_another.get().await["status"], "completed");
    world.approver().approve(&held).await;
    live.completes().await;
}

#[tokio::test]
async fn without_the_setting_runs_are_kept() {
    let world = World::new().await;
    let (run, key) = (ended(&world.operator()).await, "select count(*) from idempotency_keys");
    let request = world.operator().request(Method::POST, &run.path("/cancel")).json(&json!({})).key("k");
    request.send().await;
    world.advance(29 * DAY);
    // Housekeeping has been there when what expires is gone.
    let mut superuser = world.superuser().await;
    let expired = async { while sqlx::query_scalar::<_, i64>(key).fetch_one(&mut superuser).await.unwrap() > 0 {} };
    within("the key's end", expired).await;
    run.completes().await;
}

#[tokio::test]
async fn children_go_before_their_parents_and_not_before_these_have_ended() {
    let world = World::new().await;
    let operator = world.operator();
    operator.put_yaml("short", "name: short\nsteps: [{ id: a, uses: debug.echo }]").await.expect(201);
    let start = json!({ "id": "child", "uses": "run.start", "with": { "workflow": "short" } });
    let child = async |parent: &Run| {
        let child = parent.child(&operator, "child").await;
        child.completes().await;
        child
    };
    let ended = operator.start(json!([start.clone()])).await;
    let of_ended = child(&ended).await;
    ended.completes().await;
    let hold = json!({ "id": "held", "needs": ["child"], "uses": "debug.echo", "approval": {} });
    let live = operator.start(json!([start, hold])).await;
    let of_live = child(&live).await;
    let held = live.hold().await;

    world.advance(Duration::from_secs(1));
    while forget(&world, 1000).await > 0 {}
    assert!(is_gone(&world, &of_ended).await && is_gone(&world, &ended).await);
    assert_eq!(of_live.get().await["status"], "completed");
    world.approver().approve(&held).await;
    live.completes().await;
    world.advance(Duration::from_secs(1));
    while forget(&world, 1000).await > 0 {}
    assert!(is_gone(&world, &of_live).await && is_gone(&world, &live).await);
}

#[tokio::test]
async fn a_large_run_goes_bit_by_bit_from_its_first_event_on_and_no_command_takes_it_for_whole() {
    let world = World::new().await;
    let plan = json!([{ "id": "a", "uses": "debug.emit", "with": { "count": 20, "perSecond": 1000 } },
        { "id": "b", "needs": ["a"], "uses": "debug.fail", "with": { "times": 1, "retryable": false } }, large()]);
    let run = world.operator().start(plan).await;
    let last = run.wait_end().await["lastEventId"].as_str().unwrap()[4..].parse::<i64>().unwrap();
    world.advance(Duration::from_secs(1));
    assert_eq!(forget(&world, 7).await, 7);
    assert_eq!(run.events().await[0]["eventId"], "evt_8");
    run.retry().await.problem(404, "not-found");
    // Each bit keeps to its bound, and together they are all there was: events, an output and the run.
    let mut dropped = 7;
    loop {
        match forget(&world, 7).await {
            0 => break,
            rows @ 1..=7 => dropped += rows,
            more => panic!("{more} at once"),
        }
    }
    assert_eq!(dropped, last + 1 + 1);
    assert!(is_gone(&world, &run).await);
}

#[tokio::test]
async fn two_who_keep_house_do_not_wait_for_each_other_nor_for_a_retry() {
    let world = World::new().await;
    let (one, other) = (ended(&world.operator()).await, ended(&world.operator()).await);
    world.advance(Duration::from_secs(1));
    let mut retry = world.database().tenant(world.home()).await.unwrap();
    let lock = sqlx::query("select from runs where run_id = $1 for update");
    lock.bind(one.id.parse::<fermata::kernel::RunId>().unwrap().uuid()).execute(retry.conn()).await.unwrap();
    let mut first = world.database().system().await.unwrap();
    let query = sqlx::query_scalar::<_, i64>("select forget_runs($1, 1000)").bind(world.now());
    assert!(query.fetch_one(first.conn()).await.unwrap() > 0);
    assert_eq!(forget(&world, 1000).await, 0, "somebody is at it");
    first.commit().await.unwrap();
    assert!(is_gone(&world, &other).await);
    assert_eq!(forget(&world, 1000).await, 0, "what is locked is left alone");
    retry.commit().await.unwrap();
    assert!(forget(&world, 1000).await > 0);
    assert!(is_gone(&world, &one).await);
}

#[tokio::test]
async fn two_processes_drop_everything_between_them() {
    let world = ten_days().await;
    let second = world.server(Role::Api).await;
    let mut runs = Vec::new();
    for _ in 0..10 {
        runs.push(ended(&world.operator()).await);
    }
    world.advance(11 * DAY);
    for run in &runs {
        gone(&world, run).await;
    }
    second.stop().await;
}
