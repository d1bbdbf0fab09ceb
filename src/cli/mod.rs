//! The command line: one binary that serves, administers and talks to a server. The client's commands
//! speak only the public API, and so does the bench.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod client;
mod server;

/// An agent orchestrator that knows when to hold.
#[derive(Debug, Parser)]
#[command(name = "fermata", version, about, after_help = client::EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Server(server::Command),
    #[command(flatten)]
    Client(client::Command),
    /// Measure a running server, over its public API
    #[command(subcommand)]
    Bench(bench::Command),
}

impl Cli {
    /// Does what was asked for; what went wrong has been said on stderr when this returns.
    pub async fn run(self) -> ExitCode {
        match self.command {
            Command::Server(command) => server::run(command).await,
            Command::Client(command) => client::run(command).await,
            Command::Bench(command) => bench::run(command).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
