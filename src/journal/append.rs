//! One append: what a run's next events change in the tables, encoded once.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{
    Body, Completed, Event, Frame, Loaded, OnDenied, Parent, Phase, RunState, Status, StepCompleted, StepKey,
    event::encode,
};
use crate::kernel::{ApprovalId, Error, Result, RunId, TenantId, Timestamp, WorkerId};

/// Outputs up to this many bytes travel in their event; larger ones stay in the table.
const INLINE_OUTPUT: usize = 192 * 1024;

/// What becomes of the claim on a run that is still alive after the append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The worker goes on.
    Keep,
    /// The worker lets go; the run is due again at that time, or when a command moves it.
    Release {
        /// Who lets go.
        worker: WorkerId,
        /// When it is due.
        due_at: Option<Timestamp>,
    },
    /// A command moved it: it is due at once.
    Due,
    /// A command moved it, and a worker of this process takes it in the same commit, unless somebody has it.
    Take(WorkerId),
}

/// What is written of one run in one commit.
#[derive(Debug)]
pub struct Append {
    /// Its tenant.
    pub tenant_id: TenantId,
    /// The run.
    pub run_id: RunId,
    /// The head's sequence number before the append; another one in the table means that somebody else wrote.
    pub expected: u64,
    /// The events, as they are stored and sent.
    pub frames: Vec<Frame>,
    /// The events as values, for projections.
    pub events: Vec<Event>,
    /// When.
    pub at: Timestamp,
    pub(super) opening: Option<OpeningRow>,
    pub(super) head: HeadRow,
    pub(super) steps: Vec<StepRow>,
    pub(super) claim: Claim,
    pub(super) parent: Option<RunId>,
}

/// What a run's row is from the beginning on.
#[derive(Debug)]
pub(super) struct OpeningRow {
    pub(super) goal: Option<String>,
    pub(super) workflow: Option<(String, i32)>,
    pub(super) input: String,
    pub(super) budget: Option<f64>,
    pub(super) on_denied: &'static str,
    pub(super) metadata: String,
    pub(super) created_by: String,
    pub(super) parent_step: Option<String>,
}

impl OpeningRow {
    /// Of a run that is opened.
    pub(super) fn of(Loaded { head, state }: &Loaded) -> Result<Self> {
        Ok(Self {
            goal: head.goal.clone(),
            workflow: head.workflow.clone(),
            input: json(&head.input)?,
            budget: head.budget,
            on_denied: match state.on_denied {
                OnDenied::Fail => "fail",
                OnDenied::Skip => "skip",
            },
            metadata: json(&head.metadata)?,
            created_by: head.created_by.to_string(),
            parent_step: head.parent.as_ref().map(|parent| parent.step_id.to_string()),
        })
    }
}

/// The head of a run after the append.
#[derive(Debug)]
pub(super) struct HeadRow {
    pub(super) status: Status,
    pub(super) last_seq: u64,
    pub(super) pending: Vec<ApprovalId>,
    pub(super) cost: f64,
    pub(super) plan: Option<String>,
    pub(super) output: Option<String>,
    pub(super) error: Option<String>,
}

/// A step's row after the append; what is `None` stays as it was, but for `error` and `finished_at`.
#[derive(Debug, Default)]
pub(super) struct StepRow {
    pub(super) step_id: String,
    pub(super) status: &'static str,
    pub(super) attempt: u32,
    pub(super) tool: String,
    pub(super) arguments: Option<String>,
    pub(super) output: Option<String>,
    pub(super) error: Option<String>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
}

impl Append {
    /// `state` is the run after `events`, which were decided and applied at `at`.
    ///
    /// # Errors
    /// When an event cannot be encoded, which is a fault of ours.
    pub fn new(
        state: &RunState,
        events: Vec<Event>,
        parent: Option<&Parent>,
        claim: Claim,
        at: Timestamp,
    ) -> Result<Self> {
        let expected = state.seq - u64::try_from(events.len()).unwrap_or_default();
        let mut head = HeadRow {
            status: state.status(),
            last_seq: state.seq,
            pending: state.open_holds().map(|(id, _)| id).collect(),
            cost: state.cost,
            plan: None,
            output: None,
            error: match &state.phase {
                Phase::Failed(failure) => Some(json(failure)?),
                _ => None,
            },
        };
        let mut steps = BTreeMap::new();
        let mut frames = Vec::with_capacity(events.len());
        for (seq, event) in (expected + 1..).zip(&events) {
            let slim = record(state, event, at, &mut head, &mut steps)?;
            let data = encode(state.tenant_id, state.run_id, seq, at, slim.as_ref().unwrap_or(event))?;
            frames.push(Frame { seq, name: event.body.name(), data });
        }
        let parent = parent.map(|parent| parent.run_id);
        let (tenant_id, run_id, steps) = (state.tenant_id, state.run_id, steps.into_values().collect());
        Ok(Self { tenant_id, run_id, expected, frames, events, at, opening: None, head, steps, claim, parent })
    }

    /// What it weighs: its events and the outputs of its steps.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let outputs = self.steps.iter().filter_map(|step| step.output.as_ref());
        self.frames.iter().map(|frame| frame.data.len()).sum::<usize>() + outputs.map(String::len).sum::<usize>()
    }
}

/// Notes what `event` changes; returns the event without its output where that is too large to travel.
fn record<'a>(
    state: &RunState,
    event: &'a Event,
    at: Timestamp,
    head: &mut HeadRow,
    steps: &mut BTreeMap<&'a StepKey, StepRow>,
) -> Result<Option<Event>> {
    match &event.body {
        Body::PlanReady(ready) => head.plan = Some(json(&ready.plan)?),
        Body::Completed(Completed { output: Some(output), .. }) => {
            let (text, slim) = weigh(output)?;
            head.output = Some(text);
            return Ok(slim.map(|bytes| Event::run(Completed { output: None, output_bytes: Some(bytes) })));
        }
        _ => {}
    }
    let (Some(key), Some(attempt)) = (&event.step, event.attempt) else { return Ok(None) };
    if matches!(event.body, Body::ToolProgress(_)) {
        return Ok(None);
    }
    let row = steps.entry(key).or_insert_with(|| StepRow {
        step_id: key.to_string(),
        tool: state.step(key).map(|step| step.uses.clone()).unwrap_or_default(),
        ..StepRow::default()
    });
    row.attempt = attempt;
    row.status = state.stage(key).map_or("pending", |stage| stage.name());
    let ended = state.stage(key).is_some_and(super::Stage::is_ended);
    row.finished_at = ended.then_some(at);
    row.error = None;
    match &event.body {
        Body::StepStarted(started) => {
            row.started_at = Some(at);
            row.arguments = Some(json(&started.arguments)?);
        }
        Body::StepExpanded(_) => row.started_at = Some(at),
        Body::AwaitingApproval(asked) => row.arguments = Some(json(&asked.arguments)?),
        Body::StepRetrying(retrying) => row.error = Some(json(&retrying.error)?),
        Body::StepFailed(failed) => row.error = Some(json(&failed.error)?),
        Body::StepCompleted(completed) => {
            if let Some(output) = &completed.output {
                let (text, slim) = weigh(output)?;
                row.output = Some(text);
                return Ok(slim.map(|bytes| {
                    let body = StepCompleted { output: None, output_bytes: Some(bytes), ..completed.clone() };
                    Event::step(key, attempt, body)
                }));
            }
        }
        _ => {}
    }
    Ok(None)
}

/// The output as text, and its size where it is too large for its event.
fn weigh(output: &Value) -> Result<(String, Option<u64>)> {
    let text = json(output)?;
    let bytes = (text.len() > INLINE_OUTPUT).then(|| u64::try_from(text.len()).unwrap_or(u64::MAX));
    Ok((text, bytes))
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(Error::internal)
}
