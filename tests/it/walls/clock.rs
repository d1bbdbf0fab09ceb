//! A clock that jumps by an hour, either way, under a server at work.

use std::time::Duration;

use fermata::auth::{self, Grant};
use fermata::kernel::Span;
use serde_json::{Value, json};

use crate::world::{Client, Run, Upstream, World};

const HOUR: Duration = Duration::from_secs(3600);

/// Work of every kind that knows the time: a call in flight, a hold, and a hold that expires within the hour.
struct AtWork {
    upstream: Upstream,
    call: Run,
    held: Run,
    expiring: Run,
}

impl AtWork {
    async fn begin(world: &World) -> Self {
        let upstream = Upstream::start().await;
        upstream.hold("/slow");
        let call = json!({ "method": "POST", "url": upstream.url("/slow"), "json": {} });
        let hold = |terms: Value| json!([{ "id": "a", "uses": "debug.echo", "approval": terms }]);
        let client = world.operator();
        // A time-out is by the clock too; this one is longer than the leap.
        let call = json!([{ "id": "a", "uses": "http.request", "with": call, "timeout": "2h" }]);
        let call = client.start(call).await;
        let (held, expiring) =
            (client.start(hold(json!({}))).await, client.start(hold(json!({ "expires": "30m" }))).await);
        upstream.arrived("/slow", 1).await;
        for run in [&held, &expiring] {
            run.hold().await;
        }
        Self { upstream, call, held, expiring }
    }

    /// The call comes back, once; what stands is decided; what is new is done.
    async fn goes_on(&self, operator: &Client, approver: &Client) {
        self.upstream.release("/slow");
        self.call.completes().await;
        assert_eq!(self.upstream.requests_to("/slow").len(), 1);
        approver.approve(&self.held.hold().await).await;
        self.held.completes().await;
        let flaky = json!({ "times": 2, "retryable": true });
        let retry = json!({ "attempts": 3, "backoff": "10ms" });
        let steps = json!([{ "id": "a", "uses": "debug.fail", "with": flaky, "retry": retry },
            { "id": "b", "needs": ["a"], "uses": "time.wait", "with": { "for": "100ms" } }]);
        operator.start(steps).await.completes().await;
    }
}

/// The stream of the tenant, which lay open all the time, has each run's events in their order.
async fn is_in_order(world: &World, mut follow: crate::world::Follow, runs: &[&Run]) {
    let end = world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    end.completes().await;
    while follow.next().await.unwrap().data["runId"] != end.id {}
    for run in runs {
        let of_run = follow.seen.iter().filter(|event| event.data["runId"] == run.id);
        let seen: Vec<_> = of_run.map(|event| event.data.clone()).collect();
        assert_eq!(seen, run.events().await);
    }
}

#[tokio::test]
async fn a_clock_that_leaps_forward_loses_nothing() {
    let world = World::new().await;
    let (operator, approver) = (world.operator(), world.approver());
    let brief =
        Grant { ttl: Span::seconds(600), ..world.grant(world.home(), "user_brief", vec![auth::Role::Viewer], None) };
    let brief = world.bearer(&brief);
    let follow = world.viewer().follow_tenant("?from=start").await;
    let work = AtWork::begin(&world).await;
    let waiting = operator.start(json!([{ "id": "a", "uses": "time.wait", "with": { "for": "50m" } }])).await;
    waiting.wait_for("step.waiting").await;
    world.advance(HOUR);
    // What was due within the hour is due.
    brief.get("/workflow/runs").await.problem(401, "unauthenticated");
    waiting.completes().await;
    work.expiring.wait_for("approval.expired").await;
    assert_eq!(work.expiring.wait_end().await["status"], "failed");
    work.goes_on(&operator, &approver).await;
    is_in_order(&world, follow, &[&work.call, &work.held, &work.expiring, &waiting]).await;
}

#[tokio::test]
async fn a_clock_that_falls_back_loses_nothing() {
    let world = World::new().await;
    let early = (world.operator(), world.approver());
    let follow = world.viewer().follow_tenant("?from=start").await;
    let work = AtWork::begin(&world).await;
    world.set_back(HOUR);
    // A token of the future is not good yet; one of now is.
    early.0.get("/workflow/runs").await.problem(401, "unauthenticated");
    let (operator, approver) = (world.operator(), world.approver());
    let work = AtWork {
        upstream: work.upstream,
        call: operator.run(&work.call.id),
        held: operator.run(&work.held.id),
        expiring: operator.run(&work.expiring.id),
    };
    work.goes_on(&operator, &approver).await;
    is_in_order(&world, follow, &[&work.call, &work.held]).await;
    // The deadline is the one that was told.
    assert_eq!(work.expiring.get().await["status"], "awaiting_approval");
    world.advance(HOUR + HOUR / 2);
    work.expiring.wait_for("approval.expired").await;
}
