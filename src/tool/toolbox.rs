use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::{Registry, Tool, ToolError};
use crate::{
    approval::Arguments,
    kernel::{Error, Result, TenantId},
};

/// Where tools of tenants are found.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Those of one tenant, as they are now.
    ///
    /// # Errors
    /// When the database is away.
    async fn tools(&self, tenant: TenantId) -> Result<Vec<Arc<dyn Tool>>>;
}

/// The tools of this server and of its tenants. Cheap to clone.
#[derive(Clone)]
pub struct Toolbox {
    server: Registry,
    sources: Arc<[Arc<dyn Source>]>,
}

impl Toolbox {
    /// The server's tools, and where those of tenants are found.
    #[must_use]
    pub fn new(server: Registry, sources: Vec<Arc<dyn Source>>) -> Self {
        Self { server, sources: sources.into() }
    }

    /// The same with another place where tools of tenants are found, after the others.
    #[must_use]
    pub fn and(&self, source: Arc<dyn Source>) -> Self {
        let sources = self.sources.iter().cloned().chain([source]).collect();
        Self { server: self.server.clone(), sources }
    }

    /// Those that every tenant has.
    #[must_use]
    pub fn server(&self) -> &Registry {
        &self.server
    }

    /// All that a tenant has.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn of(&self, tenant: TenantId) -> Result<Registry> {
        let mut own = Vec::new();
        for source in &*self.sources {
            own.extend(source.tools(tenant).await?);
        }
        Ok(self.server.with(own))
    }

    /// All that a tenant has, where any of these names is not the server's: nobody else waits for the database.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn with<'n>(&self, tenant: TenantId, names: impl IntoIterator<Item = &'n str>) -> Result<Registry> {
        if names.into_iter().all(|name| self.server.has(name)) {
            return Ok(self.server.clone());
        }
        self.of(tenant).await
    }
}

#[async_trait]
impl Arguments for Toolbox {
    async fn check(&self, tenant: TenantId, tool: &str, arguments: &Value) -> Result<()> {
        let tools = self.with(tenant, [tool]).await?;
        tools.validate(tool, arguments).map_err(|error| match error {
            ToolError::Failed(failure) | ToolError::Unknown(failure) => Error::invalid("arguments", failure.message),
        })
    }
}

impl std::fmt::Debug for Toolbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toolbox").field("server", &self.server).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        config::LimitSettings,
        journal::Effect,
        kernel::Id,
        tool::{Call, Outcome},
    };

    /// A tool of that name, and the schema of its arguments.
    struct Named(&'static str, Value);

    #[async_trait]
    impl Tool for Named {
        fn name(&self) -> &str {
            self.0
        }

        fn description(&self) -> &str {
            "For tests."
        }

        fn arguments(&self) -> Value {
            self.1.clone()
        }

        fn output(&self) -> Value {
            json!({})
        }

        fn effect(&self, _: &Value) -> Effect {
            Effect::Pure
        }

        async fn call(&self, _: Call) -> Result<Outcome, ToolError> {
            Err(ToolError::cancelled())
        }
    }

    fn named(tools: &[(&'static str, Value)]) -> Vec<Arc<dyn Tool>> {
        tools.iter().map(|(name, schema)| Arc::new(Named(name, schema.clone())) as Arc<dyn Tool>).collect()
    }

    struct Own;

    #[async_trait]
    impl Source for Own {
        async fn tools(&self, _: TenantId) -> Result<Vec<Arc<dyn Tool>>> {
            Ok(named(&[
                ("crm.sync", json!({ "required": ["a"] })),
                ("server.read", json!({ "required": ["theirs"] })),
                ("broken", json!({ "$ref": "https://elsewhere.example/schema" })),
            ]))
        }
    }

    #[tokio::test]
    async fn a_tenants_tools_stand_beside_the_servers_and_take_no_name_of_theirs() {
        let server = Registry::new(named(&[("server.read", json!({}))]), &LimitSettings::default()).unwrap();
        let toolbox = Toolbox::new(server, vec![Arc::new(Own)]);
        let tenant = Id::new(chrono::DateTime::UNIX_EPOCH);
        let all = toolbox.of(tenant).await.unwrap();
        assert_eq!(all.names().collect::<Vec<_>>(), ["server.read", "broken", "crm.sync"]);
        assert!(!all.has("broken") && all.tool("broken").is_err(), "what cannot be checked is no tool");
        assert!(all.validate("broken", &json!({})).is_err() && all.arguments("broken").is_none());
        assert!(all.validate("server.read", &json!({})).is_ok());
        assert!(all.validate("crm.sync", &json!({})).is_err() && all.validate("crm.sync", &json!({ "a": 1 })).is_ok());
        let few = toolbox.with(tenant, ["server.read"]).await.unwrap();
        assert!(!few.has("crm.sync"), "nobody looks for a tenant's tools where none is named");
        assert!(toolbox.with(tenant, ["server.read", "crm.sync"]).await.unwrap().has("crm.sync"));
        assert!(toolbox.check(tenant, "crm.sync", &json!({})).await.is_err());
    }
}
