//! The doors to Postgres. [`TenantTx`] is the only way to tenant tables; [`SystemTx`] calls the few
//! functions that look across tenants and return ids. The pool itself never leaves this room.

mod tx;

pub use tx::{Database, SystemTx, TenantTx};
