//! The wiring: which rooms there are, in what order they open, and how they close.

mod api;
mod housekeeping;
mod store;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use utoipa::openapi::OpenApi;

use crate::{
    agent::{AgentTools, Agents},
    approval::{Approvals, Inbox},
    auth::{Vault, Verifier},
    config::{JobSettings, Settings},
    db::Database,
    http::{self, Front, Outbound},
    identity::Tenants,
    integration::Connections,
    journal::{Follower, Journal, Projection},
    kernel::{Clock, Error, Result},
    llm::{Keys, LlmRoutes, Models},
    run::{Bell, Children, Desk, RunRoutes, Runs, Waker, Worker, WorkerParts},
    stream::{Hub, Signals, Streams},
    telemetry::{self, Traces},
    tool::{Credentials, HttpTools, Ports, Registry, Servers, Toolbox},
    usage::{Days, Ledger},
};

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Answers requests and carries out runs.
    All,
    /// Answers requests.
    Api,
    /// Carries out runs; answers only `/health` and `/metrics`.
    Worker,
}

/// What a process needs from outside.
#[derive(Debug)]
pub struct Outside {
    /// Everything that can be set.
    pub settings: Settings,
    /// Time.
    pub clock: Clock,
    /// The server's login; may go through a transaction pooler.
    pub database: PgConnectOptions,
    /// A direct way to the database, for what needs a session.
    pub direct: PgConnectOptions,
    /// What the process does.
    pub role: Role,
}

/// A running process, or a part of one in a test.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    database: Database,
    stop: CancellationToken,
    abandon: CancellationToken,
    finished: CancellationToken,
    work: TaskTracker,
    service: TaskTracker,
    traces: Traces,
    grace: Duration,
}

impl App {
    /// Opens every room and answers on `listener`.
    ///
    /// # Errors
    /// When the database is away or a setting is not usable; the message says which.
    pub async fn start(outside: Outside, listener: TcpListener) -> Result<Self> {
        let Outside { mut settings, clock, database, direct, role } = outside;
        let address = listener.local_addr().map_err(Error::internal)?;
        settings.http.listen = address;
        let set = &settings.database;
        let db = Database::connect(database, set.pool_size, set.acquire_timeout.0).await?;
        let (stop, abandon, finished) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let (work, service) = (TaskTracker::new(), TaskTracker::new());
        let rooms = Rooms::new(&settings, &clock, &db, role, &stop, &service)?;
        rooms.begin_service(&service, &direct, &settings, &finished);
        if role != Role::Api {
            let worker = Worker::new(rooms.worker_parts(&settings, &abandon), direct);
            work.spawn(worker.run());
        }
        let (router, _) = api::router(&rooms, role)?;
        let router = http::dress(router, clock.clone(), rooms.traces.clone(), &settings.http).map_err(unusable)?;
        let (http, until) = (settings.http.clone(), stop.clone());
        work.spawn(async move { http::serve(listener, router, &http, until).await });
        let (traces, grace) = (rooms.traces.clone(), settings.http.drain_grace.0);
        Ok(Self { address, database: db, stop, abandon, finished, work, service, traces, grace })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its database.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Cancelled, it ends the grace time of [`App::stop`] at once.
    #[must_use]
    pub fn hurry(&self) -> CancellationToken {
        self.abandon.clone()
    }

    /// Stops accepting, ends streams, lets requests and steps in flight finish within the grace time,
    /// releases what it holds, exports the last spans, and closes the database.
    pub async fn stop(self) {
        self.stop.cancel();
        self.work.close();
        let within_grace = tokio::select! {
            () = self.work.wait() => true,
            () = tokio::time::sleep(self.grace) => false,
            () = self.abandon.cancelled() => false,
        };
        if !within_grace {
            tracing::warn!("steps were still in flight when the grace ended; the next worker takes them up");
            self.abandon.cancel();
            if tokio::time::timeout(Duration::from_secs(5), self.work.wait()).await.is_err() {
                tracing::error!("the worker did not let go in time");
            }
        }
        self.finished.cancel();
        self.service.close();
        if tokio::time::timeout(Duration::from_secs(5), self.service.wait()).await.is_err() {
            tracing::error!("some tasks did not end in time");
        }
        self.traces.close().await;
        self.database.close();
    }
}

/// The rooms of a process, wired.
struct Rooms {
    front: Front,
    database: Database,
    clock: Clock,
    journal: Journal,
    tools: Toolbox,
    mcp: Servers,
    connections: Connections,
    llm: LlmRoutes,
    agents: Agents,
    models: Models,
    jobs: JobSettings,
    runs: Runs,
    children: Children,
    days: Days,
    approvals: Approvals,
    streams: Streams,
    hub: Arc<Hub>,
    signals: Arc<Signals>,
    waker: Arc<Waker>,
    desk: Arc<Desk>,
    bell: Arc<Bell>,
    metrics: telemetry::Metrics,
    traces: Traces,
    stop: CancellationToken,
}

impl Rooms {
    fn new(
        settings: &Settings,
        clock: &Clock,
        db: &Database,
        role: Role,
        stop: &CancellationToken,
        service: &TaskTracker,
    ) -> Result<Self> {
        // Before the rooms, which get hold of their metrics as they are made.
        let metrics = telemetry::metrics().map_err(unusable)?;
        let verifier = Verifier::new(&settings.auth).map_err(unusable)?;
        let front = Front::new(verifier, db.clone(), clock.clone(), settings.http.clone(), stop.clone());
        let (hub, signals) = (Hub::new(db.clone(), &settings.streams), Signals::new());
        let (waker, bell, desk) = (Arc::new(Waker::default()), Arc::new(Bell::default()), Arc::new(Desk::default()));
        let mut followers: Vec<Arc<dyn Follower>> = vec![hub.clone(), bell.clone(), signals.clone()];
        if role != Role::Api {
            followers.push(waker.clone());
        }
        let projections: Vec<Arc<dyn Projection>> = vec![Arc::new(Inbox), Arc::new(Ledger)];
        let journal = Journal::start(db.clone(), followers, projections, desk.clone(), service);
        let tenants = Tenants::new(db.clone(), clock.clone());
        let outbound = Arc::new(Outbound::new(&settings.tools, Arc::new(AllowLists(tenants)))?);
        let vault = Vault::new(&settings.vault).map_err(unusable)?;
        let at = (db.clone(), clock.clone());
        let connections = Connections::new(at, (vault.clone(), Arc::clone(&outbound)), &settings.oauth, service);
        let keys = Keys::new(vault);
        let (llm, breaker) = (&settings.llm, &settings.circuit_breaker);
        let models = Models::new((db.clone(), clock.clone()), llm, breaker, keys.clone(), Arc::clone(&outbound));
        let runs = Runs::new(journal.clone(), models.clone(), settings.limits.clone(), &settings.worker);
        let children = Children::new(db.clone(), runs.clone(), clock.clone());
        let output = settings.limits.output;
        let declared = HttpTools::new(db.clone(), keys.clone(), Arc::clone(&outbound), output);
        let set = (&settings.tools, &settings.limits);
        let credentials = Credentials { keys: keys.clone(), connections: connections.clone() };
        let asks = Arc::new(runs.clone());
        let mcp = Servers::new((db.clone(), clock.clone()), set, Arc::clone(&outbound), credentials, asks);
        let ports = Ports { outbound, child_runs: Arc::new(children.clone()), models: models.clone() };
        let server = Registry::builtin(&settings.tools, &settings.limits, ports)?;
        // What agents are given, and then the agents themselves, which are tools as well.
        let given = Toolbox::new(server, vec![Arc::new(declared), Arc::new(mcp.clone())]);
        let agents = Agents::new(db.clone(), given.clone(), models.clone());
        let tools = given.and(Arc::new(AgentTools::new(agents.clone(), Arc::new(children.clone()))));
        Ok(Self {
            approvals: Approvals::new(journal.clone(), Arc::new(tools.clone())),
            streams: Streams::new(hub.clone(), front.clone(), &settings.streams, &settings.auth),
            metrics,
            traces: Traces::new(&settings.telemetry, clock.clone()).map_err(unusable)?,
            database: db.clone(),
            clock: clock.clone(),
            stop: stop.clone(),
            agents,
            models,
            jobs: settings.job,
            llm: LlmRoutes { front: front.clone(), settings: Arc::new(llm.clone()), keys },
            front,
            journal,
            tools,
            mcp,
            connections,
            runs,
            children,
            days: Days::new(db.clone()),
            hub,
            signals,
            waker,
            desk,
            bell,
        })
    }

    /// Starts what serves the others until everything else has ended.
    fn begin_service(
        &self,
        service: &TaskTracker,
        direct: &PgConnectOptions,
        settings: &Settings,
        finished: &CancellationToken,
    ) {
        service.spawn(self.hub.clone().run(self.stop.clone()));
        let hears: Vec<Arc<dyn Follower>> = vec![self.hub.clone(), self.bell.clone(), self.waker.clone()];
        let signals = self.signals.clone().run(self.database.clone(), direct.clone(), hears, finished.clone());
        service.spawn(signals);
        service.spawn(self.mcp.clone().keep(finished.clone()));
        let keep = housekeeping::keep(self.database.clone(), self.clock.clone(), settings.retention.clone());
        let (metrics, until) = (self.metrics.clone(), finished.clone());
        service.spawn(async move {
            tokio::select! {
                () = keep => {}
                () = metrics.upkeep() => {}
                () = until.cancelled() => {}
            }
        });
    }

    fn worker_parts(&self, settings: &Settings, abandon: &CancellationToken) -> WorkerParts {
        WorkerParts {
            db: self.database.clone(),
            journal: self.journal.clone(),
            tools: self.tools.clone(),
            children: self.children.clone(),
            days: self.days.clone(),
            clock: self.clock.clone(),
            traces: self.traces.clone(),
            waker: self.waker.clone(),
            desk: self.desk.clone(),
            settings: settings.worker.clone(),
            items: settings.limits.items,
            stop: self.stop.clone(),
            abandon: abandon.clone(),
        }
    }

    fn run_routes(&self) -> RunRoutes {
        RunRoutes {
            front: self.front.clone(),
            runs: self.runs.clone(),
            tools: self.tools.clone(),
            bell: self.bell.clone(),
            agents: self.agents.clone(),
            models: self.models.clone(),
            jobs: self.jobs,
        }
    }
}

/// The OpenAPI document, without a database to serve from.
///
/// # Errors
/// Never, unless the wiring itself is wrong.
pub fn openapi() -> Result<OpenApi> {
    let mut settings = Settings::default();
    settings.tools.debug = true;
    settings.auth.secret = Some(SecretString::from("only-to-describe-the-api-and-never-to-serve-it"));
    let db = Database::lazy(PgConnectOptions::new())?;
    let (clock, stop, service) = (Clock::system(), CancellationToken::new(), TaskTracker::new());
    let rooms = Rooms::new(&settings, &clock, &db, Role::All, &stop, &service)?;
    api::router(&rooms, Role::All).map(|(_, document)| document)
}

fn unusable(reason: String) -> Error {
    Error::internal(reason)
}

/// Asks the tenants where their requests may go.
struct AllowLists(Tenants);

#[async_trait::async_trait]
impl http::AllowList for AllowLists {
    async fn allowed(&self, tenant: crate::kernel::TenantId) -> Result<Vec<String>> {
        Ok(self.0.get(tenant).await?.settings.http_allow)
    }
}
