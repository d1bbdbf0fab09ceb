//! Definitions, and everything that moves a run: the use cases callers have, the pure scheduler,
//! and the worker whose turns carry runs on.

mod bell;
mod budget;
mod call;
mod child;
pub mod definition;
mod desk;
mod forecast;
mod fork;
mod hear;
mod job;
mod perform;
mod planning;
mod question;
mod routes;
pub mod scheduler;
mod service;
mod shared;
#[cfg(test)]
mod simulator;
mod span;
mod steps;
mod store;
mod trial;
mod turn;
mod view;
mod waker;
mod worker;

pub use bell::Bell;
pub use child::Children;
pub use desk::Desk;
pub use routes::{RunRoutes, routes};
pub use service::{Opening, Request, Runs, Source};
pub use steps::StepView;
pub use view::{Links, Run, RunSummary};
pub use waker::Waker;
pub use worker::{Worker, WorkerParts};
