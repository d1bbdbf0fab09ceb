//! Two connections of their own, which must not go through a transaction pooler: one that hears
//! notifications, one that holds a worker's session lock.

use std::time::Duration;

use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Database, pool::give_back};
use crate::kernel::{
    Error, Result,
    crash::{self, Side},
};

/// A payload Postgres takes, in bytes.
pub const NOTIFY_BYTES: usize = 7999;
/// How often a silent connection is asked whether it is still there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// The longest pause between two attempts to connect.
const BACKOFF: Duration = Duration::from_secs(5);

/// What a listener heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It listens from now on, for the first time or again, or could not keep up: whatever was sent before
    /// may have been missed.
    Missed,
    /// A notification.
    Payload(String),
}

/// Hears the notifications of one channel, for as long as it lives.
#[derive(Debug)]
pub struct Listener {
    heard: mpsc::Receiver<Heard>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Listens on `channel` through a direct connection, which is made anew whenever it is lost. At most
    /// `queue` payloads wait for their reader; beyond that they are dropped and [`Heard::Missed`] says so.
    #[must_use]
    pub fn start(options: PgConnectOptions, channel: &'static str, queue: usize) -> Self {
        let (sender, heard) = mpsc::channel(queue.max(1));
        let task = tokio::spawn(listen(options, channel, sender));
        Self { heard, task }
    }

    /// The next thing heard. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Database {
    /// Notifies the listeners of `channel`, in all processes. A crash of the server may lose it: it waits for no
    /// disk.
    ///
    /// # Errors
    /// When the database is away, or the payload is over [`NOTIFY_BYTES`].
    pub async fn notify(&self, channel: &str, payload: &str) -> Result<()> {
        if payload.len() > NOTIFY_BYTES {
            return Err(Error::internal(format!("a notification of {} bytes", payload.len())));
        }
        crash::point("notify", Side::Before, &channel);
        let mut loan = self.pool.lend().await?;
        sqlx::query("select pg_notify($1, $2), set_config('synchronous_commit', 'off', true)")
            .bind(channel)
            .bind(payload)
            .execute(&mut **loan)
            .await?;
        give_back(loan);
        crash::point("notify", Side::After, &channel);
        Ok(())
    }
}

async fn listen(options: PgConnectOptions, channel: &'static str, sender: mpsc::Sender<Heard>) {
    let mut pause = Duration::ZERO;
    while !sender.is_closed() {
        sleep(pause).await;
        match session(options.clone(), channel, &sender).await {
            // It did work: begin with a short pause again.
            Ok(()) => pause = Duration::from_millis(50),
            Err(error) => {
                tracing::warn!(channel, %error, "cannot listen; trying again");
                pause = (pause * 2).clamp(Duration::from_millis(100), BACKOFF);
            }
        }
    }
}

// Ok when an established connection was lost, or nobody reads any more.
async fn session(options: PgConnectOptions, channel: &str, sender: &mpsc::Sender<Heard>) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(&session_pool(options)).await?;
    listener.eager_reconnect(false);
    listener.listen(channel).await?;
    let mut missed = true;
    let mut heartbeat = interval(HEARTBEAT);
    loop {
        tokio::select! {
            heard = listener.try_recv() => match heard {
                Ok(Some(heard)) if !missed => {
                    missed = sender.try_send(Heard::Payload(heard.payload().to_owned())).is_err();
                }
                // The mark that is still to be sent covers it.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Ok(()),
            },
            room = sender.reserve(), if missed => match room {
                Ok(room) => {
                    room.send(Heard::Missed);
                    missed = false;
                }
                Err(_) => return Ok(()),
            },
            _ = heartbeat.tick() => if !answers(&mut listener).await { return Ok(()) },
            () = sender.closed() => return Ok(()),
        }
    }
}

/// A session advisory lock on a connection of its own: it is free the moment this process dies.
#[derive(Debug)]
pub struct SessionLock {
    lost: CancellationToken,
    release: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl SessionLock {
    /// Takes the lock `key`, or answers `None` when another session has it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn take(options: PgConnectOptions, key: i64) -> Result<Option<Self>> {
        let mut session = PgListener::connect_with(&session_pool(options)).await?;
        session.eager_reconnect(false);
        let query = sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(key);
        if !query.fetch_one(&mut session).await? {
            return Ok(None);
        }
        let lost = CancellationToken::new();
        let (release, released) = oneshot::channel();
        let task = tokio::spawn(hold(session, key, lost.clone(), released));
        Ok(Some(Self { lost, release: Some(release), task }))
    }

    /// Fires when the connection, and with it the lock, is gone.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Gives the lock back and waits until it is free.
    pub async fn release(mut self) {
        if let Some(release) = self.release.take() {
            // The holder may have ended already, because the connection was lost.
            let _ = release.send(());
        }
        let _ = (&mut self.task).await;
    }
}

// Ends when the connection is lost or its owner lets go; dropping the owner's half counts as that.
async fn hold(mut session: PgListener, key: i64, lost: CancellationToken, mut released: oneshot::Receiver<()>) {
    let mut heartbeat = interval(HEARTBEAT);
    let alive = loop {
        tokio::select! {
            heard = session.try_recv() => if !matches!(heard, Ok(Some(_))) { break false },
            _ = heartbeat.tick() => if !answers(&mut session).await { break false },
            _ = &mut released => break true,
        }
    };
    if alive {
        let unlock = sqlx::query("select pg_advisory_unlock($1)").bind(key);
        if let Err(error) = unlock.execute(&mut session).await {
            tracing::debug!(%error, "the session lock was lost before it was given back");
        }
    }
    lost.cancel();
}

async fn answers(session: &mut PgListener) -> bool {
    matches!(timeout(ANSWER, sqlx::query("select 1").execute(session)).await, Ok(Ok(_)))
}

// A pool of one that never replaces its connection by itself, which is the form a listener wants.
fn session_pool(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(ANSWER)
        .connect_lazy_with(options)
}
