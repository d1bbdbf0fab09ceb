use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::Value;

use super::{McpEntry, McpServer, Servers, output, pin::Pinned};
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
    rule: Option<ApprovalRule>,
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
        changed: &[Pinned],
    ) -> Option<Self> {
        let pinned = server.body.tools.get(place)?.clone();
        let tool = &pinned.tool;
        let name = format!("mcp:{}/{}", server.name, tool.name);
        let said = tool.description.as_deref().or(tool.title.as_deref()).unwrap_or("nothing");
        // Whoever reads it, a model above all, is to know whose words these are.
        let description = format!("Of the MCP server `{}`, which says of it: {said}", server.name);
        let version = pinned.digest.trim_start_matches("sha256:").chars().take(VERSION).collect();
        // What is noted of a tool that is pinned as just that says nothing any more.
        let changed = changed.iter().any(|seen| seen.tool.name == tool.name && seen.digest != pinned.digest);
        let (rule, servers) = (rule(&name, &server.body.settings, &pinned), servers.clone());
        Some(Self { servers, server: Arc::clone(server), changed, rule, name, version, description, pinned })
    }
}

/// What the server's entry says of consent to calls of the tool: the first rule that is about it, which holds them unless
/// it says otherwise. What a call costs nobody tells, so a rule for costs counts where that is the safe side.
fn rule(name: &str, settings: &McpServer, pinned: &Pinned) -> Option<ApprovalRule> {
    let effect = settings.effect(&pinned.tool);
    let fitting = settings.approval.iter().flatten().find(|rule| {
        let holds = rule.hold != Some(false);
        rule.tools.iter().any(|pattern| fits(pattern, name))
            && rule.cost.is_none_or(|_| holds && effect == Effect::Once)
    })?;
    Some(ApprovalRule { hold: Some(fitting.hold.unwrap_or(true)), ..fitting.clone() })
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
        self.rule.as_ref()
    }

    fn out_of_use(&self) -> Option<String> {
        self.changed.then(|| self.is_changed())
    }

    fn touches(&self, _: &Value) -> Option<String> {
        Some(format!("{} of the MCP server {}", self.pinned.tool.name, self.server.name))
    }

    fn timeout(&self) -> Duration {
        self.server.body.settings.timeout.map_or(Duration::from_secs(60), |span| span.0)
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        self.make(&call).await
    }
}
