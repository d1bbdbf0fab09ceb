//! How events reach those who watch. A process keeps the recent end of every stream that somebody
//! follows, each event encoded once; whoever is further behind reads pages of the table, which are
//! shared. A subscriber is a place in a stream and costs no query while it keeps up. Signals tell other
//! processes that there is news; they carry ids only and may be lost, a look at the table each second
//! makes up for it.

mod access;
mod begun;
mod cursor;
mod feed;
mod filter;
mod frame;
mod history;
mod hub;
mod media;
mod page;
mod pass;
mod ring;
mod routes;
mod run;
mod seats;
mod signal;
mod sse;
mod state;
mod store;
mod subscriber;
mod tenant;
#[cfg(test)]
mod tests;
mod ticket;
mod topic;
mod window;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use hub::Hub;
pub use routes::routes;
pub use signal::Signals;
pub use state::Streams;
pub use ticket::TicketUrl;

/// Locks for a moment. What is guarded here is whole between any two statements, so a panic elsewhere
/// while it was held does not spoil it.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
