//! `kill -9` of everything, over running work, with the real command line and the real files.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    process::Stdio,
};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::world::{Client, Run, Upstream, within};

/// `fermata dev` and the folder it keeps everything in; both are gone with the test.
struct Dev {
    folder: PathBuf,
    process: Option<Child>,
}

impl Dev {
    fn new() -> Self {
        let name = format!("fermata-killed-{}-{:08x}", std::process::id(), rand::random::<u32>());
        Self { folder: std::env::temp_dir().join(name), process: None }
    }

    /// Starts it and waits until it says where it is; answers with what `dev.json` has.
    async fn start(&mut self) -> Value {
        let mut process = Command::new(env!("CARGO_BIN_EXE_fermata"))
            .args(["dev", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&self.folder)
            .env_remove("FERMATA_CAMPAIGN")
            .env_remove("FERMATA_SEED")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let announced = async {
            loop {
                // None is the end of a server that never was ready.
                let line = lines.next_line().await.unwrap().unwrap();
                if line.contains("http://127.0.0.1:") {
                    return;
                }
            }
        };
        within("the server's announcement", announced).await;
        // Nobody reads the rest, and it must not block.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.process = Some(process);
        serde_json::from_slice(&std::fs::read(self.folder.join("dev.json")).unwrap()).unwrap()
    }

    /// Kills the server and its PostgreSQL at once.
    async fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        kill_postmaster(&self.folder);
        process.start_kill().unwrap();
        process.wait().await.unwrap();
    }
}

fn kill_postmaster(folder: &Path) {
    let Ok(file) = std::fs::read_to_string(folder.join("pg/postmaster.pid")) else { return };
    let pid = file.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
    let _ = kill_process(pid.unwrap(), Signal::KILL);
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.process.take());
        kill_postmaster(&self.folder);
        let elsewhere = std::fs::read_link(self.folder.join("pg"));
        let _ = elsewhere.map(|link| link.parent().map(std::fs::remove_dir_all));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn caller(dev: &Value, role: &str) -> Client {
    Client::new(dev["baseUrl"].as_str().unwrap(), Some(dev["tokens"][role].as_str().unwrap().to_owned()))
}

/// The plan of the run of that number.
fn plan(upstream: &Upstream, number: usize) -> Value {
    let url = |path: &str| upstream.url(&format!("/{path}/{number}"));
    let post = |path: &str| json!({ "method": "POST", "url": url(path), "json": {} });
    match number % 5 {
        0 => json!([
            { "id": "all", "uses": "http.request", "forEach": [1, 2, 3], "with": { "method": "PUT", "url": url("put") } },
            { "id": "end", "needs": ["all"], "uses": "data.transform", "with": { "value": "{{ steps.all.output | length }}" } },
        ]),
        1 => {
            json!([{ "id": "act", "uses": "http.request", "with": post("consent"), "approval": { "reason": "it acts" } }])
        }
        // In flight when everything dies.
        2 => json!([{ "id": "act", "uses": "http.request", "with": post("slow") },
                    { "id": "end", "needs": ["act"], "uses": "debug.echo" }]),
        3 => json!([{ "id": "emit", "uses": "debug.emit", "with": { "count": 50, "perSecond": 20 } },
                    { "id": "nap", "uses": "time.wait", "with": { "for": "2s" } }]),
        _ => json!([{ "id": "a", "uses": "debug.echo", "approval": {} },
                    { "id": "b", "needs": ["a"], "uses": "debug.echo", "approval": {} }]),
    }
}

/// Says yes to every question there was and will be.
async fn say_yes(approver: Client) {
    let mut questions = approver.follow_tenant("?from=start&types=awaiting_approval").await;
    while let Some(question) = questions.next().await {
        let id = question.data["payload"]["approvalId"].as_str().unwrap().to_owned();
        let answer = approver.decide(&id, &json!({ "status": "approved" })).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// Checks a run against its own events; answers with how often somebody said "do it again".
async fn is_sound(run: &Run) -> usize {
    let events = run.events().await;
    let mut outcomes = HashSet::new();
    let mut questions = HashMap::new();
    let mut words = 0;
    for (number, event) in (1..).zip(&events) {
        assert_eq!(event["eventId"], format!("evt_{number}"), "a gap");
        let payload = &event["payload"];
        match event["step"].as_str().unwrap() {
            "step.completed" | "step.failed" | "step.retrying" | "step.skipped" => {
                assert!(outcomes.insert((event["stepId"].to_string(), event["attempt"].to_string())), "{events:#?}");
            }
            "awaiting_approval" => {
                drop(questions.insert(payload["approvalId"].to_string(), payload["question"].clone()))
            }
            "approved" => words += usize::from(questions[&payload["approvalId"].to_string()] == "repeat"),
            _ => {}
        }
    }
    words
}

#[tokio::test]
async fn after_kill_9_of_everything_all_work_goes_on() {
    const RUNS: usize = 50;
    let upstream = Upstream::start().await;
    for number in 0..RUNS {
        upstream.hold(&format!("/slow/{number}"));
    }
    let mut dev = Dev::new();
    let first = dev.start().await;
    let operator = caller(&first, "operator");
    let ids = join_all((0..RUNS).map(|number| operator.start(plan(&upstream, number)))).await;
    // Some are asking, some have been answered, some are under way, and these have acted and not been heard.
    for number in (2..RUNS).step_by(5) {
        upstream.arrived(&format!("/slow/{number}"), 1).await;
    }
    let approver = caller(&first, "approver");
    approver.approve(&approver.run(&ids[1].id).hold().await).await;
    approver.approve(&approver.run(&ids[4].id).hold().await).await;
    dev.kill().await;
    for number in 0..RUNS {
        upstream.release(&format!("/slow/{number}"));
    }

    let second = dev.start().await;
    let (viewer, approver) = (caller(&second, "viewer"), caller(&second, "approver"));
    let yes = tokio::spawn(say_yes(approver));
    let runs: Vec<_> = ids.iter().map(|run| viewer.run(&run.id)).collect();
    join_all(runs.iter().map(Run::completes)).await;
    for (number, run) in runs.iter().enumerate() {
        let words = is_sound(run).await;
        for path in ["slow", "consent"] {
            let acts = upstream.requests_to(&format!("/{path}/{number}")).len();
            assert!(acts <= 1 + words, "/{path}/{number} acted {acts} times, {words} repetitions were allowed");
        }
        if number % 5 == 2 {
            assert_eq!(words, 1, "what was in flight was asked about");
        }
    }
    yes.abort();
}
