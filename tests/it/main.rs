//! Fermata as its users see it: the real server on a real PostgreSQL, driven over HTTP.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod adversarial;
mod agents;
mod approvals;
mod bench;
mod budgets;
mod calls;
mod children;
mod days;
mod definitions;
mod fairness;
mod fire;
mod fork;
mod handoff;
mod house;
mod imports;
mod input;
mod jobs;
mod killed;
mod mcp;
mod mcp_reference;
mod models;
mod once;
mod openapi;
mod pages;
mod pins;
mod pipeline;
mod planning;
mod readers;
mod recovery;
mod retention;
mod runs;
mod smoke;
mod speech;
mod streams;
mod telemetry;
mod tokens;
mod tools;
mod vitals;
mod walk;
mod wall;
mod walls;
mod window;
mod wire;
mod world;
