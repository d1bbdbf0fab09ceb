//! Agents: what they are told to be and may use, and how the plan of a run grows by what a model answers. Everything
//! here is pure but for the store behind the definitions; the engine above carries it out.

mod brief;
mod compact;
mod conversation;
mod definition;
mod grow;
mod names;
mod pin;
mod planner;
mod routes;
mod standing;
mod tool;
mod tools;
mod usual;

pub use brief::brief;
pub use conversation::conversation;
pub use definition::{AgentDefinition, AgentKind};
pub use grow::{grow, grows, outcome};
pub use pin::Agents;
pub use planner::{beyond, guarded, handed_in, question};
pub use routes::{AgentRoutes, routes};
pub use standing::{StandingTool, StandingVerdict};
pub use tool::AgentTools;
pub use tools::{ToolRoutes, tools};
