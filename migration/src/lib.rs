//! The schema, forward only: each table with its keys, indexes, row-level security, grants and comments.

use sea_orm_migration::prelude::*;

pub use sea_orm_migration::MigratorTrait;

mod m20261121_000001_tenancy;
mod m20261121_000002_runs;
mod m20261121_000003_approvals;
mod m20261121_000004_requests;
mod m20261121_000005_workers;
mod m20261121_000006_dead_workers;
mod m20261121_000007_append;
mod m20261121_000008_retention;
mod m20261121_000009_append_by_set;
mod m20261121_000010_riders;
mod m20261126_000011_steps_from_events;
mod m20261126_000012_events_alone;
mod m20261127_000013_llm;
mod m20261127_000014_budget;
mod m20261127_000015_tasks;
mod m20261127_000016_usage;
mod m20261127_000019_http_tools;
mod m20261127_000020_forms;
mod m20261127_000021_mcp;
mod m20261127_000022_approvers;
mod m20261127_000023_connections;
mod m20261127_000024_usage_time;
mod m20261127_000028_mcp_questions;

/// Every migration, oldest first.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261121_000001_tenancy::Migration),
            Box::new(m20261121_000002_runs::Migration),
            Box::new(m20261121_000003_approvals::Migration),
            Box::new(m20261121_000004_requests::Migration),
            Box::new(m20261121_000005_workers::Migration),
            Box::new(m20261121_000006_dead_workers::Migration),
            Box::new(m20261121_000007_append::Migration),
            Box::new(m20261121_000008_retention::Migration),
            Box::new(m20261121_000009_append_by_set::Migration),
            Box::new(m20261121_000010_riders::Migration),
            Box::new(m20261126_000011_steps_from_events::Migration),
            Box::new(m20261126_000012_events_alone::Migration),
            Box::new(m20261127_000013_llm::Migration),
            Box::new(m20261127_000014_budget::Migration),
            Box::new(m20261127_000015_tasks::Migration),
            Box::new(m20261127_000016_usage::Migration),
            Box::new(m20261127_000022_approvers::Migration),
            Box::new(m20261127_000019_http_tools::Migration),
            Box::new(m20261127_000020_forms::Migration),
            Box::new(m20261127_000021_mcp::Migration),
            Box::new(m20261127_000023_connections::Migration),
            Box::new(m20261127_000024_usage_time::Migration),
            Box::new(m20261127_000028_mcp_questions::Migration),
        ]
    }
}
