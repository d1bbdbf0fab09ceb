//! Definitions, templates and everything that moves a run.

pub mod definition;
pub mod template;
