//! The floor every other room stands on: typed ids, actors, the clock, the one error type, page cursors, schemas
//! and templates. Nothing here does I/O, but for the crash points of debug builds.

mod actor;
mod clock;
pub mod crash;
mod error;
mod id;
mod page;
mod reference;
mod schema;
mod span;
pub mod template;

pub use actor::{Actor, Subject};
pub use clock::{Clock, Timestamp, wire_time};
pub use error::{Error, Problem, Result};
pub use id::{ApprovalId, ConnectionId, Id, Kind, RequestId, RunId, TenantId, TicketId, TokenId, WorkerId, WorkflowId};
pub use page::{Page, PageCursor, PageQuery};
pub use reference::{Pinned, Reference, check_name, is_name};
pub use schema::compile;
pub use span::Span;
