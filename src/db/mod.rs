//! The doors to Postgres. [`TenantTx`] is the only way to tenant tables; [`SystemTx`] calls the few
//! functions that look across tenants and return ids. The pool itself never leaves this room.

pub mod cluster;
mod failure;
#[cfg(test)]
pub(crate) mod fixture;
mod given;
pub mod guard;
mod lane;
mod listen;
mod migrate;
mod patience;
mod pool;
mod reach;
mod rider;
#[cfg(test)]
mod tests;
mod tx;

pub use failure::Failure;
pub use given::adopt;
pub use lane::Lane;
pub use listen::{Heard, Listener, NOTIFY_BYTES, SessionLock};
pub use migrate::migrate;
pub use patience::patiently;
pub use rider::Rider;
pub(crate) use rider::composite;
pub use tx::{Database, Stale, SystemTx, TenantTx};
