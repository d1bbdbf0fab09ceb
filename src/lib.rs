//! Fermata: an agent orchestrator that knows when to hold. `docs/architecture.md` is the map.

pub mod kernel;

pub mod config;
pub mod telemetry;

pub mod auth;
pub mod db;

pub mod http;

pub mod audit;

pub mod journal;
pub mod stream;

pub mod identity;
pub mod integration;
pub mod llm;

pub mod approval;
pub mod usage;

pub mod tool;

pub mod agent;

pub mod run;

pub mod app;

pub mod cli;
