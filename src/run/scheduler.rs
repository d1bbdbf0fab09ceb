//! What a run wants done now: `(state, what is in flight here, now)` → moves. Pure; the worker carries the
//! moves out, and the state machine still has the last word on each.

use std::collections::HashSet;

use crate::{
    journal::{Phase, RunState, SkipReason, Stage, Step, StepKey, Wait},
    kernel::{ApprovalId, RunId, Timestamp},
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// A hold's time is up.
    Expire(ApprovalId),
    /// Evaluate a step's `forEach`.
    Expand(StepKey),
    /// Evaluate a step's condition and arguments, ask the gate, and start, hold or skip it.
    Begin(StepKey),
    /// Skip it, since a step it needs was skipped.
    SkipWithUpstream(StepKey),
    /// End a `forEach` step.
    Gather(StepKey),
    /// A wait for an instant is over.
    EndWait(StepKey, u32, Timestamp),
    /// A call is recorded whose process is gone.
    Recover(StepKey, u32),
    /// A child is no longer wanted.
    CancelChild(StepKey, RunId),
    /// Nothing is left to do.
    Finish,
}

/// Everything that can be done at `now`, given the calls that are in flight in this very turn.
#[must_use]
pub fn moves(state: &RunState, in_flight: &HashSet<StepKey>, now: Timestamp) -> Vec<Move> {
    if state.phase != Phase::Executing {
        return vec![];
    }
    let mut moves = vec![];
    for (key, step) in &state.steps {
        match &step.stage {
            Stage::Running { .. } if !in_flight.contains(key) => moves.push(Move::Recover(key.clone(), step.attempt)),
            Stage::Waiting { wait: Wait::Child { child_run_id }, .. } if !state.is_advancing() => {
                moves.push(Move::CancelChild(key.clone(), *child_run_id));
            }
            Stage::Waiting { wait: Wait::Until { until }, .. } if state.is_advancing() && *until <= now => {
                moves.push(Move::EndWait(key.clone(), step.attempt, *until));
            }
            _ => {}
        }
    }
    if state.is_advancing() {
        let late = |deadline: Option<Timestamp>| deadline.is_some_and(|deadline| deadline <= now);
        moves
            .extend(state.open_holds().filter(|(_, hold)| late(hold.asked.expires_at)).map(|(id, _)| Move::Expire(id)));
        for step in state.plan.iter().flat_map(|plan| &plan.steps) {
            advance(state, step, now, &mut moves);
        }
    }
    let over = !state.in_flight() && (!state.is_advancing() || state.all_ended());
    if moves.is_empty() && over {
        moves.push(Move::Finish);
    }
    moves
}

/// What one step of the plan wants.
fn advance(state: &RunState, step: &Step, now: Timestamp, moves: &mut Vec<Move>) {
    let key = StepKey::whole(&step.id);
    match state.stage(&key) {
        None if state.needs_ended(step) => {
            let skipped = |id: &String| matches!(state.stage(&StepKey::whole(id)), Some(Stage::Skipped { reason }) if *reason != SkipReason::TakenAsDone);
            if step.condition.is_none() && step.needs.iter().any(skipped) {
                moves.push(Move::SkipWithUpstream(key));
            } else if step.for_each.is_some() {
                moves.push(Move::Expand(key));
            } else {
                moves.push(Move::Begin(key));
            }
        }
        Some(Stage::Retrying { at }) if *at <= now => {
            moves.push(if step.for_each.is_some() { Move::Expand(key) } else { Move::Begin(key) });
        }
        Some(Stage::Cleared { .. }) => moves.push(Move::Begin(key)),
        Some(Stage::Expanded { items, .. }) => advance_items(state, step, *items, now, moves),
        _ => {}
    }
}

/// What the items of a `forEach` step want: those that may go on, then new ones up to the limit.
fn advance_items(state: &RunState, step: &Step, items: u32, now: Timestamp, moves: &mut Vec<Move>) {
    let (mut open, mut begun) = (0, 0);
    for (key, item) in state.items(&step.id) {
        begun += 1;
        open += u32::from(!item.stage.is_ended());
        match item.stage {
            Stage::Cleared { .. } => moves.push(Move::Begin(key.clone())),
            Stage::Retrying { at } if at <= now => moves.push(Move::Begin(key.clone())),
            _ => {}
        }
    }
    if begun == items && open == 0 {
        moves.push(Move::Gather(StepKey::whole(&step.id)));
        return;
    }
    // Items begin in order, so those that have begun are the first ones.
    let room = step.concurrency_limit().saturating_sub(open).min(items - begun);
    moves.extend((begun..begun + room).map(|item| Move::Begin(StepKey::item(&step.id, item))));
}

/// When the clock alone will make something possible.
#[must_use]
pub fn wake_at(state: &RunState) -> Option<Timestamp> {
    if !state.is_advancing() {
        return None;
    }
    let steps = state.steps.values().filter_map(|step| match &step.stage {
        Stage::Retrying { at } => Some(*at),
        Stage::Waiting { wait: Wait::Until { until }, .. } => Some(*until),
        _ => None,
    });
    steps.chain(state.open_holds().filter_map(|(_, hold)| hold.asked.expires_at)).min()
}
