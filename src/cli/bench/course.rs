use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{
    figures::Window,
    vitals::{self, Cost, Meter},
    wire::{Site, Wire},
};
use crate::cli::client::{
    connection::{Connection, Role},
    failure::{Failure, Result},
};

/// A client that was refused waits this long before it tries again.
const REST: Duration = Duration::from_millis(100);

/// What every workload takes.
#[derive(Debug, Args)]
pub(super) struct Terms {
    /// Print the figures as one JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// The server's process, to measure what it uses [else the one `fermata dev` wrote down]
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    #[command(flatten)]
    connection: Connection,
}

/// How long a workload is kept up.
#[derive(Debug, Args)]
pub(super) struct Length {
    /// How long it is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) seconds: u64,
    /// How long it runs before that
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub(super) warm_up: u64,
}

/// The server, those who call it, and its process where it is known.
#[derive(Clone, Debug)]
pub(super) struct Course {
    pub(super) site: Arc<Site>,
    operator: Arc<str>,
    approver: Arc<str>,
    admin: Arc<str>,
    pub(super) server: Option<u32>,
}

/// A run that tells a number of events, planned and not begun.
#[derive(Clone, Debug)]
pub(super) struct Emission {
    pub(super) run_id: String,
    /// Its events so far.
    pub(super) planned: u64,
}

/// A run as the API shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    run_id: String,
    status: String,
    last_event_id: String,
}

/// What `fermata dev` says of itself.
#[derive(Deserialize)]
struct Holder {
    pid: u32,
}

/// What came of a workload that was kept up.
#[derive(Debug)]
pub(super) struct Outcome<T> {
    pub(super) done: Vec<T>,
    pub(super) errors: u64,
    pub(super) cost: Cost,
}

impl Terms {
    /// The database that `fermata dev` wrote down.
    pub(super) fn noted_database(&self) -> Result<Option<String>> {
        let dir = self.connection.target(Role::Operator)?.data_dir().map(|dir| dir.join("database"));
        Ok(dir.and_then(|file| std::fs::read_to_string(file).ok()))
    }

    /// Finds the server and makes sure that it has what the workloads are made of.
    pub(super) async fn course(&self) -> Result<Course> {
        let operator = self.connection.target(Role::Operator)?;
        let approver = self.connection.target(Role::Approver)?;
        let admin = self.connection.target(Role::Admin)?;
        let noted = operator.data_dir().map(|dir| dir.join("lock")).and_then(holder);
        let course = Course {
            site: Arc::new(Site::find(&operator.base).await?),
            operator: operator.token.expose_secret().into(),
            approver: approver.token.expose_secret().into(),
            admin: admin.token.expose_secret().into(),
            server: self.server_pid.or(noted),
        };
        let tools = course.ask("GET /tools?limit=200", b"").await?;
        if tools.to_string().contains("debug.echo") {
            return Ok(course);
        }
        Err(Failure::Usage(
            "the server has no debug tools, which the workloads are made of: measure one that `fermata dev` runs, \
             or start it with FERMATA_TOOLS_DEBUG=true"
                .to_owned(),
        ))
    }
}

impl Course {
    /// A request of the one who starts runs.
    pub(super) fn request(&self, what: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        self.site.request(what, &self.operator, headers, body)
    }

    /// A request of the one who decides.
    pub(super) fn decision(&self, what: &str, body: &[u8]) -> Vec<u8> {
        self.site.request(what, &self.approver, "", body)
    }

    /// What the stream of a run is asked for with, after that event.
    pub(super) fn events(&self, run: &str, after: u64) -> Vec<u8> {
        let last = if after == 0 { String::new() } else { format!("last-event-id: evt_{after}\r\n") };
        let headers = format!("accept: text/event-stream\r\n{last}");
        self.request(&format!("GET /workflow/runs/{run}/events"), &headers, b"")
    }

    /// Asks once; not for what is measured.
    pub(super) async fn ask(&self, what: &str, body: &[u8]) -> Result<Value> {
        let answer = Wire::new(&self.site).call(&self.request(what, "", body)).await?;
        serde_json::from_slice(&answer).map_err(|e| Failure::Unreadable(e.to_string()))
    }

    /// Puts what only those may put who set a tenant up.
    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<()> {
        let request = self.site.request(&format!("PUT {path}"), &self.admin, "", body.to_string().as_bytes());
        Wire::new(&self.site).call(&request).await.map(drop)
    }

    /// Puts a definition, as who runs a workflow many times does, and returns what starts it.
    pub(super) async fn define(&self, name: &str, steps: &Value) -> Result<Vec<u8>> {
        let definition = serde_json::json!({ "name": name, "steps": steps }).to_string();
        let put = self.ask(&format!("PUT /workflow/definitions/{name}"), definition.as_bytes()).await?;
        let reference = format!("{name}@{}", put.get("version").and_then(Value::as_u64).unwrap_or(1));
        Ok(serde_json::json!({ "workflow": reference }).to_string().into_bytes())
    }

    /// Plans a run that tells events, so that its readers can be there before it begins.
    pub(super) async fn emission(&self, with: Value) -> Result<Emission> {
        let plan = serde_json::json!({ "plan": [{ "id": "emit", "uses": "debug.emit", "with": with }] });
        let run: Run = read(self.ask("POST /agent/plan", plan.to_string().as_bytes()).await?)?;
        Ok(Emission { planned: number(&run)?, run_id: run.run_id })
    }

    /// Lets it begin.
    pub(super) async fn begin(&self, emission: &Emission) -> Result<()> {
        let body = serde_json::json!({ "runId": emission.run_id }).to_string();
        self.ask("POST /agent/execute", body.as_bytes()).await.map(drop)
    }

    /// Lets it begin and waits for its end; returns the number of its last event.
    pub(super) async fn complete(&self, emission: &Emission) -> Result<u64> {
        let body = serde_json::json!({ "runId": emission.run_id }).to_string();
        let request = self.request("POST /agent/execute", "prefer: wait=60\r\n", body.as_bytes());
        let answer = Wire::new(&self.site).call(&request).await?;
        let run: Run = serde_json::from_slice(&answer).map_err(|e| Failure::Unreadable(e.to_string()))?;
        match run.status.as_str() {
            "completed" => number(&run),
            status => Err(Failure::Unreadable(format!("a run is `{status}` and not completed within a minute"))),
        }
    }

    /// The number of its last event in the table.
    pub(super) async fn last_event(&self, emission: &Emission) -> Result<u64> {
        number(&read(self.ask(&format!("GET /workflow/runs/{}", emission.run_id), b"").await?)?)
    }

    /// The memory of the server's process, where it is known.
    pub(super) fn resident(&self) -> Option<u64> {
        self.server.and_then(vitals::resident)
    }

    /// The most memory the server has from now on; looked at a few times a second for as long as anybody wants to know.
    pub(super) fn watch_memory(&self) -> Arc<AtomicU64> {
        let most = Arc::new(AtomicU64::new(0));
        let (seen, course) = (Arc::downgrade(&most), self.clone());
        tokio::spawn(async move {
            while let Some((most, bytes)) = Option::zip(seen.upgrade(), course.resident()) {
                most.fetch_max(bytes, Ordering::Relaxed);
                drop(most);
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        });
        most
    }

    /// Lets every client do its piece again and again until the window is over. What they do is counted by
    /// the workload; what fails is counted here, and when everything fails, that is the outcome.
    pub(super) async fn keep_up<T: Send + 'static, C: Client<T>>(
        &self,
        window: Window,
        clients: Vec<C>,
    ) -> Result<Outcome<T>> {
        let mut crew = JoinSet::new();
        clients.into_iter().for_each(|client| drop(crew.spawn(toil(client, window))));
        tokio::time::sleep_until(window.begin.into()).await;
        let meter = Meter::start(self.server);
        tokio::time::sleep_until(window.end.into()).await;
        let cost = meter.read();
        let (mut outcome, mut failure) = (Outcome { done: Vec::new(), errors: 0, cost }, None);
        while let Some(joined) = crew.join_next().await {
            let (done, failures) = joined.map_err(|e| Failure::Unreadable(e.to_string()))?;
            outcome.done.extend(done);
            outcome.errors += failures.0;
            failure = failure.or(failures.1);
        }
        match failure {
            Some(failure) if outcome.done.is_empty() => Err(failure),
            _ => Ok(outcome),
        }
    }
}

/// One of those who make the load.
pub(super) trait Client<T>: Send + 'static {
    /// Does one piece of work to its end.
    fn piece(&mut self) -> impl Future<Output = Result<T>> + Send;
}

/// Works until the window is over; the piece in hand is finished.
async fn toil<T>(mut client: impl Client<T>, window: Window) -> (Vec<T>, (u64, Option<Failure>)) {
    let (mut done, mut errors, mut first) = (Vec::new(), 0, None);
    while !window.is_over() {
        match client.piece().await {
            Ok(piece) => done.push(piece),
            Err(failure) => {
                errors += 1;
                first.get_or_insert(failure);
                tokio::time::sleep(REST).await;
            }
        }
    }
    (done, (errors, first))
}

/// From when to when a piece of work took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) from: Instant,
    pub(super) to: Instant,
}

fn read(run: Value) -> Result<Run> {
    serde_json::from_value(run).map_err(|e| Failure::Unreadable(e.to_string()))
}

fn number(run: &Run) -> Result<u64> {
    let number = run.last_event_id.strip_prefix("evt_").and_then(|number| number.parse().ok());
    number.ok_or_else(|| Failure::Unreadable(format!("an event called `{}`", run.last_event_id)))
}

fn holder(file: PathBuf) -> Option<u32> {
    let text = std::fs::read(file).ok()?;
    serde_json::from_slice::<Holder>(&text).ok().map(|holder| holder.pid)
}
