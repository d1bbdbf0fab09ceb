//! A database, and processes that serve streams from it.

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use secrecy::ExposeSecret;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{
    auth::{Grant, Minter, Role, Verifier},
    config::{AuthSettings, HttpSettings, StreamSettings},
    db::fixture::Fixture,
    http::Front,
    journal::{Commit, Follower, Frame, Status},
    kernel::{Clock, RunId, Span, TenantId},
    stream::{Hub, Signals, Streams, routes},
};

/// Long enough for anything that is going to happen.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct World(Fixture);

impl Deref for World {
    type Target = Fixture;

    fn deref(&self) -> &Fixture {
        &self.0
    }
}

impl World {
    pub async fn start(name: &str) -> Self {
        Self(Fixture::start(&format!("stream-{name}")).await)
    }

    pub async fn stop(self, processes: Vec<Process>) {
        for process in processes {
            process.stopping.cancel();
            process.tasks.await.unwrap();
        }
        self.0.stop().await;
    }

    /// Writes the run's next events as the journal would, in a transaction of its own.
    pub async fn write(&self, tenant: TenantId, run: RunId, names: &[&'static str]) -> Commit {
        let mut tx = self.database.tenant(tenant).await.unwrap();
        let commit = write(&mut tx, tenant, run, names).await;
        tx.commit().await.unwrap();
        commit
    }

    /// What a client that has seen everything after `after` has seen.
    pub async fn table(&self, tenant: TenantId, run: RunId, after: u64) -> String {
        let mut tx = self.database.tenant(tenant).await.unwrap();
        let rows: Vec<(i64, String, String)> = sqlx::query_as(
            "select seq, name, data::text from run_events
             where tenant_id = $1 and run_id = $2 and seq > $3 order by seq",
        )
        .bind(tenant.uuid())
        .bind(run.uuid())
        .bind(i64::try_from(after).unwrap())
        .fetch_all(tx.conn())
        .await
        .unwrap();
        rows.iter().map(|(seq, name, data)| format!("id: evt_{seq}\nevent: {name}\ndata: {data}\n\n")).collect()
    }

    /// A process; two of them share nothing but the database.
    pub fn process(&self, settings: StreamSettings, signals: bool) -> Process {
        let auth = AuthSettings { secret: Some("k7Qm1Zp0xV9sLr4TgYb2Nc8WdHf6JuEa".into()), ..AuthSettings::default() };
        let stopping = CancellationToken::new();
        let verifier = Verifier::new(&auth).unwrap();
        let http = HttpSettings { cors_origins: vec!["https://console.example".to_owned()], ..HttpSettings::default() };
        let front = Front::new(verifier, self.database.clone(), self.clock.clone(), http, stopping.clone());
        let hub = Hub::new(self.database.clone(), &settings);
        let sender = Signals::new();
        let streams = Streams::new(hub.clone(), front, &settings, &auth);
        let (router, _) = routes(streams).split_for_parts();
        let hearing = {
            let followers: Vec<Arc<dyn Follower>> = vec![hub.clone()];
            let (sender, stopping) = (sender.clone(), stopping.clone());
            let (database, options) = (self.database.clone(), self.cluster.app_options());
            async move {
                if signals {
                    sender.run(database, options, followers, stopping).await;
                }
            }
        };
        let running = hub.clone().run(stopping.clone());
        let tasks = tokio::spawn(async move {
            tokio::join!(running, hearing);
        });
        let minter = Minter::new(&auth).unwrap();
        Process { hub, signals: sender, router, minter, clock: self.clock.clone(), stopping, tasks }
    }
}

/// Writes the run's next events within a transaction.
pub async fn write(tx: &mut crate::db::TenantTx, tenant: TenantId, run: RunId, names: &[&'static str]) -> Commit {
    let last = "select coalesce(max(seq), 0) from run_events where tenant_id = $1 and run_id = $2";
    let last: i64 = sqlx::query_scalar(last).bind(tenant.uuid()).bind(run.uuid()).fetch_one(tx.conn()).await.unwrap();
    let mut frames = Vec::new();
    for (seq, name) in (last + 1..).zip(names) {
        let data = format!(r#"{{"eventId":"evt_{seq}","step":"{name}","payload":{{"text":"zwölf – 12"}}}}"#);
        frames.push(Frame { seq: u64::try_from(seq).unwrap(), name, data: Bytes::from(data) });
    }
    let end = names.last().and_then(|name| Status::named(name)).filter(|status| status.is_terminal());
    let status = end.unwrap_or(Status::Executing);
    sqlx::query(
        "select append_events(null, array[$2], '{}',
           array[row($1, $2, $3, $4, $5, $6, '{}', 0, null, null, null, now())::run_head],
           (select array_agg(row($1, $2, seq, seq = $3 + 1, name, data)::run_next)
            from unnest($7::bigint[], $8::text[], $9::text[]) as event (seq, name, data)), '{}', '{}')",
    )
    .bind(tenant.uuid())
    .bind(run.uuid())
    .bind(last)
    .bind(last + i64::try_from(names.len()).unwrap())
    .bind(status.name())
    .bind(status.is_terminal())
    .bind(frames.iter().map(|frame| i64::try_from(frame.seq).unwrap()).collect::<Vec<_>>())
    .bind(names)
    .bind(frames.iter().map(|frame| std::str::from_utf8(&frame.data).unwrap()).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .unwrap();
    Commit { tenant_id: tenant, run_id: run, frames, status: Some(status) }
}

pub struct Process {
    pub hub: Arc<Hub>,
    pub signals: Arc<Signals>,
    pub stopping: CancellationToken,
    router: Router,
    minter: Minter,
    clock: Clock,
    tasks: JoinHandle<()>,
}

impl Process {
    /// Commits as this process' journal would: the hub hears of it, and the sender of signals.
    pub async fn commit(&self, world: &World, tenant: TenantId, run: RunId, names: &[&'static str]) {
        let commit = [world.write(tenant, run, names).await];
        self.hub.committed(&commit);
        self.signals.committed(&commit);
    }

    pub fn token(&self, tenant: TenantId, ttl: Duration) -> String {
        let grant = Grant {
            tenant_id: tenant,
            subject: "user_1".parse().unwrap(),
            roles: vec![Role::Viewer],
            groups: vec![],
            scope: None,
            ttl: Span(ttl),
        };
        let (token, _) = self.minter.mint(&grant, self.clock.now()).unwrap();
        token.expose_secret().to_owned()
    }

    pub async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn get(&self, tenant: TenantId, path: &str, headers: &[(&str, &str)]) -> Response {
        let token = self.token(tenant, Duration::from_secs(3600));
        let request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    /// Opens a stream.
    pub async fn open(&self, tenant: TenantId, path: &str, headers: &[(&str, &str)]) -> Open {
        let response = self.get(tenant, path, headers).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Open::new(response)
    }
}

/// The body of an open stream.
pub struct Open {
    body: axum::body::BodyDataStream,
    pub text: String,
}

impl Open {
    pub fn new(response: Response) -> Self {
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    /// Reads until so many events have come, and gives back all the text since the last time.
    pub async fn events(&mut self, count: usize) -> String {
        // A comment now and then is no event.
        let deadline = Instant::now() + PATIENCE;
        while self.text.matches("\ndata: ").count() < count {
            assert!(Instant::now() < deadline, "not {count} events in {:?}", self.text);
            self.piece().await;
        }
        std::mem::take(&mut self.text)
    }

    /// Reads what comes next.
    pub async fn piece(&mut self) {
        let more = tokio::time::timeout(PATIENCE, self.body.next()).await;
        let more = more.unwrap_or_else(|_| panic!("nothing came after {:?}", self.text));
        self.text.push_str(std::str::from_utf8(&more.expect("the stream goes on").unwrap()).unwrap());
    }

    /// Reads to the end. What was read is let go of, as a connection does: who keeps it gets nothing more.
    pub async fn rest(mut self) -> String {
        let all = async {
            while let Some(more) = self.body.next().await {
                self.text.push_str(std::str::from_utf8(&more.unwrap()).unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the stream ends");
        self.text
    }
}

/// The `id` of the last event.
pub fn last_id(text: &str) -> String {
    text.lines().rev().find_map(|line| line.strip_prefix("id: ")).expect("an id").to_owned()
}

pub async fn problem(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let slug = value["type"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
    (status, slug)
}
