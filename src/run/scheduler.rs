//! What a run wants done now: `(state, what is in flight here, now)` → moves. Pure; the worker carries the
//! moves out, and the state machine still has the last word on each.

use std::sync::Arc;

use crate::{
    agent,
    journal::{Phase, RunState, SkipReason, Stage, Step, StepKey, Wait, planning_key},
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
    /// Let the plan grow by what an agent answered.
    Grow,
    /// Have a model make the plan.
    Plan,
    /// Nothing is left to do.
    Finish,
}

/// Everything that can be done at `now`; `in_flight` knows the calls of this very turn.
#[must_use]
pub fn moves(state: &RunState, in_flight: impl Fn(&StepKey) -> bool, now: Timestamp) -> Vec<Move> {
    if state.is_drafted() {
        return draft(state, in_flight(&planning_key()), now).into_iter().collect();
    }
    if state.phase != Phase::Executing {
        return vec![];
    }
    let mut moves = vec![];
    let advancing = state.is_advancing();
    for (key, step) in state.open_steps() {
        match &step.stage {
            Stage::Running { .. } if !in_flight(key) => moves.push(Move::Recover(key.clone(), step.attempt)),
            Stage::Waiting { wait: Wait::Child { child_run_id }, .. } if !advancing => {
                moves.push(Move::CancelChild(key.clone(), *child_run_id));
            }
            _ if !advancing => {}
            Stage::Waiting { wait: Wait::Until { until }, .. } if *until <= now => {
                moves.push(Move::EndWait(key.clone(), step.attempt, *until));
            }
            Stage::Held { approval_id } if is_late(state, *approval_id, now) => {
                moves.push(Move::Expire(*approval_id));
            }
            Stage::Retrying { at } if *at <= now => moves.push(begin(state.step(key).map(Arc::as_ref), key)),
            Stage::Cleared { .. } => moves.push(Move::Begin(key.clone())),
            Stage::Expanded { items, .. } => go_on(state, key, *items, &mut moves),
            _ => {}
        }
    }
    if advancing {
        moves.extend(state.ready_steps().map(|step| first_move(state, step)));
    }
    if moves.is_empty() && !state.in_flight() && (!advancing || state.all_ended()) {
        moves.push(if advancing && agent::grows(state) { Move::Grow } else { Move::Finish });
    }
    moves
}

/// What a run wants that a model plans for.
fn draft(state: &RunState, is_asked: bool, now: Timestamp) -> Option<Move> {
    match state.open_holds().next() {
        Some((approval_id, _)) => is_late(state, approval_id, now).then_some(Move::Expire(approval_id)),
        None if is_asked => None,
        None if state.cancelling.is_some() => Some(Move::Finish),
        None => Some(Move::Plan),
    }
}

fn is_late(state: &RunState, approval_id: ApprovalId, now: Timestamp) -> bool {
    let hold = state.holds.get(&approval_id);
    hold.and_then(|hold| hold.asked.expires_at).is_some_and(|deadline| deadline <= now)
}

/// How a step begins whose needs have ended.
fn first_move(state: &RunState, step: &Step) -> Move {
    let key = StepKey::whole(&step.id);
    let skipped = |id: &String| matches!(state.stage(&StepKey::whole(id)), Some(Stage::Skipped { reason, .. }) if *reason != SkipReason::TakenAsDone);
    if step.condition.is_none() && step.needs.iter().any(skipped) {
        Move::SkipWithUpstream(key)
    } else {
        begin(Some(step), &key)
    }
}

fn begin(step: Option<&Step>, key: &StepKey) -> Move {
    let spread = key.item.is_none() && step.is_some_and(|step| step.for_each.is_some());
    if spread { Move::Expand(key.clone()) } else { Move::Begin(key.clone()) }
}

/// What a `forEach` step wants: new items up to its limit, or its end.
fn go_on(state: &RunState, key: &StepKey, items: u32, moves: &mut Vec<Move>) {
    let (begun, open) = state.item_counts(&key.id);
    if begun == items && open == 0 {
        moves.push(Move::Gather(key.clone()));
        return;
    }
    // Items begin in order, so those that have begun are the first ones.
    let limit = state.step(key).map_or(1, |step| step.concurrency_limit());
    let room = limit.saturating_sub(open).min(items - begun);
    moves.extend((begun..begun + room).map(|item| Move::Begin(StepKey::item(&key.id, item))));
}

/// When the clock alone will make something possible.
#[must_use]
pub fn wake_at(state: &RunState) -> Option<Timestamp> {
    if !state.is_advancing() && !state.is_drafted() {
        return None;
    }
    let times = state.open_steps().filter_map(|(_, step)| match &step.stage {
        Stage::Retrying { at } => Some(*at),
        Stage::Waiting { wait: Wait::Until { until }, .. } => Some(*until),
        Stage::Held { approval_id } => state.holds.get(approval_id).and_then(|hold| hold.asked.expires_at),
        _ => None,
    });
    times.min()
}
