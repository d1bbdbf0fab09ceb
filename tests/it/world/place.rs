use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use fermata::{
    app::{App, Outside, Role},
    auth::{self, Grant, Minter},
    config::Settings,
    db::Database,
    identity::{TenantSettings, Tenants},
    kernel::{Clock, Span, TenantId, Timestamp},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{ConnectOptions, PgConnection};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::{Semaphore, SemaphorePermit, watch},
};

use super::{
    client::Client,
    ground::{Ground, Logins},
};

/// Tokens of every world are signed with it.
pub const SECRET: &str = "a secret for tests and nothing but tests";

/// Worlds at once: each has up to eighteen connections (two servers of four, their listeners, locks and lanes of
/// the journal), and the cluster has a hundred.
static ROOM: Semaphore = Semaphore::const_new(5);

/// A running server on a database of its own, with two tenants: the callers' own, and that of a stranger.
pub struct World {
    server: Server,
    settings: Settings,
    logins: Arc<Logins>,
    clock: Clock,
    offset: watch::Sender<TimeDelta>,
    home: TenantId,
    abroad: TenantId,
    _room: SemaphorePermit<'static>,
}

/// One process, as far as anybody can tell: its own pool, hub, worker and address.
pub struct Server {
    app: App,
    /// Where it answers, without a final slash.
    pub url: String,
    _logins: Arc<Logins>,
}

impl Server {
    async fn start(settings: &Settings, logins: &Arc<Logins>, clock: &Clock, role: Role) -> Self {
        let outside = Outside {
            settings: settings.clone(),
            clock: clock.clone(),
            database: logins.app.clone(),
            direct: logins.app.clone(),
            role,
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let app = App::start(outside, listener).await.unwrap();
        Self { url: format!("http://{}", app.address()), app, _logins: Arc::clone(logins) }
    }

    /// Stops it as a signal would: what is in flight may finish.
    pub async fn stop(self) {
        self.app.stop().await;
    }
}

/// A server with a runtime of its own, which can be killed as a process can: nothing in it gets another word.
pub struct Mortal {
    server: Option<Server>,
    runtime: Option<Runtime>,
}

impl Mortal {
    /// Ends it between two instructions, and comes back when it does nothing any more: no answer that arrives later is
    /// heard.
    pub fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        // Elsewhere, since one runtime may not wait in another.
        std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
        drop(self.server.take());
    }
}

impl World {
    /// With the settings of `fermata dev`.
    pub async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// With settings that `change` has seen.
    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::of(Role::All, change).await
    }

    /// Its first server answers and carries out nothing; that is for others.
    pub async fn without_worker(change: impl FnOnce(&mut Settings)) -> Self {
        Self::of(Role::Api, change).await
    }

    /// On a PostgreSQL of its own choice.
    pub async fn on(ground: &'static Ground, change: impl FnOnce(&mut Settings)) -> Self {
        Self::build(ground, Role::All, change).await
    }

    async fn of(role: Role, change: impl FnOnce(&mut Settings)) -> Self {
        Self::build(Ground::get().await, role, change).await
    }

    async fn build(ground: &'static Ground, role: Role, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::default();
        settings.auth.secret = Some(SecretString::from(SECRET));
        settings.vault.secret = Some(SecretString::from(SECRET));
        settings.tools.debug = true;
        settings.tools.loopback = true;
        settings.database.pool_size = 4;
        // The machine may be busy with everybody else's tests.
        settings.database.acquire_timeout = Span::seconds(30);
        change(&mut settings);
        // The command line installs one in `main`; a second time is no harm.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let room = ROOM.acquire().await.unwrap();
        let logins = Arc::new(ground.database().await);
        let (clock, offset) = Clock::adjustable();
        let server = Server::start(&settings, &logins, &clock, role).await;
        let tenants = Tenants::new(server.app.database().clone(), clock.clone());
        let home = tenants.create("home", TenantSettings::default()).await.unwrap().tenant_id;
        let abroad = tenants.create("abroad", TenantSettings::default()).await.unwrap().tenant_id;
        Self { server, settings, logins, clock, offset, home, abroad, _room: room }
    }

    /// The role `owner`, as `user_owner`.
    pub fn owner(&self) -> Client {
        self.caller(auth::Role::Owner)
    }

    /// The role `admin`, as `user_admin`.
    pub fn admin(&self) -> Client {
        self.caller(auth::Role::Admin)
    }

    /// The role `operator`, as `user_operator`.
    pub fn operator(&self) -> Client {
        self.caller(auth::Role::Operator)
    }

    /// The role `approver`, as `user_approver`.
    pub fn approver(&self) -> Client {
        self.caller(auth::Role::Approver)
    }

    /// The role `viewer`, as `user_viewer`.
    pub fn viewer(&self) -> Client {
        self.caller(auth::Role::Viewer)
    }

    /// Operator and approver of another tenant.
    pub fn stranger(&self) -> Client {
        let roles = vec![auth::Role::Operator, auth::Role::Approver];
        self.bearer(&self.grant(self.abroad, "user_stranger", roles, None))
    }

    /// A service with these scopes and no more.
    pub fn service(&self, scope: &str) -> Client {
        self.bearer(&self.grant(self.home, "svc_test", vec![auth::Role::Service], Some(scope)))
    }

    /// Somebody without a token.
    pub fn nobody(&self) -> Client {
        Client::new(&self.server.url, None)
    }

    /// The bearer of a token that says this.
    pub fn bearer(&self, grant: &Grant) -> Client {
        let minter = Minter::new(&self.settings.auth).unwrap();
        let (token, _) = minter.mint(grant, self.clock.now()).unwrap();
        Client::new(&self.server.url, Some(token.expose_secret().to_owned()))
    }

    /// A token of thirty days.
    pub fn grant(&self, tenant_id: TenantId, subject: &str, roles: Vec<auth::Role>, scope: Option<&str>) -> Grant {
        let ttl = Span::seconds(30 * 24 * 3600);
        let (subject, scope) = (subject.parse().unwrap(), scope.map(str::to_owned));
        Grant { tenant_id, subject, roles, groups: vec![], scope, ttl }
    }

    fn caller(&self, role: auth::Role) -> Client {
        self.bearer(&self.grant(self.home, &format!("user_{}", role.name()), vec![role], None))
    }

    /// The callers' tenant.
    pub fn home(&self) -> TenantId {
        self.home
    }

    /// The stranger's tenant.
    pub fn abroad(&self) -> TenantId {
        self.abroad
    }

    /// Now, in this world.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Lets this much time pass at once, for every server of this world.
    pub fn advance(&self, by: Duration) {
        let by = TimeDelta::from_std(by).unwrap();
        self.offset.send_modify(|offset| *offset += by);
    }

    /// Sets every server's clock back by this much.
    pub fn set_back(&self, by: Duration) {
        let by = TimeDelta::from_std(by).unwrap();
        self.offset.send_modify(|offset| *offset -= by);
    }

    /// Where the first server answers, without a final slash.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// One more server over the same database; [`Client::at`] speaks to it.
    pub async fn server(&self, role: Role) -> Server {
        self.server_with(role, |_| ()).await
    }

    /// The same, under settings that have changed since.
    pub async fn server_with(&self, role: Role, change: impl FnOnce(&mut Settings)) -> Server {
        let mut settings = self.settings.clone();
        change(&mut settings);
        Server::start(&settings, &self.logins, &self.clock, role).await
    }

    /// One more server, which can be killed.
    pub async fn mortal(&self, role: Role) -> Mortal {
        self.mortal_at(role, self.clock.clone()).await
    }

    /// The same with a clock of its own.
    pub async fn mortal_at(&self, role: Role, clock: Clock) -> Mortal {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (settings, logins) = (self.settings.clone(), Arc::clone(&self.logins));
        let server = runtime.spawn(async move { Server::start(&settings, &logins, &clock, role).await });
        let server = server.await.unwrap();
        Mortal { server: Some(server), runtime: Some(runtime) }
    }

    /// The server's own way to the database.
    pub fn database(&self) -> &Database {
        self.server.app.database()
    }

    /// A connection that no policy binds.
    pub async fn superuser(&self) -> PgConnection {
        self.logins.superuser.connect().await.unwrap()
    }

    /// The logins of its database.
    pub fn logins(&self) -> &Logins {
        &self.logins
    }

    /// Stops the first server as a signal would, and proves that it ends. A test that does not care just
    /// ends: its runtime goes, and everything with it.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}
