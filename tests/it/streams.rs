//! Streams to the exact event, whoever serves them and however often they break.

use fermata::app::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Event, Run, World, within};

/// A run of two dozen events, at its end.
async fn ended(world: &World) -> (Run, Vec<Event>) {
    let plan = json!([{ "id": "a", "uses": "debug.emit", "with": { "count": 16, "perSecond": 1000 } },
        { "id": "b", "needs": ["a"], "uses": "debug.echo" }]);
    let run = world.operator().start(plan).await;
    let events = run.follow().await.rest().await;
    assert_eq!(events.last().unwrap().name, "completed");
    (run, events)
}

#[tokio::test]
async fn a_client_that_comes_back_gets_exactly_the_rest() {
    let world = World::new().await;
    let (run, events) = ended(&world).await;
    let ids: Vec<_> = events.iter().map(|event| event.id.clone()).collect();
    assert_eq!(ids, (1..=events.len()).map(|seq| format!("evt_{seq}")).collect::<Vec<_>>());
    for (seen, event) in events.iter().enumerate().take(events.len() - 1) {
        assert_eq!(run.follow_after(&event.id).await.rest().await, events[seen + 1..]);
    }
    // Nothing is left: the browser is told not to come back.
    let last = &events.last().unwrap().id;
    let request = world.viewer().request(Method::GET, &run.path("/events")).header("last-event-id", last);
    let answer = request.header("accept", "text/event-stream").send().await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    // What the table has is what was sent.
    let table: Vec<_> = events.iter().map(|event| event.data.clone()).collect();
    assert_eq!(run.events().await, table);
    for event in &events {
        assert_eq!(
            (event.data["eventId"].as_str(), event.data["step"].as_str()),
            (Some(&*event.id), Some(&*event.name))
        );
    }
}

#[tokio::test]
async fn a_run_shows_how_far_it_is_while_its_steps_go_on() {
    let world = World::new().await;
    let plan = json!([{ "id": "a", "uses": "debug.sleep", "with": { "ms": 0 } },
        { "id": "b", "needs": ["a"], "uses": "debug.sleep", "with": { "ms": 86_400_000 } }]);
    let run = world.operator().start(plan).await;
    let last = run.wait_for_step("step.started", "b").await;
    let (shown, page) = (run.get().await, world.viewer().get("/workflow/runs").await.json());
    for shown in [&shown, &page["items"][0]] {
        assert_eq!((&shown["lastEventId"], &shown["updatedAt"]), (&json!(last.id), &last.data["ts"]));
    }
    // A server that has not heard of the run lets a client that has seen all of it go on.
    let api = world.server(Role::Api).await;
    let mut rest = world.viewer().at(&api.url).run(&run.id).follow_after(&last.id).await;
    run.cancel().await.expect(202);
    assert_eq!(rest.next().await.unwrap().name, "run.cancelling");
    api.stop().await;
}

#[tokio::test]
async fn every_server_tells_the_same() {
    let world = World::new().await;
    let api = world.server(Role::Api).await;
    let run = world.operator().start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    let (here, there) = (run.follow().await, world.viewer().at(&api.url).run(&run.id).follow().await);
    let approval = run.hold().await;
    // Decided at the server that does no work.
    world.approver().at(&api.url).approve(&approval).await;
    let (here, there) = tokio::join!(here.rest(), there.rest());
    assert_eq!(here, there);
    assert_eq!(here.last().unwrap().name, "completed");
    api.stop().await;
}

#[tokio::test]
async fn the_stream_of_a_run_that_began_here_asks_the_table_nothing() {
    let world = World::without_worker(|_| {}).await;
    let run = world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    let mut lock = world.superuser().await;
    sqlx::raw_sql("begin; lock table runs, run_events in access exclusive mode").execute(&mut lock).await.unwrap();
    let first = run.follow().await.next().await.unwrap();
    assert_eq!(first.id, "evt_1");
    sqlx::raw_sql("rollback").execute(&mut lock).await.unwrap();
    assert_eq!(run.events().await[0], first.data);
}

#[tokio::test]
async fn what_others_did_to_a_run_that_nobody_followed_is_not_missed() {
    let world = World::without_worker(|_| {}).await;
    let run = world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    // It begins here and is carried out elsewhere, to its end.
    let worker = world.server(Role::Worker).await;
    within("its end", async { while run.get().await["status"] != "completed" {} }).await;
    let told: Vec<_> = run.follow().await.rest().await.into_iter().map(|event| event.data).collect();
    assert_eq!(told, run.events().await);
    worker.stop().await;
}

#[tokio::test]
async fn the_tenants_stream_has_every_run_and_nobody_elses() {
    let world = World::new().await;
    let (first, of_first) = ended(&world).await;
    let foreign = world.stranger().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    foreign.completes().await;
    let second = world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    let of_second = second.follow().await.rest().await;

    let mut follow = world.viewer().follow_tenant("?from=start").await;
    for _ in 0..of_first.len() + of_second.len() {
        follow.next().await.unwrap();
    }
    let of = |run: &Run| {
        follow
            .seen
            .iter()
            .filter(|event| event.data["runId"] == run.id)
            .map(|event| event.raw.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&first), of_first.iter().map(|event| event.raw.clone()).collect::<Vec<_>>());
    assert_eq!(of(&second), of_second.iter().map(|event| event.raw.clone()).collect::<Vec<_>>());
    // From any place on, exactly the rest.
    let middle = follow.seen.len() / 2;
    let place = &follow.seen[middle].id;
    let mut again = world.viewer().follow_tenant(&format!("?lastEventId={place}")).await;
    for event in &follow.seen[middle + 1..] {
        assert_eq!(again.next().await.as_ref(), Some(event));
    }
    // A filter is kept by the cursor it gave.
    let mut ends = world.viewer().follow_tenant("?from=start&types=completed").await;
    let first_end = ends.next().await.unwrap();
    let mut rest = world.viewer().follow_tenant(&format!("?lastEventId={}", first_end.id)).await;
    let second_end = rest.next().await.unwrap();
    assert_eq!((first_end.name.as_str(), second_end.name.as_str()), ("completed", "completed"));
    let ended: Vec<&Value> = vec![&first_end.data["runId"], &second_end.data["runId"]];
    assert_eq!(ended, [&json!(first.id), &json!(second.id)]);
}

#[tokio::test]
async fn a_ticket_opens_one_stream_once() {
    let world = World::new().await;
    let run = world.operator().start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    run.hold().await;
    let ticket = world.viewer().request(Method::POST, &run.path("/events/ticket")).send().await.expect(201);
    let url = ticket["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix(world.url()).unwrap_or(&url);
    let open = |path: &str| world.nobody().request(Method::GET, path).header("accept", "text/event-stream");
    // Not for another run.
    let other = world.operator().start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    open(&path.replace(&run.id, &other.id)).send().await.problem(401, "unauthenticated");
    let ticket = world.viewer().request(Method::POST, &run.path("/events/ticket")).send().await.expect(201);
    let url = ticket["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix(world.url()).unwrap_or(&url);
    let mut follow = open(path).follow().await;
    follow.until("awaiting_approval").await;
    open(path).send().await.problem(401, "unauthenticated");
    // Half a minute later it is good for nothing.
    let ticket = world.viewer().request(Method::POST, "/workflow/events/ticket").send().await.expect(201);
    world.advance(std::time::Duration::from_secs(31));
    let url = ticket["url"].as_str().unwrap().to_owned();
    open(url.strip_prefix(world.url()).unwrap_or(&url)).send().await.problem(401, "unauthenticated");
}
