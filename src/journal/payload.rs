//! What each event says. Field for field this is the wire: the doc comments become the OpenAPI document.

use std::{num::NonZeroU32, sync::Arc};

use chrono::NaiveDate;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Form,
    budget::{Budget, Cap},
    fork::{Denial, ForkedFrom},
    plan::{Step, StepKey},
    purse::Taken,
};
use crate::kernel::{Actor, ApprovalId, RunId, Timestamp, wire_time};

/// Payload of `idle`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Idle {
    /// What was asked for, where a goal was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// `name@version` of the definition, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// Who started it.
    pub created_by: Actor,
    /// The run and step that started it, for a child run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The run whose past it has, for a fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<ForkedFrom>,
    /// What it may take, where that is bounded.
    #[serde(default, skip_serializing_if = "Budget::is_empty")]
    #[schema(value_type = Option<Budget>)]
    pub budget: Budget,
}

/// The step that started a child run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// The parent run.
    pub run_id: RunId,
    /// Its step.
    #[schema(value_type = String)]
    pub step_id: StepKey,
}

/// Payload of `plan.extended`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanExtended {
    /// The steps that come to those there are.
    #[schema(value_type = Vec<Step>)]
    pub steps: Vec<Arc<Step>>,
}

/// Payload of `executing`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Executing {
    /// Who let it go.
    pub by: Actor,
    /// The steps that run again, after a retry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub retried: Vec<StepKey>,
}

/// Payload of `step.expanded`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepExpanded {
    /// How many items there are; item i is the step `id[i]`.
    pub items: u32,
}

/// What repeating a tool's call does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing: it only reads or computes.
    Pure,
    /// The same as doing it once, given the same idempotency key.
    Repeatable,
    /// Something again: it is never repeated without a person's word.
    Once,
}

/// Payload of `step.started`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStarted {
    /// The tool.
    pub tool: String,
    /// Its version.
    pub tool_version: String,
    /// What a repetition would do.
    pub effect: Effect,
    /// The exact arguments of the call.
    #[schema(value_type = Object)]
    pub arguments: Arc<Value>,
    /// The same attempt is made again, with the same idempotency key, because its outcome is unknown or because it now has
    /// what it asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
    /// What it is expected to take is reserved in the budget of its tenant's day.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reserved: bool,
    /// What of the run's budget the run that it starts may take meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// What a waiting step waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Wait {
    /// An instant.
    Until {
        /// When the step is done.
        #[serde(with = "wire_time")]
        #[schema(value_type = String, format = DateTime)]
        until: Timestamp,
    },
    /// The end of a child run.
    Child {
        /// The child.
        #[serde(rename = "childRunId")]
        child_run_id: RunId,
    },
}

/// Payload of `step.waiting`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepWaiting {
    /// What for: `until` or `childRunId`.
    #[serde(flatten)]
    pub wait: Wait,
}

/// Payload of `tool.progress`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolProgress {
    /// A line for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// From 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Anything the tool wants to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub data: Option<Value>,
}

/// Payload of `step.completed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepCompleted {
    /// The output; absent when it is too large for an event, then `GET …/steps` has it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub output: Option<Arc<Value>>,
    /// The output's size, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// From the call to its outcome.
    pub duration_ms: u64,
    /// What it cost, in the tenant's unit: the tool's word, else what the step's approval expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// What the child run took that it waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<Taken>,
    /// It is taken over from the run that this one was forked from: nothing was called, and it cost nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub carried: bool,
}

/// Why a step or run failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// A stable word: `timeout`, `http_status`, `denied` …
    pub code: String,
    /// A sentence for a person.
    pub message: String,
    /// Whether the tool says that trying again may help.
    #[serde(default)]
    pub retryable: bool,
    /// How long the other side asks to be left alone, in seconds, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub retry_after_seconds: Option<NonZeroU32>,
    /// The step, in a run's failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub step_id: Option<StepKey>,
    /// More for a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub detail: Option<Box<Value>>,
}

impl Failure {
    /// The code of a failure that says nothing about what the call did.
    pub const OUTCOME_UNKNOWN: &str = "outcome_unknown";

    /// A failure that trying again does not mend.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self { code, message, retryable: false, retry_after_seconds: None, step_id: None, detail: None }
    }
}

/// Payload of `step.retrying`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepRetrying {
    /// Why this attempt failed.
    pub error: Failure,
    /// When the next one begins.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub retry_at: Timestamp,
}

/// Payload of `step.failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepFailed {
    /// Why.
    pub error: Failure,
    /// The run goes on all the same (`onError: continue`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continued: bool,
    /// What the child run took that it waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<Taken>,
    /// It is taken over from the run that this one was forked from.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub carried: bool,
}

/// Why a step does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// Its `if` is false.
    Condition,
    /// A step it needs was skipped.
    Upstream,
    /// It was denied and `onDenied` is `skip`.
    Denied,
    /// Its outcome is unknown and a person took it as done.
    TakenAsDone,
}

/// Payload of `step.skipped`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepSkipped {
    /// Why.
    pub reason: SkipReason,
    /// How it was denied, where that is taken over too; else the event before says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denial: Option<Denial>,
    /// It is taken over from the run that this one was forked from.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub carried: bool,
}

impl StepSkipped {
    /// In this very run.
    #[must_use]
    pub const fn new(reason: SkipReason) -> Self {
        Self { reason, denial: None, carried: false }
    }
}

/// What an approver is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Question {
    /// May it act?
    Consent,
    /// It may have acted already: act again (`approved`), or take it as done (`denied`)?
    Repeat,
    /// It would take the run, or its tenant's day, past the budget: raise that?
    Budget,
    /// It cannot go on without what its form asks for: will somebody fill that in?
    Input,
}

/// Payload of `awaiting_approval`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AwaitingApproval {
    /// What to decide on.
    pub approval_id: ApprovalId,
    /// What is asked.
    pub question: Question,
    /// The tool.
    pub action: String,
    /// Its version.
    pub tool_version: String,
    /// The exact arguments.
    #[schema(value_type = Object)]
    pub arguments: Arc<Value>,
    /// `sha256:` over tool, version, canonical arguments, run, step, attempt and tenant.
    pub digest: String,
    /// Why consent is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it is expected to cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_estimate: Option<f64>,
    /// By how much a budget is raised, where that is asked; seconds, of time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raise: Option<f64>,
    /// Which of its caps, `cost` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raises: Option<Cap>,
    /// The day (UTC) of the tenant whose budget it is; the run's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Date)]
    pub day: Option<NaiveDate>,
    /// What is to be filled in, where that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    /// What it would touch.
    pub scope: Vec<String>,
    /// Rights it would use.
    pub requires: Vec<String>,
    /// Who may decide, by subject, role or group; anybody with the permission when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<String>,
    /// Whether the run's creator may decide.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub self_approval: bool,
    /// When it counts as denied.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "wire_time::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// Payload of `approved`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approved {
    /// Which hold.
    pub approval_id: ApprovalId,
    /// Who decided.
    pub by: Actor,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The call consent was given for.
    pub digest: String,
    /// The arguments the approver set in place of the held ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub arguments: Option<Arc<Value>>,
    /// What was filled into the form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub input: Option<Arc<Value>>,
}

/// Payload of `denied`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// Which hold.
    pub approval_id: ApprovalId,
    /// Who decided.
    pub by: Actor,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Payload of `approval.expired`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalExpired {
    /// Which hold.
    pub approval_id: ApprovalId,
}

/// Payload of `approval.cancelled`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalCancelled {
    /// Which hold.
    pub approval_id: ApprovalId,
}

/// Payload of `run.cancelling`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunCancelling {
    /// Who.
    pub by: Actor,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Payload of `completed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Completed {
    /// The output; absent when there is none or it is too large for an event, then the run has it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub output: Option<Arc<Value>>,
    /// The output's size, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
}

/// Payload of `failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Failed {
    /// Why.
    pub error: Failure,
}

/// Payload of `cancelled`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cancelled {
    /// Who.
    pub by: Actor,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Reads a field so that what is there is there, `null` too.
///
/// # Errors
/// Those of the value.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
