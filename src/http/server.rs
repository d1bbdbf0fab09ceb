use std::{io, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
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

/// Answers on `listener`, HTTP/1.1 and HTTP/2 (prior knowledge), until `stopping` is cancelled. Then it
/// accepts nothing more, lets what is in flight finish within `http.drain_grace`, and drops the rest.
pub async fn serve(listener: TcpListener, router: Router, settings: &HttpSettings, stopping: CancellationToken) {
    let server = Server { http: protocol(settings), router, patience: settings.header_timeout.0 };
    let room = Arc::new(Semaphore::new(settings.connections.min(Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    let mut open = JoinSet::new();
    while let Some((socket, permit)) = next(&listener, &room, &stopping).await {
        open.spawn(server.clone().converse(socket, graceful.watcher(), permit));
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

fn protocol(settings: &HttpSettings) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(settings.header_timeout.0).max_buf_size(64 * 1024);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.requests_per_connection)
        .max_header_list_size(32 * 1024)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    http
}

#[derive(Clone)]
struct Server {
    http: auto::Builder<TokioExecutor>,
    router: Router,
    patience: Duration,
}

impl Server {
    /// Serves one connection to its end.
    async fn converse(self, socket: TcpStream, watcher: Watcher, _permit: OwnedSemaphorePermit) {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let asked = CancellationToken::new();
        let (router, first) = (self.router, asked.clone());
        let service = tower::service_fn(move |request: Request<Incoming>| {
            first.cancel();
            router.clone().oneshot(request)
        });
        let connection = self.http.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
        let mut connection = std::pin::pin!(watcher.watch(connection.into_owned()));
        let outcome = tokio::select! {
            outcome = &mut connection => outcome,
            () = silence(&asked, self.patience) => return,
        };
        if let Err(error) = outcome {
            tracing::debug!(error = &*error, "the connection ended badly");
        }
    }
}

/// Returns when no request came in time: the protocol's own time-out starts only once it is known which
/// protocol it is.
async fn silence(asked: &CancellationToken, patience: Duration) {
    if tokio::time::timeout(patience, asked.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
