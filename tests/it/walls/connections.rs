//! A pool of connections that others hold.

use std::time::Duration;

use fermata::kernel::Span;
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::world::{Upstream, World, within};

#[tokio::test]
async fn an_exhausted_pool_is_told_in_time_and_everything_goes_on_when_it_is_free() {
    let world = World::with(|settings| {
        settings.database.pool_size = 2;
        settings.database.acquire_timeout = Span::seconds(1);
    })
    .await;
    let upstream = Upstream::start().await;
    upstream.hold("/slow");
    let call = json!({ "method": "POST", "url": upstream.url("/slow"), "json": {} });
    let run = world.operator().start(json!([{ "id": "a", "uses": "http.request", "with": call }])).await;
    let mut follow = run.follow().await;
    upstream.arrived("/slow", 1).await;

    let held = within("the whole pool", join_all((0..2).map(|_| world.database().tenant(world.home())))).await;
    let asked = Instant::now();
    let clients = (0..20).map(|_| world.operator());
    let answers = join_all(clients.map(async |client| client.get("/workflow/runs").await)).await;
    for answer in &answers {
        answer.problem(503, "unavailable");
        assert!(answer.header("retry-after").is_some());
    }
    assert!(asked.elapsed() < Duration::from_secs(10), "they waited for {:?}", asked.elapsed());
    world.nobody().get("/health").await.expect(200);
    world.nobody().get("/health/ready").await.problem(503, "unavailable");
    // A call comes to its outcome, which nobody can write down yet.
    upstream.release("/slow");
    drop(held);

    let back = async { while world.nobody().get("/health/ready").await.status != 200 {} };
    within("readiness", back).await;
    world.operator().get("/workflow/runs").await.expect(200);
    follow.until("completed").await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/slow").len(), 1);
}
