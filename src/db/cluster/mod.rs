//! The PostgreSQL that `fermata dev` runs for itself: server binaries found or fetched, a cluster in the
//! data directory behind a private unix socket, under an identity that PostgreSQL accepts, recovered by
//! itself after a kill and stopped with the process.

mod binaries;
mod data_dir;
mod identity;
mod keeper;
mod orphan;
mod place;
mod server;
#[cfg(test)]
mod tests;

pub use data_dir::DataDir;
pub use keeper::{Cluster, Durability};
