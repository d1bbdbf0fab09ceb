//! The commands that talk to a server, over its public API and nothing else.
//!
//! `connection` says where and as whom, `api` speaks HTTP, `follow` keeps a stream alive, `timeline` folds
//! events into what a person wants to know (pure), `frame` and `line` turn that into text (pure), and
//! `watch` brings them together; `runs`, `approvals`, `workflows` and `connect` are the commands.

use std::process::ExitCode;

use clap::Subcommand;

mod api;
mod approvals;
mod connect;
pub(super) mod connection;
pub(super) mod failure;
mod follow;
mod frame;
mod input;
mod line;
pub(super) mod output;
mod plans;
mod runs;
pub(super) mod text;
mod timeline;
mod watch;
mod workflows;

pub use failure::EXIT_CODES;

/// What a user of a server can ask for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start, see, watch, cancel and retry runs
    #[command(subcommand)]
    Run(runs::Command),
    /// The inbox: holds that wait for a decision, or one of them in full
    Approvals(approvals::Inbox),
    /// Consent to a held call
    Approve(approvals::Approve),
    /// Refuse a held call
    Deny(approvals::Deny),
    /// Put, list and read workflow definitions
    #[command(subcommand)]
    Workflow(workflows::Command),
    /// Have somebody grant access to what is elsewhere, in their browser
    Connect(connect::Connect),
}

/// Runs one command; says on stderr what went wrong and returns the code that goes with it.
pub async fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Run(command) => command.run().await,
        Command::Approvals(command) => command.run().await,
        Command::Approve(command) => command.run().await,
        Command::Deny(command) => command.run().await,
        Command::Workflow(command) => command.run().await,
        Command::Connect(command) => command.run().await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
