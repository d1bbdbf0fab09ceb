//! What the built-in tools lean on in tests that call none of them.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgConnectOptions;

use super::{Call, ChildRequest, ChildRuns, Ports, ToolError};
use crate::{
    auth::Vault,
    config::{Settings, ToolSettings},
    db::Database,
    http::{AllowList, Outbound},
    kernel::{Clock, Result, RunId, TenantId},
    llm::{Keys, Models},
};

struct Nowhere;

#[async_trait]
impl AllowList for Nowhere {
    async fn allowed(&self, _: TenantId) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl ChildRuns for Nowhere {
    async fn start(&self, _: &Call, child: ChildRequest) -> Result<RunId, ToolError> {
        Ok(child.run_id)
    }
}

/// Ports that lead nowhere.
pub(crate) fn ports(settings: &ToolSettings) -> Ports {
    let usual = Settings::default();
    let outbound = Arc::new(Outbound::new(settings, Arc::new(Nowhere)).unwrap());
    let database = Database::lazy(PgConnectOptions::new()).unwrap();
    let keys = Keys::new(Vault::new(&usual.vault).unwrap());
    let (ground, llm) = ((database, Clock::system()), &usual.llm);
    let models = Models::new(ground, llm, &usual.circuit_breaker, keys, Arc::clone(&outbound));
    Ports { outbound, child_runs: Arc::new(Nowhere), models }
}
