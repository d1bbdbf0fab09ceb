//! More open streams than there are seats for.

use std::collections::HashMap;

use futures_util::{StreamExt, stream};
use reqwest::Response;
use serde_json::{Value, json};

use crate::world::{Client, World, campaign, within};

/// Streams on one HTTP/2 connection.
const PER_CONNECTION: usize = 200;

/// A caller's streams, on as many connections as they need; half of them of either path.
struct Crowd {
    connections: Vec<reqwest::Client>,
    url: String,
    token: String,
    paths: [String; 2],
}

impl Crowd {
    fn of(world: &World, caller: &Client, paths: [&str; 2], size: usize) -> Self {
        let connect = |_| reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
        Self {
            connections: (0..size.div_ceil(PER_CONNECTION)).map(connect).collect(),
            url: world.url().to_owned(),
            token: caller.token().to_owned(),
            paths: paths.map(str::to_owned),
        }
    }

    async fn ask(&self, number: usize) -> Response {
        let url = format!("{}{}", self.url, self.paths[number % 2]);
        let request = self.connections[number / PER_CONNECTION].get(url).bearer_auth(&self.token);
        within("an answer", request.header("accept", "text/event-stream").send()).await.unwrap()
    }

    /// So many at once.
    async fn all(&self, size: usize) -> Vec<Response> {
        stream::iter(0..size).map(|number| self.ask(number)).buffer_unordered(64).collect().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_get_the_seats_there_are_and_a_clear_word() {
    let asked = campaign::scale(10_000, 1_000);
    // The usual ones for the whole crowd.
    let (per_token, per_tenant) = (asked / 5, asked / 2);
    let world = World::with(|settings| {
        (settings.streams.per_token, settings.streams.per_tenant) = (per_token, per_tenant);
    })
    .await;
    let run = world.operator().start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    let approval = run.hold().await;
    let of_run = run.path("/events");
    let paths = [&*of_run, "/workflow/events"];
    let callers = [world.viewer(), world.operator(), world.admin(), world.owner()];
    let crowds: Vec<_> = callers.iter().map(|caller| Crowd::of(&world, caller, paths, asked / 4)).collect();
    let (mut open, mut refused) = (Vec::new(), HashMap::<u64, usize>::new());
    for crowd in &crowds {
        for response in crowd.all(asked / 4).await {
            if response.status() == 200 {
                open.push(response);
                continue;
            }
            assert_eq!(response.status(), 429);
            assert!(response.headers().contains_key("retry-after"));
            let problem: Value = response.json().await.unwrap();
            assert_eq!(problem["type"], "/docs/problems/too-many-streams");
            *refused.entry(problem["limit"].as_u64().unwrap()).or_default() += 1;
        }
    }
    assert_eq!(open.len(), per_tenant);
    assert_eq!(refused.values().sum::<usize>(), asked - per_tenant);
    assert_eq!(refused.len(), 2, "the token's share and the tenant's: {refused:?}");
    // Whoever wants no stream, and every other tenant, is served.
    world.operator().get("/workflow/runs").await.expect(200);
    world.stranger().start(json!([{ "id": "a", "uses": "debug.echo" }])).await.completes().await;
    // Those who sit are told what comes.
    world.approver().approve(&approval).await;
    let told = stream::iter(open.iter_mut()).map(async |stream| {
        let mut text = String::new();
        while !text.contains("event: completed\n") {
            let chunk = within("the end of the run", stream.chunk()).await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    });
    assert_eq!(told.buffer_unordered(64).count().await, per_tenant);
    println!("{asked} streams asked for, {} open and told, refused by limit: {refused:?}", open.len());

    // Seats that are left are free, every one of them.
    drop((open, crowds));
    let again = Crowd::of(&world, &world.approver(), ["/workflow/events"; 2], per_token);
    let seats = stream::iter(0..per_token).map(async |number| {
        loop {
            let response = again.ask(number).await;
            if response.status() == 200 {
                return response;
            }
        }
    });
    let seats: Vec<_> = within("every seat", seats.buffer_unordered(16).collect()).await;
    assert_eq!(seats.len(), per_token);
}
