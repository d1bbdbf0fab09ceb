//! Which steps can move, kept up to date as events are applied, so that a turn looks at those few and not at
//! the whole plan. It says nothing that the steps do not say; the simulator holds it against them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Plan, Stage, Step, StepKey};

/// The edge between what has ended and what is still to come.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Frontier {
    /// The place of each step in the plan.
    places: BTreeMap<String, usize>,
    /// For each step of the plan: how many of its needs have not ended.
    unmet: Vec<usize>,
    /// For each step of the plan: the steps that need it.
    dependants: Vec<Vec<usize>>,
    /// Steps that have not begun and wait for no other.
    ready: BTreeSet<usize>,
    /// Steps and items that have begun and not ended.
    open: BTreeSet<StepKey>,
    /// Steps and items whose failure dooms the run.
    doomed: BTreeSet<StepKey>,
    /// Steps of the plan that have ended.
    ended: usize,
    /// Items of `forEach` steps: how many have begun, and how many of these have not ended.
    items: BTreeMap<String, (u32, u32)>,
}

impl Frontier {
    /// Before anything has begun.
    pub(super) fn of(plan: &Plan) -> Self {
        let mut frontier = Self::default();
        frontier.extend(&plan.steps, |_| false);
        frontier
    }

    /// Steps come to the plan; `ended` knows which of the others have.
    pub(super) fn extend(&mut self, steps: &[Arc<Step>], ended: impl Fn(&str) -> bool) {
        let first = self.unmet.len();
        self.places.extend(steps.iter().zip(first..).map(|(step, at)| (step.id.clone(), at)));
        self.dependants.resize(first + steps.len(), vec![]);
        for (step, at) in steps.iter().zip(first..) {
            let needs: BTreeSet<_> = step.needs.iter().collect();
            let unmet = needs.iter().filter(|id| !ended(id)).count();
            self.unmet.push(unmet);
            if unmet == 0 {
                self.ready.insert(at);
            }
            for need in needs.into_iter().filter_map(|id| self.places.get(id)) {
                if let Some(dependants) = self.dependants.get_mut(*need) {
                    dependants.push(at);
                }
            }
        }
    }

    /// A step moved from one stage, or from nowhere, to another.
    pub(super) fn moved(&mut self, key: &StepKey, before: Option<&Stage>, after: &Stage) {
        let (was_ended, is_ended) = (before.is_some_and(Stage::is_ended), after.is_ended());
        if is_ended {
            self.open.remove(key);
        } else {
            self.open.insert(key.clone());
        }
        if matches!(after, Stage::Failed { continued: false, .. }) {
            self.doomed.insert(key.clone());
        } else {
            self.doomed.remove(key);
        }
        if key.item.is_some() {
            let (begun, open) = self.items.entry(key.id.clone()).or_default();
            *begun += u32::from(before.is_none());
            *open += u32::from(!is_ended);
            *open -= u32::from(before.is_some() && !was_ended);
            return;
        }
        let Some(at) = self.places.get(&key.id).copied() else { return };
        self.ready.remove(&at);
        if was_ended != is_ended {
            self.ended = if is_ended { self.ended + 1 } else { self.ended - 1 };
            self.tell_dependants(at, is_ended);
        }
    }

    fn tell_dependants(&mut self, at: usize, ended: bool) {
        let Some(dependants) = self.dependants.get(at) else { return };
        for dependant in dependants {
            let Some(unmet) = self.unmet.get_mut(*dependant) else { continue };
            *unmet = if ended { *unmet - 1 } else { *unmet + 1 };
            // Begun steps are never put back: what they needed had ended when they began.
            if *unmet == 0 {
                self.ready.insert(*dependant);
            } else {
                self.ready.remove(dependant);
            }
        }
    }

    /// The place of a step in the plan.
    pub(super) fn place(&self, id: &str) -> Option<usize> {
        self.places.get(id).copied()
    }

    /// Whether all that the step at that place needs has ended.
    pub(super) fn needs_ended(&self, at: usize) -> bool {
        self.unmet.get(at) == Some(&0)
    }

    /// The places of the steps that have not begun and wait for no other, in the plan's order.
    pub(super) fn ready(&self) -> impl Iterator<Item = usize> {
        self.ready.iter().copied()
    }

    /// What has begun and not ended.
    pub(super) fn open(&self) -> &BTreeSet<StepKey> {
        &self.open
    }

    /// What failed so that the run cannot go on.
    pub(super) fn doomed(&self) -> Option<&StepKey> {
        self.doomed.first()
    }

    /// Whether every step of the plan has ended.
    pub(super) fn all_ended(&self) -> bool {
        self.ended == self.unmet.len()
    }

    /// How many items of a `forEach` step have begun, and how many of these have not ended.
    pub(super) fn items(&self, id: &str) -> (u32, u32) {
        self.items.get(id).copied().unwrap_or_default()
    }
}
