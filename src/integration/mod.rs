//! What a tenant is let into elsewhere: connections, each an OAuth grant that a person gave for it, sealed at rest, renewed
//! before it is over, and handed out for calls to the one URL it is for.

mod attempt;
mod authorize;
mod connection;
mod connections;
mod grant;
mod provider;
mod routes;
mod store;
mod token;

pub use connection::{ClientBody, Connection, ConnectionBody, ConnectionStatus};
pub use connections::Connections;
pub use routes::{IntegrationRoutes, routes};
pub use token::AccessToken;
