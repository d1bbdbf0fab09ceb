//! Definitions: how people write what a run does, and every mistake they can make in it, found before
//! anything runs.

mod arguments;
mod check;
mod graph;
mod input;
mod json;
mod model;
mod names;
mod put;
mod routes;
mod schema;
mod source;
mod store;
mod usual;
mod yaml;

pub use check::{check, check_plan, uses};
pub use input::{check_input, fits};
pub use model::{Definition, Media, Mistake, refuse};
pub use put::{DefinitionSummary, StoredDefinition};
pub use routes::routes;
pub use schema::SCHEMA;
pub use source::read;
pub use usual::usual;

#[cfg(test)]
mod tests;
