//! Definitions, templates and everything that moves a run.

pub mod template;
