//! The run's language and memory: the plan's vocabulary, the events, the pure state machine, and the
//! append that is the only writer of `runs`, `run_events` and `run_steps`.

mod agent;
mod append;
mod budget;
mod command;
mod cost;
mod decide;
mod event;
mod follow;
mod fork;
mod form;
mod frontier;
mod load;
mod message;
mod payload;
mod pins;
mod plan;
mod planning;
mod purse;
mod ruling;
mod spending;
mod standing;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod write;

pub use agent::{
    AGENT_HANDOFF, AGENT_TURN, AgentPin, ApprovalRule, LONGEST_ANSWER, TurnRate, WINDOW, Wanted, Word, call_id,
    call_of, fits, turn_id, turn_of,
};
pub use append::{Append, Claim, Shown};
pub use budget::{Budget, BudgetBody, Cap, Estimate, Raise, as_f64};
pub use command::{Ask, Command, Refusal};
pub use cost::CostBound;
pub use decide::decide;
pub use event::*;
pub use follow::{Commit, Follower, Frame};
pub use fork::{Denial, Edited, ForkedFrom, Past};
pub use form::{Filled, Form};
pub use load::{Loaded, Lock, RunHead, is_terminal, load, load_past, recount};
pub use message::*;
pub use payload::*;
pub use pins::ModelPins;
pub use plan::*;
pub use planning::{DRAFTS, Draft, PLANNING, PlanReady, PlanRefused, Planner, Planning, planning_key};
pub use purse::{Purse, Taken};
pub use spending::{ModelUse, Spending};
pub use standing::Status;
pub use state::{Hold, Intent, Phase, Ruling, RunState, Stage, StepState};
pub use write::{AppendError, Desk, Journal, Place, Projection};
