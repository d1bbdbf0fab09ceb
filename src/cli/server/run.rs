use tokio::{net::TcpListener, signal::unix};

use super::{Result, Serve, addresses, told};
use crate::{
    app::{App, Outside},
    config::Settings,
    db::{Database, guard},
    kernel::Clock,
    telemetry::{self, LogFormat},
};

/// Serves until told to stop.
pub(super) async fn serve(serve: Serve) -> Result<()> {
    telemetry::init(LogFormat::Json);
    let settings = serve.configured.load()?;
    let (database, direct) = addresses(&settings)?;
    refuse_what_is_unsafe(&settings).await?;
    let listener = listen(&settings).await?;
    let outside = Outside { settings, clock: Clock::system(), database, direct, role: serve.role };
    let app = App::start(outside, listener).await.map_err(|error| told(&error))?;
    tracing::info!(address = %app.address(), role = ?serve.role, "serving");
    told_to_stop().await?;
    tracing::info!("stopping");
    stop(app).await;
    Ok(())
}

/// A login that could get round row-level security, or a schema of another version, is no ground to serve on.
async fn refuse_what_is_unsafe(settings: &Settings) -> Result<()> {
    let (database, _) = addresses(settings)?;
    let fault = |error: crate::kernel::Error| format!("the database cannot be used: {}", told(&error));
    let connected = Database::connect(database, 1, settings.database.acquire_timeout.0).await;
    let db = connected.map_err(|error| told(&error))?;
    let mut findings = guard::login(&db).await.map_err(fault)?;
    findings.extend(guard::version(&db).await.map_err(fault)?);
    if findings.is_empty() {
        findings.extend(guard::schema(&db).await.map_err(fault)?);
    }
    db.close();
    match findings.as_slice() {
        [] => Ok(()),
        findings => Err(findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: ")),
    }
}

pub(super) async fn listen(settings: &Settings) -> Result<TcpListener> {
    let address = settings.http.listen;
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}"))
}

/// Stops; whoever asks once more does not want to wait for steps in flight.
pub(super) async fn stop(app: App) {
    let hurry = app.hurry();
    let asked_again = async {
        if told_to_stop().await.is_ok() {
            hurry.cancel();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = app.stop() => {}
        () = asked_again => {}
    }
}

/// Returns at SIGINT or SIGTERM.
pub(super) async fn told_to_stop() -> Result<()> {
    let signal = |kind| unix::signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(unix::SignalKind::interrupt())?;
    let mut terminate = signal(unix::SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
