//! Reads every event as it is committed and holds it against the promises, by rules of its own.

use std::collections::{HashMap, HashSet};

use crate::{
    approval,
    journal::{
        AwaitingApproval, Body, Effect, Event, Failure, Phase, Question, RunState, Stage, Status, StepKey, StepStarted,
    },
    kernel::{Actor, ApprovalId},
};

/// What the events so far entitle anybody to.
#[derive(Clone, Debug, Default)]
pub(super) struct Auditor {
    holds: HashMap<ApprovalId, (StepKey, u32, AwaitingApproval)>,
    ruled: HashSet<ApprovalId>,
    /// Consent to act, by step and attempt: the digests it was given for.
    consents: HashMap<(StepKey, u32), HashSet<String>>,
    /// Attempts that were given what they asked for, and have not gone on with it.
    filled: HashSet<(StepKey, u32)>,
    /// Calls whose intent is journaled, with what was intended last.
    started: HashMap<(StepKey, u32), StepStarted>,
    outcomes: HashMap<(StepKey, u32), &'static str>,
    /// Steps that nothing more may be heard of.
    closed: HashSet<StepKey>,
    /// How often somebody said "do it again", by step.
    words: HashMap<StepKey, usize>,
    ended: Option<&'static str>,
}

impl Auditor {
    /// `before` is the run before this event.
    pub(super) fn hear(&mut self, before: &RunState, event: &Event) {
        let name = event.body.name();
        if let Some(ended) = self.ended {
            assert!(ended == "failed" && name == "executing", "{name} after {ended}");
            self.ended = None;
        }
        if let Body::Executing(executing) = &event.body {
            // What nobody knew is open again.
            let reopened = |key: &StepKey| executing.retried.contains(key);
            self.outcomes.retain(|(key, _), outcome| !(*outcome == "unknown" && reopened(key)));
        }
        if let Some(key) = &event.step {
            assert!(before.step(key).is_some(), "{name} of {key}, which is not in the plan");
            assert!(!self.closed.contains(key), "{name} of {key}, which has ended");
            self.hear_step(before, key, event.attempt.unwrap(), &event.body);
        }
        if matches!(event.body, Body::Completed(_) | Body::Failed(_) | Body::Cancelled(_)) {
            self.ended = Some(name);
        }
    }

    fn hear_step(&mut self, before: &RunState, key: &StepKey, attempt: u32, body: &Body) {
        assert!(attempt >= 1);
        let at = (key.clone(), attempt);
        match body {
            Body::StepStarted(started) => self.hear_start(before, key, attempt, started),
            Body::StepCompleted(_) | Body::StepSkipped(_) | Body::StepFailed(_) | Body::StepRetrying(_) => {
                let unknown = matches!(body, Body::StepFailed(one) if one.error.code == Failure::OUTCOME_UNKNOWN);
                let earlier = self.outcomes.insert(at, if unknown { "unknown" } else { body.name() });
                assert_eq!(earlier, None, "{} is a second outcome of {key}, attempt {attempt}", body.name());
                let open = |(id, _): (ApprovalId, _)| !self.ruled.contains(&id);
                assert!(!before.hold_of(key).is_some_and(open), "an outcome of {key} while it is held");
                if matches!(body, Body::StepCompleted(_) | Body::StepSkipped(_)) {
                    self.closed.insert(key.clone());
                }
            }
            Body::AwaitingApproval(asked) => {
                let hold = (key.clone(), attempt, asked.clone());
                assert!(self.holds.insert(asked.approval_id, hold).is_none(), "one id for two holds");
                let tool = (asked.action.as_str(), asked.tool_version.as_str());
                let digest = approval::digest(before, key, attempt, tool, &asked.arguments).unwrap();
                assert_eq!(asked.digest, digest, "a person is shown another digest than that of the call");
            }
            Body::Approved(approved) => {
                let asked = self.rule(before, approved.approval_id, Some(&approved.by));
                if asked.question == Question::Repeat {
                    *self.words.entry(key.clone()).or_default() += 1;
                }
                let arguments = approved.arguments.as_ref().unwrap_or(&asked.arguments);
                let tool = (asked.action.as_str(), asked.tool_version.as_str());
                let digest = approval::digest(before, key, attempt, tool, arguments).unwrap();
                assert_eq!(approved.digest, digest, "consent to another call than the one that was shown");
                match asked.question {
                    Question::Consent | Question::Repeat => drop(self.consents.entry(at).or_default().insert(digest)),
                    Question::Input => drop(self.filled.insert(at)),
                    Question::Budget => {}
                }
                assert_eq!(approved.input.is_some(), asked.question == Question::Input, "a form is filled in");
            }
            Body::Denied(denied) => drop(self.rule(before, denied.approval_id, Some(&denied.by))),
            Body::ApprovalExpired(expired) => drop(self.rule(before, expired.approval_id, None)),
            Body::ApprovalCancelled(gone) => drop(self.rule(before, gone.approval_id, None)),
            _ => {}
        }
    }

    /// At most one ruling a hold, and never by whoever may not rule.
    fn rule(&mut self, before: &RunState, id: ApprovalId, by: Option<&Actor>) -> AwaitingApproval {
        let (_, _, asked) = self.holds.get(&id).expect("a ruling on no hold");
        assert!(self.ruled.insert(id), "a second ruling");
        assert!(asked.self_approval || by != Some(&before.created_by), "the creator decided");
        asked.clone()
    }

    fn hear_start(&mut self, before: &RunState, key: &StepKey, attempt: u32, started: &StepStarted) {
        let step = before.step(key).unwrap();
        let at = (key.clone(), attempt);
        assert!(!self.outcomes.contains_key(&at), "{key} starts after the outcome of attempt {attempt}");
        assert!(before.doom().is_none() && before.cancelling.is_none(), "{key} starts while the run ends");
        for need in &step.needs {
            assert!(before.stage(&StepKey::whole(need)).is_some_and(Stage::is_ended), "{key} starts before {need}");
        }
        if key.item.is_some() {
            let open = before.items(&key.id).filter(|(other, item)| *other != key && !item.stage.is_ended()).count();
            assert!(open < step.concurrency_limit() as usize, "too many items of {} at once", key.id);
        }
        let tool = (started.tool.as_str(), started.tool_version.as_str());
        let digest = approval::digest(before, key, attempt, tool, &started.arguments).unwrap();
        let consented = self.consents.get(&at).is_some_and(|digests| digests.contains(&digest));
        assert!(consented || step.approval.is_none(), "{key} starts without consent to exactly this call");
        let filled = self.filled.remove(&at);
        if let Some(earlier) = self.started.insert(at, started.clone()) {
            assert!(started.repeated, "{key} starts again and does not say so");
            assert!(consented || filled || earlier.effect != Effect::Once, "{key} starts again unasked");
            assert!(consented || earlier.arguments == started.arguments, "a repetition with other arguments");
        }
    }

    /// After each commit: what the status says is so.
    pub(super) fn weigh(&self, state: &RunState) {
        Self::weigh_frontier(state);
        if self.ended.is_some() {
            assert!(state.status().is_terminal());
            assert_eq!(state.open_holds().count(), 0, "a question outlives its run");
        }
        assert_eq!(self.ended.is_some(), state.status().is_terminal());
        let moving = state.steps.values().any(|step| {
            matches!(
                step.stage,
                Stage::Running { .. } | Stage::Waiting { .. } | Stage::Retrying { .. } | Stage::Cleared { .. }
            )
        });
        if state.status() == Status::AwaitingApproval {
            assert!(state.open_holds().next().is_some(), "it awaits approval and asks for none");
            assert!(!moving, "it awaits approval while a step can proceed");
        }
        assert!(state.phase != Phase::Idle || state.seq <= 1);
    }

    /// After each commit: what the state keeps of its steps' standing is what the steps say.
    fn weigh_frontier(state: &RunState) {
        let begun_open = state.steps.iter().filter(|(_, step)| !step.stage.is_ended()).map(|(key, _)| key);
        assert!(state.open_steps().map(|(key, _)| key).eq(begun_open), "what is open");
        let asked = state.holds.iter().filter(|(_, hold)| hold.ruling.is_none()).map(|(id, _)| *id);
        let mut open: Vec<_> = state.open_holds().map(|(id, _)| id).collect();
        open.sort_unstable();
        assert!(open.into_iter().eq(asked), "what is asked");
        let failed = |stage: &Stage| matches!(stage, Stage::Failed { continued: false, .. });
        let doom = state.steps.iter().find(|(_, step)| failed(&step.stage)).map(|(key, _)| key);
        assert_eq!(state.doom().map(|(key, _)| key), doom);
        let Some(plan) = &state.plan else { return };
        let ended = |id: &str| state.stage(&StepKey::whole(id)).is_some_and(Stage::is_ended);
        assert_eq!(state.all_ended(), plan.steps.iter().all(|step| ended(&step.id)));
        let ready = plan.steps.iter().filter(|step| state.stage(&StepKey::whole(&step.id)).is_none());
        let ready = ready.filter(|step| step.needs.iter().all(|id| ended(id))).map(|step| &step.id);
        assert!(state.ready_steps().map(|step| &step.id).eq(ready), "what is ready");
        for step in &plan.steps {
            let (begun, open) = state
                .items(&step.id)
                .fold((0, 0), |(begun, open), (_, item)| (begun + 1, open + u32::from(!item.stage.is_ended())));
            assert_eq!(state.item_counts(&step.id), (begun, open), "the items of {}", step.id);
        }
    }

    /// Whether a process may make this call now, judged by what is committed.
    pub(super) fn may_call(&self, key: &StepKey, attempt: u32, arguments: &serde_json::Value) {
        let started = self.started.get(&(key.clone(), attempt)).expect("a call without a journaled intent");
        assert_eq!(started.arguments.as_ref(), arguments, "another call than the journaled one");
    }

    /// How often somebody said "do it again" of this step.
    pub(super) fn words(&self, key: &StepKey) -> usize {
        self.words.get(key).copied().unwrap_or_default()
    }
}
