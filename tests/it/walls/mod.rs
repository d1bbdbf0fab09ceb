//! The walls of the house under attack: what a tenant, a request or a crowd of readers must not get through.

mod clock;
mod connections;
mod crowd;
mod depth;
mod disk;
mod fuzz;
mod ids;
mod pool;
mod requests;
mod tables;
