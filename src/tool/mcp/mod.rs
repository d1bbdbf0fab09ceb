//! Tools of MCP servers that tenants register: pinned as they were then, called through sessions that are soon closed,
//! and never believed. What a server says is data: it orders nothing here.

mod accept;
mod call;
mod change;
mod connect;
mod ear;
mod entry;
mod fault;
mod form;
mod output;
mod pin;
mod process;
mod routes;
mod servers;
mod session;
mod store;
mod tool;

pub use change::{Question, Questions};
pub use connect::Credentials;
pub use entry::{McpEntry, McpServer};
pub use routes::{McpRoutes, routes};
pub use servers::Servers;
