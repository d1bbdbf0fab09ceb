//! What those who run the server look at.

use fermata::{app::Role, kernel::Span};
use reqwest::Method;
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::world::{Upstream, World, within};

/// What dashboards and alarms build on.
const PROMISED: [&str; 17] = [
    "fermata_build_info{",
    "fermata_http_request_duration_seconds_bucket{route=\"/agent/execute\"",
    "fermata_http_requests_in_flight ",
    "fermata_runs{status=\"awaiting_approval\"} ",
    "fermata_queue_age_seconds ",
    "fermata_database_connections{state=\"used\"} ",
    "fermata_database_connections{state=\"idle\"} ",
    "fermata_runs_claimed_total ",
    "fermata_steps_total{tool=\"debug.echo\",outcome=\"completed\"} ",
    "fermata_journal_batch_runs_bucket{",
    "fermata_journal_commit_seconds_bucket{",
    "fermata_streams_open{",
    "fermata_streams_followed ",
    "fermata_stream_lag_events ",
    "fermata_stream_events_sent_total ",
    "fermata_stream_reads_total",
    "fermata_signals_sent_total ",
];

#[tokio::test]
async fn the_metrics_page_has_what_was_promised() {
    let world = World::new().await;
    let held = world.operator().start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    held.hold().await;
    world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await.completes().await;
    let _open = held.follow().await;
    // A label is never a caller's to invent, and never an id.
    world.nobody().get("/unheard-of/run_01kahx3c5qf8k9z4v7t2m6w8np").await;
    let page = world.nobody().get("/metrics").await.text();
    let missing: Vec<_> = PROMISED.iter().filter(|series| !page.contains(**series)).collect();
    assert!(missing.is_empty(), "{missing:#?} of\n{page}");
    assert!(!page.contains("run_0") && !page.contains("tnt_0") && !page.contains("unheard"), "{page}");
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let value = line.rsplit_once(' ').unwrap().1;
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn readiness_follows_the_database() {
    let world = World::with(|settings| settings.database.acquire_timeout = Span::seconds(1)).await;
    let ready = world.nobody().get("/health/ready").await.expect(200);
    assert_eq!(ready["status"], "ready");
    let login = world.logins();
    let name = login.app.get_database().unwrap().to_owned();
    let doors = async |open: bool| {
        let mut superuser = sqlx::ConnectOptions::connect(&login.superuser.clone().database("postgres")).await.unwrap();
        let statement = format!("alter database {name} with allow_connections {open}");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut superuser).await.unwrap();
        let cut = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
        sqlx::query(cut).bind(&name).execute(&mut superuser).await.unwrap();
    };
    doors(false).await;
    let problem = world.nobody().get("/health/ready").await.problem(503, "unavailable");
    assert!(problem["failing"].as_array().unwrap().contains(&json!("database")), "{problem}");
    world.nobody().get("/health").await.expect(200);
    let answer = world.viewer().get("/workflow/runs").await;
    answer.problem(503, "unavailable");
    assert!(answer.header("retry-after").is_some());
    doors(true).await;
    let back = async { while world.nobody().get("/health/ready").await.status != 200 {} };
    within("readiness", back).await;
    world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await.completes().await;
}

#[tokio::test]
async fn a_worker_answers_only_for_its_health() {
    let world = World::new().await;
    let worker = world.server(Role::Worker).await;
    let client = world.operator().at(&worker.url);
    client.get("/health").await.expect(200);
    client.get("/health/ready").await.expect(200);
    client.get("/metrics").await.expect(200);
    client.request(Method::GET, "/workflow/runs").unchecked().send().await.problem(404, "not-found");
    worker.stop().await;
}

#[tokio::test]
async fn a_server_that_stops_ends_its_streams_and_lets_steps_finish() {
    let world = World::new().await;
    let upstream = Upstream::start().await;
    upstream.hold("/slow");
    let run = world
        .operator()
        .start(json!([{ "id": "a", "uses": "http.request", "with": { "url": upstream.url("/slow") } }]))
        .await;
    let mut follow = run.follow().await;
    upstream.arrived("/slow", 1).await;
    let other = world.server(Role::Api).await;
    let seen = world.operator().at(&other.url).run(&run.id);
    let stopping = tokio::spawn(world.stop());
    // The stream ends, though the run has not.
    while follow.next().await.is_some() {}
    assert!(!follow.names().contains(&"completed"));
    upstream.release("/slow");
    within("the stop", stopping).await.unwrap();
    assert_eq!(seen.step("a").await["status"], "completed");
    assert_eq!(upstream.requests_to("/slow").len(), 1);
    other.stop().await;
}
