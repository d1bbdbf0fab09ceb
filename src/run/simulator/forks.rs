//! A history may be forked at any of its events.

use std::collections::BTreeSet;

use chrono::DateTime;

use super::{
    database::Database,
    history::{History, person},
};
use crate::{
    journal::{Command, ForkedFrom, OnDenied, Past, RunState, SkipReason, Stage, StepKey, event_id},
    kernel::Id,
};

impl History {
    /// Forks it at each event, and lives one of the forks to its end.
    pub(super) fn fork_everywhere(&self, on_denied: OnDenied, lived: usize) {
        let mut source = self.db.blank.clone();
        for (at, (ts, event)) in self.db.events.iter().enumerate() {
            source.apply(*ts, event);
            let Some(past) = Past::of(&source) else {
                assert!(source.plan.is_none());
                continue;
            };
            let fork = self.fork(&source, past, on_denied);
            agrees(&source, &fork.head);
            if at == lived % self.db.events.len() {
                Self::taken_up(fork, self.now).live_on();
            }
        }
    }

    fn fork(&self, source: &RunState, past: Past, on_denied: OnDenied) -> Database {
        let now = DateTime::from_timestamp(1_900_000_000, 0).unwrap();
        let mut fork = Database::new(RunState::new(source.tenant_id, Id::new(now), person(4), on_denied));
        let from = ForkedFrom { run_id: source.run_id, event_id: event_id(source.seq), step_id: None, edited: vec![] };
        fork.command(Command::Fork { goal: None, workflow: None, from, past, budget: Default::default() }, self.now)
            .unwrap();
        fork
    }

    /// What was taken over is not done again.
    fn live_on(mut self) {
        let taken: Vec<_> = self.db.head.steps.keys().cloned().collect();
        self.play_out();
        let acted = self.acts.keys().find(|key| taken.contains(key));
        assert_eq!(acted, None, "it was taken over");
    }
}

/// A fork knows what had ended, and goes on with all the rest.
fn agrees(source: &RunState, fork: &RunState) {
    assert_eq!(source.plan, fork.plan);
    assert!(fork.holds.is_empty() && fork.open_steps().next().is_none(), "nothing has begun");
    assert!(fork.is_advancing() && fork.cost == 0.0);
    let plan = source.plan.as_ref().unwrap();
    let mut next = BTreeSet::new();
    for step in &plan.steps {
        let key = StepKey::whole(&step.id);
        let stays = |stage: &&Stage| stage.is_ended() && !matches!(stage, Stage::Failed { continued: false, .. });
        match (source.stage(&key).filter(stays), fork.stage(&key)) {
            (Some(Stage::Skipped { reason, .. }), Some(Stage::Skipped { reason: taken, denial, .. })) => {
                assert_eq!(reason, taken);
                assert_eq!(denial.is_some(), *reason == SkipReason::Denied);
                assert_eq!(source.denial(&key).filter(|_| denial.is_some()), fork.denial(&key));
            }
            (Some(Stage::Failed { error, .. }), Some(Stage::Failed { error: taken, continued: true, .. })) => {
                assert_eq!(error, taken);
            }
            (None, None) if source.stage(&key).is_some() || source.needs_ended(step) => {
                next.insert(step.id.as_str());
            }
            (stage, taken) => assert_eq!(stage, taken, "{key}"),
        }
        assert_eq!(fork.items(&step.id).count(), 0);
    }
    // What ended the run is tried again, and what needs it waits for that.
    let again = |id: &String| fork.stage(&StepKey::whole(id)).is_none();
    next.retain(|id| !plan.step(id).unwrap().needs.iter().any(again));
    assert_eq!(fork.ready_steps().map(|step| step.id.as_str()).collect::<BTreeSet<_>>(), next);
}
