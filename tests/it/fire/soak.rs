//! A steady load over a long time, with restarts in between.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use fermata::auth::Role;
use reqwest::Method;
use serde_json::json;
use sqlx::PgConnection;
use tokio::{task::JoinSet, time::interval};

use super::{audit, patient::Patient, scale, site::Site, spread};
use crate::world::Client;

/// One run, from the request to its last event.
async fn one(caller: Patient, latencies: Arc<Mutex<Vec<(Instant, Duration)>>>) {
    let begun = Instant::now();
    let body =
        json!({ "plan": [{ "id": "a", "uses": "debug.echo" }, { "id": "b", "needs": ["a"], "uses": "debug.echo" }] });
    let key = format!("{:032x}", rand::random::<u128>());
    let post = |client: &Client| client.request(Method::POST, "/agent/execute").json(&body).key(&key).unchecked();
    let run = caller.ask(post).await.expect(202)["runId"].as_str().unwrap().to_owned();
    caller.follow(&format!("/workflow/runs/{run}/events"), None, |event| event.name == "completed").await;
    latencies.lock().unwrap().push((begun, begun.elapsed()));
}

/// What a commit of one row takes meanwhile, again and again: told beside the latencies, and excuses nothing.
async fn pace(mut database: PgConnection, paces: Arc<Mutex<Vec<Duration>>>) {
    sqlx::raw_sql("create schema pace; create table pace.marks (at timestamptz)").execute(&mut database).await.unwrap();
    let mut ticks = interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let begun = Instant::now();
        sqlx::query("insert into pace.marks values (now())").execute(&mut database).await.unwrap();
        paces.lock().unwrap().push(begun.elapsed());
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    // In a short life on a busy machine there may be none.
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[tokio::test]
async fn a_steady_load_with_restarts_stays_as_it_began() {
    let (per_second, lives, life) = scale((100, 10, 60), (25, 3, 5));
    let site = Site::new().await;
    let mut server = site.server("all");
    let caller = Patient::new(&site.client("", site.tenants[0], &[Role::Operator]), &[&server]);
    let latencies = Arc::new(Mutex::new(Vec::new()));
    let (mut runs, mut begun, mut memory) = (JoinSet::new(), 0, Vec::new());
    let (mut medians, marks) = (Vec::new(), Arc::new(Mutex::new(Vec::new())));
    let pacing = tokio::spawn(pace(site.superuser().await, Arc::clone(&marks)));
    for _ in 0..lives {
        server.start().await;
        let born = Instant::now();
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        while born.elapsed() < Duration::from_secs(life) {
            ticks.tick().await;
            runs.spawn(one(caller.clone(), Arc::clone(&latencies)));
            begun += 1;
        }
        memory.push(server.memory());
        // What was begun right after the start waited for it.
        let settled = born + Duration::from_secs(life) / 4;
        let all = latencies.lock().unwrap().clone();
        let times = all.iter().filter(|(begun, _)| *begun > settled).map(|(_, time)| *time).collect();
        medians.push((median(times), median(std::mem::take(&mut marks.lock().unwrap()))));
        server.stop().await;
    }
    pacing.abort();
    server.start().await;
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
    audit::journals_are_whole(&mut site.superuser().await).await;
    let (first, last) = (memory[0], *memory.last().unwrap());
    assert!(last < first * 5 / 4, "memory grew: {memory:?} KiB");
    // Short lives on a busy machine say nothing about time.
    let slower = medians.last().unwrap().0.as_secs_f64() / medians[0].0.as_secs_f64();
    assert!(scale(slower < 1.5, true), "it got slower: {medians:?}");
    let times = latencies.lock().unwrap().iter().map(|(_, time)| *time).collect();
    println!("soak: {begun} runs at {per_second}/s over {lives} lives of {life} s; {}", spread(times));
    println!(
        "soak: memory at the end of each life {memory:?} KiB, medians of a run and of a commit of one row {medians:.1?}"
    );
}
