//! One tenant's crowd does not stand in another's way.

use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::world::World;
use fermata::app::Role;

/// Runs a worker holds at once, all of them one tenant's if it has so many.
const HELD: usize = 8;
/// Ready runs of the crowd.
const CROWD: usize = 2_000;

#[tokio::test]
async fn a_single_run_is_not_delayed_by_the_thousands_of_another_tenant() {
    let world = World::without_worker(|settings| {
        (settings.worker.runs, settings.worker.runs_per_tenant) = (HELD, HELD);
        (settings.worker.steps, settings.worker.steps_per_tenant) = (HELD, HELD);
    })
    .await;
    let crowd = world.operator();
    let sleep = json!([{ "id": "a", "uses": "debug.sleep", "with": { "ms": 100 } }]);
    let runs = stream::iter(0..CROWD).map(|_| crowd.start(sleep.clone())).buffer_unordered(8);
    let runs: Vec<_> = runs.collect().await;
    let _worker = world.mortal(Role::Worker).await;
    // The worker has its hands full.
    let mut events = crowd.follow_tenant("?from=start&types=completed").await;
    for _ in 0..2 * HELD {
        events.next().await.unwrap();
    }
    let single = world.stranger().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    let begun = single.wait_for("executing").await.data["ts"].clone();
    single.completes().await;
    let ended = single.events().await.last().unwrap()["ts"].clone();

    let mut database = world.superuser().await;
    let meanwhile: i64 = sqlx::query_scalar(
        "select count(*) from run_events where name = 'completed' and tenant_id = $1 and data ->> 'ts' between $2 and $3",
    )
    .bind(world.home().uuid())
    .bind(begun.as_str().unwrap())
    .bind(ended.as_str().unwrap())
    .fetch_one(&mut database)
    .await
    .unwrap();
    // It waited for one of the crowd to end, not for the crowd: by the clock that is well under a second,
    // by the order of things it holds on a slow machine too.
    assert!(meanwhile <= i64::try_from(4 * HELD).unwrap(), "{meanwhile} runs of the crowd came first");
    let left: i64 = sqlx::query_scalar("select count(*) from runs where tenant_id = $1 and status = 'executing'")
        .bind(world.home().uuid())
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert!(left > i64::try_from(runs.len() / 2).unwrap(), "the crowd was still there");
}
