use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, Client, Event, Follow};

/// A run, as one caller sees it.
#[derive(Clone)]
pub struct Run {
    client: Client,
    pub id: String,
}

impl Run {
    pub fn new(client: Client, id: &str) -> Self {
        Self { client, id: id.to_owned() }
    }

    /// The path of the run, or of something below it.
    pub fn path(&self, below: &str) -> String {
        format!("/workflow/runs/{}{below}", self.id)
    }

    /// The run as it stands.
    pub async fn get(&self) -> Value {
        self.client.get(&self.path("")).await.expect(200)
    }

    /// All its steps.
    pub async fn steps(&self) -> Vec<Value> {
        let page = self.client.get(&self.path("/steps")).await.expect(200);
        page["items"].as_array().unwrap().clone()
    }

    /// One of its steps.
    pub async fn step(&self, id: &str) -> Value {
        let found = self.steps().await.into_iter().find(|step| step["stepId"] == id);
        found.unwrap_or_else(|| panic!("the run has no step {id}"))
    }

    /// All its events so far, from the table, page by page.
    pub async fn events(&self) -> Vec<Value> {
        let mut events = Vec::new();
        let mut query = "?limit=200".to_owned();
        loop {
            let request = self.client.request(Method::GET, &self.path(&format!("/events{query}")));
            let page = request.header("accept", "application/json").send().await.expect(200);
            events.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["nextCursor"].as_str() {
                Some(cursor) => query = format!("?limit=200&cursor={cursor}"),
                None => return events,
            }
        }
    }

    /// The names of all its events so far.
    pub async fn event_names(&self) -> Vec<String> {
        self.events().await.iter().map(|event| event["step"].as_str().unwrap().to_owned()).collect()
    }

    /// Its stream, from the beginning.
    pub async fn follow(&self) -> Follow {
        self.client.request(Method::GET, &self.path("/events")).follow().await
    }

    /// Its stream after an event.
    pub async fn follow_after(&self, last: &str) -> Follow {
        self.client.request(Method::GET, &self.path("/events")).header("last-event-id", last).follow().await
    }

    /// Waits for the first event of that name.
    pub async fn wait_for(&self, name: &str) -> Event {
        self.follow().await.until(name).await
    }

    /// Waits for the first event of that name that belongs to that step.
    pub async fn wait_for_step(&self, name: &str, step: &str) -> Event {
        let mut follow = self.follow().await;
        loop {
            let event = follow.until(name).await;
            if event.data["stepId"] == step {
                return event;
            }
        }
    }

    /// The child that a step of it waits for, in the hands of that client.
    pub async fn child(&self, client: &Client, step: &str) -> Self {
        let waiting = self.wait_for_step("step.waiting", step).await;
        client.run(waiting.data["payload"]["childRunId"].as_str().unwrap())
    }

    /// Waits for its end; answers with the run, which has the name of its last event as its status.
    pub async fn wait_end(&self) -> Value {
        let events = self.follow().await.rest().await;
        let run = self.get().await;
        assert_eq!(run["status"], events.last().unwrap().name, "{run}");
        run
    }

    /// Waits until it completed; answers with the run.
    pub async fn completes(&self) -> Value {
        let run = self.wait_end().await;
        assert_eq!(run["status"], "completed", "{run:#}");
        run
    }

    /// Waits for its first hold; answers with the approval's id.
    pub async fn hold(&self) -> String {
        let event = self.wait_for("awaiting_approval").await;
        event.data["payload"]["approvalId"].as_str().unwrap().to_owned()
    }

    pub async fn cancel(&self) -> Answer {
        self.client.post(&self.path("/cancel"), &json!({})).await
    }

    pub async fn retry(&self) -> Answer {
        self.client.request(Method::POST, &self.path("/retry")).send().await
    }
}
