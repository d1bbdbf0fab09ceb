//! Death at each point of an agent's run of ten turns, with tools of every kind, approvals and a hold on its budget, in
//! the middle of what a model says too: the same end, nothing asked twice that was answered, nothing done twice.

use std::{
    collections::{HashMap, HashSet},
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use fermata::{auth::Role, config::Api};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    audit,
    patient::Patient,
    scale,
    site::{Server, Site},
    spread,
};
use crate::world::{APIS, Event, Mcp, Provider, Revision, Turn, Upstream, outputs};

const TURNS: usize = 10;
/// What the model says at last.
const END: &str = "All eleven are done.";
/// The point after words were heard, before they are told.
const HEARD: &str = "model heard after";
/// Between its last words: longer than words wait for company.
const PAUSE: Duration = Duration::from_millis(70);
/// Tokens of the answers before the last one.
const SAID: usize = 11;

/// What is wanted once so many calls have been heard of: their kind, as a path of the upstream has it. A `vouched` call is
/// a POST of which the model says that it may be repeated.
const WANTED: [(usize, &[&str]); 9] = [
    (0, &["compute"]),
    (1, &["put"]),
    (2, &["post"]),
    (3, &["get", "put"]),
    (5, &["vouched"]),
    (6, &["mcp"]),
    (7, &["put", "post"]),
    (9, &["get"]),
    (10, &["compute"]),
];

/// Everything outside of the server, which lives through all of its deaths.
struct Stage {
    site: Site,
    provider: Provider,
    upstream: Upstream,
    notes: Mcp,
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
        let notes = Mcp::start(Revision::Newer).await;
        let mut server = site.server("all");
        let url = provider.url();
        let fakes =
            APIS.map(|(name, api)| format!(r#"{name}={{api="{}",url="{url}",key="sk-fake-0123456789"}}"#, word(api)));
        server.set("FERMATA_LLM_PROVIDERS", &format!("{{{}}}", fakes.join(",")));
        let owner = Patient::new(&site.client("", site.tenants[0], &[Role::Owner]), &[&server]);
        let to = upstream.clone();
        provider.answering(move |question| answer(&to, question));
        (Self { site, provider, upstream, notes, owner }, server)
    }

    /// Puts an agent for each protocol, and what they use.
    async fn prepare(&self) {
        let mut puts = vec![("/tools/mcp/notes".to_owned(), json!({ "url": self.notes.url(), "tools": ["echo"] }))];
        for (name, _) in APIS {
            // A token costs 0.001, and the longest answer 0.016: only the last turn would go past the budget.
            let config =
                json!({ "provider": name, "model": "m", "maxTokens": 16, "price": { "input": 0, "output": 1000 } });
            let tools = ["http.request", "data.transform", "mcp:notes/echo"];
            let agent = json!({ "instructions": "Do all of it.", "config": name, "tools": tools, "maxTurns": TURNS });
            puts.extend([(format!("/llm/configs/{name}"), config), (format!("/agents/{name}"), agent)]);
        }
        for (path, body) in puts {
            let put = self.owner.ask(|client| client.request(Method::PUT, &path).json(&body)).await;
            assert!([200, 201].contains(&put.status), "{}", put.text());
        }
    }

    /// Begins a run and follows it to its end.
    async fn play(&self, number: usize) -> Played {
        let budget = 0.001 * SAID as f64 + 0.016 - 0.0005;
        let (agent, _) = APIS[number % APIS.len()];
        let body = json!({ "agent": agent, "goal": goal(number), "budget": budget });
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
            let approve = asked["question"] != "repeat" || self.arrived(&asked["arguments"]) == 0;
            let answer = json!({ "status": if approve { "approved" } else { "denied" } });
            let path = format!("/approvals/{id}/decision");
            approver.ask(|client| client.request(Method::POST, &path).json(&answer)).await.expect(200);
        }
    }

    /// How often the call with these arguments has arrived, at the upstream or at the MCP server.
    fn arrived(&self, arguments: &Value) -> usize {
        match arguments["url"].as_str() {
            Some(url) => self.upstream.requests().iter().filter(|it| self.upstream.url(&it.path) == url).count(),
            None => self.notes.calls("echo").iter().filter(|call| call["arguments"] == *arguments).count(),
        }
    }

    /// Holds what became of a run against what happened outside; answers with how often it was asked whether to repeat, and
    /// with how many replies its last words were begun.
    async fn is_sound(&self, number: usize, Played { run, events }: &Played) -> (usize, usize) {
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
        let replies = self.words_are_sound(number, &named("message.delta"));
        self.calls_are_sound(number, events);
        (repeats, replies)
    }

    /// Each call that acts was asked about once, and the budget once; the rest is whether to repeat.
    fn questions_are_sound(&self, number: usize, asked: &[&Event]) -> usize {
        let of = |question: &str| {
            let asked = asked.iter().filter(|event| event.data["payload"]["question"] == question);
            asked.map(|event| event.data["stepId"].as_str().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of("consent"), ["call-3-1", "call-5-1", "call-6-1", "call-7-2"], "run {number}");
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

    /// What a reader has on the screen after the last reply is the whole of it, without a gap; answers with how many replies
    /// were begun.
    fn words_are_sound(&self, number: usize, deltas: &[&Event]) -> usize {
        let (mut text, mut reply, mut replies) = (String::new(), Value::Null, 0);
        for delta in deltas.iter().filter(|delta| delta.data["stepId"] == format!("turn-{TURNS}")) {
            let said = &delta.data["payload"];
            if said["offset"] == 0 || said["reply"] != reply {
                (text, reply, replies) = (String::new(), said["reply"].clone(), replies + 1);
            }
            assert_eq!(said["offset"], text.len(), "run {number}: {deltas:#?}");
            text.push_str(said["text"].as_str().unwrap());
        }
        assert_eq!(text, END, "run {number}: after {replies} replies");
        replies
    }

    /// Whatever acts acted once. Whatever may be repeated came under one key and with one body, and as often at most as the
    /// journal has an intent of it.
    fn calls_are_sound(&self, number: usize, events: &[Event]) {
        let mut intents: HashMap<String, usize> = HashMap::new();
        for event in events.iter().filter(|event| event.name == "step.started") {
            let arguments = &event.data["payload"]["arguments"];
            let place = arguments["url"].as_str().or(arguments["text"].as_str()).unwrap_or_default();
            *intents.entry(place.to_owned()).or_default() += 1;
        }
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
            assert!(requests[0].0.is_some(), "run {number}, {path}: without a key");
            let acts = ["/post/", "/vouched/"].iter().any(|kind| path.starts_with(kind));
            let most = if acts { 1 } else { intents[&self.upstream.url(&path)] };
            assert!(requests.len() <= most, "run {number}, {path}: {most} intents, {requests:#?}");
        }
        assert_eq!(self.arrived(&note(number)), 1, "run {number}: the note was taken once");
    }
}

/// The arguments of the MCP call of a run.
fn note(number: usize) -> Value {
    json!({ "text": format!("note of {number}") })
}

/// A protocol, as settings have it.
const fn word(api: Api) -> &'static str {
    match api {
        Api::Openai => "openai",
        Api::OpenaiResponses => "openai_responses",
        Api::Anthropic => "anthropic",
        Api::Gemini => "gemini",
    }
}

fn goal(number: usize) -> String {
    format!("Do number {number}")
}

fn is_end(event: &Event) -> bool {
    matches!(event.name.as_str(), "completed" | "failed" | "cancelled")
}

/// The number of the run that a question is of, wherever its protocol has the goal.
fn number_of(part: &Value) -> Option<String> {
    match part {
        Value::String(text) => text.strip_prefix("Do number ").map(str::to_owned),
        Value::Array(all) => all.iter().find_map(number_of),
        Value::Object(fields) => fields.values().find_map(number_of),
        _ => None,
    }
}

/// What the model says, by how many calls it has heard of; its last words it says slowly, so that each is told by itself.
fn answer(upstream: &Upstream, question: &Value) -> Turn {
    let number = number_of(question).unwrap();
    let heard = outputs(question).len();
    let Some((_, wanted)) = WANTED.iter().find(|(so_many, _)| *so_many == heard) else {
        return Turn::SaySlowly(END.split_inclusive(' ').map(str::to_owned).collect(), PAUSE);
    };
    let call = |(place, kind): (usize, &&str)| {
        let url = upstream.url(&format!("/{kind}/{}/{number}", heard + place));
        let body = json!({ "heard": heard });
        let send = |method: &str| ("http_request".to_owned(), json!({ "method": method, "url": url, "json": body }));
        match *kind {
            "compute" => ("data_transform".to_owned(), json!({ "value": body })),
            "get" => ("http_request".to_owned(), json!({ "url": url })),
            "mcp" => ("mcp_notes_echo".to_owned(), note(number.parse().unwrap())),
            "vouched" => {
                let (tool, mut call) = send("POST");
                call["repeatable"] = json!(true);
                (tool, call)
            }
            method => send(&method.to_uppercase()),
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
    assert_eq!(stage.is_sound(0, &played).await, (0, 1), "nobody died");
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
        let step = scale(1, 3);
        // Not always the same ones.
        let chosen: Vec<_> = points.iter().skip(rand::random_range(0..step)).step_by(step).collect();
        // Some words of the last answer have been told by then; one life for each protocol.
        let words: Vec<_> = points.iter().filter(|point| point.starts_with(HEARD)).collect();
        let amid = words[words.len() - 2];
        let chosen = [vec![amid; APIS.len()], chosen].concat();
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
            let (asked, replies) = stage.is_sound(number, &played).await;
            repeats += asked;
            assert!(number > APIS.len() || (died && replies == 2), "run {number}, {order}: {replies} replies");
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
