//! The bench: workloads that drive a running server over its public API, and what they come to.
//!
//! The load shares the machine with what is measured, so it is made by one thread with a client of its own:
//! `wire` speaks HTTP, `frames` finds the events in a stream, `vitals` says what all of it cost. `figures` is
//! the arithmetic, `report` the output. Each workload has a file with its name; `limits` asks the database itself.

use std::process::ExitCode;

use clap::Subcommand;

mod agents;
mod approve;
mod course;
mod fan_out;
mod figures;
mod frames;
mod limits;
mod long_stream;
mod model;
mod report;
mod store;
mod storm;
mod vitals;
mod wire;

use super::client::failure::{Failure, Result};

/// The workloads.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Approve-run: three steps, the second held and approved at once
    W1(approve::Approve),
    /// Step storm: runs of a hundred trivial durable steps
    W2(storm::Storm),
    /// Fan-out: one run's events to many subscribers
    W3(fan_out::FanOut),
    /// Long stream: a run that tells much, to readers that are cut off
    W4(long_stream::LongStream),
    /// Agents: many runs of a model that speaks, all at once, each held in the middle
    W5(agents::Agents),
    /// What the machine and the database can do at this moment
    Limits(limits::Limits),
}

/// Measures; says on stderr what went wrong and returns the code that goes with it.
pub(super) async fn run(command: Command) -> ExitCode {
    match tokio::task::spawn_blocking(|| alone(command)).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(),
        Err(_) => ExitCode::FAILURE,
    }
}

/// On one thread: with more, the load would spend its time waking its own threads.
fn alone(command: Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::from)?;
    runtime.block_on(async {
        match command {
            Command::W1(approve) => approve.run().await,
            Command::W2(storm) => storm.run().await,
            Command::W3(fan_out) => fan_out.run().await,
            Command::W4(long_stream) => long_stream.run().await,
            Command::W5(agents) => agents.run().await,
            Command::Limits(limits) => limits.run().await,
        }
    })
}
