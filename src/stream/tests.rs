//! Streams over a real database, with one and with two processes.

mod process;
mod runs;
mod tenants;
mod tickets;
