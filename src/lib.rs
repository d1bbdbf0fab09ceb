//! Fermata: an agent orchestrator that knows when to hold. `docs/architecture.md` is the map.

pub mod kernel;

pub mod db;

pub mod journal;

pub mod tool;

pub mod run;
