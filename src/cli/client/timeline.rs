//! What a run's events come to for a person who watches. Pure: a fold, no time, no terminal.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::TimeDelta;
use serde_json::Value;

use crate::{
    journal::{
        self, AwaitingApproval, Body, Envelope, Event, Failure, MessageDelta, Parent, SkipReason, Step, StepKey,
        ToolProgress, Wait,
    },
    kernel::{ApprovalId, RunId, Timestamp},
};

/// An event as it came.
#[derive(Debug)]
pub(super) struct Record {
    /// Its place in the run.
    pub(super) seq: u64,
    pub(super) run_id: RunId,
    pub(super) at: Timestamp,
    /// Its name, which a newer server may have invented.
    pub(super) name: String,
    pub(super) step: Option<StepKey>,
    pub(super) attempt: Option<u32>,
    /// Absent where this version does not know the event.
    pub(super) body: Option<Body>,
    /// Its JSON, as it was sent.
    pub(super) raw: String,
}

impl Record {
    /// Reads an event's JSON.
    ///
    /// # Errors
    /// When it is no event at all; an unknown one is fine.
    pub(super) fn parse(raw: String) -> Result<Self, String> {
        let envelope: Envelope = serde_json::from_str(&raw).map_err(|e| format!("no event: {e}"))?;
        let seq = sequence(&envelope.event_id).ok_or_else(|| format!("no event id: {}", envelope.event_id))?;
        let body = journal::decode(&raw).ok().map(|(_, _, Event { body, .. })| body);
        let Envelope { run_id, ts, step: name, step_id, attempt, .. } = envelope;
        Ok(Self { seq, run_id, at: ts, name, step: step_id, attempt, body, raw })
    }
}

/// 7 for `evt_7`.
pub(super) fn sequence(event_id: &str) -> Option<u64> {
    event_id.strip_prefix("evt_")?.parse().ok()
}

/// A run, as far as its events have told.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    pub(super) run_id: Option<RunId>,
    pub(super) workflow: Option<String>,
    pub(super) goal: Option<String>,
    pub(super) parent: Option<Parent>,
    pub(super) created_at: Option<Timestamp>,
    /// By place in the plan; the items of a `forEach` follow their step.
    steps: BTreeMap<(usize, Option<u32>), StepView>,
    pub(super) cancelling: bool,
    pub(super) end: Option<End>,
    /// The last event folded in.
    pub(super) last: u64,
    /// The run's latest phase word: `planning`, `executing` …
    pub(super) phase: &'static str,
    order: HashMap<String, usize>,
    holds: HashMap<ApprovalId, StepKey>,
}

/// How it ended, and when.
#[derive(Debug)]
pub(super) struct End {
    pub(super) at: Timestamp,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Completed {
        output: Option<Arc<Value>>,
        /// The size of an output that was too large to come along.
        bytes: Option<u64>,
    },
    Failed(Failure),
    Cancelled {
        by: String,
        reason: Option<String>,
    },
}

/// As many letters of a model's last line are shown.
const SPOKEN: usize = 60;

/// A step, or one item of it.
#[derive(Debug)]
pub(super) struct StepView {
    pub(super) key: StepKey,
    pub(super) name: Option<String>,
    pub(super) tool: String,
    pub(super) attempt: u32,
    pub(super) state: State,
    pub(super) started_at: Option<Timestamp>,
    /// Of the last attempt, from the call to its outcome.
    pub(super) took: Option<TimeDelta>,
    pub(super) progress: Option<ToolProgress>,
    /// What somebody decided about it: `approved by user_7`.
    pub(super) decision: Option<String>,
    /// The child run it started.
    pub(super) child: Option<RunId>,
    /// The items it was spread over.
    pub(super) items: Option<u32>,
}

#[derive(Debug)]
pub(super) enum State {
    Pending,
    Running,
    /// It waits for this instant, or else for its child run.
    Waiting(Option<Timestamp>),
    Retrying {
        at: Timestamp,
        error: Failure,
    },
    Held(Box<AwaitingApproval>),
    Completed,
    Failed {
        error: Failure,
        continued: bool,
    },
    Skipped(SkipReason),
}

impl StepView {
    fn new(key: StepKey, name: Option<String>, tool: String) -> Self {
        Self {
            key,
            name,
            tool,
            attempt: 1,
            state: State::Pending,
            started_at: None,
            took: None,
            progress: None,
            decision: None,
            child: None,
            items: None,
        }
    }

    /// Whether it will do no more.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Completed | State::Failed { .. } | State::Skipped(_))
    }

    /// Whether it moves without anybody's decision; a spread step moves with its items.
    fn proceeds(&self) -> bool {
        match self.state {
            State::Running => self.items.is_none(),
            State::Waiting(_) | State::Retrying { .. } => true,
            _ => false,
        }
    }

    /// Takes in the next words of a model, of which the last line is shown as far as it has come.
    fn say(&mut self, delta: &MessageDelta) {
        let before = self.progress.take().filter(|_| delta.offset > 0).and_then(|progress| progress.message);
        let text = before.unwrap_or_default() + &delta.text;
        let line = text.trim_end().rfind('\n').map_or(0, |end| end + 1);
        let from = text.char_indices().rev().nth(SPOKEN - 1).map_or(0, |(at, _)| at).max(line);
        let message = Some(text.get(from..).unwrap_or_default().to_owned());
        self.progress = Some(ToolProgress { message, fraction: None, data: None });
    }

    fn rest(&mut self) {
        self.state = State::Pending;
        self.took = None;
        self.progress = None;
        self.started_at = None;
        self.decision = None;
        self.child = None;
    }
}

/// Folds an event in; false when it was there already.
pub(super) fn apply(timeline: &mut Timeline, record: &Record) -> bool {
    if record.seq <= timeline.last {
        return false;
    }
    timeline.last = record.seq;
    timeline.run_id = Some(record.run_id);
    if let Some(body) = &record.body {
        match &record.step {
            Some(key) => timeline.step_event(key, record, body),
            None => timeline.run_event(record.at, body),
        }
    }
    true
}

impl Timeline {
    fn planned(&mut self, steps: &[Arc<Step>]) {
        for step in steps {
            let view = self.step(&StepKey::whole(&step.id));
            view.name.clone_from(&step.name);
            view.tool.clone_from(&step.uses);
        }
    }

    fn run_event(&mut self, at: Timestamp, body: &Body) {
        match body {
            Body::Idle(idle) => {
                self.phase = "idle";
                self.created_at = Some(at);
                self.goal.clone_from(&idle.goal);
                self.workflow.clone_from(&idle.workflow);
                self.parent.clone_from(&idle.parent);
            }
            Body::Planning(_) => self.phase = "planning",
            Body::PlanReady(ready) => {
                self.phase = "planned";
                self.planned(&ready.plan.steps);
            }
            Body::PlanExtended(extended) => self.planned(&extended.steps),
            Body::Executing(executing) => {
                self.phase = "executing";
                self.end = None;
                self.cancelling = false;
                executing.retried.iter().for_each(|key| self.step(key).rest());
            }
            Body::RunCancelling(_) => self.cancelling = true,
            Body::Completed(done) => {
                self.over(at, Outcome::Completed { output: done.output.clone(), bytes: done.output_bytes })
            }
            Body::Failed(failed) => self.over(at, Outcome::Failed(failed.error.clone())),
            Body::Cancelled(cancelled) => {
                self.over(at, Outcome::Cancelled { by: cancelled.by.to_string(), reason: cancelled.reason.clone() });
            }
            // A decision names its hold; the step follows from it, also where the event does not say.
            Body::Approved(_) | Body::Denied(_) | Body::ApprovalExpired(_) | Body::ApprovalCancelled(_) => {
                self.decided(body)
            }
            _ => {}
        }
    }

    fn step_event(&mut self, key: &StepKey, record: &Record, body: &Body) {
        let at = record.at;
        if let Body::AwaitingApproval(hold) = body {
            self.holds.insert(hold.approval_id, key.clone());
        }
        if matches!(body, Body::Approved(_) | Body::Denied(_) | Body::ApprovalExpired(_) | Body::ApprovalCancelled(_)) {
            return self.decided(body);
        }
        let step = self.step(key);
        step.attempt = record.attempt.unwrap_or(step.attempt);
        match body {
            Body::StepExpanded(expanded) => {
                step.items = Some(expanded.items);
                step.state = State::Running;
                step.started_at = Some(at);
            }
            Body::StepStarted(started) => {
                step.tool.clone_from(&started.tool);
                step.state = State::Running;
                step.started_at = Some(at);
                step.took = None;
                step.progress = None;
            }
            Body::StepWaiting(waiting) => match waiting.wait {
                Wait::Until { until } => step.state = State::Waiting(Some(until)),
                Wait::Child { child_run_id } => {
                    step.state = State::Waiting(None);
                    step.child = Some(child_run_id);
                }
            },
            Body::ToolProgress(progress) => step.progress = Some(progress.clone()),
            Body::MessageDelta(delta) if !delta.reasoning => step.say(delta),
            Body::StepCompleted(done) => {
                step.state = State::Completed;
                let took = TimeDelta::milliseconds(i64::try_from(done.duration_ms).unwrap_or(i64::MAX / 1000));
                step.took = (!done.carried).then_some(took);
            }
            Body::StepRetrying(retrying) => {
                step.took = step.started_at.map(|started| at - started);
                step.state = State::Retrying { at: retrying.retry_at, error: retrying.error.clone() };
            }
            Body::StepFailed(failed) => {
                step.took = step.started_at.map(|started| at - started);
                step.state = State::Failed { error: failed.error.clone(), continued: failed.continued };
            }
            Body::StepSkipped(skipped) => step.state = State::Skipped(skipped.reason),
            Body::AwaitingApproval(hold) => {
                step.decision = None;
                step.state = State::Held(Box::new(hold.clone()));
            }
            _ => {}
        }
    }

    fn decided(&mut self, body: &Body) {
        let because = |reason: &Option<String>| reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let (id, decision) = match body {
            Body::Approved(yes) => (yes.approval_id, format!("approved by {}{}", yes.by, because(&yes.reason))),
            Body::Denied(no) => (no.approval_id, format!("denied by {}{}", no.by, because(&no.reason))),
            Body::ApprovalExpired(late) => (late.approval_id, "nobody decided in time".to_owned()),
            Body::ApprovalCancelled(moot) => (moot.approval_id, "no longer asked".to_owned()),
            _ => return,
        };
        let Some(key) = self.holds.remove(&id) else { return };
        let step = self.step(&key);
        if matches!(&step.state, State::Held(hold) if hold.approval_id == id) {
            step.state = State::Pending;
        }
        step.decision = Some(decision);
    }

    fn over(&mut self, at: Timestamp, outcome: Outcome) {
        self.cancelling = false;
        self.end = Some(End { at, outcome });
    }

    /// The view of a step, made on first sight.
    fn step(&mut self, key: &StepKey) -> &mut StepView {
        let next = self.order.len();
        let place = *self.order.entry(key.id.clone()).or_insert(next);
        let tool = key.item.and_then(|_| self.steps.get(&(place, None))).map(|whole| whole.tool.clone());
        self.steps
            .entry((place, key.item))
            .or_insert_with(|| StepView::new(key.clone(), None, tool.unwrap_or_default()))
    }

    /// The word for where the run stands.
    pub(super) fn status(&self) -> &'static str {
        match &self.end {
            Some(End { outcome: Outcome::Completed { .. }, .. }) => "completed",
            Some(End { outcome: Outcome::Failed(_), .. }) => "failed",
            Some(End { outcome: Outcome::Cancelled { .. }, .. }) => "cancelled",
            None if self.cancelling => "cancelling",
            None if self.holds.is_empty() || self.steps().any(StepView::proceeds) => self.phase,
            None => "awaiting approval",
        }
    }

    /// In the order of the plan; the items of a `forEach` after their step.
    pub(super) fn steps(&self) -> impl Iterator<Item = &StepView> {
        self.steps.values()
    }

    /// From its start to its end, or to now.
    pub(super) fn age(&self, now: Timestamp) -> TimeDelta {
        let until = self.end.as_ref().map_or(now, |end| end.at);
        self.created_at.map_or(TimeDelta::zero(), |since| until - since)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) const RUN: &str = "run_01k0000000e00000000000000a";
    const HOLD: &str = "apr_01k0000000e00000000000000b";

    fn record(seq: u64, name: &str, step: Option<&str>, payload: Value) -> Record {
        let mut event = json!({
            "eventId": format!("evt_{seq}"), "runId": RUN, "tenantId": "tnt_01k0000000e00000000000000c",
            "ts": format!("2026-11-21T09:00:{:02}.000Z", seq), "step": name, "level": "info", "payload": payload,
        });
        if let Some(step) = step {
            event["stepId"] = json!(step);
            event["attempt"] = json!(1);
        }
        Record::parse(event.to_string()).unwrap()
    }

    fn told(events: &[(&str, Option<&str>, Value)]) -> Timeline {
        let mut timeline = Timeline::default();
        for (seq, (name, step, payload)) in (1..).zip(events) {
            assert!(apply(&mut timeline, &record(seq, name, *step, payload.clone())));
        }
        timeline
    }

    fn plan() -> Value {
        json!({"plan": {"steps": [{"id": "fetch", "uses": "http.request"}, {"id": "sync", "uses": "crm.sync"}]}})
    }

    fn hold() -> Value {
        json!({"approvalId": HOLD, "question": "consent", "action": "crm.sync", "toolVersion": "1",
            "arguments": {"a": 1}, "digest": "sha256:00", "scope": [], "requires": []})
    }

    fn failure() -> Value {
        json!({"error": {"code": "timeout", "message": "too slow"}})
    }

    #[test]
    fn a_held_step_waits_until_it_is_decided() {
        let mut events = vec![
            ("idle", None, json!({"createdBy": "user_1", "workflow": "crm-sync@1"})),
            ("plan.ready", None, plan()),
            ("executing", None, json!({"by": "user_1"})),
            ("awaiting_approval", Some("sync"), hold()),
        ];
        let timeline = told(&events);
        assert_eq!((timeline.status(), timeline.steps().count()), ("awaiting approval", 2));
        assert!(matches!(&timeline.steps().last().unwrap().state, State::Held(held) if held.digest == "sha256:00"));

        events.push((
            "approved",
            None,
            json!({"approvalId": HOLD, "by": "user_2", "digest": "sha256:00", "reason": "fine"}),
        ));
        let timeline = told(&events);
        let sync = timeline.steps().last().unwrap();
        assert_eq!(timeline.status(), "executing");
        assert_eq!(sync.decision.as_deref(), Some("approved by user_2: fine"));
        assert!(matches!(sync.state, State::Pending));
    }

    #[test]
    fn a_retry_puts_failed_steps_back_and_reopens_the_run() {
        let mut events = vec![
            ("plan.ready", None, plan()),
            ("executing", None, json!({"by": "user_1"})),
            ("step.failed", Some("fetch"), failure()),
            ("failed", None, failure()),
        ];
        assert_eq!(told(&events).status(), "failed");
        events.push(("executing", None, json!({"by": "user_1", "retried": ["fetch"]})));
        let timeline = told(&events);
        assert_eq!(timeline.status(), "executing");
        assert!(matches!(timeline.steps().next().unwrap().state, State::Pending));
    }

    #[test]
    fn items_stand_in_order_behind_their_step_however_they_come() {
        let events = [
            ("plan.ready", None, plan()),
            ("step.expanded", Some("fetch"), json!({"items": 3})),
            ("step.skipped", Some("fetch[2]"), json!({"reason": "condition"})),
            ("step.skipped", Some("fetch[0]"), json!({"reason": "condition"})),
        ];
        let timeline = told(&events);
        let keys: Vec<String> = timeline.steps().map(|step| step.key.to_string()).collect();
        assert_eq!(keys, ["fetch", "fetch[0]", "fetch[2]", "sync"]);
        assert!(timeline.steps().take(3).all(|step| step.tool == "http.request"));
    }

    #[test]
    fn duplicates_and_unknown_events_change_nothing() {
        let mut timeline = told(&[("plan.ready", None, plan()), ("step.dreamt", Some("sync"), json!({"of": "sheep"}))]);
        assert_eq!(timeline.last, 2);
        assert!(!apply(&mut timeline, &record(2, "completed", None, json!({}))));
        assert!(timeline.end.is_none());
    }
}
