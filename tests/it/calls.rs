//! Steps that call the world outside, as the world sees them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Reply, Run, Upstream, World};

async fn call(world: &World, with: Value, more: Value) -> Run {
    let mut step = json!({ "id": "a", "uses": "http.request", "with": with });
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.operator().start(json!([step])).await
}

#[tokio::test]
async fn a_call_arrives_as_it_was_written() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let with = json!({ "method": "PUT", "url": upstream.url("/things"), "query": { "a": "1 & 2" },
        "headers": { "X-From": "fermata" }, "json": { "n": [1, 2] } });
    call(&world, with, json!({})).await.completes().await;
    let [arrived] = &upstream.requests()[..] else { panic!("{:?}", upstream.requests()) };
    assert_eq!(arrived.method, Method::PUT);
    assert_eq!(arrived.query.as_deref(), Some("a=1+%26+2"));
    assert_eq!(arrived.header("x-from"), Some("fermata"));
    assert_eq!(arrived.json(), json!({ "n": [1, 2] }));
    assert!(!arrived.headers.contains_key("authorization"));
}

#[tokio::test]
async fn attempts_share_a_key_and_stop_when_one_succeeds() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.fail("/flaky", 2, 503);
    let with = json!({ "method": "PUT", "url": upstream.url("/flaky") });
    let retry = json!({ "retry": { "attempts": 5, "backoff": "1ms", "maxBackoff": "2ms" } });
    let run = call(&world, with.clone(), retry.clone()).await;
    run.completes().await;
    assert_eq!(run.wait_for_step("step.completed", "a").await.data["attempt"], 3);
    let other = call(&world, with, retry).await;
    other.completes().await;
    let keys: Vec<_> =
        upstream.requests_to("/flaky").iter().map(|r| r.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(keys.len(), 4);
    assert!(keys[..3].iter().all(|key| *key == keys[0]) && keys[3] != keys[0], "{keys:?}");
}

#[tokio::test]
async fn what_cannot_help_is_not_tried_again_until_somebody_asks() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.reply("/gone", Reply::Json(404, json!({ "why": "gone" })));
    let run = call(&world, json!({ "url": upstream.url("/gone") }), json!({ "retry": { "attempts": 5 } })).await;
    let failed = run.wait_end().await;
    assert_eq!((failed["status"].as_str(), upstream.requests().len()), (Some("failed"), 1));
    upstream.reply("/gone", Reply::Raw(200, vec![("content-type", "text/plain".to_owned())], "back".into()));
    run.retry().await.expect(202);
    assert_eq!(run.completes().await["status"], "completed");
    assert_eq!(run.step("a").await["output"]["body"], "back");
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_again_unasked() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let more = json!({ "retry": { "attempts": 5, "backoff": "1ms", "maxBackoff": "2ms" } });
    upstream.fail("/pay", 9, 500);
    let run = call(&world, json!({ "method": "POST", "url": upstream.url("/pay") }), more.clone()).await;
    let approval = run.hold().await;
    let asked = world.viewer().get(&format!("/approvals/{approval}")).await.expect(200);
    assert_eq!((&asked["question"], upstream.requests_to("/pay").len()), (&json!("repeat"), 1), "{asked:#}");
    world.approver().deny(&approval, "it arrived").await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/pay").len(), 1);
    // It says that it did nothing; or it knows the call again by its key.
    upstream.fail("/busy", 2, 503);
    call(&world, json!({ "method": "POST", "url": upstream.url("/busy") }), more.clone()).await.completes().await;
    upstream.fail("/keyed", 2, 500);
    let with = json!({ "method": "POST", "url": upstream.url("/keyed"), "repeatable": true });
    call(&world, with, more).await.completes().await;
    assert_eq!((upstream.requests_to("/busy").len(), upstream.requests_to("/keyed").len()), (3, 3));
}

#[tokio::test]
async fn what_a_service_says_may_hold_any_character() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.reply("/odd", Reply::Json(200, json!({ "\0": "\u{1f600}\0\u{2028}" })));
    let steps = json!([{ "id": "a", "uses": "http.request", "with": { "url": upstream.url("/odd") } }]);
    let run = world.operator().start(json!({ "steps": steps, "output": "{{ steps.a.output.body }}" })).await;
    let shown = run.completes().await;
    assert_eq!(shown["output"], json!({ "\0": "\u{1f600}\0\u{2028}" }));
    // The last event has it, and is where the run's own number and time are from.
    let last = run.follow().await.rest().await.pop().unwrap();
    assert_eq!((&last.data["payload"]["output"], &last.data["ts"]), (&shown["output"], &shown["updatedAt"]));
    let page = world.viewer().get("/workflow/runs").await.expect(200);
    assert_eq!((&page["items"][0]["lastEventId"], &page["items"][0]["runId"]), (&json!(last.id), &json!(run.id)));
}

#[tokio::test]
async fn a_call_that_hangs_is_given_up() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.reply("/hangs", Reply::Hang);
    let run = call(&world, json!({ "url": upstream.url("/hangs") }), json!({ "timeout": "50ms" })).await;
    assert_eq!(run.wait_end().await["error"]["code"], "timeout");
    // And so is one whose run is cancelled.
    upstream.reply("/waits", Reply::Hang);
    let run = call(&world, json!({ "url": upstream.url("/waits") }), json!({})).await;
    upstream.arrived("/waits", 1).await;
    run.cancel().await.expect(202);
    assert_eq!(run.wait_end().await["status"], "cancelled");
}

#[tokio::test]
async fn a_stream_that_ends_is_a_text() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.reply("/words", Reply::Events(vec!["one".to_owned(), "two".to_owned()]));
    let run = call(&world, json!({ "url": upstream.url("/words") }), json!({})).await;
    run.completes().await;
    assert_eq!(run.step("a").await["output"]["body"], "data: one\n\ndata: two\n\n");
}

#[tokio::test]
async fn loopback_is_out_of_reach_unless_it_is_let_in() {
    let upstream = Upstream::start().await;
    let world = World::with(|settings| settings.tools.loopback = false).await;
    let port = upstream.url("").rsplit(':').next().unwrap().to_owned();
    for host in ["127.0.0.1", "localhost", "[::1]", "0x7f.1", "2130706433", "0.0.0.0", "[::ffff:127.0.0.1]", "127.1"] {
        let run = call(&world, json!({ "url": format!("http://{host}:{port}/secret") }), json!({})).await;
        assert_eq!(run.wait_end().await["status"], "failed", "{host}");
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}
