//! One PostgreSQL for each process of tests, with a database for each world.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use fermata::{
    db::{
        self,
        cluster::{Cluster, DataDir, Durability},
    },
    kernel::Clock,
};
use sqlx::{AssertSqlSafe, ConnectOptions, postgres::PgConnectOptions};
use tokio::runtime::{Builder, Handle, Runtime};

/// Waits for the end of the tests' process, however that comes about, then ends the server and removes
/// everything. Each line it reads before is one more folder to remove.
const CARETAKER: &str = r#"
    while read -r line; do more=$line; done
    pid=$(head -n 1 "$1/pg/postmaster.pid") && kill -QUIT "$pid"
    tries=0
    while [ -e "$1/pg/postmaster.pid" ] && [ $((tries += 1)) -lt 500 ]; do sleep 0.02; done
    elsewhere=$(readlink "$1/pg") && rm -rf "$(dirname "$elsewhere")"
    umount "$1" 2>/dev/null
    rm -rf "$1" $more
"#;

/// The server and what keeps it running.
pub struct Ground {
    cluster: Cluster,
    made: AtomicU32,
    keeper: Runtime,
    _caretaker: Child,
}

/// The logins of a fresh, migrated database, which goes when they do.
pub struct Logins {
    /// The one that migrates.
    pub owner: PgConnectOptions,
    /// The server's.
    pub app: PgConnectOptions,
    /// PostgreSQL's own.
    pub superuser: PgConnectOptions,
    keeper: &'static Handle,
}

impl Ground {
    /// The process's own, started when it is first wanted.
    pub async fn get() -> &'static Self {
        static GROUND: OnceLock<Ground> = OnceLock::new();
        let start = || Self::start(&place(), Durability::None);
        tokio::task::spawn_blocking(move || GROUND.get_or_init(start)).await.unwrap()
    }

    /// One more, to break: `prepare` sees its folder first, which may become another file system. What it says is
    /// on disk is on disk.
    pub async fn apart<T: Send + 'static>(
        prepare: impl FnOnce(&Path) -> Option<T> + Send + 'static,
    ) -> Option<(&'static Self, T)> {
        let start = || {
            let place = place();
            let prepared = prepare(&place)?;
            // Its databases are dropped when their worlds are, whenever that is.
            Some((&*Box::leak(Box::new(Self::start(&place, Durability::Full))), prepared))
        };
        tokio::task::spawn_blocking(start).await.unwrap()
    }

    fn start(path: &Path, durability: Durability) -> Self {
        // Its tasks outlive the runtime of the test that comes first.
        let keeper = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let caretaker = hire(path);
        let cluster = keeper.block_on(async {
            let dir = DataDir::claim(path, &Clock::system()).unwrap();
            let cluster = Cluster::start(dir, durability).await.unwrap();
            db::migrate(cluster.admin_options()).await.unwrap();
            cluster
        });
        // Where the path is too long for a socket, it is in a folder of its own.
        writeln!(caretaker.stdin.as_ref().unwrap(), "{}", cluster.socket_dir().display()).unwrap();
        Self { cluster, made: AtomicU32::new(0), keeper, _caretaker: caretaker }
    }

    /// A database that nobody else uses, migrated.
    pub async fn database(&'static self) -> Logins {
        let name = format!("world_{}", self.made.fetch_add(1, Ordering::Relaxed));
        self.cluster.create_database(&name, "fermata").await.unwrap();
        let on = |login: PgConnectOptions| login.database(&name);
        let (owner, app) = (on(self.cluster.admin_options()), on(self.cluster.app_options()));
        let (superuser, keeper) = (owner.clone().username("postgres"), self.keeper.handle());
        Logins { superuser, owner, app, keeper }
    }
}

impl Drop for Logins {
    fn drop(&mut self) {
        let name = self.app.get_database().unwrap_or_default().to_owned();
        let superuser = self.superuser.clone().database("postgres");
        self.keeper.spawn(async move {
            let mut superuser = superuser.connect().await?;
            sqlx::raw_sql(AssertSqlSafe(format!("drop database {name} with (force)"))).execute(&mut superuser).await
        });
    }
}

fn place() -> PathBuf {
    std::env::temp_dir().join(format!("fermata-it-{}-{:08x}", std::process::id(), rand::random::<u32>()))
}

fn hire(path: &Path) -> Child {
    use std::os::unix::process::CommandExt;
    Command::new("/bin/sh")
        .args(["-c", CARETAKER, "caretaker"])
        .arg(path)
        // An interrupt at the terminal is for the tests.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
