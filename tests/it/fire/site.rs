//! A PostgreSQL that can be stopped, and `fermata serve` processes that can be killed.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use fermata::{
    auth::{Grant, Minter, Role},
    config::AuthSettings,
    db::{
        self, Database,
        cluster::{Cluster, DataDir, Durability},
    },
    identity::{TenantSettings, Tenants},
    kernel::{Clock, Span, TenantId},
};
use rustix::process::{Pid, Signal, kill_process};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, PgConnection,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::{oneshot, watch},
};

use crate::world::{Client, SECRET, within};

/// Everything of one test; gone with it.
pub struct Site {
    folder: PathBuf,
    cluster: Option<Cluster>,
    owner: PgConnectOptions,
    app: PgConnectOptions,
    socket_dir: PathBuf,
    /// The callers' tenant, and one more.
    pub tenants: [TenantId; 2],
}

impl Site {
    /// A fresh one, on which a commit that was acknowledged is on the disk.
    pub async fn new() -> Self {
        // The command line installs one in `main`; a second time is no harm.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let name = format!("fermata-fire-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let folder = std::env::temp_dir().join(name);
        let cluster = start_postgres(&folder).await;
        let (owner, app) = (cluster.admin_options(), cluster.app_options());
        db::migrate(owner.clone()).await.unwrap();
        let database = Database::connect(app.clone(), 1, Duration::from_secs(10)).await.unwrap();
        let tenants = Tenants::new(database.clone(), Clock::system());
        let home = tenants.create("home", TenantSettings::default()).await.unwrap().tenant_id;
        let abroad = tenants.create("abroad", TenantSettings::default()).await.unwrap().tenant_id;
        database.close();
        let socket_dir = cluster.socket_dir().to_owned();
        Self { folder, cluster: Some(cluster), owner, app, socket_dir, tenants: [home, abroad] }
    }

    /// A connection that no policy binds.
    pub async fn superuser(&self) -> PgConnection {
        self.superuser_options().connect().await.unwrap()
    }

    /// The number of a transaction that is younger than all so far.
    pub async fn transaction(&self) -> i64 {
        let query = sqlx::query_scalar("select pg_current_xact_id()::text::bigint");
        query.fetch_one(&mut self.superuser().await).await.unwrap()
    }

    /// When the first event of a step was heard of whose transaction is younger than that one.
    pub fn first_event(&self, after: i64) -> impl Future<Output = Instant> + use<> {
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(self.superuser_options());
        let tenant = self.tenants[0].uuid();
        async move {
            let mut listener = PgListener::connect_with(&pool).await.unwrap();
            listener.listen("fermata_news").await.unwrap();
            let query =
                "select exists (select from run_events where tenant_id = $1 and xact > $2 and name like 'step.%')";
            while !sqlx::query_scalar::<_, bool>(query).bind(tenant).bind(after).fetch_one(&pool).await.unwrap() {
                listener.recv().await.unwrap();
            }
            Instant::now()
        }
    }

    /// Another process that listens, as long as this is polled: then a server sends word of its commits all its life
    /// long, not only while it finds out that it is alone.
    pub fn company(&self) -> impl Future<Output = ()> + use<> {
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(self.superuser_options());
        async move {
            let mut beats = tokio::time::interval(Duration::from_secs(1));
            loop {
                beats.tick().await;
                sqlx::query("select pg_notify('fermata_news', '00000000c0ffee00')").execute(&pool).await.unwrap();
            }
        }
    }

    fn superuser_options(&self) -> PgConnectOptions {
        self.owner.clone().username("postgres")
    }

    /// Stops PostgreSQL, at once or in good order.
    pub async fn stop_postgres(&mut self, at_once: bool) {
        if at_once {
            let _ = self.postmaster().map(|pid| kill_process(pid, Signal::QUIT));
        }
        self.cluster.take().unwrap().stop().await.unwrap();
    }

    /// Starts it again.
    pub async fn start_postgres(&mut self) {
        self.cluster = Some(start_postgres(&self.folder).await);
    }

    fn postmaster(&self) -> Option<Pid> {
        let file = std::fs::read_to_string(self.folder.join("pg/postmaster.pid")).ok()?;
        Pid::from_raw(file.lines().next()?.trim().parse().ok()?)
    }

    /// A file of this site.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A server that has not been started, at an address it keeps over all its lives.
    pub fn server(&self, role: &'static str) -> Server {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let user = self.app.get_username();
        let socket = self.socket_dir.display();
        let database = format!("postgres://{user}@localhost:5432/fermata?host={socket}&sslmode=disable");
        let mut settings = vec![
            ("DATABASE_URL", database),
            ("FERMATA_AUTH_SECRET", SECRET.to_owned()),
            ("FERMATA_HTTP_LISTEN", format!("127.0.0.1:{port}")),
            ("FERMATA_TOOLS_DEBUG", "true".to_owned()),
            ("FERMATA_TOOLS_LOOPBACK", "true".to_owned()),
            ("FERMATA_WORKER_LEASE", "3s".to_owned()),
        ];
        settings.extend(std::env::var("FERMATA_LOG").map(|filter| ("FERMATA_LOG", filter)));
        Server {
            role,
            port,
            settings,
            log: self.file(&format!("{role}-{port}.log")),
            child: None,
            up: watch::Sender::new(false),
        }
    }

    /// Somebody of that tenant with these roles.
    pub fn client(&self, url: &str, tenant: TenantId, roles: &[Role]) -> Client {
        let auth = AuthSettings { secret: Some(SecretString::from(SECRET)), ..AuthSettings::default() };
        let ttl = Span::seconds(7 * 24 * 3600);
        // One for each role: who starts a run may not approve it.
        let subject = format!("user_{}", roles[0].name()).parse().unwrap();
        let grant = Grant { tenant_id: tenant, subject, roles: roles.to_vec(), groups: vec![], scope: None, ttl };
        let (token, _) = Minter::new(&auth).unwrap().mint(&grant, Clock::system().now()).unwrap();
        Client::new(url, Some(token.expose_secret().to_owned()))
    }
}

async fn start_postgres(folder: &Path) -> Cluster {
    let dir = DataDir::claim(folder, &Clock::system()).unwrap();
    Cluster::start(dir, Durability::Full).await.unwrap()
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.cluster.take());
        let _ = self.postmaster().map(|pid| kill_process(pid, Signal::QUIT));
        let begun = Instant::now();
        while self.postmaster().is_some() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let elsewhere = std::fs::read_link(self.folder.join("pg"));
        let _ = elsewhere.map(|link| link.parent().map(std::fs::remove_dir_all));
        let _ = std::fs::remove_dir_all(&self.socket_dir);
        // A test that failed leaves what its servers said.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// A server process, in one life after another.
pub struct Server {
    role: &'static str,
    port: u16,
    settings: Vec<(&'static str, String)>,
    log: PathBuf,
    child: Option<Child>,
    up: watch::Sender<bool>,
}

impl Server {
    /// One more setting.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.settings.push((name, value.to_owned()));
    }

    /// Where it answers, without a final slash.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Whether it is there; clients wait for it.
    pub fn is_up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    /// Starts it, under orders for its crash points. True when it serves, false when it ended before.
    pub async fn start_with(&mut self, crash_point: Option<&str>) -> bool {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fermata"));
        command.args(["serve", "--role", self.role]).envs(self.settings.iter().map(|(name, value)| (name, value)));
        // The tests' own, which the server would refuse as a setting it does not know.
        command.env_remove("FERMATA_CAMPAIGN").env_remove("FERMATA_SEED");
        command.env("CRASH_POINT", crash_point.unwrap_or_default());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (serves, serving) = oneshot::channel();
        let said = child.stderr.take().unwrap();
        tokio::spawn(keep(said, self.log.clone(), serves));
        self.child = Some(child);
        // The other half is dropped when the process ends.
        let serving = within("a server that serves or ends", serving).await.is_ok();
        self.up.send_replace(serving);
        serving
    }

    /// Starts it.
    pub async fn start(&mut self) {
        assert!(self.start_with(None).await, "the server ended; see {}", self.log.display());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = self.child.as_mut().unwrap().wait().await.unwrap();
        self.up.send_replace(false);
        status
    }

    /// What it takes of the machine's memory, in KiB.
    pub fn memory(&self) -> usize {
        let pid = self.child.as_ref().unwrap().id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        // It may have ended meanwhile.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    /// Ends it between two instructions.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// Stops it as an operator does.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = within("the end of a server that was told to stop", self.ended()).await;
        assert!(status.success(), "{status}; see {}", self.log.display());
    }
}

/// Keeps what a server says, and tells when it serves.
async fn keep(said: tokio::process::ChildStderr, log: PathBuf, serves: oneshot::Sender<()>) {
    use std::io::Write;
    let mut log = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
    let (mut lines, mut serves) = (BufReader::new(said).lines(), Some(serves));
    while let Ok(Some(line)) = lines.next_line().await {
        writeln!(log, "{line}").unwrap();
        if line.contains("\"message\":\"serving\"") {
            serves.take().map(|serves| serves.send(()));
        }
    }
}
