use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::Value;

use super::{McpEntry, Servers, output, pin::Pinned};
use crate::{
    journal::{ApprovalRule, Effect, fits},
    llm::Document,
    tool::{Call, Outcome, Tool, ToolError},
};

/// So much of a digest tells one version of a tool from another.
const VERSION: usize = 16;

/// A tool of a server, as it was pinned.
pub(super) struct McpTool {
    pub(super) servers: Servers,
    pub(super) server: Arc<Document<McpEntry>>,
    pub(super) pinned: Pinned,
    /// It was seen to be something else, and nobody has approved of that.
    pub(super) changed: bool,
    name: String,
    version: String,
    description: String,
}

impl McpTool {
    /// The tool at that place of the server's.
    pub(super) fn new(
        servers: &Servers,
        server: &Arc<Document<McpEntry>>,
        place: usize,
        changed: &[String],
    ) -> Option<Self> {
        let pinned = server.body.tools.get(place)?.clone();
        let tool = &pinned.tool;
        let name = format!("mcp:{}/{}", server.name, tool.name);
        let said = tool.description.as_deref().or(tool.title.as_deref()).unwrap_or("nothing");
        // Whoever reads it, a model above all, is to know whose words these are.
        let description = format!("Of the MCP server `{}`, which says of it: {said}", server.name);
        let version = pinned.digest.trim_start_matches("sha256:").chars().take(VERSION).collect();
        let changed = changed.contains(&tool.name);
        Some(Self { servers: servers.clone(), server: Arc::clone(server), changed, name, version, description, pinned })
    }
}

#[async_trait]
impl Tool for McpTool {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn description(&self) -> &str {
        &self.description
    }

    fn arguments(&self) -> Value {
        self.pinned.tool.input_schema.clone()
    }

    fn output(&self) -> Value {
        output::schema()
    }

    fn effect(&self, _: &Value) -> Effect {
        self.server.body.settings.effect(&self.pinned.tool)
    }

    fn rule(&self) -> Option<&ApprovalRule> {
        let rules = self.server.body.settings.approval.as_ref()?;
        rules.iter().find(|rule| rule.tools.iter().any(|pattern| fits(pattern, &self.name)))
    }

    fn out_of_use(&self) -> Option<String> {
        self.changed.then(|| self.is_changed())
    }

    fn timeout(&self) -> Duration {
        self.server.body.settings.timeout.map_or(Duration::from_secs(60), |span| span.0)
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        self.make(&call).await
    }
}
