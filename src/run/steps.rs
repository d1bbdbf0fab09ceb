//! The steps of a run as callers see them: folded from its events, like everything else about it.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    journal::{Body, Event, Failure, RunState, Stage, Step, StepKey, StepState},
    kernel::{Timestamp, wire_time},
};

/// A step of a run, begun or not.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepView {
    /// Its id; `sync[2]` for an item of a `forEach`.
    #[schema(example = "sync")]
    pub step_id: String,
    /// What a person reads in a timeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The tool.
    pub uses: String,
    /// `pending`, `running`, `waiting`, `retrying`, `awaiting_approval`, `completed`, `failed` or `skipped`.
    pub status: &'static str,
    /// The attempt it is at; 0 before the first.
    pub attempt: u32,
    /// How it came out is taken over from the run that this one was forked from.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub carried: bool,
    /// The exact arguments of the last call.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub arguments: Option<Arc<Value>>,
    /// Its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub output: Option<Arc<Value>>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// When its first call was made.
    #[serde(with = "wire_time::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(with = "wire_time::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
}

/// What the events say of the steps beyond where these stand in the end.
#[derive(Debug, Default)]
pub(super) struct Recount(BTreeMap<StepKey, Said>);

#[derive(Clone, Debug, Default)]
struct Said {
    arguments: Option<Arc<Value>>,
    error: Option<Failure>,
    started_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
    carried: bool,
}

impl Recount {
    /// Takes in the next event.
    pub(super) fn hear(&mut self, at: Timestamp, event: &Event) {
        let Some(key) = &event.step else { return };
        let said = self.0.entry(key.clone()).or_default();
        said.last_at = Some(at);
        said.error = None;
        match &event.body {
            Body::StepStarted(started) => {
                said.started_at.get_or_insert(at);
                said.arguments = Some(Arc::clone(&started.arguments));
            }
            Body::StepExpanded(_) => {
                said.started_at.get_or_insert(at);
            }
            Body::AwaitingApproval(asked) => said.arguments = Some(Arc::clone(&asked.arguments)),
            Body::StepRetrying(retrying) => said.error = Some(retrying.error.clone()),
            Body::StepFailed(failed) => {
                said.error = Some(failed.error.clone());
                said.carried = failed.carried;
            }
            Body::StepCompleted(completed) => said.carried = completed.carried,
            Body::StepSkipped(skipped) => said.carried = skipped.carried,
            _ => {}
        }
    }

    /// The steps in the plan's order, each followed by its items. Those not begun are `pending`, and once the run is
    /// over all that have not ended: they wait for nothing but a retry of the run.
    pub(super) fn steps(&self, state: &RunState) -> Vec<StepView> {
        let mut steps = Vec::with_capacity(state.steps.len());
        for step in state.plan.iter().flat_map(|plan| &plan.steps) {
            let whole = StepKey::whole(&step.id);
            steps.push(self.view(state, step, &whole, state.steps.get(&whole), step.name.clone()));
            steps.extend(state.items(&step.id).map(|(key, item)| self.view(state, step, key, Some(item), None)));
        }
        steps
    }

    fn view(
        &self,
        state: &RunState,
        step: &Step,
        key: &StepKey,
        begun: Option<&StepState>,
        name: Option<String>,
    ) -> StepView {
        let Said { arguments, error, started_at, last_at, carried } = self.0.get(key).cloned().unwrap_or_default();
        let stage = begun.map(|step| &step.stage);
        let ended = stage.is_some_and(Stage::is_ended);
        let stands = stage.filter(|_| ended || !state.status().is_terminal());
        StepView {
            step_id: key.to_string(),
            name,
            uses: step.uses.clone(),
            status: stands.map_or("pending", Stage::name),
            attempt: begun.map_or(0, |step| step.attempt),
            carried,
            arguments,
            output: match stage {
                Some(Stage::Completed { output }) => output.clone(),
                _ => None,
            },
            error,
            started_at,
            finished_at: last_at.filter(|_| ended),
        }
    }
}
