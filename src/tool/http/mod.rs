//! Requests to the outside world, which can neither be talked into reaching the inside one nor leave anybody in doubt
//! about whether they were sent: `http.request`, and the tools that tenants [declare](declared).

mod declared;
mod exchange;
mod hosts;
mod request;
mod response;
mod sender;
#[cfg(test)]
mod tests;
mod tool;

pub(super) use declared::routes;
pub use declared::{HttpTool, HttpTools};
pub(super) use hosts::{Hosts, Place};
pub(super) use sender::Sender;
pub(super) use tool::HttpRequest;
