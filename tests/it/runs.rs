//! Runs: what a plan says is what happens.

use std::time::Duration;

use chrono::DateTime;
use serde_json::{Value, json};

use crate::world::{Reply, Upstream, World};

const HOUR: Duration = Duration::from_secs(3600);

fn time(value: &Value) -> DateTime<chrono::FixedOffset> {
    DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap()
}

/// The names of the events of one step.
fn of_step<'a>(events: &'a [Value], step: &str) -> Vec<&'a str> {
    events.iter().filter(|event| event["stepId"] == step).map(|event| event["step"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn steps_without_a_path_between_them_run_side_by_side() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.hold("/a");
    upstream.hold("/b");
    let run = world
        .operator()
        .start(json!({
            "steps": [
                { "id": "a", "uses": "http.request", "with": { "url": upstream.url("/a") } },
                { "id": "b", "uses": "http.request", "with": { "url": upstream.url("/b") } },
                { "id": "c", "needs": ["a", "b"], "uses": "data.transform",
                  "with": { "value": ["{{ steps.a.output.status }}", "{{ steps.b.status }}", "{{ 1 < 2 }}"] } },
            ],
            "output": { "c": "{{ steps.c.output }}", "text": "c is {{ steps.c.output[0] }}" },
        }))
        .await;
    // Neither is answered before both have asked.
    upstream.arrived("/a", 1).await;
    upstream.arrived("/b", 1).await;
    assert_eq!(run.step("c").await["status"], "pending");
    upstream.release("/a");
    upstream.release("/b");
    let done = run.completes().await;
    assert_eq!(done["output"], json!({ "c": [200, "completed", true], "text": "c is 200" }));
}

#[tokio::test]
async fn a_false_condition_skips_the_step_and_what_hangs_on_it() {
    let world = World::new().await;
    let run = world
        .operator()
        .start(json!([
            { "id": "no", "uses": "debug.echo", "if": "{{ 1 > 2 }}" },
            { "id": "after", "needs": ["no"], "uses": "debug.echo" },
            { "id": "despite", "needs": ["no"], "if": "{{ steps.no.status == 'skipped' }}",
              "uses": "debug.echo", "with": { "value": "{{ steps.no.output }}" } },
        ]))
        .await;
    run.completes().await;
    let events = run.events().await;
    let reason = |step: &str| {
        let skipped = events.iter().find(|event| event["stepId"] == step && event["step"] == "step.skipped");
        skipped.map(|event| event["payload"]["reason"].clone())
    };
    assert_eq!(reason("no"), Some(json!("condition")));
    assert_eq!(reason("after"), Some(json!("upstream")));
    assert_eq!(of_step(&events, "despite"), ["step.started", "step.completed"]);
}

#[tokio::test]
async fn a_condition_that_failed_is_asked_again_by_a_retry() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let call = json!({ "url": upstream.url("/a") });
    let steps = json!([{ "id": "a", "if": "{{ 'a text' }}", "uses": "http.request", "with": call }]);
    let run = world.operator().start(steps).await;
    assert_eq!(run.wait_end().await["error"]["code"], "condition_failed");
    run.retry().await.expect(202);
    assert_eq!(run.wait_end().await["error"]["code"], "condition_failed");
    assert_eq!(run.event_names().await.iter().filter(|name| *name == "failed").count(), 2);
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn items_run_within_their_bound_and_come_back_in_order() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    for item in 0..5 {
        upstream.hold(&format!("/{item}"));
        upstream.reply(&format!("/{item}"), Reply::Json(200, json!(item)));
    }
    let url = format!("{}/{{{{ item.n }}}}", upstream.url(""));
    let run = world
        .operator()
        .start(json!({
            "steps": [{ "id": "all", "uses": "http.request", "with": { "url": url }, "concurrency": 2,
                        "forEach": [{ "n": 0 }, { "n": 1 }, { "n": 2 }, { "n": 3 }, { "n": 4 }] }],
            "output": "{{ steps.all.output | map(attribute='body') | list }}",
        }))
        .await;
    upstream.arrived("/0", 1).await;
    // The later ones come back first.
    for item in 1..5 {
        upstream.arrived(&format!("/{item}"), 1).await;
        upstream.release(&format!("/{item}"));
    }
    upstream.release("/0");
    assert_eq!(run.completes().await["output"], json!([0, 1, 2, 3, 4]));
    let mut open = 0;
    let mut most = 0;
    for event in run.events().await {
        match (event["stepId"].as_str(), event["step"].as_str().unwrap()) {
            (Some(item), "step.started") if item != "all" => open += 1,
            (Some(item), "step.completed") if item != "all" => open -= 1,
            _ => {}
        }
        most = most.max(open);
    }
    assert_eq!((open, most), (0, 2));
    let items: Vec<_> = run.steps().await.iter().map(|step| step["stepId"].clone()).collect();
    assert_eq!(items, ["all", "all[0]", "all[1]", "all[2]", "all[3]", "all[4]"]);
}

#[tokio::test]
async fn no_items_are_no_work() {
    let world = World::new().await;
    let steps = json!([{ "id": "none", "uses": "debug.echo", "forEach": "{{ [] }}" }]);
    let run = world.operator().start(json!({ "steps": steps, "output": "{{ steps.none.output }}" })).await;
    assert_eq!(run.completes().await["output"], json!([]));
}

#[tokio::test]
async fn what_may_pass_is_tried_again_with_the_same_key_after_a_growing_delay() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.fail("/a", 2, 503);
    let call = json!({ "method": "PUT", "url": upstream.url("/a"), "json": {} });
    let retry = json!({ "attempts": 4, "backoff": "1h", "maxBackoff": "90m" });
    let run =
        world.operator().start(json!([{ "id": "a", "uses": "http.request", "with": call, "retry": retry }])).await;
    let mut follow = run.follow().await;
    for bound in [60, 90] {
        let retrying = follow.until("step.retrying").await.data;
        let delay = time(&retrying["payload"]["retryAt"]) - time(&retrying["ts"]);
        assert!((0..=bound).contains(&delay.num_minutes()), "{retrying:#}");
        assert_eq!(retrying["payload"]["error"]["retryable"], true);
        world.advance(2 * HOUR);
    }
    run.completes().await;
    let events = run.events().await;
    assert_eq!(
        of_step(&events, "a"),
        ["step.started", "step.retrying", "step.started", "step.retrying", "step.started", "step.completed"]
    );
    // Never before its time.
    for pair in events.windows(2).filter(|pair| pair[0]["step"] == "step.retrying") {
        assert!(time(&pair[1]["ts"]) >= time(&pair[0]["payload"]["retryAt"]));
        assert_eq!(pair[1]["attempt"].as_u64(), pair[0]["attempt"].as_u64().map(|attempt| attempt + 1));
    }
    let keys: Vec<_> =
        upstream.requests_to("/a").iter().map(|one| one.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn who_asks_to_be_left_alone_is_left_alone_for_an_hour_at_most() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    for seconds in [1800, 86_400] {
        let headers = vec![("retry-after", seconds.to_string())];
        upstream.next("/a", 1, Reply::Raw(429, headers, "later".into()));
    }
    let retry = json!({ "attempts": 3, "backoff": "1ms" });
    let call = json!({ "url": upstream.url("/a") });
    let run =
        world.operator().start(json!([{ "id": "a", "uses": "http.request", "with": call, "retry": retry }])).await;
    let mut follow = run.follow().await;
    for (asked, minutes) in [(1800, 30), (86_400, 60)] {
        let retrying = follow.until("step.retrying").await.data;
        assert_eq!(retrying["payload"]["error"]["retryAfterSeconds"], asked);
        let delay = time(&retrying["payload"]["retryAt"]) - time(&retrying["ts"]);
        assert_eq!(delay.num_minutes(), minutes);
        world.advance(HOUR);
    }
    run.completes().await;
}

#[tokio::test]
async fn tries_come_to_an_end_and_what_does_not_pass_is_not_tried_again() {
    let world = World::new().await;
    let fail = |id: &str, retryable: bool| {
        json!({ "id": id, "uses": "debug.fail", "with": { "times": 9, "retryable": retryable }, "onError": "continue",
                "retry": { "attempts": 3, "backoff": "1ms" } })
    };
    let output = json!("{{ [steps.a.error.code, steps.b.error.retryable, steps.b.status] }}");
    let run = world.operator().start(json!({ "steps": [fail("a", true), fail("b", false)], "output": output })).await;
    let done = run.completes().await;
    assert_eq!(done["output"], json!(["debug", false, "failed"]));
    assert_eq!((&run.step("a").await["attempt"], &run.step("b").await["attempt"]), (&json!(3), &json!(1)));
}

#[tokio::test]
async fn a_failure_fails_the_run_once_what_is_in_flight_has_come_back() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.hold("/slow");
    let run = world
        .operator()
        .start(json!([
            { "id": "slow", "uses": "http.request", "with": { "url": upstream.url("/slow") } },
            { "id": "bad", "uses": "debug.fail", "with": { "times": 1, "retryable": false } },
            { "id": "later", "needs": ["slow"], "uses": "debug.echo" },
        ]))
        .await;
    run.wait_for("step.failed").await;
    upstream.arrived("/slow", 1).await;
    assert_eq!(run.get().await["status"], "executing");
    upstream.release("/slow");
    let failed = run.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["stepId"]), (&json!("failed"), &json!("bad")));
    assert_eq!(run.step("slow").await["status"], "completed");
    assert_eq!(run.step("later").await["status"], "pending");
}

#[tokio::test]
async fn nothing_is_under_way_in_a_run_that_is_over() {
    let world = World::new().await;
    let retry = json!({ "attempts": 2, "backoff": "1ms" });
    let run = world
        .operator()
        .start(json!([
            { "id": "nap", "uses": "time.wait", "with": { "for": "9days" } },
            { "id": "flaky", "uses": "debug.fail", "with": { "times": 1 }, "retry": retry, "forEach": [1] },
            { "id": "again", "needs": ["flaky"], "uses": "http.request", "with": { "url": "http://127.0.0.1:1/" },
              "retry": { "attempts": 2, "backoff": "365days", "maxBackoff": "365days" } },
        ]))
        .await;
    run.wait_for("step.waiting").await;
    let retrying = run.wait_for_step("step.retrying", "again").await;
    assert!(time(&retrying.data["payload"]["retryAt"]) > time(&retrying.data["ts"]));
    for (step, status) in [("nap", "waiting"), ("again", "retrying")] {
        assert_eq!(run.step(step).await["status"], status);
    }
    run.cancel().await.expect(202);
    run.wait_end().await;
    for (step, status) in [("nap", "pending"), ("flaky", "completed"), ("flaky[0]", "completed"), ("again", "pending")]
    {
        assert_eq!(run.step(step).await["status"], status, "{step}");
    }
}

#[tokio::test]
async fn a_call_has_its_time_and_no_more() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.reply("/never", Reply::Hang);
    let call = json!({ "url": upstream.url("/never") });
    let steps = json!([{ "id": "a", "uses": "http.request", "with": call, "timeout": "2h" }]);
    let run = world.operator().start(steps).await;
    upstream.arrived("/never", 1).await;
    // The worker does not take itself for dead, however far its clock leaps.
    world.advance(HOUR);
    world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await.completes().await;
    assert_eq!(run.step("a").await["status"], "running");
    world.advance(HOUR);
    assert_eq!(run.wait_end().await["error"]["code"], "timeout");
    assert_eq!(upstream.requests_to("/never").len(), 1);
}

#[tokio::test]
async fn an_intent_shares_its_append_with_the_outcome_only_where_nothing_is_touched() {
    let world = World::new().await;
    let run = world
        .operator()
        .start(json!([
            { "id": "think", "uses": "data.transform", "with": { "value": 1 } },
            { "id": "again", "uses": "data.transform", "needs": ["think"], "with": { "value": 2 } },
            { "id": "act", "uses": "debug.sleep", "needs": ["again"], "with": { "ms": 0 } },
        ]))
        .await;
    run.completes().await;
    let mut database = world.superuser().await;
    let journaled: Vec<(String, i64)> = sqlx::query_as(
        "select (data->>'stepId') || ' ' || split_part(name, '.', 2), dense_rank() over (order by xact)
         from run_events where name like 'step.%' order by seq",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    let journaled: Vec<_> = journaled.iter().map(|(event, append)| (event.as_str(), *append)).collect();
    let expected = [
        ("think started", 1),
        ("think completed", 1),
        // It touches nothing either, and what acts begins after them: its outcome is for the next append.
        ("again started", 1),
        ("again completed", 1),
        ("act started", 1),
        ("act completed", 2),
    ];
    assert_eq!(journaled, expected);
}

#[tokio::test]
async fn after_a_large_output_the_next_step_waits_for_its_append() {
    let world = World::new().await;
    let step = |id: &str, needs: &[&str], size: usize| json!({ "id": id, "uses": "data.transform", "needs": needs, "with": { "value": "x".repeat(size) } });
    let steps = [step("a", &[], 1), step("b", &["a"], 10_000), step("c", &["b"], 1)];
    world.operator().start(json!(steps)).await.completes().await;
    let appends: Vec<i64> = sqlx::query_scalar(
        "select dense_rank() over (order by xact) from run_events where name = 'step.completed' order by seq",
    )
    .fetch_all(&mut world.superuser().await)
    .await
    .unwrap();
    assert_eq!(appends, [1, 1, 2]);
}

#[tokio::test]
async fn whatever_acts_acts_on_what_is_durable() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.hold("/act");
    let thought = |n: usize| {
        let value = if n == 0 { json!(0) } else { json!(format!("{{{{ steps.s{}.output + 1 }}}}", n - 1)) };
        let needs: Vec<_> = (n > 0).then(|| format!("s{}", n - 1)).into_iter().collect();
        json!({ "id": format!("s{n}"), "uses": "data.transform", "needs": needs, "with": { "value": value } })
    };
    let url = format!("{}?n={{{{ steps.s99.output }}}}", upstream.url("/act"));
    let act = json!({ "id": "act", "uses": "http.request", "needs": ["s99"], "with": { "url": url } });
    let run = world.operator().start((0..100).map(thought).chain([act]).collect()).await;
    upstream.arrived("/act", 1).await;
    let (events, appends, last): (i64, i64, String) = sqlx::query_as(
        "select count(*), count(distinct xact), (array_agg((data->>'stepId') || ' ' || name order by seq desc))[1]
         from run_events where name like 'step.%'",
    )
    .fetch_one(&mut world.superuser().await)
    .await
    .unwrap();
    assert_eq!((events, last.as_str()), (201, "act step.started"));
    // Each append but the first has at least what was decided meanwhile and one step more.
    assert!(appends <= 51, "{appends} appends for 100 steps");
    upstream.release("/act");
    run.completes().await;
    assert_eq!(upstream.requests()[0].query.as_deref(), Some("n=99"));
}

#[tokio::test]
async fn a_wait_takes_as_long_as_it_takes_and_holds_nothing() {
    let world = World::new().await;
    let run = world.operator().start(json!([{ "id": "nap", "uses": "time.wait", "with": { "for": "30days" } }])).await;
    let waiting = run.wait_for("step.waiting").await.data;
    let until = time(&waiting["payload"]["until"]);
    let started = run.wait_for("step.started").await.data;
    assert_eq!((until - time(&started["ts"])).num_days(), 30);
    world.advance(29 * 24 * HOUR);
    assert_eq!(run.step("nap").await["status"], "waiting");
    let mut database = world.superuser().await;
    let held: i64 = sqlx::query_scalar("select count(*) from run_leases where worker_id is not null")
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert_eq!(held, 0, "no worker has it in hand");
    world.advance(24 * HOUR);
    // The first token is as old as the run.
    let run = world.operator().run(&run.id);
    run.completes().await;
    assert!(time(&run.events().await.last().unwrap()["ts"]) >= until);
}

#[tokio::test]
async fn a_cancel_tells_the_call_in_flight_and_its_outcome_comes_before_the_end() {
    let world = World::new().await;
    let run = world
        .operator()
        .start(json!([
            { "id": "long", "uses": "debug.sleep", "with": { "ms": 86_400_000 } },
            { "id": "later", "needs": ["long"], "uses": "debug.echo" },
        ]))
        .await;
    run.wait_for_step("step.started", "long").await;
    run.cancel().await.expect(202);
    assert_eq!(run.wait_end().await["status"], "cancelled");
    let names = run.event_names().await;
    assert_eq!(names[names.len() - 3..], ["run.cancelling", "step.failed", "cancelled"]);
    assert_eq!(run.step("later").await["status"], "pending");
    // Again is no harm, and there is no way back.
    run.cancel().await.expect(202);
    run.retry().await.problem(409, "conflict");
    assert_eq!(run.event_names().await, names);
}

#[tokio::test]
async fn a_planned_run_waits_to_be_let_go_and_can_be_cancelled_before() {
    let world = World::new().await;
    let plan = json!({ "plan": [{ "id": "a", "uses": "debug.echo" }] });
    let planned = world.operator().post("/agent/plan", &plan).await.expect(202);
    let run = world.operator().run(planned["runId"].as_str().unwrap());
    assert_eq!(run.event_names().await, ["idle", "planning", "plan.ready"]);
    let go = json!({ "runId": run.id });
    world.operator().post("/agent/execute", &go).await.expect(202);
    run.completes().await;
    world.operator().post("/agent/execute", &go).await.problem(409, "conflict");

    let planned = world.operator().post("/agent/plan", &plan).await.expect(202);
    let run = world.operator().run(planned["runId"].as_str().unwrap());
    run.cancel().await.expect(202);
    assert_eq!(run.event_names().await.last().unwrap(), "cancelled");
}

#[tokio::test]
async fn what_a_command_answers_is_the_run_as_it_is_kept() {
    let world = World::without_worker(|_| {}).await;
    let plan = json!({ "goal": "all of it", "input": { "a": [1, "ü"] }, "metadata": { "z": 1, "b": null }, "budget": 2.5,
                       "plan": { "steps": [{ "id": "a", "uses": "debug.echo", "with": { "value": 1.0 }, "timeout": "3s" }],
                                 "output": "{{ steps.a.output }}" } });
    let planned = world.operator().post("/agent/plan", &plan).await.expect(202);
    let run = world.operator().run(planned["runId"].as_str().unwrap());
    assert_eq!(planned, run.get().await);
    let executing = world.operator().post("/agent/execute", &json!({ "runId": run.id })).await.expect(202);
    assert_eq!(executing, run.get().await);
    let cancelled = run.cancel().await.expect(202);
    assert_eq!((&cancelled["status"], &cancelled), (&json!("cancelled"), &run.get().await));
}

#[tokio::test]
async fn a_retry_goes_on_at_the_failed_step() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.fail("/b", 1, 400);
    let run = world
        .operator()
        .start(json!([
            { "id": "a", "uses": "http.request", "with": { "method": "POST", "url": upstream.url("/a") } },
            { "id": "b", "needs": ["a"], "uses": "http.request", "with": { "method": "POST", "url": upstream.url("/b") } },
            { "id": "c", "needs": ["b"], "uses": "debug.echo" },
        ]))
        .await;
    let failed = run.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["stepId"]), (&json!("failed"), &json!("b")));
    let last = failed["lastEventId"].as_str().unwrap().to_owned();
    run.retry().await.expect(202);
    let after = run.follow_after(&last).await.rest().await;
    assert_eq!((after[0].name.as_str(), &after[0].data["payload"]["retried"]), ("executing", &json!(["b"])));
    let done = run.completes().await;
    assert!(done["error"].is_null(), "{done:#}");
    assert_eq!((upstream.requests_to("/a").len(), upstream.requests_to("/b").len()), (1, 2));
    run.retry().await.problem(409, "conflict");
}

#[tokio::test]
async fn a_large_output_is_kept_whole_and_too_large_a_one_fails_its_step() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let body =
        |bytes: usize| Reply::Raw(200, vec![("content-type", "text/plain".to_owned())], "x".repeat(bytes).into());
    upstream.reply("/large", body(1_000_000));
    upstream.reply("/too-large", body(1_100_000));
    let fetch = |path: &str| json!({ "id": "fetch", "uses": "http.request", "with": { "url": upstream.url(path) } });
    let count = json!({ "id": "count", "needs": ["fetch"], "uses": "data.transform",
                        "with": { "value": "{{ steps.fetch.output.body | length }}" } });
    let run = world.operator().start(json!([fetch("/large"), count])).await;
    run.completes().await;
    assert_eq!(run.step("count").await["output"], 1_000_000);
    assert_eq!(run.step("fetch").await["output"]["body"].as_str().unwrap().len(), 1_000_000);
    let completed = run.wait_for_step("step.completed", "fetch").await;
    assert!(completed.raw.len() < 256 * 1024);
    assert!(completed.data["payload"]["outputBytes"].as_u64().unwrap() > 1_000_000);

    let run = world.operator().start(json!([fetch("/too-large"), count])).await;
    let failed = run.wait_end().await;
    assert_eq!(failed["error"]["stepId"], "fetch");
    assert!(failed["error"]["code"].as_str().unwrap().ends_with("too_large"), "{failed:#}");
    // Neither the process nor other runs mind.
    world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await.completes().await;
}

#[tokio::test]
async fn outputs_of_items_that_are_too_much_together_fail_the_step() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.reply("/part", Reply::Json(200, json!("x".repeat(300_000))));
    let call = json!({ "url": upstream.url("/part") });
    let steps = json!([{ "id": "all", "uses": "http.request", "with": call, "forEach": [1, 2, 3, 4] }]);
    let failed = world.operator().start(steps).await.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("output_too_large")));
}

#[tokio::test]
async fn many_reports_of_progress_are_all_journaled_in_order() {
    let world = World::new().await;
    let with = json!({ "count": 300, "perSecond": 100_000, "bytes": 100 });
    let run = world.operator().start(json!([{ "id": "a", "uses": "debug.emit", "with": with }])).await;
    run.completes().await;
    let events = run.events().await;
    assert_eq!(events.iter().filter(|event| event["step"] == "tool.progress").count(), 300);
    for (number, event) in (1..).zip(&events) {
        assert_eq!(event["eventId"], format!("evt_{number}"));
    }
    assert_eq!(events[events.len() - 2]["step"], "step.completed");
}
