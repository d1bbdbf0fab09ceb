//! The run's language and memory: the plan's vocabulary, the events, the pure state machine, and the
//! append that is the only writer of `runs`, `run_events` and `run_steps`.

mod agent;
mod append;
mod command;
mod decide;
mod event;
mod follow;
mod frontier;
mod load;
mod message;
mod payload;
mod pins;
mod plan;
mod ruling;
mod standing;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod write;

pub use agent::{AGENT_TURN, AgentPin, ApprovalRule, TurnRate, fits, turn_of};
pub use append::{Append, Claim, Shown};
pub use command::{Ask, Command, Refusal};
pub use decide::decide;
pub use event::*;
pub use follow::{Commit, Follower, Frame};
pub use load::{Loaded, Lock, RunHead, is_terminal, load, recount};
pub use message::*;
pub use payload::*;
pub use pins::ModelPins;
pub use plan::*;
pub use state::{Hold, Intent, Phase, Ruling, RunState, Stage, Status, StepState};
pub use write::{AppendError, Desk, Journal, Place, Projection};
