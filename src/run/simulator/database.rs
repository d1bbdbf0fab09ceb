//! The model of the database: what is committed, encoded as in the table, and the run's claim.

use std::collections::BTreeSet;

use super::auditor::Auditor;
use crate::{
    journal::{self, Append, Body, Claim, Command, Event, Refusal, RunState, Spending, StepKey},
    kernel::Timestamp,
};

/// What outlives every process.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) blank: RunState,
    /// The events, read back from their encoding.
    pub(super) events: Vec<(Timestamp, Event)>,
    /// The fold of the events.
    pub(super) head: RunState,
    /// Counts claims: a worker whose number is another one has lost the run.
    pub(super) epoch: u32,
    /// When the run wants a worker, if the clock or a command said so.
    pub(super) due: Option<Timestamp>,
    pub(super) auditor: Auditor,
    books: Books,
}

/// What the journal's entries say was spent and is reserved.
#[derive(Debug, Default)]
struct Books {
    spent: f64,
    /// What child runs took is in books of their own.
    by_children: f64,
    reserved: BTreeSet<(StepKey, u32)>,
}

impl Books {
    fn enter(&mut self, append: &Append) {
        for event in &append.events {
            if let (Body::StepStarted(_), Some(step), Some(attempt)) = (&event.body, &event.step, event.attempt) {
                self.reserved.insert((step.clone(), attempt));
            }
            self.by_children += match &event.body {
                Body::StepCompleted(completed) => completed.taken.unwrap_or_default().cost,
                Body::StepFailed(failed) => failed.taken.unwrap_or_default().cost,
                _ => 0.0,
            };
        }
        for entry in &append.spending {
            match entry {
                Spending::Spent { cost, .. } => self.spent += cost,
                Spending::Over { step, attempt, .. } => drop(self.reserved.remove(&(step.clone(), *attempt))),
                Spending::Held { .. } => {}
                Spending::Ended => self.reserved.clear(),
                Spending::Raised(raise) => panic!("no day is capped here: {raise:?}"),
            }
        }
    }

    /// After each commit: they agree with the run.
    fn weigh(&self, state: &RunState) {
        let spent = self.spent + self.by_children;
        assert!((spent - state.cost).abs() < 1e-6, "{spent} was spent, of {}", state.cost);
        for (step, attempt) in &self.reserved {
            let at = state.steps.get(step).map(|step| (step.attempt, step.stage.is_ended()));
            assert_eq!(at, Some((*attempt, false)), "{step} has a reservation that nothing gives back");
        }
        assert!(self.reserved.is_empty() || !state.status().is_terminal(), "a reservation outlives its run");
    }
}

impl Database {
    pub(super) fn new(blank: RunState) -> Self {
        let (head, events, auditor) = (blank.clone(), vec![], Auditor::default());
        Self { blank, events, head, epoch: 0, due: None, auditor, books: Books::default() }
    }

    /// What a process that knows nothing makes of the table.
    pub(super) fn fold(&self) -> RunState {
        let mut state = self.blank.clone();
        self.events.iter().for_each(|(ts, event)| state.apply(*ts, event));
        state
    }

    /// The journal's append: all of it, or nothing where somebody else wrote. `state` is what the writer
    /// takes the run to be afterwards.
    pub(super) fn append(&mut self, state: &RunState, events: Vec<Event>, now: Timestamp) -> bool {
        let append = Append::new(state, events, None, Claim::Keep, now).unwrap();
        if append.expected != self.head.seq {
            return false;
        }
        for frame in &append.frames {
            assert_eq!(frame.seq, self.head.seq + 1, "a gap in the numbers");
            let text = std::str::from_utf8(&frame.data).unwrap();
            let (seq, ts, event) = journal::decode(text).unwrap();
            assert_eq!(seq, frame.seq, "{text}");
            self.auditor.hear(&self.head, &event);
            self.head.apply(ts, &event);
            self.events.push((ts, event));
        }
        assert_eq!(&self.head, state, "the events read back give another state than the writer had");
        self.auditor.weigh(&self.head);
        self.books.enter(&append);
        self.books.weigh(&self.head);
        true
    }

    /// A command of a person or a timer: load under the lock, decide, append.
    pub(super) fn command(&mut self, command: Command, now: Timestamp) -> Result<(), Refusal> {
        let mut state = self.head.clone();
        let events = journal::decide(&state, command, now)?;
        events.iter().for_each(|event| state.apply(now, event));
        assert!(self.append(&state, events, now));
        self.due = Some(now);
        Ok(())
    }
}
