//! The bench against a server: that its figures have the shape they are documented with, and that what it
//! counts is so.

use serde_json::Value;
use sqlx::ConnectOptions;
use tokio::process::Command;

use crate::world::{World, campaign::scale, within};

/// What `fermata bench` prints about this world.
async fn bench(world: &World, arguments: &str) -> Value {
    let run = Command::new(env!("CARGO_BIN_EXE_fermata"))
        .arg("bench")
        .args(arguments.split(' '))
        .args(["--json", "--url", world.url(), "--token", world.owner().token()])
        .kill_on_drop(true)
        .output();
    let output = within(arguments, run).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(figures: &Value, pointer: &str) -> f64 {
    figures.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} in {figures:#}"))
}

/// The runs of one workload, and how many of them did not complete.
async fn runs(world: &World, workflow: &str) -> (usize, usize) {
    let page = world.viewer().get(&format!("/workflow/runs?workflow={workflow}&limit=200")).await.json();
    let runs = page["items"].as_array().unwrap();
    (runs.len(), runs.iter().filter(|run| run["status"] != "completed").count())
}

#[tokio::test]
async fn w1_decides_on_every_run_it_starts() {
    let world = World::new().await;
    let figures = bench(&world, "w1 --clients 3 --seconds 1 --warm-up 0").await;
    assert_eq!((&figures["workload"], &figures["clients"], &figures["errors"]), (&"w1".into(), &3.into(), &0.into()));
    assert!(number(&figures, "/runsPerSecond") > 0.0);
    for spread in ["createToFirstEventMs", "approveToNextEventMs", "runMs"] {
        let at = |rank| number(&figures, &format!("/{spread}/{rank}"));
        assert!(0.0 < at("p50") && at("p50") <= at("p95") && at("p95") <= at("p99") && at("p99") <= at("max"));
    }
    assert!(number(&figures, "/approveToNextEventMs/p50") < number(&figures, "/runMs/p50"));
    assert!(number(&figures, "/cpu/client") < 2.0);
    let (runs, live) = runs(&world, "fermata-bench-w1").await;
    assert!(runs >= 3 && live == 0, "{live} of {runs} were left behind");
}

#[tokio::test]
async fn w2_counts_the_steps_of_runs_that_completed() {
    let world = World::new().await;
    let figures = bench(&world, "w2 --clients 2 --seconds 1 --warm-up 0").await;
    assert_eq!((&figures["workload"], &figures["clients"], &figures["errors"]), (&"w2".into(), &2.into(), &0.into()));
    let (steps, per_second) = (number(&figures, "/stepsPerSecond"), number(&figures, "/runsPerSecond"));
    assert!(steps > 0.0 && (steps - per_second * 100.0).abs() <= 10.0, "{figures:#}");
    // Both clients finish the run they are in, and no more of it counts than was in the window.
    let (runs, live) = runs(&world, "fermata-bench-w2").await;
    assert!(runs >= 2 && live == 0, "{live} of {runs} were left behind");
    assert!(per_second <= runs as f64, "{per_second} a second of {runs}");
}

#[tokio::test]
async fn w3_brings_every_event_to_every_subscriber() {
    let world = World::new().await;
    let figures = bench(&world, "w3 --clients 20 --rate 100 --seconds 1").await;
    let at = |pointer| number(&figures, pointer);
    assert_eq!((at("/lost"), at("/repeated"), at("/askedPerSecond")), (0.0, 0.0, 2000.0));
    // All of it came, so what it took says how fast.
    assert!(at("/deliveredPerSecond") > 0.0 && at("/deliveredPerSecond") < 2500.0, "{figures:#}");
    assert!(at("/delayMs/p50") <= at("/delayMs/p99"));
    // Nobody said which process it is.
    assert!(figures["memory"].is_null());
}

#[tokio::test]
async fn w4_is_exact_through_its_cuts() {
    let world = World::new().await;
    let figures = bench(&world, "w4 --clients 2 --events 300 --cuts 5 --seconds 1").await;
    let at = |pointer| number(&figures, pointer);
    // What it tells, and seven events around that.
    assert_eq!((at("/events"), at("/lost"), at("/repeated")), (307.0, 0.0, 0.0));
    assert!(at("/cuts") > 0.0 && at("/cuts") <= 10.0, "{figures:#}");
    assert!(["/livePerSecond", "/replayedPerSecond", "/rereadPerSecond"].into_iter().all(|rate| at(rate) > 0.0));
}

#[tokio::test]
async fn w5_hears_every_word_of_every_agent() {
    let world = World::with(|settings| settings.llm.concurrency = 100).await;
    let clients = scale(100, 12);
    let figures = bench(&world, &format!("w5 --clients {clients} --words 60 --rate 200 --seconds 0")).await;
    let at = |pointer| number(&figures, pointer);
    assert_eq!((at("/wrong"), at("/lost"), at("/repeated")), (0.0, 0.0, 0.0), "{figures:#}");
    assert_eq!((at("/askedWordsPerSecond"), at("/spanMs")), (200.0 * f64::from(clients), 295.0));
    assert!(at("/heardWordsPerSecond") > 0.0 && at("/deltasPerSecond") > 0.0);
    let page = world.viewer().get("/workflow/runs?limit=200").await.json();
    let runs = page["items"].as_array().unwrap();
    assert_eq!(runs.len(), usize::try_from(clients).unwrap());
    assert!(runs.iter().all(|run| run["status"] == "completed"), "each was held once and let go on");
}

#[tokio::test]
async fn the_database_is_measured_and_left_as_it_was() {
    let world = World::new().await;
    let url = world.logins().owner.to_url_lossy();
    let figures = bench(&world, &format!("limits --seconds 1 --database-url {url}")).await;
    let names = ["commitsPerSecond", "commitsPerSecondAlone", "tenantCommitsPerSecond", "rowsPerSecond"];
    assert!(names.iter().all(|name| number(&figures, &format!("/{name}")) > 0.0), "{figures:#}");
    let figures = bench(&world, &format!("w2 --clients 2 --seconds 1 --warm-up 0 --limits --database-url {url}")).await;
    let ratio = number(&figures, "/stepsPerSecond") / number(&figures, "/limits/commitsPerSecond");
    assert!((number(&figures, "/ratios/stepsPerSecond") - ratio).abs() < 0.001, "{figures:#}");
    let left: i64 = sqlx::query_scalar("select count(*) from pg_namespace where nspname like 'fermata_bench%'")
        .fetch_one(&mut world.superuser().await)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_server_without_the_debug_tools_is_told_apart() {
    let world = World::with(|settings| settings.tools.debug = false).await;
    let run = Command::new(env!("CARGO_BIN_EXE_fermata"))
        .args(["bench", "w2", "--url", world.url(), "--token", world.owner().token()])
        .output();
    let output = within("the refusal", run).await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("FERMATA_TOOLS_DEBUG"));
}
