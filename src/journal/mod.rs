//! The run's language and memory: the plan's vocabulary, the events, the pure state machine, and the
//! append that is the only writer of `runs`, `run_events` and `run_steps`.

mod event;
mod plan;

pub use event::*;
pub use plan::*;
