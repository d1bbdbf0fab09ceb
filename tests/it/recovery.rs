//! Workers that die, stop or are given up for dead: what was promised still happens, and only that.

use std::time::Duration;

use fermata::{app::Role, kernel::Clock};
use serde_json::{Value, json};

use crate::world::{Run, Upstream, World, within};

/// A call to `/act` by this method, and a step after it.
fn plan(upstream: &Upstream, method: &str) -> Value {
    let call = json!({ "method": method, "url": upstream.url("/act"), "json": { "amount": 10 } });
    json!([
        { "id": "act", "uses": "http.request", "with": call },
        { "id": "after", "needs": ["act"], "uses": "debug.echo", "with": { "value": "{{ steps.act.status }}" } },
    ])
}

/// The run's events are numbered without a gap, and no attempt has two outcomes.
async fn is_sound(run: &Run) {
    let events = run.events().await;
    let mut outcomes = std::collections::HashSet::new();
    for (number, event) in (1..).zip(&events) {
        assert_eq!(event["eventId"], format!("evt_{number}"));
        if matches!(
            event["step"].as_str().unwrap(),
            "step.completed" | "step.failed" | "step.skipped" | "step.retrying"
        ) {
            assert!(outcomes.insert((event["stepId"].to_string(), event["attempt"].as_u64())), "{events:#?}");
        }
    }
}

fn keys(upstream: &Upstream) -> Vec<String> {
    let requests = upstream.requests_to("/act");
    requests.iter().map(|request| request.header("idempotency-key").unwrap().to_owned()).collect()
}

/// A run whose call was in flight when its worker died; the answer to it never came.
async fn orphaned(world: &World, upstream: &Upstream, plan: Value) -> Run {
    let worker = world.mortal(Role::Worker).await;
    upstream.hold("/act");
    let run = world.operator().start(plan).await;
    upstream.arrived("/act", 1).await;
    worker.kill();
    upstream.release("/act");
    run
}

#[tokio::test]
async fn a_run_of_a_later_version_is_shown_and_left_alone() {
    let world = World::new().await;
    let run = world.operator().start(json!([{ "id": "act", "uses": "debug.echo", "approval": {} }])).await;
    let approval = run.hold().await;
    let later =
        "update run_events set data = replace(data::text, '\"executing\"', '\"dreaming\"')::json where name = $1";
    sqlx::query(later).bind("executing").execute(&mut world.superuser().await).await.unwrap();
    run.cancel().await.problem(500, "unreadable-run");
    let answer = world.approver().decide(&approval, &json!({ "status": "approved" })).await;
    answer.problem(500, "unreadable-run");
    assert_eq!(run.get().await["status"], "awaiting_approval");
    // Nobody else is held up by it.
    world.operator().start(json!([{ "id": "act", "uses": "debug.echo" }])).await.completes().await;
}

#[tokio::test]
async fn a_call_that_may_be_repeated_is_repeated_with_the_same_key() {
    let (world, upstream) = (World::without_worker(|_| ()).await, Upstream::start().await);
    let run = orphaned(&world, &upstream, plan(&upstream, "PUT")).await;
    let _worker = world.mortal(Role::Worker).await;
    run.completes().await;
    let keys = keys(&upstream);
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
    let started =
        run.events().await.into_iter().filter(|event| event["step"] == "step.started" && event["stepId"] == "act");
    let started: Vec<_> =
        started.map(|event| (event["attempt"].clone(), event["payload"]["repeated"].clone())).collect();
    assert_eq!(started, [(json!(1), Value::Null), (json!(1), json!(true))]);
    is_sound(&run).await;
}

#[tokio::test]
async fn a_call_that_may_have_acted_is_repeated_when_somebody_says_so() {
    let (world, upstream) = (World::without_worker(|_| ()).await, Upstream::start().await);
    let run = orphaned(&world, &upstream, plan(&upstream, "POST")).await;
    let worker = world.mortal(Role::Worker).await;
    let asked = run.wait_for("awaiting_approval").await.data;
    assert_eq!(asked["payload"]["question"], "repeat");
    assert_eq!(asked["payload"]["arguments"]["json"], json!({ "amount": 10 }));
    assert_eq!(run.get().await["status"], "awaiting_approval");
    assert_eq!(upstream.requests_to("/act").len(), 1);
    // Nobody is there when it is decided.
    worker.kill();
    let id = asked["payload"]["approvalId"].as_str().unwrap();
    let other = json!({ "status": "approved", "arguments": { "method": "POST", "url": upstream.url("/other") } });
    world.approver().decide(id, &other).await.problem(422, "invalid-input");
    world.approver().approve(id).await;
    let _worker = world.mortal(Role::Worker).await;
    assert_eq!(run.completes().await["pendingApprovals"], json!([]));
    let keys = keys(&upstream);
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
    assert_eq!(run.step("after").await["output"], "completed");
    is_sound(&run).await;
}

#[tokio::test]
async fn a_call_that_may_have_acted_is_taken_as_done_when_somebody_says_so() {
    let (world, upstream) = (World::without_worker(|_| ()).await, Upstream::start().await);
    let run = orphaned(&world, &upstream, plan(&upstream, "POST")).await;
    let _worker = world.mortal(Role::Worker).await;
    world.approver().deny(&run.hold().await, "it is in the books").await;
    run.completes().await;
    assert_eq!(run.wait_for("step.skipped").await.data["payload"]["reason"], "taken_as_done");
    assert_eq!(run.step("after").await["output"], "skipped", "what comes after goes on");
    assert_eq!(upstream.requests_to("/act").len(), 1);
    is_sound(&run).await;
}

#[tokio::test]
async fn a_call_that_may_have_acted_is_asked_about_after_a_retry_too() {
    let (world, upstream) = (World::without_worker(|_| ()).await, Upstream::start().await);
    let worker = world.mortal(Role::Worker).await;
    upstream.hold("/act");
    let bad = json!({ "id": "bad", "uses": "debug.fail", "with": { "times": 1, "retryable": false } });
    let mut steps = plan(&upstream, "POST");
    steps.as_array_mut().unwrap().push(bad);
    let run = world.operator().start(steps).await;
    upstream.arrived("/act", 1).await;
    run.wait_for("step.failed").await;
    worker.kill();
    let _worker = world.mortal(Role::Worker).await;
    let failed = run.wait_end().await;
    assert_eq!(
        (&failed["status"], &run.step("act").await["error"]["code"]),
        (&json!("failed"), &json!("outcome_unknown"))
    );
    run.retry().await.expect(202);
    let asked = run.follow_after(failed["lastEventId"].as_str().unwrap()).await.until("awaiting_approval").await.data;
    assert_eq!((&asked["payload"]["question"], &asked["stepId"]), (&json!("repeat"), &json!("act")));
    assert_eq!(upstream.requests_to("/act").len(), 1);
}

#[tokio::test]
async fn what_was_approved_while_every_worker_was_dead_is_done_by_the_next() {
    let (world, upstream) = (World::without_worker(|_| ()).await, Upstream::start().await);
    let mut steps = plan(&upstream, "POST");
    steps[0]["approval"] = json!({});
    let worker = world.mortal(Role::Worker).await;
    let run = world.operator().start(steps).await;
    let id = run.hold().await;
    worker.kill();
    world.approver().approve(&id).await;
    assert_eq!(run.get().await["status"], "executing");
    let _worker = world.mortal(Role::Worker).await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/act").len(), 1);
    is_sound(&run).await;
}

#[tokio::test]
async fn a_claim_that_no_turn_knows_of_does_not_keep_its_run_from_going_on() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let mut steps = plan(&upstream, "POST");
    steps[0]["approval"] = json!({});
    let run = world.operator().start(steps).await;
    let id = run.hold().await;
    // As after a claim whose answer was lost on its way to the worker.
    let claim = "update run_leases set worker_id = (select worker_id from workers)";
    let claimed = sqlx::query(claim).execute(&mut world.superuser().await).await.unwrap();
    assert_eq!(claimed.rows_affected(), 1);
    world.approver().approve(&id).await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/act").len(), 1);
    is_sound(&run).await;
}

#[tokio::test]
async fn a_worker_that_was_given_up_for_dead_does_not_write_over_its_successor() {
    let (world, upstream) = (World::without_worker(|_| ()).await, Upstream::start().await);
    upstream.hold("/act");
    let first = world.mortal(Role::Worker).await;
    let run = world.operator().start(plan(&upstream, "PUT")).await;
    upstream.arrived("/act", 1).await;
    // By the second one's clock the first has been silent for an hour; by its own it is well.
    let (late, offset) = Clock::adjustable();
    offset.send_replace(chrono::TimeDelta::hours(1));
    let second = world.mortal_at(Role::Worker, late).await;
    upstream.arrived("/act", 2).await;
    // Both get their answers.
    upstream.release("/act");
    run.completes().await;
    let completed =
        run.events().await.into_iter().filter(|event| event["step"] == "step.completed" && event["stepId"] == "act");
    assert_eq!(completed.count(), 1);
    is_sound(&run).await;
    drop((first, second));
}

#[tokio::test]
async fn a_worker_that_is_stopped_finishes_what_it_has_begun() {
    let (world, upstream) = (World::without_worker(|_| ()).await, Upstream::start().await);
    let worker = world.server(Role::Worker).await;
    upstream.hold("/act");
    let run = world.operator().start(plan(&upstream, "POST")).await;
    upstream.arrived("/act", 1).await;
    let stopping = tokio::spawn(worker.stop());
    upstream.release("/act");
    stopping.await.unwrap();
    // Its outcome is on record; what comes next is for the next worker.
    run.wait_for_step("step.completed", "act").await;
    let _worker = world.mortal(Role::Worker).await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/act").len(), 1);
    is_sound(&run).await;
}

#[tokio::test]
async fn a_worker_that_is_stopped_lets_go_of_what_takes_too_long() {
    let upstream = Upstream::start().await;
    let world = World::without_worker(|settings| settings.http.drain_grace = "100ms".parse().unwrap()).await;
    let worker = world.server(Role::Worker).await;
    upstream.hold("/act");
    let run = world.operator().start(plan(&upstream, "PUT")).await;
    upstream.arrived("/act", 1).await;
    worker.stop().await;
    upstream.release("/act");
    let _worker = world.mortal(Role::Worker).await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/act").len(), 2);
    is_sound(&run).await;
}

#[tokio::test]
async fn a_wait_of_days_outlives_every_process() {
    let world = World::without_worker(|_| ()).await;
    let worker = world.mortal(Role::Worker).await;
    let run = world.operator().start(json!([{ "id": "nap", "uses": "time.wait", "with": { "for": "20d" } }])).await;
    run.wait_for("step.waiting").await;
    worker.kill();
    world.advance(Duration::from_secs(21 * 24 * 3600));
    let _worker = world.mortal(Role::Worker).await;
    run.completes().await;
    is_sound(&run).await;
}

#[tokio::test]
async fn a_cancel_ends_a_run_whose_worker_died() {
    let (world, upstream) = (World::without_worker(|_| ()).await, Upstream::start().await);
    let run = orphaned(&world, &upstream, plan(&upstream, "POST")).await;
    run.cancel().await.expect(202);
    let _worker = world.mortal(Role::Worker).await;
    assert_eq!(run.wait_end().await["status"], "cancelled");
    assert_eq!(run.step("act").await["error"]["code"], "outcome_unknown");
    is_sound(&run).await;
}

#[tokio::test]
async fn a_worker_that_loses_its_lock_takes_it_again_and_keeps_its_calls() {
    let (world, upstream) = (World::without_worker(|_| ()).await, Upstream::start().await);
    let _worker = world.mortal(Role::Worker).await;
    upstream.hold("/act");
    let run = world.operator().start(plan(&upstream, "POST")).await;
    upstream.arrived("/act", 1).await;
    let mut database = world.superuser().await;
    let here = "from pg_locks where locktype = 'advisory' and granted and pid <> pg_backend_pid()
                and database = (select oid from pg_database where datname = current_database())";
    let cut = sqlx::AssertSqlSafe(format!("select pg_terminate_backend(pid, 5000) {here}"));
    assert_eq!(sqlx::query_scalar::<_, bool>(cut).fetch_all(&mut database).await.unwrap(), [true]);
    let again = async {
        let locks = format!("select count(*) {here}");
        while sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(locks.as_str())).fetch_one(&mut database).await.unwrap()
            == 0
        {}
    };
    within("the lock, taken again", again).await;
    upstream.release("/act");
    run.completes().await;
    assert!(!run.event_names().await.contains(&"awaiting_approval".to_owned()));
    assert_eq!(upstream.requests_to("/act").len(), 1);
    is_sound(&run).await;
}
