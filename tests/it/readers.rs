//! Readers that break, lag, stay too long or are too many.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use fermata::{
    app::Role,
    auth::{self, Grant},
};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Client, Event, Run, World, within};

/// Follows the run to its end over servers taken in turn, and breaks off after a few events, over and over.
async fn with_breaks(run_id: String, servers: Vec<Client>) -> Vec<Event> {
    let mut seen: Vec<Event> = Vec::new();
    for turn in rand::random_range(0..servers.len()).. {
        let request = servers[turn % servers.len()].request(Method::GET, &format!("/workflow/runs/{run_id}/events"));
        let mut follow = match seen.last() {
            Some(last) => request.header("last-event-id", &last.id).follow().await,
            None => request.follow().await,
        };
        for _ in 0..rand::random_range(1..60) {
            match follow.next().await {
                Some(event) => seen.push(event),
                None => return seen,
            }
            if matches!(seen.last().unwrap().name.as_str(), "completed" | "failed" | "cancelled") {
                return seen;
            }
        }
    }
    unreachable!("the turns have no end")
}

fn raw(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.raw.as_str()).collect()
}

/// The events of the table, byte for byte.
async fn table(world: &World, run: &Run) -> Vec<String> {
    let uuid = run.id.parse::<fermata::kernel::RunId>().unwrap().uuid();
    let mut database = world.superuser().await;
    sqlx::query_scalar("select data::text from run_events where run_id = $1 order by seq")
        .bind(uuid)
        .fetch_all(&mut database)
        .await
        .unwrap()
}

#[tokio::test]
async fn readers_that_break_anywhere_miss_nothing_and_hear_nothing_twice() {
    let world = World::new().await;
    let other = world.server(Role::Api).await;
    let emit = json!({ "count": 600, "perSecond": 400, "bytes": 50 });
    let run = world.operator().start(json!([{ "id": "a", "uses": "debug.emit", "with": emit }])).await;
    let viewer = world.viewer();
    let servers = vec![viewer.clone(), viewer.at(&other.url)];
    let readers = (0..16).map(|_| tokio::spawn(with_breaks(run.id.clone(), servers.clone())));
    let seen = join_all(readers).await;
    let table = table(&world, &run).await;
    assert!(table.len() > 600);
    for events in seen {
        assert_eq!(raw(&events.unwrap()), table);
    }
    other.stop().await;
}

/// Follows the tenant's events from the start until so many runs have ended, breaking off again and again.
async fn tenant_with_breaks(servers: Vec<Client>, ends: usize) -> Vec<Event> {
    let mut seen: Vec<Event> = Vec::new();
    let mut ended = 0;
    for turn in rand::random_range(0..servers.len()).. {
        let client = &servers[turn % servers.len()];
        let mut follow = match seen.last() {
            Some(last) => {
                let request = client.request(Method::GET, "/workflow/events");
                request.header("last-event-id", &last.id).follow().await
            }
            None => client.follow_tenant("?from=start").await,
        };
        for _ in 0..rand::random_range(1..60) {
            let event = follow.next().await.unwrap();
            ended += usize::from(event.name == "completed");
            seen.push(event);
            if ended == ends {
                return seen;
            }
        }
    }
    unreachable!("the turns have no end")
}

#[tokio::test]
async fn the_tenants_stream_is_exact_while_many_write() {
    let world = World::new().await;
    let other = world.server(Role::All).await;
    let viewer = world.viewer();
    let servers = vec![viewer.clone(), viewer.at(&other.url)];
    let readers: Vec<_> = (0..4).map(|_| tokio::spawn(tenant_with_breaks(servers.clone(), 40))).collect();
    let operator = world.operator();
    let runs = join_all((0..40).map(|n| {
        let client = if n % 2 == 0 { operator.clone() } else { operator.at(&other.url) };
        let emit = json!({ "count": 20, "perSecond": 200, "bytes": 20 });
        async move { client.start(json!([{ "id": "a", "uses": "debug.emit", "with": emit }])).await }
    }))
    .await;
    let seen: Vec<Vec<Event>> = join_all(readers).await.into_iter().map(Result::unwrap).collect();
    for events in &seen {
        assert_eq!(raw(events), raw(&seen[0]), "one order for all");
        let distinct: HashSet<_> = events.iter().map(|event| &event.id).collect();
        assert_eq!(distinct.len(), events.len());
    }
    let mut of_run: HashMap<&str, Vec<&str>> = HashMap::new();
    for event in &seen[0] {
        of_run.entry(event.data["runId"].as_str().unwrap()).or_default().push(&event.raw);
    }
    assert_eq!(of_run.len(), runs.len());
    for run in &runs {
        assert_eq!(of_run[run.id.as_str()], table(&world, run).await);
    }
    other.stop().await;
}

#[tokio::test]
async fn a_slow_reader_gets_everything_and_holds_up_nobody() {
    // So little is kept in memory that whoever lags has to read the table.
    let world = World::with(|settings| settings.streams.buffer = 64 * 1024).await;
    let emit = json!({ "count": 2000, "perSecond": 100_000, "bytes": 2000 });
    let steps = json!([
        { "id": "wait", "uses": "debug.echo", "approval": {} },
        { "id": "emit", "needs": ["wait"], "uses": "debug.emit", "with": emit },
    ]);
    let run = world.operator().start(steps).await;
    let mut slow = run.follow().await;
    slow.until("awaiting_approval").await;
    world.approver().approve(&run.hold().await).await;
    // It reads nothing until all is over.
    run.completes().await;
    let events = slow.rest().await;
    assert_eq!(raw(&events), table(&world, &run).await);
}

fn bearer_for(world: &World, ttl: Duration) -> Client {
    let ttl = fermata::kernel::Span(ttl);
    let grant = Grant { ttl, ..world.grant(world.home(), "user_brief", vec![auth::Role::Viewer], None) };
    world.bearer(&grant)
}

async fn held(world: &World) -> Run {
    let run = world.operator().start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    run.hold().await;
    run
}

#[tokio::test]
async fn a_stream_ends_with_the_token_that_opened_it() {
    let world = World::new().await;
    let run = held(&world).await;
    let brief = bearer_for(&world, Duration::from_secs(600));
    let mut of_run = brief.run(&run.id).follow().await;
    let mut of_tenant = brief.follow_tenant("?from=start").await;
    for follow in [&mut of_run, &mut of_tenant] {
        follow.until("awaiting_approval").await;
    }
    let longer = run.follow().await;
    world.advance(Duration::from_secs(900));
    assert_eq!(of_run.rest().await.last().unwrap().name, "awaiting_approval");
    assert_eq!(of_tenant.rest().await.last().unwrap().name, "awaiting_approval");
    let again = brief.request(Method::GET, &run.path("/events")).header("accept", "text/event-stream");
    again.send().await.problem(401, "unauthenticated");
    // Another's token is still good.
    world.approver().approve(&run.hold().await).await;
    assert_eq!(longer.rest().await.last().unwrap().name, "completed");
}

#[tokio::test]
async fn there_are_so_many_seats_and_one_that_is_left_is_free() {
    let world = World::with(|settings| {
        (settings.streams.per_token, settings.streams.per_tenant) = (2, 3);
    })
    .await;
    let run = held(&world).await;
    let (viewer, approver) = (world.viewer(), world.approver());
    let request = |client: &Client| client.request(Method::GET, &run.path("/events"));
    let open = |client: &Client| request(client).header("accept", "text/event-stream");
    let first = viewer.run(&run.id).follow().await;
    let _second = viewer.run(&run.id).follow().await;
    let full = open(&viewer).send().await;
    assert_eq!(full.problem(429, "too-many-streams")["limit"], 2);
    assert!(full.header("retry-after").is_some());
    let _third = approver.run(&run.id).follow().await;
    assert_eq!(open(&approver).send().await.problem(429, "too-many-streams")["limit"], 3);
    // Another tenant has its own.
    let foreign = world.stranger().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    foreign.completes().await;
    drop(first);
    let seat = async {
        loop {
            if let Some(follow) = request(&viewer).try_follow().await {
                return follow;
            }
        }
    };
    within("a seat that was left", seat).await;
}

#[tokio::test]
async fn a_server_that_stops_ends_its_streams_in_good_order() {
    let world = World::new().await;
    let other = world.server(Role::Api).await;
    let run = held(&world).await;
    let token = world.viewer().token().to_owned();
    let get = |path: String| reqwest::Client::new().get(format!("{}{path}", other.url)).bearer_auth(&token);
    let mut of_run = get(run.path("/events")).header("accept", "text/event-stream").send().await.unwrap();
    let mut of_tenant = get("/workflow/events?from=start".to_owned()).send().await.unwrap();
    let mut texts = [String::new(), String::new()];
    for (stream, text) in [&mut of_run, &mut of_tenant].into_iter().zip(&mut texts) {
        while !text.contains("event: awaiting_approval") {
            let chunk = within("the hold", stream.chunk()).await.unwrap().expect("the stream goes on");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
    let stopping = tokio::spawn(other.stop());
    for (mut stream, mut text) in [of_run, of_tenant].into_iter().zip(texts) {
        // To the last chunk: not an error, and nothing half sent.
        while let Some(chunk) = within("the end of the streams", stream.chunk()).await.unwrap() {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert!(text.starts_with("retry: ") && text.ends_with("\n\n"), "{text}");
    }
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_browser_comes_back_with_its_cookie_until_the_token_expires() {
    let world = World::new().await;
    let run = held(&world).await;
    let brief = bearer_for(&world, Duration::from_secs(600));
    let ticket = brief.request(Method::POST, &run.path("/events/ticket")).send().await.expect(201);
    let url = ticket["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix(world.url()).unwrap_or(&url).to_owned();
    let browser = reqwest::Client::new();
    let get = |cookie: Option<&str>, last: Option<&str>, origin: Option<&str>| {
        let request = browser.get(format!("{}{path}", world.url())).header("accept", "text/event-stream");
        let headers = [("cookie", cookie), ("last-event-id", last), ("origin", origin)];
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        headers.fold(request, |request, (name, value)| request.header(name, value)).send()
    };
    assert_eq!(get(None, None, Some("https://elsewhere.example")).await.unwrap().status(), 403);
    let opened = get(None, None, None).await.unwrap();
    assert_eq!(opened.status(), 200);
    let cookie = opened.headers()["set-cookie"].to_str().unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Strict", &format!("Path={}", run.path("/events"))] {
        assert!(cookie.contains(part), "{cookie}");
    }
    drop(opened);
    let cookie = cookie.split(';').next().unwrap();
    // The URL is the same, with the ticket that is used up.
    assert_eq!(get(None, None, None).await.unwrap().status(), 401);
    let again = get(Some(cookie), Some("evt_4"), None).await.unwrap();
    assert_eq!(again.status(), 200);
    assert_eq!(get(Some(cookie), None, Some("https://elsewhere.example")).await.unwrap().status(), 403);
    world.approver().approve(&run.hold().await).await;
    let text = within("the rest of the stream", again.text()).await.unwrap();
    assert!(text.contains("id: evt_5\n") && !text.contains("id: evt_4\n"), "{text}");
    let last = run.completes().await["lastEventId"].clone();
    assert_eq!(get(Some(cookie), last.as_str(), None).await.unwrap().status(), 204);
    world.advance(Duration::from_secs(900));
    assert_eq!(get(Some(cookie), last.as_str(), None).await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_reconnect_at_the_end_is_told_not_to_come_back_whatever_ended_the_run() {
    let world = World::new().await;
    let run = held(&world).await;
    run.cancel().await.expect(202);
    let last = run.wait_end().await["lastEventId"].clone();
    let request = world.viewer().request(Method::GET, &run.path("/events")).header("accept", "text/event-stream");
    assert_eq!(request.header("last-event-id", last.as_str().unwrap()).send().await.status, 204);
    // A failed run has no last event for ever: who comes back after a retry gets what followed.
    let fail = json!([{ "id": "a", "uses": "debug.fail", "with": { "times": 1, "retryable": false } }]);
    let run = world.operator().start(fail).await;
    let last = run.wait_end().await["lastEventId"].as_str().unwrap().to_owned();
    run.retry().await.expect(202);
    let rest = run.follow_after(&last).await.rest().await;
    assert_eq!((rest[0].name.as_str(), rest.last().unwrap().name.as_str()), ("executing", "completed"));
    let all: Vec<Value> = run.events().await;
    assert_eq!(rest.len(), all.len() - last[4..].parse::<usize>().unwrap());
}
