//! Making a cluster, starting its server, stopping it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{
    ConnectOptions, Connection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{
    binaries::Programs,
    identity::Identity,
    keeper::Durability,
    place::{PORT, Place},
};
use crate::db::Failure;

/// The cluster's superuser; nobody but the bootstrap logs in as it.
const SUPERUSER: &str = "postgres";
/// A start that has a crash to recover from may take a while.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// The log is begun anew once it is larger.
const LOG_BYTES: u64 = 16 << 20;

/// A server that accepts connections.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    log: Log,
}

/// How to start it, again if need be.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) programs: Programs,
    pub(super) place: Place,
    pub(super) socket_dir: PathBuf,
    pub(super) durability: Durability,
}

impl Launch {
    /// Makes the cluster where there is none yet: aside, and renamed when it is complete.
    ///
    /// # Errors
    /// When `initdb` fails.
    pub(super) async fn make_cluster(&self, identity: &Identity) -> Result<(), Failure> {
        let Place { pg, base, .. } = &self.place;
        if self.place.version().is_some() {
            return identity.take(pg);
        }
        let partial = base.join("pg.partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(Failure::at("remove", &partial))?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&partial).map_err(Failure::at("make", &partial))?;
        identity.take(&partial)?;
        let mut initdb = self.programs.command("initdb");
        initdb.args(["--username", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        // One sync of the finished whole is quicker than many on the way.
        initdb.args(["--data-checksums", "--no-sync", "-D"]).arg(&partial);
        run(initdb, "initdb").await?;
        if self.durability == Durability::Full {
            self.sync(&partial).await?;
        }
        fs::rename(&partial, pg).map_err(Failure::at("rename", &partial))?;
        File::open(base).and_then(|dir| dir.sync_all()).map_err(Failure::at("sync", base))
    }

    // One call for the whole file system where there is one: a tenth of the time of a thousand files.
    #[cfg(target_os = "linux")]
    async fn sync(&self, cluster: &Path) -> Result<(), Failure> {
        let dir = File::open(cluster).map_err(Failure::at("open", cluster))?;
        let synced = tokio::task::spawn_blocking(move || rustix::fs::syncfs(dir)).await;
        synced.map_err(std::io::Error::from).and_then(|done| Ok(done?)).map_err(Failure::at("sync", cluster))
    }

    #[cfg(not(target_os = "linux"))]
    async fn sync(&self, cluster: &Path) -> Result<(), Failure> {
        let mut sync = self.programs.command("initdb");
        sync.arg("--sync-only").arg("-D").arg(cluster);
        run(sync, "initdb --sync-only").await
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// When it ends instead; with what it said.
    pub(super) async fn start(&self) -> Result<Server, Failure> {
        let log = Log::open(&self.place.log)?;
        let mut command = self.programs.command("postgres");
        command.arg("-D").arg(&self.place.pg).arg("-k").arg(&self.socket_dir).args(self.settings());
        // A group of its own: the terminal's interrupt is for us, and we stop the server when we are done.
        command.process_group(0).stdout(log.writer()?).stderr(log.writer()?);
        let child = command.spawn().map_err(Failure::at("start", Path::new("postgres")))?;
        let mut server = Server { child, log };
        match timeout(START_PATIENCE, server.answers(&self.superuser("postgres"))).await {
            Ok(Ok(())) => Ok(server),
            Ok(Err(failure)) => Err(failure),
            Err(_) => {
                server.stop().await?;
                Err(Failure::Server(format!("PostgreSQL does not get ready:\n{}", server.log.tail())))
            }
        }
    }

    /// How a login connects to a database of this server.
    pub(super) fn options(&self, user: &str, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.socket_dir)
            .port(PORT)
            .username(user)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// How the bootstrap connects.
    pub(super) fn superuser(&self, database: &str) -> PgConnectOptions {
        // "… is already a member" is nothing to tell.
        self.options(SUPERUSER, database).options([("client_min_messages", "warning")])
    }

    fn settings(&self) -> impl Iterator<Item = String> + use<> {
        let always = [
            ("port", "5432"),
            ("listen_addresses", ""),
            ("unix_socket_permissions", "0700"),
            ("max_connections", "100"),
            ("shared_buffers", "128MB"),
            ("wal_buffers", "16MB"),
            ("min_wal_size", "256MB"),
            ("max_wal_size", "2GB"),
            ("random_page_cost", "1.1"),
            ("jit", "off"),
            // Leases and heads of runs are updated all the time, and a new table's plans are bad until it is analysed.
            ("autovacuum_naptime", "2s"),
            ("autovacuum_vacuum_scale_factor", "0.05"),
            // A young table is analysed every few seconds: with the usual 100 that is a tenth of all the work.
            ("default_statistics_target", "20"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("log_checkpoints", "off"),
            ("log_line_prefix", "%m [%p] %q%u@%d "),
        ];
        let durable = match self.durability {
            Durability::Full => [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")],
            Durability::None => [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")],
        };
        // As above, after a crash.
        let recovery = cfg!(target_os = "linux").then_some(("recovery_init_sync_method", "syncfs"));
        always
            .into_iter()
            .chain(durable)
            .chain(recovery)
            .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")])
    }
}

impl Server {
    /// Waits for its end, which nobody asked for.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        self.child.wait().await.map_err(Failure::at("wait for", Path::new("postgres")))
    }

    /// Its last words.
    pub(super) fn last_words(&self) -> String {
        self.log.tail()
    }

    /// Stops it: connections are cut and everything is written out; as a last resort it is left to recover
    /// at the next start.
    ///
    /// # Errors
    /// When it does not end.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        for (signal, patience) in [(Signal::INT, 20), (Signal::QUIT, 5), (Signal::KILL, 5)] {
            let Some(pid) = self.pid() else { return Ok(()) };
            // It may have ended meanwhile.
            let _ = kill_process(pid, signal);
            if timeout(Duration::from_secs(patience), self.child.wait()).await.is_ok() {
                return Ok(());
            }
        }
        Err(Failure::Server("the PostgreSQL server does not end".to_owned()))
    }

    // None once it has ended.
    fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?))
    }

    async fn answers(&mut self, options: &PgConnectOptions) -> Result<(), Failure> {
        loop {
            if let Ok(connection) = options.connect().await {
                // It has answered; a failed good-bye changes nothing.
                drop(connection.close().await);
                return Ok(());
            }
            tokio::select! {
                ended = self.child.wait() => {
                    let status = ended.map_err(Failure::at("wait for", Path::new("postgres")))?;
                    return Err(Failure::Server(format!("PostgreSQL ended ({status}):\n{}", self.log.tail())));
                }
                () = sleep(Duration::from_millis(10)) => {}
            }
        }
    }
}

/// A process that ends without having stopped its server still asks it to stop.
impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, Signal::INT);
        }
    }
}

/// The file the server writes to, and where this start's part of it begins.
#[derive(Debug)]
struct Log {
    file: File,
    begin: u64,
}

impl Log {
    fn open(path: &Path) -> Result<Self, Failure> {
        let large = fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_BYTES);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path);
        let file = file.map_err(Failure::at("open", path))?;
        if large {
            file.set_len(0).map_err(Failure::at("truncate", path))?;
        }
        let begin = file.metadata().map_or(0, |meta| meta.len());
        Ok(Self { file, begin })
    }

    fn writer(&self) -> Result<Stdio, Failure> {
        self.file.try_clone().map(Stdio::from).map_err(Failure::at("share", Path::new("postgres.log")))
    }

    fn tail(&self) -> String {
        let mut text = Vec::new();
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start(self.begin)).and_then(|_| file.take(1 << 20).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        match read {
            Ok(_) => lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n"),
            Err(error) => format!("(its log cannot be read: {error})"),
        }
    }
}

async fn run(mut command: Command, name: &str) -> Result<(), Failure> {
    let output = command.output().await.map_err(Failure::at("run", Path::new(name)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Server(format!("{name} failed ({}):\n{}", output.status, said.trim_end())))
}
