use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::DecisionStatus;
use crate::{
    journal::{Form, Question},
    kernel::{Actor, ApprovalId, RunId, Timestamp, wire_time},
};

/// How a question stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ApprovalStatus {
    /// Nobody has decided.
    Pending,
    /// It may act.
    Approved,
    /// It may not.
    Denied,
    /// Nobody decided in time; it counts as denied.
    Expired,
    /// The run ended first.
    Cancelled,
}

impl ApprovalStatus {
    /// Its name on the wire and in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A hold: the exact call that waits, and its outcome.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// Its id.
    pub approval_id: ApprovalId,
    /// The run that waits.
    pub run_id: RunId,
    /// Its step.
    #[schema(example = "sync")]
    pub step_id: String,
    /// That step's attempt.
    pub attempt: u32,
    /// What is asked.
    pub question: Question,
    /// How it stands.
    pub status: ApprovalStatus,
    /// The tool that would act.
    #[schema(example = "http.request")]
    pub action: String,
    /// Its version.
    pub tool_version: String,
    /// The exact arguments it would act with.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// Names exactly this call; send it back with the decision.
    #[schema(example = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub digest: String,
    /// What is to be filled in, where that is asked: `arguments` of the decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    /// What it is expected to cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_estimate: Option<f64>,
    /// Why consent is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it would touch.
    pub scope: Vec<String>,
    /// Rights it would use.
    pub requires: Vec<String>,
    /// Who may decide, by subject, role or group; anybody with the permission when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<String>,
    /// Whether whoever started the run may decide.
    pub self_approval: bool,
    /// Who started the run.
    pub asked_by: Actor,
    /// Since when it waits.
    #[serde(with = "wire_time")]
    #[schema(value_type = String, format = DateTime)]
    pub asked_at: Timestamp,
    /// When it counts as denied.
    #[serde(with = "wire_time::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Whose decision counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<Actor>,
    /// When it was settled.
    #[serde(with = "wire_time::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub decided_at: Option<Timestamp>,
    /// What was said, first to last.
    pub decisions: Vec<DecisionRecord>,
}

impl Approval {
    /// The same once somebody has decided, as the first.
    pub(super) fn decided(self, said: DecisionRecord) -> Self {
        Self {
            status: match said.status {
                DecisionStatus::Approved => ApprovalStatus::Approved,
                DecisionStatus::Denied => ApprovalStatus::Denied,
            },
            decided_by: Some(said.decided_by.clone()),
            decided_at: Some(said.decided_at),
            decisions: vec![said],
            ..self
        }
    }
}

/// What one person said.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecisionRecord {
    /// Who, from their verified token.
    pub decided_by: Actor,
    /// What.
    pub status: DecisionStatus,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The call it is about: another one than the held where the approver set the arguments.
    pub digest: String,
    /// The time the caller claimed.
    #[serde(with = "wire_time::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub claimed_at: Option<Timestamp>,
    /// The time on record.
    #[serde(with = "wire_time")]
    #[schema(value_type = String, format = DateTime)]
    pub decided_at: Timestamp,
}
