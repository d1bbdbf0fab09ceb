use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    binaries::Programs,
    data_dir::DataDir,
    identity::Identity,
    orphan,
    place::Place,
    server::{Launch, Server},
};
use crate::db::Failure;

const DATABASE: &str = "fermata";
const OWNER: &str = "fermata_owner";
const APP: &str = "fermata_app";

/// What a power cut may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: every commit is on disk.
    Full,
    /// Everything; for tests.
    None,
}

/// The PostgreSQL of a data directory, kept running until [`Cluster::stop`]. It is reached through a socket
/// in a folder that only its owner may enter, so its logins need no passwords.
#[derive(Debug)]
pub struct Cluster {
    launch: Launch,
    notice: Option<String>,
    stop: CancellationToken,
    keeper: JoinHandle<Result<(), Failure>>,
}

impl Cluster {
    /// Makes the cluster where there is none, cleans up after a kill, starts the server and sees to it that
    /// the roles and the database are there.
    ///
    /// # Errors
    /// When there is no server to run, or it does not start; the message says why and what to do.
    pub async fn start(dir: DataDir, durability: Durability) -> Result<Self, Failure> {
        orphan::stop(&dir.path().join("pg")).await?;
        let identity = Identity::choose().await?;
        Self::start_as(identity, dir, durability).await
    }

    pub(super) async fn start_as(identity: Identity, dir: DataDir, durability: Durability) -> Result<Self, Failure> {
        let place = Place::of(&dir, &identity).await?;
        let programs = Programs::find(&identity, &place).await?;
        let socket_dir = place.socket_dir(&identity)?;
        let notice = identity.notice(&place.pg);
        let launch = Launch { programs, place, socket_dir, durability };
        launch.make_cluster(&identity).await?;
        let mut server = launch.start().await?;
        if let Err(failure) = bootstrap(&launch).await {
            server.stop().await?;
            return Err(failure);
        }
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(dir, launch.clone(), server, stop.clone()));
        Ok(Self { launch, notice, stop, keeper })
    }

    /// The login that migrates, on the database.
    #[must_use]
    pub fn admin_options(&self) -> PgConnectOptions {
        self.launch.options(OWNER, DATABASE)
    }

    /// The server's login, on the database.
    #[must_use]
    pub fn app_options(&self) -> PgConnectOptions {
        self.launch.options(APP, DATABASE)
    }

    /// The folder of the socket, for `psql -h`.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.launch.socket_dir
    }

    /// Who the server runs as, where that is not simply the one who started it.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Makes another database of the same owner, a copy of `template`, to which nobody may be connected.
    ///
    /// # Errors
    /// When it exists, or the template is in use.
    pub async fn create_database(&self, name: &str, template: &str) -> Result<(), Failure> {
        let mut superuser = connect(&self.launch.superuser("postgres")).await?;
        create_database(&mut superuser, name, template).await
    }

    /// Stops the server and waits for its end. Nothing is left behind but the data.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(mut self) -> Result<(), Failure> {
        self.stop.cancel();
        (&mut self.keeper).await.map_err(|error| Failure::Server(format!("the server's keeper failed: {error}")))?
    }
}

#[cfg(test)]
impl Cluster {
    /// Leaves a running server and nobody who keeps it, as a killed process does.
    pub(super) async fn abandon(self) {
        use std::os::unix::fs::DirBuilderExt;
        let launch = self.launch.clone();
        self.stop().await.unwrap();
        fs::DirBuilder::new().mode(0o700).create(&launch.socket_dir).unwrap();
        std::mem::forget(launch.start().await.unwrap());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

// Holds the data directory for as long as its server runs. A server that ends by itself is started again.
async fn keep(dir: DataDir, launch: Launch, mut server: Server, stop: CancellationToken) -> Result<(), Failure> {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            ended = server.ended() => {
                let status = ended?;
                tracing::error!(%status, said = server.last_words(), "the PostgreSQL server ended; starting it again");
            }
        }
        match restart(&launch, &stop).await {
            Some(next) => server = next,
            None => return forget_socket(&launch.socket_dir),
        }
    }
    server.stop().await?;
    drop(dir);
    forget_socket(&launch.socket_dir)
}

// Until it succeeds, or nobody wants it any more.
async fn restart(launch: &Launch, stop: &CancellationToken) -> Option<Server> {
    loop {
        let attempt = async {
            orphan::stop(&launch.place.pg).await?;
            launch.start().await
        };
        match attempt.await {
            Ok(server) => return Some(server),
            Err(failure) => tracing::error!(%failure, "PostgreSQL does not start; trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn forget_socket(dir: &PathBuf) -> Result<(), Failure> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::at("remove", dir)(error)),
        _ => Ok(()),
    }
}

// Every step may have been done by a start that was killed in the middle.
async fn bootstrap(launch: &Launch) -> Result<(), Failure> {
    let mut superuser = connect(&launch.superuser("postgres")).await?;
    sqlx::raw_sql(include_str!("../../../deploy/roles.sql"))
        .execute(&mut superuser)
        .await
        .map_err(Failure::of("making the roles"))?;
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(DATABASE)
        .fetch_one(&mut superuser)
        .await
        .map_err(Failure::of("looking for the database"))?;
    if !exists {
        create_database(&mut superuser, DATABASE, "template0").await?;
    }
    superuser.close().await.map_err(Failure::of("closing the superuser's connection"))
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Failure> {
    options.connect().await.map_err(Failure::of("connecting to PostgreSQL"))
}

async fn create_database(superuser: &mut PgConnection, name: &str, template: &str) -> Result<(), Failure> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let statement = format!("create database {} owner {OWNER} template {}", quoted(name), quoted(template));
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(superuser)
        .await
        .map(drop)
        .map_err(Failure::of("creating the database"))
}
