//! The tables as sea-orm sees them: one module a table. What the columns mean is said where they are made,
//! in `migration`; what may be done to them is said by grants and policies there.

pub mod approval;
pub mod approval_decision;
pub mod audit_entry;
pub mod idempotency_key;
pub mod run;
pub mod run_event;
pub mod run_lease;
pub mod run_step;
pub mod stream_gap;
pub mod stream_ticket;
pub mod tenant;
pub mod worker;
pub mod workflow_definition;
