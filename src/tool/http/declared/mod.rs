//! HTTP tools that tenants declare: by hand or out of an OpenAPI document. Each is what `http.request` would be asked,
//! with places for arguments, and goes the same way out.

mod address;
mod definition;

mod openapi;
mod put;
mod reader;
mod routes;
mod tool;

pub use definition::HttpTool;
pub(in crate::tool) use routes::routes;
pub use tool::HttpTools;
