//! The harness holds.

use std::time::Duration;

use fermata::app::Role;
use serde_json::json;

use crate::world::{Reply, Upstream, World};

#[tokio::test]
async fn a_run_is_held_approved_and_completes() {
    let world = World::new().await;
    let upstream = Upstream::start().await;
    upstream.reply("/contacts", Reply::Json(200, json!({ "n": 3 })));
    let run = world
        .operator()
        .start(json!([
            { "id": "fetch", "uses": "http.request", "with": { "url": upstream.url("/contacts") } },
            { "id": "sync", "needs": ["fetch"], "uses": "debug.echo",
              "with": { "value": "{{ steps.fetch.output.body.n }}" }, "approval": { "reason": "writes" } },
        ]))
        .await;
    let approval = run.hold().await;
    assert_eq!(run.get().await["status"], "awaiting_approval");
    world.approver().approve(&approval).await;
    let done = run.completes().await;
    assert_eq!(run.step("sync").await["output"], 3, "{done:#}");
    assert_eq!(upstream.requests_to("/contacts").len(), 1);
    assert_eq!(run.events().await.len(), run.follow().await.rest().await.len());
    world.stop().await;
}

#[tokio::test]
async fn time_passes_when_it_is_told_to() {
    let world = World::new().await;
    let run = world.operator().start(json!([{ "id": "nap", "uses": "time.wait", "with": { "for": "2d" } }])).await;
    run.wait_for("step.waiting").await;
    world.advance(Duration::from_secs(2 * 24 * 3600));
    run.completes().await;
}

#[tokio::test]
async fn two_servers_share_a_database() {
    let world = World::new().await;
    let other = world.server(Role::Api).await;
    let run = world.operator().at(&other.url).start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    run.completes().await;
    assert_eq!(world.viewer().run(&run.id).get().await["status"], "completed");
    other.stop().await;
}
