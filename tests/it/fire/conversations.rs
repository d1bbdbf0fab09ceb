//! Death at each point of an agent's run of ten turns, with tools of every kind, approvals and a hold on its budget: the
//! same end, nothing asked twice that was answered, nothing done twice.

use std::{
    collections::{HashMap, HashSet},
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use fermata::auth::Role;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    audit,
    patient::Patient,
    scale,
    site::{Server, Site},
    spread,
};
use crate::world::{Event, Provider, Turn, Upstream};

const TURNS: usize = 10;
/// What the model says at last.
const END: &str = "All eleven are done.";
/// Tokens of the answers before the last one.
const SAID: usize = 11;

/// What is wanted once so many calls have been heard of: their kind, as a path of the upstream has it.
const WANTED: [(usize, &[&str]); 9] = [
    (0, &["compute"]),
    (1, &["put"]),
    (2, &["post"]),
    (3, &["get", "put"]),
    (5, &["post"]),
    (6, &["compute"]),
    (7, &["put", "post"]),
    (9, &["get"]),
    (10, &["compute"]),
];

/// Everything outside of the server, which lives through all of its deaths.
struct Stage {
    site: Site,
    provider: Provider,
    upstream: Upstream,
    owner: Patient,
}

/// What became of a run.
struct Played {
    run: String,
    events: Vec<Event>,
}

impl Stage {
    async fn new() -> (Self, Server) {
        let (site, provider, upstream) = (Site::new().await, Provider::start().await, Upstream::start().await);
        let mut server = site.server("all");
        let url = provider.url();
        let fake = format!(r#"{{fake={{api="openai_responses",url="{url}",key="sk-fake-0123456789"}}}}"#);
        server.set("FERMATA_LLM_PROVIDERS", &fake);
        let owner = Patient::new(&site.client("", site.tenants[0], &[Role::Owner]), &[&server]);
        let to = upstream.clone();
        provider.answering(move |question| answer(&to, question));
        (Self { site, provider, upstream, owner }, server)
    }

    /// Puts the agent and the configuration that it asks.
    async fn prepare(&self) {
        // A token costs 0.001, and the longest answer 0.016: only the last turn would go past the budget.
        let config =
            json!({ "provider": "fake", "model": "m", "maxTokens": 16, "price": { "input": 0, "output": 1000 } });
        let agent = json!({ "instructions": "Do all of it.", "config": "c", "tools": ["http.request", "data.transform"],
            "maxTurns": TURNS });
        for (path, body) in [("/llm/configs/c", config), ("/agents/worker", agent)] {
            let put = self.owner.ask(|client| client.request(Method::PUT, path).json(&body)).await;
            assert!([200, 201].contains(&put.status), "{}", put.text());
        }
    }

    /// Begins a run and follows it to its end.
    async fn play(&self, number: usize) -> Played {
        let budget = 0.001 * SAID as f64 + 0.016 - 0.0005;
        let body = json!({ "agent": "worker", "goal": goal(number), "budget": budget });
        let key = format!("run-{number}");
        let begin = self.owner.ask(|client| client.request(Method::POST, "/agent/execute").json(&body).key(&key));
        let run = begin.await.expect(202)["runId"].as_str().unwrap().to_owned();
        let path = format!("/workflow/runs/{run}/events");
        let events = self.owner.follow(&path, None, is_end).await;
        Played { run, events }
    }

    /// Answers every question there is and will be.
    async fn approve(&self, approver: &Patient) {
        let path = "/workflow/events?from=start&types=awaiting_approval";
        let mut last = None;
        loop {
            let mut questions = approver.follow(path, last, |_| true).await;
            let question = questions.pop().unwrap();
            last = Some(question.id);
            let asked = &question.data["payload"];
            let id = asked["approvalId"].as_str().unwrap();
            // It is made again unless it is known to have arrived.
            let approve =
                asked["question"] != "repeat" || self.arrived(asked["arguments"]["url"].as_str().unwrap()) == 0;
            let answer = json!({ "status": if approve { "approved" } else { "denied" } });
            let path = format!("/approvals/{id}/decision");
            approver.ask(|client| client.request(Method::POST, &path).json(&answer)).await.expect(200);
        }
    }

    fn arrived(&self, url: &str) -> usize {
        self.upstream.requests().iter().filter(|request| self.upstream.url(&request.path) == url).count()
    }

    /// Holds what became of a run against what happened outside; answers with how often it was asked whether to repeat.
    async fn is_sound(&self, number: usize, Played { run, events }: &Played) -> usize {
        let named = |name: &str| events.iter().filter(|event| event.name == name).collect::<Vec<_>>();
        assert_eq!(named("completed").len(), 1, "run {number}: {:?}", events.last());
        assert_eq!(events.last().unwrap().data["payload"]["output"], END);
        // Exactly the rows of the table, without a gap.
        let table = sqlx::query_scalar("select data::text from run_events where run_id = $1 order by seq");
        let id = run.parse::<fermata::kernel::RunId>().unwrap().uuid();
        let table: Vec<String> = table.bind(id).fetch_all(&mut self.site.superuser().await).await.unwrap();
        assert!(events.iter().map(|event| &event.raw).eq(&table), "run {number}: a follower saw something else");
        for (event, at) in events.iter().zip(1..) {
            assert_eq!(event.id, format!("evt_{at}"));
        }
        assert_eq!(steps_of(&named("plan.extended")), planned(), "run {number}");
        let repeats = self.questions_are_sound(number, &named("awaiting_approval"));
        self.turns_are_sound(number, &named("step.started"));
        self.calls_are_sound(number);
        repeats
    }

    /// Each call that acts was asked about once, and the budget once; the rest is whether to repeat.
    fn questions_are_sound(&self, number: usize, asked: &[&Event]) -> usize {
        let of = |question: &str| {
            let asked = asked.iter().filter(|event| event.data["payload"]["question"] == question);
            asked.map(|event| event.data["stepId"].as_str().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of("consent"), ["call-3-1", "call-5-1", "call-7-2"], "run {number}");
        assert_eq!(of("budget"), ["turn-10"], "run {number}");
        of("repeat").len()
    }

    /// What was answered was not asked again: a question was asked once, or again in the same words under an intent
    /// that says so.
    fn turns_are_sound(&self, number: usize, started: &[&Event]) {
        let turns = started.iter().copied().filter(|event| event.data["payload"]["tool"] == "agent.turn");
        let (again, first): (Vec<&Event>, Vec<&Event>) =
            turns.partition(|event| event.data["payload"]["repeated"] == true);
        assert_eq!(first.len(), TURNS, "run {number}");
        let (mut asked, mut bodies) = (0, HashSet::new());
        for question in self.provider.asked() {
            let body = question.body.to_string();
            if body.contains(&format!("{}\"", goal(number))) {
                asked += 1;
                bodies.insert(body);
            }
        }
        assert_eq!(bodies.len(), TURNS, "run {number}: other words");
        assert!((TURNS..=TURNS + again.len()).contains(&asked), "run {number}: {asked} questions, {again:#?}");
    }

    /// Whatever acts acted once; whatever may be repeated came under one key and with one body.
    fn calls_are_sound(&self, number: usize) {
        let mut by_path: HashMap<String, Vec<(Option<String>, Value)>> = HashMap::new();
        for request in self.upstream.requests() {
            if request.path.ends_with(&format!("/{number}")) {
                let body = serde_json::from_slice(&request.body).unwrap_or_default();
                let key = request.header("idempotency-key").map(str::to_owned);
                by_path.entry(request.path).or_default().push((key, body));
            }
        }
        assert_eq!(by_path.len(), 8, "run {number}: {by_path:#?}");
        for (path, requests) in by_path {
            assert!(requests.iter().all(|request| *request == requests[0]), "run {number}, {path}: {requests:#?}");
            assert!(!path.starts_with("/post/") || requests.len() == 1, "run {number}, {path}: {requests:#?}");
        }
    }
}

fn goal(number: usize) -> String {
    format!("Do number {number}")
}

fn is_end(event: &Event) -> bool {
    matches!(event.name.as_str(), "completed" | "failed" | "cancelled")
}

/// What the model says, by how many calls it has heard of.
fn answer(upstream: &Upstream, question: &Value) -> Turn {
    let input = question["input"].as_array().unwrap();
    let number = input.iter().find_map(|item| {
        let text = item["content"][0]["text"].as_str().or_else(|| item["content"].as_str())?;
        text.strip_prefix("Do number ").map(str::to_owned)
    });
    let number = number.unwrap();
    let heard = input.iter().filter(|item| item["type"] == "function_call_output").count();
    let Some((_, wanted)) = WANTED.iter().find(|(so_many, _)| *so_many == heard) else { return Turn::say(END) };
    let call = |(place, kind): (usize, &&str)| {
        let url = upstream.url(&format!("/{kind}/{}/{number}", heard + place));
        match *kind {
            "compute" => ("data_transform".to_owned(), json!({ "value": { "heard": heard } })),
            "get" => ("http_request".to_owned(), json!({ "url": url })),
            method => {
                let (method, json) = (method.to_uppercase(), json!({ "heard": heard }));
                ("http_request".to_owned(), json!({ "method": method, "url": url, "json": json }))
            }
        }
    };
    Turn::Call(wanted.iter().enumerate().map(call).collect())
}

/// The ids of the steps by which a plan grew.
fn steps_of(extended: &[&Event]) -> Vec<String> {
    let steps = extended.iter().flat_map(|event| event.data["payload"]["steps"].as_array().unwrap());
    steps.map(|step| step["id"].as_str().unwrap().to_owned()).collect()
}

/// The same, as the model has it.
fn planned() -> Vec<String> {
    let grown = WANTED.iter().zip(1..).flat_map(|((_, wanted), turn)| {
        let calls = (1..=wanted.len()).map(move |call| format!("call-{turn}-{call}"));
        calls.chain([format!("turn-{}", turn + 1)])
    });
    grown.collect()
}

/// Every point that is passed while a run is under way, in order: its name, and which passing of the life it was.
async fn points(stage: &Stage, server: &mut Server) -> Vec<String> {
    let list = stage.site.file("points");
    let passed = || std::fs::read_to_string(&list).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(server.start_with(Some(&format!("list:{}", list.display()))).await);
    let before = passed().len();
    let played = stage.play(0).await;
    let passed = passed();
    server.stop().await;
    assert_eq!(stage.is_sound(0, &played).await, 0, "nobody died");
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut points = Vec::new();
    for (name, at) in passed.iter().zip(0..) {
        let count = counts.entry(name).or_default();
        *count += 1;
        if at >= before {
            points.push(format!("{name}#{count}"));
        }
    }
    points
}

#[tokio::test]
#[cfg_attr(not(debug_assertions), ignore = "a release build has no crash points")]
async fn a_run_of_ten_turns_killed_at_any_point_comes_to_the_same_end() {
    let (stage, mut server) = Stage::new().await;
    let approver = Patient::new(&stage.site.client("", stage.site.tenants[0], &[Role::Approver]), &[&server]);
    let company = tokio::spawn(stage.site.company());
    let begun = Instant::now();
    server.start().await;
    stage.prepare().await;
    server.stop().await;
    let deaths = async {
        let points = points(&stage, &mut server).await;
        assert!(points.len() > 100, "{} points: {points:#?}", points.len());
        let step = scale(1, points.len().div_ceil(24));
        // Not always the same ones.
        let chosen: Vec<_> = points.iter().skip(rand::random_range(0..step)).step_by(step).collect();
        let (mut kills, mut missed, mut repeats, mut took) = (0, Vec::new(), 0, Vec::new());
        for (order, number) in chosen.into_iter().zip(1..) {
            let at = Instant::now();
            let scenario = stage.play(number);
            tokio::pin!(scenario);
            server.start_with(Some(order)).await;
            let mut died = false;
            let played = loop {
                tokio::select! {
                    played = &mut scenario => break played,
                    ended = server.ended() => {
                        assert_eq!((ended.signal(), died), (Some(9), false), "{order}");
                        died = true;
                        server.start().await;
                    }
                }
            };
            took.push(at.elapsed());
            server.kill().await;
            repeats += stage.is_sound(number, &played).await;
            if died { kills += 1 } else { missed.push(order) }
        }
        audit::journals_are_whole(&mut stage.site.superuser().await).await;
        // Points of the clock, a sign of life or a look for work, come in one life and not in another.
        assert!(missed.len() * 5 <= kills, "{kills} kills, not come to: {missed:#?}");
        let all = points.len();
        println!(
            "conversations: {all} points, {kills} kills, {} orders not come to, {repeats} questions whether to repeat",
            missed.len()
        );
        println!("conversations: a life and what came after took {}; all of it {:.0?}", spread(took), begun.elapsed());
    };
    tokio::select! {
        () = deaths => {}
        () = stage.approve(&approver) => {}
        () = tokio::time::sleep(Duration::from_secs(3600)) => panic!("not within an hour"),
    }
    company.abort();
}
