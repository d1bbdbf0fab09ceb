use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Builder;

use super::{Call, Outcome, Tool, ToolError, read};
use crate::{
    journal::{ApprovalRule, Budget, BudgetBody, Effect, Plan, Step, StepKey, Wait},
    kernel::{RunId, TenantId},
};

/// Starts runs on behalf of other runs. A port: the engine above implements it.
#[async_trait]
pub trait ChildRuns: Send + Sync + 'static {
    /// Starts the child under exactly the id it asks for; where that run exists already, this call
    /// made it and nothing more happens.
    ///
    /// # Errors
    /// Those a tool has: no such workflow, input that does not fit, too many live runs.
    async fn start(&self, call: &Call, child: ChildRequest) -> Result<RunId, ToolError>;
}

/// A run to start.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildRequest {
    /// Its id: see [`child_run_id`].
    pub run_id: RunId,
    /// What it carries out.
    pub source: ChildSource,
    /// The input.
    pub input: Value,
    /// What it is for.
    pub goal: Option<String>,
    /// What it may take.
    pub budget: Option<Budget>,
}

/// What a child carries out.
#[derive(Clone, Debug, PartialEq)]
pub enum ChildSource {
    /// A workflow: `crm-sync`, or `crm-sync@3`.
    Workflow(String),
    /// The plan that a run of an agent begins with.
    Agent(Plan),
}

/// The tools that are agents are called this and the agent's name.
pub const AGENT: &str = "agent:";

/// What a step that waited for a child has as its output: of an agent what it came to, of a workflow also which run that
/// was.
#[must_use]
pub fn child_output(step: &Step, child: RunId, output: Option<Value>) -> Value {
    if step.uses.starts_with(AGENT) {
        return output.unwrap_or_default();
    }
    json!({ "runId": child, "status": "completed", "output": output })
}

/// The id of the child that an attempt of a step starts: a UUIDv7 as old as its parent, the same for
/// every repetition of the call.
#[must_use]
pub fn child_run_id(tenant: TenantId, run: RunId, step: &StepKey, attempt: u32) -> RunId {
    let digest = Sha256::new()
        .chain_update(b"fermata child run 1\0")
        .chain_update(tenant.uuid().as_bytes())
        .chain_update(run.uuid().as_bytes())
        .chain_update(step.to_string())
        .chain_update(b"\0")
        .chain_update(attempt.to_be_bytes())
        .finalize();
    // A UUIDv7 has 48 bits of time, which are the parent's, and 74 of chance, which are the digest's.
    let parent = run.uuid().as_u128();
    let random: [u8; 10] = std::array::from_fn(|i| digest.get(i).copied().unwrap_or_default());
    let millis = u64::try_from(parent >> 80).unwrap_or_default();
    RunId::from_uuid(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

/// `run.start`: a child run with a stream of its own.
pub(super) struct RunStart {
    runs: Arc<dyn ChildRuns>,
    /// A model's call is held: the steps of the workflow are not held for that a model started it.
    rule: ApprovalRule,
}

impl RunStart {
    pub(super) fn new(runs: Arc<dyn ChildRuns>) -> Self {
        Self { runs, rule: ApprovalRule { hold: Some(true), ..ApprovalRule::default() } }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    workflow: String,
    #[serde(default = "nothing")]
    input: Value,
    #[serde(default)]
    goal: Option<String>,
    #[serde(default)]
    budget: Option<BudgetBody>,
    #[serde(default = "yes")]
    wait: bool,
}

fn nothing() -> Value {
    Value::Object(Map::new())
}

fn yes() -> bool {
    true
}

#[async_trait]
impl Tool for RunStart {
    fn name(&self) -> &str {
        "run.start"
    }

    fn description(&self) -> &str {
        "Starts a run of another workflow and, unless told otherwise, waits for its output."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "required": ["workflow"],
            "additionalProperties": false,
            "properties": {
                "workflow": {
                    "type": "string",
                    "pattern": "^[a-z][a-z0-9._-]{0,62}(@[1-9][0-9]{0,8})?$",
                    "description": "`name`, or `name@3` for one version."
                },
                "input": { "description": "The child's input; `{}` when absent." },
                "goal": { "type": "string", "maxLength": 4000, "description": "What the child is for." },
                "budget": {
                    "description": "What the child may take: a number is the most it may cost; no bound when absent.",
                    "oneOf": [
                        { "type": "number", "minimum": 0 },
                        {
                            "type": "object",
                            "additionalProperties": false,
                            "properties": {
                                "cost": { "type": "number", "minimum": 0 },
                                "tokens": { "type": "integer", "minimum": 0 },
                                "toolCalls": { "type": "integer", "minimum": 0 },
                                "wallTime": { "type": "string", "description": "`10m`" }
                            }
                        }
                    ]
                },
                "wait": { "type": "boolean", "default": true, "description": "Whether the step lasts until the child ends." }
            }
        })
    }

    fn output(&self) -> Value {
        json!({ "description": "With `wait`, what the child came to; else `{runId}`." })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Repeatable
    }

    fn rule(&self) -> Option<&ApprovalRule> {
        Some(&self.rule)
    }

    fn touches(&self, arguments: &Value) -> Option<String> {
        Some(format!("the workflow {}", arguments["workflow"].as_str()?))
    }

    fn starts(&self, arguments: &Value) -> Option<Budget> {
        let asked = read::<Arguments>(arguments).ok().and_then(|arguments| arguments.budget);
        Some(asked.map(Budget::from).unwrap_or_default())
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let arguments: Arguments = call.read()?;
        if call.cancel.is_cancelled() {
            return Err(ToolError::cancelled());
        }
        let child = ChildRequest {
            run_id: child_run_id(call.tenant_id, call.run_id, &call.step, call.attempt),
            source: ChildSource::Workflow(arguments.workflow),
            input: arguments.input,
            goal: arguments.goal,
            budget: call.budget.or(arguments.budget.map(Budget::from)),
        };
        let child_run_id = self.runs.start(&call, child).await?;
        Ok(match arguments.wait {
            true => Outcome::Wait(Wait::Child { child_run_id }),
            false => Outcome::done(json!({ "runId": child_run_id })),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{kernel::Id, tool::tests::call};

    #[derive(Default)]
    struct Started(Mutex<Vec<ChildRequest>>);

    #[async_trait]
    impl ChildRuns for Started {
        async fn start(&self, _: &Call, child: ChildRequest) -> Result<RunId, ToolError> {
            let id = child.run_id;
            self.0.lock().unwrap().push(child);
            Ok(id)
        }
    }

    #[test]
    fn the_child_is_as_old_as_its_parent_and_belongs_to_one_step() {
        let now = chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let (tenant, run) = (Id::new(now), Id::new(now));
        let id = child_run_id(tenant, run, &StepKey::item("sync", 2), 1);
        assert_eq!(id, child_run_id(tenant, run, &StepKey::item("sync", 2), 1));
        assert_eq!(id.uuid().get_version_num(), 7);
        assert_eq!(id.uuid().get_variant(), uuid::Variant::RFC4122);
        assert_eq!(id.uuid().as_u128() >> 80, run.uuid().as_u128() >> 80);
        for other in [
            child_run_id(tenant, run, &StepKey::item("sync", 1), 1),
            child_run_id(tenant, run, &StepKey::whole("sync"), 1),
            child_run_id(tenant, Id::new(now), &StepKey::item("sync", 2), 1),
            child_run_id(Id::new(now), run, &StepKey::item("sync", 2), 1),
        ] {
            assert_ne!(id, other);
        }
    }

    #[tokio::test]
    async fn a_repeated_call_asks_for_the_same_child() {
        let runs = Arc::new(Started::default());
        let tool = RunStart::new(runs.clone());
        let call = call(json!({"workflow": "crm-sync@3", "input": {"a": 1}, "budget": 2.5}));
        let first = tool.call(call.clone()).await.unwrap();
        assert_eq!(tool.call(call.clone()).await.unwrap(), first);
        let started = runs.0.lock().unwrap();
        let child_run_id = started[0].run_id;
        assert_eq!(first, Outcome::Wait(Wait::Child { child_run_id }));
        assert_eq!(started[0].source, ChildSource::Workflow("crm-sync@3".to_owned()));
        assert_eq!(started[0].budget, Some(BudgetBody::Cost(2.5).into()));
        assert_eq!(started[0], started[1]);
    }

    #[tokio::test]
    async fn without_waiting_the_step_is_done_with_the_id() {
        let tool = RunStart::new(Arc::new(Started::default()));
        let call = call(json!({"workflow": "crm-sync", "wait": false}));
        let id = child_run_id(call.tenant_id, call.run_id, &call.step, call.attempt);
        assert_eq!(tool.call(call).await, Ok(Outcome::done(json!({ "runId": id }))));
    }
}
