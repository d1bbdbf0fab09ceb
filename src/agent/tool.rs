use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{AgentDefinition, Agents};
use crate::{
    journal::{Budget, Effect, Wait},
    kernel::{Reference, Result, TenantId},
    llm::Document,
    tool::{AGENT, Call, ChildRequest, ChildRuns, ChildSource, Outcome, Source, Tool, ToolError, child_run_id},
};

/// A tenant's agents as tools: `agent:support` starts a child run of the agent and waits for what it comes to.
pub struct AgentTools {
    agents: Agents,
    runs: Arc<dyn ChildRuns>,
}

impl AgentTools {
    /// Those agents, started through `runs`.
    #[must_use]
    pub fn new(agents: Agents, runs: Arc<dyn ChildRuns>) -> Self {
        Self { agents, runs }
    }
}

#[async_trait]
impl Source for AgentTools {
    async fn tools(&self, tenant: TenantId) -> Result<Vec<Arc<dyn Tool>>> {
        let tool = |agent| Arc::new(AgentTool::new(self.agents.clone(), self.runs.clone(), agent)) as Arc<dyn Tool>;
        Ok(self.agents.all(tenant).await?.into_iter().map(tool).collect())
    }
}

impl std::fmt::Debug for AgentTools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentTools").finish_non_exhaustive()
    }
}

/// What an agent is called among the tools.
pub(super) fn name(agent: &str) -> String {
    format!("{AGENT}{agent}")
}

/// One agent as a tool.
struct AgentTool {
    agents: Agents,
    runs: Arc<dyn ChildRuns>,
    name: String,
    /// The very version: it is what consent to a call is for.
    agent: Reference,
    version: String,
    description: String,
    output: Option<Value>,
    budget: Budget,
}

impl AgentTool {
    fn new(agents: Agents, runs: Arc<dyn ChildRuns>, agent: Document<AgentDefinition>) -> Self {
        let Document { name: agent, version, body, .. } = agent;
        let does = body.description.unwrap_or_else(|| format!("Asks the agent `{agent}`."));
        let description = format!("{}. It works on its own and gives what it came to.", does.trim_end_matches('.'));
        let (name, agent) = (name(&agent), Reference { name: agent, version: Some(version) });
        let budget = body.budget.map(Budget::from).unwrap_or_default();
        Self { agents, runs, name, agent, version: version.to_string(), description, output: body.output, budget }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    goal: String,
    #[serde(default = "nothing")]
    input: Value,
}

fn nothing() -> Value {
    Value::Object(Map::new())
}

#[async_trait]
impl Tool for AgentTool {
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
        json!({
            "type": "object",
            "required": ["goal"],
            "additionalProperties": false,
            "properties": {
                "goal": { "type": "string", "minLength": 1, "maxLength": 4000, "description": "What is wanted of it, in words; it knows nothing else." },
                "input": { "description": "What it is to work on; `{}` when absent." }
            }
        })
    }

    fn output(&self) -> Value {
        self.output.clone().unwrap_or_else(|| json!({ "type": "string" }))
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Repeatable
    }

    fn touches(&self, _: &Value) -> Option<String> {
        Some(format!("the agent {}", self.agent))
    }

    fn starts(&self, _: &Value) -> Option<Budget> {
        Some(self.budget)
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let Arguments { goal, input } = call.read()?;
        if call.cancel.is_cancelled() {
            return Err(ToolError::cancelled());
        }
        let plan = call.patiently(|| self.agents.plan(call.tenant_id, &self.agent, &goal, &input)).await;
        let plan = plan.map_err(|error| ToolError::idempotent(&error))?;
        let child = ChildRequest {
            run_id: child_run_id(call.tenant_id, call.run_id, &call.step, call.attempt),
            source: ChildSource::Agent(plan),
            input,
            goal: Some(goal),
            budget: call.budget,
        };
        let child_run_id = self.runs.start(&call, child).await?;
        Ok(Outcome::Wait(Wait::Child { child_run_id }))
    }
}
