//! The run's language and memory: the plan's vocabulary, the events, the pure state machine, and the
//! append that is the only writer of `runs`, `run_events` and `run_steps`.

mod event;
mod follow;
mod plan;

pub use event::*;
pub use follow::{Commit, Follower, Frame};
pub use plan::*;
