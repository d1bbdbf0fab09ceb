//! Holds: the gate's verdict on a call, the inbox that follows the journal, and the one use case behind
//! every way to decide.

mod decide;
mod form;
mod gate;
mod inbox;
mod routes;
mod store;
mod view;

pub use decide::{Answer, Approvals, Arguments, DecisionStatus};
pub use gate::{Verdict, digest, verdict};
pub use inbox::Inbox;
pub use routes::{ApprovalState, routes};
pub use view::{Approval, ApprovalStatus, DecisionRecord};
