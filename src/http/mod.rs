//! What every operation has in common on the wire: who asks and whether they may ([`Ctx`]), bodies and
//! parameters that are checked before a handler sees them, problems (RFC 9457), idempotency ([`Once`]),
//! preferences, the server itself, and the way out ([`Outbound`]).

mod arrival;
mod body;
mod ctx;
mod docs;
mod dress;
mod frame;
mod front;
mod health;
mod inspect;
mod json;
mod once;
pub mod openapi;
mod outbound;
mod params;
pub mod permit;
mod prefer;
mod problem;
mod server;
mod store;
mod strict;

pub use crate::kernel::Result;
pub use arrival::{Arrival, RequestId};
pub use body::{media_type, read_body};
pub use ctx::Ctx;
pub use docs::docs;
pub use dress::dress;
pub use front::Front;
pub use health::{Probe, vitals};
pub use json::{Json, parse_json};
pub use once::{Once, Reply};
pub use outbound::{AllowList, Door, Outbound, Refusal, retry_after};
pub use params::{Path, Query};
pub use permit::Permit;
pub use prefer::Prefer;
pub use server::serve;
