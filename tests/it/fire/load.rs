//! The load: callers of every kind at once, who keep a record of each thing they were told.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use fermata::auth::Role;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    patient::Patient,
    site::{Server, Site},
};
use crate::world::{Answer, Client, Event, Upstream};

/// Something a 2xx answer or a stream said, which has to be true ever after.
pub enum Fact {
    /// The run is there.
    Run(String),
    /// The approval was decided, by an event of this name.
    Decided(String, &'static str),
    /// The run was cancelled.
    Cancelled(String),
    /// The failed run was taken up again.
    Retried(String),
    /// The definition has this version, with this text.
    Defined(String, u64, String),
    /// These are all the events of the run.
    Streamed(String, Vec<String>),
}

struct Crowd {
    operator: Patient,
    approver: Patient,
    sink: Upstream,
    answers: Mutex<JoinSet<()>>,
    facts: Mutex<Vec<Fact>>,
    /// How many things have been begun.
    begun: watch::Sender<usize>,
    over: CancellationToken,
}

/// Callers at work.
pub struct Load {
    crowd: Arc<Crowd>,
    callers: JoinSet<()>,
    approver: tokio::task::JoinHandle<()>,
}

impl Load {
    /// So many callers begin, and somebody who answers every question.
    pub fn begin(site: &Site, servers: &[&Server], sink: &Upstream, callers: usize) -> Self {
        let caller = |roles: &[Role]| Patient::new(&site.client("", site.tenants[0], roles), servers);
        let crowd = Arc::new(Crowd {
            operator: caller(&[Role::Operator]),
            approver: caller(&[Role::Approver]),
            sink: sink.clone(),
            answers: Mutex::default(),
            facts: Mutex::default(),
            begun: watch::Sender::new(0),
            over: CancellationToken::new(),
        });
        let approver = tokio::spawn(Arc::clone(&crowd).answer_all());
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            tasks.spawn(Arc::clone(&crowd).call());
        }
        Self { crowd, callers: tasks, approver }
    }

    /// How many things have been begun.
    pub fn begun(&self) -> usize {
        *self.crowd.begun.borrow()
    }

    /// Waits until so many have been.
    pub async fn has_begun(&self, things: usize) {
        // The sender is the load's own, so there is always more to wait for.
        let _ = self.crowd.begun.subscribe().wait_for(|begun| *begun >= things).await;
    }

    /// Begins nothing more, waits until all that was begun has ended, and answers with what was said.
    pub async fn finish(mut self) -> Vec<Fact> {
        self.crowd.over.cancel();
        let ended = async {
            while let Some(caller) = self.callers.join_next().await {
                caller.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(120), ended).await.unwrap();
        self.approver.abort();
        let mut answers = std::mem::take(&mut *self.crowd.answers.lock().unwrap());
        while let Some(answered) = answers.join_next().await {
            answered.unwrap();
        }
        std::mem::take(&mut *self.crowd.facts.lock().unwrap())
    }
}

fn is_end(event: &Event) -> bool {
    matches!(event.name.as_str(), "completed" | "failed" | "cancelled")
}

impl Crowd {
    fn told(&self, fact: Fact) {
        self.facts.lock().unwrap().push(fact);
    }

    /// Answers every question there is and will be.
    async fn answer_all(self: Arc<Self>) {
        let path = "/workflow/events?from=start&types=awaiting_approval";
        let answer = |event: &Event| {
            let answered = Arc::clone(&self).answer(event.data["payload"].clone());
            self.answers.lock().unwrap().spawn(answered);
            false
        };
        self.approver.follow(path, None, answer).await;
    }

    async fn answer(self: Arc<Self>, asked: Value) {
        let status = match asked["arguments"]["value"].as_str() {
            Some("leave") => return,
            Some("no") => "denied",
            _ => "approved",
        };
        let id = asked["approvalId"].as_str().unwrap();
        let (path, body) = (format!("/approvals/{id}/decision"), json!({ "status": status }));
        let answer = self.approver.ask(|client| client.request(Method::POST, &path).json(&body)).await;
        match answer.status {
            200 => self.told(Fact::Decided(id.to_owned(), status)),
            // The run ended first.
            409 => {}
            _ => panic!("{}: {}", answer.to, answer.text()),
        }
    }

    async fn call(self: Arc<Self>) {
        while !self.over.is_cancelled() {
            let mut number = 0;
            self.begun.send_modify(|begun| number = std::mem::replace(begun, *begun + 1));
            self.one(number).await;
        }
    }

    /// One caller's business, from its beginning to its end.
    async fn one(&self, number: usize) {
        match number % 10 {
            0 => self.carried_out(chain()).await,
            1 => self.carried_out(self.outward(number)).await,
            2 => self.carried_out(self.with_consent(number)).await,
            3 => self.see_through(&self.execute(json!({ "plan": held("no") })).await, "failed").await,
            4 => self.cancelled().await,
            5 => self.retried().await,
            6 => self.with_child(number).await,
            7 => self.carried_out(self.list(number)).await,
            8 => self.planned_first().await,
            _ => self.watched_by_ticket(number).await,
        }
    }

    async fn carried_out(&self, plan: Value) {
        self.see_through(&self.execute(json!({ "plan": plan })).await, "completed").await;
    }

    /// Begins a run, once however often it is asked for.
    async fn begin(&self, path: &str, body: Value) -> String {
        let key = format!("{:032x}", rand::random::<u128>());
        let post = |client: &Client| client.request(Method::POST, path).json(&body).key(&key);
        let run = self.operator.ask(post).await.expect(202)["runId"].as_str().unwrap().to_owned();
        self.told(Fact::Run(run.clone()));
        run
    }

    async fn execute(&self, body: Value) -> String {
        self.begin("/agent/execute", body).await
    }

    async fn command(&self, run: &str, command: &str) -> Answer {
        let path = format!("/workflow/runs/{run}/{command}");
        self.operator.ask(|client| client.request(Method::POST, &path).json(&json!({}))).await
    }

    /// Follows a run to its end, and looks at it from all sides.
    async fn see_through(&self, run: &str, to: &str) {
        let events = self.operator.follow(&format!("/workflow/runs/{run}/events"), None, is_end).await;
        self.look_at(run, events, to).await;
    }

    async fn look_at(&self, run: &str, events: Vec<Event>, to: &str) {
        assert_eq!(events.last().unwrap().name, to, "{run}");
        let found = self.operator.get(&format!("/workflow/runs/{run}")).await.expect(200);
        assert_eq!(found["status"], to, "{found}");
        self.operator.get(&format!("/workflow/runs/{run}/steps")).await.expect(200);
        self.operator.get(&format!("/approvals?runId={run}")).await.expect(200);
        let path = format!("/workflow/runs/{run}/events?limit=5");
        let page = |client: &Client| client.request(Method::GET, &path).header("accept", "application/json");
        self.operator.ask(page).await.expect(200);
        // Whoever comes late, or comes back, gets exactly the rest.
        let from = rand::random_range(1..events.len());
        let path = format!("/workflow/runs/{run}/events");
        let (last, mut left) = (events[from - 1].id.clone(), events.len() - from);
        let ended = |_: &Event| {
            left -= 1;
            left == 0
        };
        assert_eq!(self.operator.follow(&path, Some(last), ended).await, events[from..]);
        self.told(Fact::Streamed(run.to_owned(), events.into_iter().map(|event| event.raw).collect()));
    }

    async fn cancelled(&self) {
        let run = self.execute(json!({ "plan": held("leave") })).await;
        let answer = self.command(&run, "cancel").await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        self.told(Fact::Cancelled(run.clone()));
        self.see_through(&run, "cancelled").await;
    }

    async fn retried(&self) {
        let bad = json!([{ "id": "bad", "uses": "debug.fail", "with": { "times": 1, "retryable": false } },
                         { "id": "after", "needs": ["bad"], "uses": "debug.echo" }]);
        let run = self.execute(json!({ "plan": bad })).await;
        let path = format!("/workflow/runs/{run}/events");
        let mut events = self.operator.follow(&path, None, is_end).await;
        assert_eq!(events.last().unwrap().name, "failed");
        // 409 where an earlier asking was heard and the answer lost.
        assert!([202, 409].contains(&self.command(&run, "retry").await.status));
        self.told(Fact::Retried(run.clone()));
        let last = events.last().unwrap().id.clone();
        events.extend(self.operator.follow(&path, Some(last), is_end).await);
        self.look_at(&run, events, "completed").await;
    }

    async fn define(&self, name: &str, text: String) {
        let path = format!("/workflow/definitions/{name}");
        let put = |client: &Client| {
            client.request(Method::PUT, &path).header("content-type", "application/yaml").body(text.clone())
        };
        let answer = self.operator.ask(put).await;
        assert!([200, 201].contains(&answer.status), "{}", answer.text());
        self.told(Fact::Defined(name.to_owned(), answer.json()["version"].as_u64().unwrap(), text));
    }

    async fn with_child(&self, number: usize) {
        let name = format!("child-{number}");
        let wait = "{ id: nap, uses: time.wait, with: { for: 100ms } }";
        self.define(&name, format!("name: {name}\nsteps:\n  - {wait}\noutput: done\n")).await;
        let start = json!([{ "id": "start", "uses": "run.start", "with": { "workflow": name } }]);
        self.carried_out(start).await;
    }

    async fn planned_first(&self) {
        let run = self.begin("/agent/plan", json!({ "plan": chain() })).await;
        let body = json!({ "runId": run });
        let answer = self.operator.ask(|client| client.request(Method::POST, "/agent/execute").json(&body)).await;
        // 409 where an earlier asking was heard and the answer lost.
        assert!([202, 409].contains(&answer.status), "{}", answer.text());
        self.see_through(&run, "completed").await;
    }

    async fn watched_by_ticket(&self, number: usize) {
        let emit = json!({ "count": 20, "perSecond": 200, "bytes": 10 });
        let plan = json!([{ "id": "emit", "uses": "debug.emit", "with": emit },
                          { "id": "nap", "needs": ["emit"], "uses": "time.wait", "with": { "for": "150ms" } }]);
        let run = self.execute(json!({ "plan": plan, "goal": format!("number {number}") })).await;
        let ticket = self.command(&run, "events/ticket").await.expect(201);
        let (place, path) = ticket["url"].as_str().unwrap().split_once("/workflow/").unwrap();
        let request = Client::new(place, None).request(Method::GET, &format!("/workflow/{path}"));
        // It breaks where the server does; then the run is followed as any other.
        if let Some(follow) = request.reach().await {
            let first = follow.into_first().await;
            assert!(first.is_none_or(|event| event.id == "evt_1"));
        }
        self.see_through(&run, "completed").await;
    }

    fn outward(&self, number: usize) -> Value {
        let url = |path: &str| self.sink.url(&format!("/{path}/{number}"));
        json!([
            { "id": "put", "uses": "http.request", "with": { "method": "PUT", "url": url("put"), "json": {} } },
            { "id": "post", "needs": ["put"], "uses": "http.request", "with": { "method": "POST", "url": url("post"), "json": {} } },
        ])
    }

    fn with_consent(&self, number: usize) -> Value {
        let url = self.sink.url(&format!("/post/{number}"));
        json!([{ "id": "act", "uses": "http.request", "with": { "method": "POST", "url": url, "json": {} },
                 "approval": { "reason": "it acts" } }])
    }

    fn list(&self, number: usize) -> Value {
        let url = self.sink.url(&format!("/put/{number}/{{{{ item }}}}"));
        json!([
            { "id": "all", "uses": "http.request", "forEach": [1, 2, 3], "with": { "method": "PUT", "url": url } },
            { "id": "end", "needs": ["all"], "uses": "data.transform", "with": { "value": "{{ steps.all.output | length }}" } },
        ])
    }
}

fn chain() -> Value {
    json!([{ "id": "a", "uses": "debug.echo", "with": { "value": 1 } },
           { "id": "b", "needs": ["a"], "uses": "data.transform", "with": { "value": "{{ steps.a.output + 1 }}" } },
           { "id": "c", "needs": ["b"], "uses": "time.wait", "with": { "for": "100ms" } },
           { "id": "d", "needs": ["c"], "uses": "debug.echo", "with": { "value": "{{ steps.b.output }}" } }])
}

/// A step that asks, with a word for whoever answers.
fn held(word: &str) -> Value {
    json!([{ "id": "ask", "uses": "debug.echo", "with": { "value": word }, "approval": { "reason": "it asks" } }])
}
