//! Streams over a real database, with one and with two processes.

mod process;
mod retention;
mod runs;
mod tenants;
mod tickets;
