//! One append: what a run's next events change in the tables, encoded once.

use serde::Serialize;

use super::{
    Body, Completed, Event, Frame, Loaded, OnDenied, Parent, Phase, RunState, Spending, Status, StepCompleted,
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
    /// What they mean for the books.
    pub spending: Vec<Spending>,
    /// When.
    pub at: Timestamp,
    pub(super) status: Status,
    pub(super) opening: Option<OpeningRow>,
    /// None where the head shows what is so already.
    pub(super) head: Option<HeadRow>,
    pub(super) outputs: Vec<OutputRow>,
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

/// What a run's head shows of it while it goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    pub(super) status: Status,
    pub(super) pending: Vec<ApprovalId>,
    pub(super) cost: f64,
}

impl Shown {
    /// Of a run as it stands.
    #[must_use]
    pub fn of(state: &RunState) -> Self {
        Self { status: state.status(), pending: state.open_holds().map(|(id, _)| id).collect(), cost: state.cost }
    }
}

/// The head of a run after the append.
#[derive(Debug)]
pub(super) struct HeadRow {
    pub(super) shown: Shown,
    pub(super) last_seq: u64,
    pub(super) plan: Option<String>,
    pub(super) output: Option<String>,
    pub(super) error: Option<String>,
}

/// An output that is too large for its event.
#[derive(Debug)]
pub(super) struct OutputRow {
    pub(super) step_id: String,
    pub(super) attempt: u32,
    pub(super) tool: String,
    pub(super) output: String,
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
        let shown = Shown::of(state);
        let status = shown.status;
        let mut head = HeadRow {
            shown,
            last_seq: state.seq,
            plan: None,
            output: None,
            error: match &state.phase {
                Phase::Failed(failure) => Some(json(failure)?),
                _ => None,
            },
        };
        let mut outputs = Vec::new();
        let mut frames = Vec::with_capacity(events.len());
        for (seq, event) in (expected + 1..).zip(&events) {
            note(event, &mut head)?;
            let encoded = |event: &Event| encode(state.tenant_id, state.run_id, seq, at, event);
            let whole = encoded(event)?;
            let data = match slim(state, event, whole.len(), &mut outputs)? {
                Some(slim) => encoded(&slim)?,
                None => whole,
            };
            frames.push(Frame { seq, name: event.body.name(), data });
        }
        if events.iter().any(|event| matches!(event.body, Body::PlanExtended(_))) {
            head.plan = state.plan.as_ref().map(json).transpose()?;
        }
        let parent = parent.map(|parent| parent.run_id);
        let (tenant_id, run_id) = (state.tenant_id, state.run_id);
        let (opening, head, spending) = (None, Some(head), Spending::of(state, &events));
        Ok(Self {
            tenant_id,
            run_id,
            expected,
            frames,
            events,
            spending,
            at,
            status,
            opening,
            head,
            outputs,
            claim,
            parent,
        })
    }

    /// Leaves the head where it is if there are events and it shows nothing but what was `shown` before them.
    #[must_use]
    pub fn after(mut self, shown: &Shown) -> Self {
        let is_same = |head: &HeadRow| head.shown == *shown && head.plan.is_none() && head.output.is_none();
        if !self.events.is_empty() && self.head.as_ref().is_some_and(is_same) {
            self.head = None;
        }
        self
    }

    /// What it weighs: its events and the outputs that are too large for them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let frames = self.frames.iter().map(|frame| frame.data.len());
        frames.chain(self.outputs.iter().map(|row| row.output.len())).sum()
    }
}

/// Notes what `event` changes in the head.
fn note(event: &Event, head: &mut HeadRow) -> Result<()> {
    match &event.body {
        Body::PlanReady(ready) => head.plan = Some(json(&ready.plan)?),
        Body::Completed(Completed { output: Some(output), .. }) => head.output = Some(json(output)?),
        _ => {}
    }
    Ok(())
}

/// The event without its output where that is too large to travel; `whole` is what the event weighs with it.
fn slim(state: &RunState, event: &Event, whole: usize, outputs: &mut Vec<OutputRow>) -> Result<Option<Event>> {
    if whole <= INLINE_OUTPUT {
        return Ok(None);
    }
    let (Body::StepCompleted(StepCompleted { output: Some(output), .. })
    | Body::Completed(Completed { output: Some(output), .. })) = &event.body
    else {
        return Ok(None);
    };
    let text = json(output)?;
    if text.len() <= INLINE_OUTPUT {
        return Ok(None);
    }
    let output_bytes = Some(u64::try_from(text.len()).unwrap_or(u64::MAX));
    match (&event.body, &event.step, event.attempt) {
        (Body::StepCompleted(completed), Some(key), Some(attempt)) => {
            let tool = state.step(key).map(|step| step.uses.clone()).unwrap_or_default();
            outputs.push(OutputRow { step_id: key.to_string(), attempt, tool, output: text });
            let body = StepCompleted { output: None, output_bytes, ..completed.clone() };
            Ok(Some(Event::step(key, attempt, body)))
        }
        // The head has it.
        _ => Ok(Some(Event::run(Completed { output: None, output_bytes }))),
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(Error::internal)
}
