use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    journal::{Loaded, Parent, Phase, Status, event_id},
    kernel::{Actor, ApprovalId, Error, Result, RunId, TenantId, Timestamp, wire_time},
};

/// Where a run's metadata says whose past it has. Callers cannot set it.
pub(super) const FORKED_FROM: &str = "fermata.forkedFrom";

/// A run, whole.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// What a list shows of it.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// The steps, once they stand.
    #[schema(value_type = Option<crate::journal::Plan>)]
    pub plan: Option<Value>,
    /// Its input.
    pub input: Value,
    /// Its output, once it completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub output: Option<Value>,
    /// The run whose past it has, for a fork.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<crate::journal::ForkedFrom>)]
    pub forked_from: Option<Value>,
    /// The caller's own notes.
    #[schema(value_type = Object)]
    pub metadata: Value,
}

impl Run {
    /// A run that a command has just moved, at `now`, as its row will have it; none completes that way.
    pub(super) fn of(Loaded { head, state }: &Loaded, now: Timestamp) -> Result<Self> {
        let value = |json: Result<Value, serde_json::Error>| json.map_err(Error::internal);
        let error = match &state.phase {
            Phase::Failed(failure) => Some(value(serde_json::to_value(failure))?),
            _ => None,
        };
        let summary = RunSummary {
            run_id: state.run_id,
            tenant_id: state.tenant_id,
            status: state.status(),
            goal: head.goal.clone(),
            workflow: head.workflow_name(),
            error,
            pending_approvals: state.open_holds().map(|(id, _)| id).collect(),
            cost: state.cost,
            budget: head.budget,
            parent: head.parent.clone(),
            created_by: head.created_by.clone(),
            created_at: head.created_at,
            updated_at: now,
            finished_at: state.status().is_terminal().then_some(now),
            last_event_id: event_id(state.seq),
            links: Links::of(state.run_id),
        };
        Ok(Self {
            summary,
            plan: state.plan.as_ref().map(|plan| value(serde_json::to_value(plan))).transpose()?,
            input: Value::clone(&head.input),
            output: None,
            forked_from: forked_from(&head.metadata),
            metadata: Value::clone(&head.metadata),
        })
    }
}

/// Whose past a run has, by its metadata.
pub(super) fn forked_from(metadata: &Value) -> Option<Value> {
    metadata.get(FORKED_FROM).cloned()
}

/// A run, as lists show it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// Its id.
    pub run_id: RunId,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// Where it stands.
    pub status: Status,
    /// What was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// `name@version` of its definition.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "crm-sync@3")]
    pub workflow: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<crate::journal::Failure>)]
    pub error: Option<Value>,
    /// The questions that stand.
    pub pending_approvals: Vec<ApprovalId>,
    /// What it has cost so far, in the tenant's unit.
    pub cost: f64,
    /// The most it may cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<f64>,
    /// The run and step that started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Who started it.
    pub created_by: Actor,
    /// When.
    #[serde(with = "wire_time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When its last event came.
    #[serde(with = "wire_time")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// When it ended.
    #[serde(with = "wire_time::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// The id of its last event.
    #[schema(example = "evt_7")]
    pub last_event_id: String,
    /// Where more is.
    pub links: Links,
}

/// Where more about a run is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Links {
    /// The run.
    #[serde(rename = "self")]
    pub this: String,
    /// Its stream.
    pub events: String,
    /// Its steps.
    pub steps: String,
}

impl Links {
    /// Of that run.
    #[must_use]
    pub fn of(run: RunId) -> Self {
        let this = format!("/workflow/runs/{run}");
        Self { events: format!("{this}/events"), steps: format!("{this}/steps"), this }
    }
}

/// The id of an event, as a run names it; `evt_0` before the first.
pub(super) fn last_event_id(seq: i64) -> String {
    event_id(u64::try_from(seq).unwrap_or_default())
}
