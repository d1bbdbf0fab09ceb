use std::{io, sync::Arc, time::Duration};

use axum::{Router, extract::Request, http::Version};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::config::HttpSettings;

/// What every connection of HTTP/2 begins with, and no request of HTTP/1.1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Answers on `listener`, HTTP/1.1 and HTTP/2 (prior knowledge), until `stopping` is cancelled. Then it
/// accepts nothing more, lets what is in flight finish within `http.drain_grace`, and drops the rest.
pub async fn serve(listener: TcpListener, router: Router, settings: &HttpSettings, stopping: CancellationToken) {
    let server = Arc::new(Server::new(router, settings, stopping.clone()));
    let room = Arc::new(Semaphore::new(settings.connections.min(Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    let mut open = JoinSet::new();
    while let Some((socket, permit)) = next(&listener, &room, &stopping).await {
        open.spawn(Arc::clone(&server).converse(socket, graceful.watcher(), permit));
        while open.try_join_next().is_some() {}
    }
    drop(listener);
    if tokio::time::timeout(settings.drain_grace.0, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace = %settings.drain_grace, "requests were still open at the end of the grace time");
    }
    open.shutdown().await;
}

/// The next connection there is room for, or none once the server stops.
async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    stopping: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let accept = async {
        let permit = Arc::clone(room).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((socket, _)) => return Some((socket, permit)),
                Err(error) if of_one_connection(&error) => {}
                Err(error) => {
                    // Out of descriptors or memory: closing connections will help, spinning will not.
                    tracing::error!(%error, "cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stopping.cancelled() => None,
        accepted = accept => accepted,
    }
}

fn of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

/// How a connection is served. Each version has its builder: the one of hyper-util for both takes the first bytes
/// from the socket to tell them apart, which doubles the read buffer of every connection for as long as it lives.
struct Server {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    router: Router,
    patience: Duration,
    stopping: CancellationToken,
}

impl Server {
    fn new(router: Router, settings: &HttpSettings, stopping: CancellationToken) -> Self {
        let patience = settings.header_timeout.0;
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(64 * 1024);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(settings.requests_per_connection)
            .max_header_list_size(32 * 1024)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        Self { http1, http2, router, patience, stopping }
    }

    /// Serves one connection to its end.
    async fn converse(self: Arc<Self>, socket: TcpStream, watcher: Watcher, _permit: OwnedSemaphorePermit) {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let outcome = match self.version(&socket).await {
            Some(Version::HTTP_2) => Box::pin(self.converse_http2(socket, watcher)).await,
            Some(_) => {
                let service = TowerToHyperService::new(self.router.clone());
                watcher.watch(self.http1.serve_connection(TokioIo::new(socket), service)).await
            }
            None => {
                // Closed with bytes unread, it would be reset.
                _ = socket.try_read(&mut [0; PREFACE.len()]);
                return;
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "the connection ended badly");
        }
    }

    /// Which version the caller speaks, or none when nothing came in time or the server stops first.
    async fn version(&self, socket: &TcpStream) -> Option<Version> {
        tokio::select! {
            biased;
            told = tokio::time::timeout(self.patience, version(socket)) => told.ok()?.ok(),
            () = self.stopping.cancelled() => None,
        }
    }

    async fn converse_http2(&self, socket: TcpStream, watcher: Watcher) -> hyper::Result<()> {
        let asked = CancellationToken::new();
        let (router, first) = (self.router.clone(), asked.clone());
        let service = tower::service_fn(move |request: Request<Incoming>| {
            first.cancel();
            router.clone().oneshot(request)
        });
        let connection = self.http2.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
        let mut connection = std::pin::pin!(watcher.watch(connection));
        tokio::select! {
            outcome = &mut connection => outcome,
            () = silence(&asked, self.patience) => Ok(()),
        }
    }
}

/// Looks at the first bytes and leaves them where they are.
async fn version(socket: &TcpStream) -> io::Result<Version> {
    let (mut first, mut pause) = ([0; PREFACE.len()], Duration::from_millis(1));
    loop {
        let seen = socket.peek(&mut first).await?;
        if seen == 0 || !PREFACE.starts_with(&first[..seen]) {
            return Ok(Version::HTTP_11);
        }
        if seen == PREFACE.len() {
            return Ok(Version::HTTP_2);
        }
        // What is there already would be seen again at once; who sends it letter by letter is looked at ever less often.
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// Returns when no request came in time: HTTP/2 has a time-out for those who do not answer, and none for those
/// who do not ask.
async fn silence(asked: &CancellationToken, patience: Duration) {
    if tokio::time::timeout(patience, asked.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
