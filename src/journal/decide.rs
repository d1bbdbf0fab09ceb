//! What may happen next: `(state, command, now)` → events, or a refusal. Pure; everything a run ever does
//! goes through here, so that a simulator can drive it alone.

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::{
    ApprovalCancelled, Body, Budget, Cancelled, Command, Completed, Effect, Event, Executing, Failed, Failure, Idle,
    Intent, OnError, Parent, Phase, PlanExtended, Planner, Planning, Refusal, RunCancelling, RunState, Stage, Step,
    StepCompleted, StepExpanded, StepFailed, StepKey, StepRetrying, StepSkipped, StepStarted, StepWaiting, Taken, Wait,
    command::{advancing, beginnable, kept, reachable},
    fork::fork,
    planning::draft,
    ruling::{self, entitled, expire, hold, rule},
};
use crate::kernel::{Actor, Timestamp};

/// What follows from `command` at `now`.
///
/// # Errors
/// A [`Refusal`] when the state does not allow it.
pub fn decide(state: &RunState, command: Command, now: Timestamp) -> Result<Vec<Event>, Refusal> {
    match command {
        Command::Open { goal, workflow, parent, planner, budget } => {
            open(state, goal, workflow, parent, planner, budget)
        }
        Command::Fork { goal, workflow, from, past, budget } => fork(state, (goal, workflow), from, &past, budget, now),
        Command::Draft(one) => draft(state, one),
        Command::Execute { by } => match (&state.phase, &state.plan) {
            (Phase::Planning, Some(_)) => Ok(vec![Event::run(Executing { by, retried: vec![] })]),
            _ => Err(Refusal::Status(state.status())),
        },
        Command::Extend { steps } => extend(state, steps),
        Command::Expand { step, items } => expand(state, &step, items),
        Command::Gather { step } => gather(state, &step, now),
        Command::Start { step, intent, reserved, budget } => start(state, &step, intent, (reserved, budget), now),
        Command::Hold { step, intent, approval_id, ask } => hold(state, &step, intent, approval_id, ask, now),
        Command::Wait { step, attempt, wait } => match under_way(state, &step, attempt)? {
            Stage::Running { .. } => {
                let wait = match wait {
                    Wait::Until { until } => Wait::Until { until: kept(until) },
                    child @ Wait::Child { .. } => child,
                };
                Ok(vec![Event::step(&step, attempt, StepWaiting { wait })])
            }
            _ => Err(Refusal::Stale),
        },
        Command::Ask { step, attempt, approval_id, digest, form } => match under_way(state, &step, attempt)? {
            running @ Stage::Running { .. } => {
                ruling::ask(state, (&step, attempt), running, (approval_id, digest), form, now)
            }
            _ => Err(Refusal::Stale),
        },
        Command::Complete { step, attempt, output, cost } => complete(state, &step, attempt, output, cost, now),
        Command::Fail { step, attempt, error, jitter } => fail(state, &step, attempt, error, jitter, now),
        Command::Return { step, attempt, end, taken } => come_back(state, (&step, attempt), end, taken, now),
        Command::Skip { step, reason } => {
            advancing(state)?;
            reachable(state, &step)?;
            match state.stage(&step) {
                None | Some(Stage::Retrying { .. }) => {
                    Ok(vec![Event::step(&step, state.next_attempt(&step), StepSkipped::new(reason))])
                }
                Some(_) => Err(Refusal::Stale),
            }
        }
        Command::Report { step, attempt, report } => match under_way(state, &step, attempt)? {
            Stage::Running { .. } => Ok(vec![Event::step(&step, attempt, report)]),
            _ => Err(Refusal::Stale),
        },
        Command::Decide { approval_id, approve, by, known_as, reason, instead, input } => {
            entitled(state, approval_id, &by, &known_as)?;
            rule(state, approval_id, approve, (by, reason), instead, input, now)
        }
        Command::Expire { approval_id } => expire(state, approval_id, now),
        Command::Cancel { by, reason } => cancel(state, by, reason),
        Command::Retry { by } => retry(state, by),
        Command::Finish { output } => finish(state, output),
    }
}

fn open(
    state: &RunState,
    goal: Option<String>,
    workflow: Option<String>,
    parent: Option<Parent>,
    planner: Option<Planner>,
    budget: Budget,
) -> Result<Vec<Event>, Refusal> {
    if state.seq > 0 {
        return Err(Refusal::Status(state.status()));
    }
    let created_by = state.created_by.clone();
    let idle = Idle { goal, workflow, created_by, parent, forked_from: None, budget };
    Ok(vec![Event::run(idle), Event::run(Planning { planner })])
}

/// The stage of a step whose call or wait is under way at that attempt.
fn under_way<'a>(state: &'a RunState, step: &StepKey, attempt: u32) -> Result<&'a Stage, Refusal> {
    match state.steps.get(step) {
        Some(found) if state.phase == Phase::Executing && found.attempt == attempt => match &found.stage {
            stage @ (Stage::Running { .. } | Stage::Waiting { .. }) => Ok(stage),
            _ => Err(Refusal::Stale),
        },
        _ => Err(Refusal::Stale),
    }
}

/// An agent's plan grows when all of it has ended, by steps that are new and need what is there.
fn extend(state: &RunState, steps: Vec<Arc<Step>>) -> Result<Vec<Event>, Refusal> {
    advancing(state)?;
    let Some(plan) = state.plan.as_ref().filter(|plan| plan.agent.is_some()) else { return Err(Refusal::Stale) };
    let known = |id: &String| plan.step(id).is_some();
    let fits = |(at, step): (usize, &Arc<Step>)| {
        let before = steps.get(..at).unwrap_or_default();
        let twin = before.iter().any(|other| other.id == step.id);
        !twin && !known(&step.id) && step.needs.iter().all(|id| known(id) || before.iter().any(|other| other.id == *id))
    };
    if state.all_ended() && !steps.is_empty() && steps.iter().enumerate().all(fits) {
        Ok(vec![Event::run(PlanExtended { steps })])
    } else {
        Err(Refusal::Stale)
    }
}

fn expand(state: &RunState, key: &StepKey, items: u32) -> Result<Vec<Event>, Refusal> {
    advancing(state)?;
    let step = state.step(key).ok_or(Refusal::Stale)?;
    let fresh = matches!(state.stage(key), None | Some(Stage::Retrying { .. }));
    if key.item.is_none() && step.for_each.is_some() && fresh && state.needs_ended(step) {
        Ok(vec![Event::step(key, state.next_attempt(key), StepExpanded { items })])
    } else {
        Err(Refusal::Stale)
    }
}

fn gather(state: &RunState, key: &StepKey, now: Timestamp) -> Result<Vec<Event>, Refusal> {
    advancing(state)?;
    let Some(Stage::Expanded { items, since }) = state.stage(key) else { return Err(Refusal::Stale) };
    let ended: Vec<_> = state.items(&key.id).map(|(_, item)| &item.stage).filter(|stage| stage.is_ended()).collect();
    if ended.len() != usize::try_from(*items).unwrap_or(usize::MAX) {
        return Err(Refusal::TooEarly);
    }
    let outputs = ended.into_iter().map(|stage| match stage {
        Stage::Completed { output: Some(output) } => Value::clone(output),
        _ => Value::Null,
    });
    let output = Some(Arc::new(Value::Array(outputs.collect())));
    let duration_ms = u64::try_from((now - *since).num_milliseconds()).unwrap_or_default();
    let completed = StepCompleted { output, output_bytes: None, duration_ms, cost: None, taken: None, carried: false };
    Ok(vec![Event::step(key, state.next_attempt(key), completed)])
}

fn start(
    state: &RunState,
    key: &StepKey,
    intent: Intent,
    (reserved, budget): (bool, Option<Budget>),
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    advancing(state)?;
    beginnable(state, key)?;
    let has_consent = match state.stage(key) {
        None => false,
        Some(Stage::Retrying { at }) if *at <= now => false,
        Some(Stage::Retrying { .. }) => return Err(Refusal::TooEarly),
        Some(Stage::Cleared { digest, .. }) => {
            if *digest != intent.digest {
                return Err(Refusal::NeedsConsent);
            }
            true
        }
        // The intent was journaled by a process that is gone: the same call, with the consent it had.
        Some(Stage::Running { tool_version, effect, arguments, .. }) => {
            if *effect == Effect::Once {
                return Err(Refusal::MayHaveActed);
            }
            if *arguments != intent.arguments {
                return Err(Refusal::NeedsConsent);
            }
            *tool_version == intent.tool_version
        }
        Some(_) => return Err(Refusal::Stale),
    };
    if state.terms(key).is_some() && !has_consent {
        return Err(Refusal::NeedsConsent);
    }
    let attempt = state.next_attempt(key);
    let repeated = state.steps.get(key).is_some_and(|step| step.called == attempt);
    let started = StepStarted {
        tool: intent.tool,
        tool_version: intent.tool_version,
        effect: intent.effect,
        arguments: intent.arguments,
        repeated,
        reserved,
        budget,
    };
    Ok(vec![Event::step(key, attempt, started)])
}

fn complete(
    state: &RunState,
    key: &StepKey,
    attempt: u32,
    output: Arc<Value>,
    cost: Option<f64>,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    let since = match under_way(state, key, attempt)? {
        Stage::Waiting { wait: Wait::Until { until }, .. } if *until > now => return Err(Refusal::TooEarly),
        Stage::Running { since, .. } | Stage::Waiting { since, .. } => *since,
        _ => return Err(Refusal::Stale),
    };
    let duration_ms = u64::try_from((now - since).num_milliseconds()).unwrap_or_default();
    // What does not say its cost cost what was expected.
    let cost = cost.or_else(|| state.terms(key).and_then(|terms| terms.cost));
    let completed =
        StepCompleted { output: Some(output), output_bytes: None, duration_ms, cost, taken: None, carried: false };
    Ok(vec![Event::step(key, attempt, completed)])
}

fn fail(
    state: &RunState,
    key: &StepKey,
    attempt: u32,
    error: Failure,
    jitter: f64,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    let step = state.step(key).ok_or(Refusal::Stale)?;
    if under_way(state, key, attempt).is_err() {
        // A call that could not even be made: a template that does not render, arguments out of schema.
        advancing(state)?;
        reachable(state, key)?;
        let unmade = match state.stage(key) {
            None | Some(Stage::Retrying { .. } | Stage::Cleared { .. }) => true,
            // Its items' outputs are too much together.
            Some(Stage::Expanded { .. }) => gather(state, key, now).is_ok(),
            Some(_) => false,
        };
        if !unmade || attempt != state.next_attempt(key) {
            return Err(Refusal::Stale);
        }
    }
    let failures = state.steps.get(key).map_or(0, |step| step.failures) + 1;
    let again = step.retry.as_ref().filter(|retry| error.retryable && failures < retry.attempts);
    match again.filter(|_| state.is_advancing()) {
        Some(retry) => {
            let asked = Duration::from_secs(error.retry_after_seconds.map_or(0, |seconds| seconds.get().into()));
            let delay = chrono::TimeDelta::from_std(retry.delay(failures, jitter, asked));
            let retry_at = kept(now + delay.unwrap_or_default());
            Ok(vec![Event::step(key, attempt, StepRetrying { error, retry_at })])
        }
        None => {
            let continued = step.on_error == OnError::Continue && state.cancelling.is_none();
            Ok(vec![Event::step(key, attempt, StepFailed { error, continued, taken: None, carried: false })])
        }
    }
}

/// The child run that a step waits for has ended.
fn come_back(
    state: &RunState,
    (key, attempt): (&StepKey, u32),
    end: Result<Arc<Value>, Failure>,
    taken: Taken,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    if !matches!(under_way(state, key, attempt)?, Stage::Waiting { wait: Wait::Child { .. }, .. }) {
        return Err(Refusal::Stale);
    }
    let mut events = match end {
        Ok(output) => complete(state, key, attempt, output, Some(taken.cost), now)?,
        Err(error) => fail(state, key, attempt, error, 0.0, now)?,
    };
    for event in &mut events {
        match &mut event.body {
            Body::StepCompleted(completed) => completed.taken = Some(taken),
            Body::StepFailed(failed) => failed.taken = Some(taken),
            _ => {}
        }
    }
    Ok(events)
}

fn cancel(state: &RunState, by: Actor, reason: Option<String>) -> Result<Vec<Event>, Refusal> {
    match state.phase {
        Phase::Cancelled => Err(Refusal::AlreadySo),
        Phase::Completed | Phase::Failed(_) => Err(Refusal::Status(state.status())),
        Phase::Idle | Phase::Planning | Phase::Executing if state.cancelling.is_some() => Err(Refusal::AlreadySo),
        Phase::Planning | Phase::Executing if state.in_flight() || state.is_drafting() => {
            Ok(vec![Event::run(RunCancelling { by, reason })])
        }
        Phase::Idle | Phase::Planning | Phase::Executing => Ok(ending(state, Event::run(Cancelled { by, reason }))),
    }
}

/// The end, after the questions that no longer stand.
fn ending(state: &RunState, last: Event) -> Vec<Event> {
    state
        .open_holds()
        .map(|(approval_id, hold)| Event::step(&hold.step, hold.attempt, ApprovalCancelled { approval_id }))
        .chain([last])
        .collect()
}

fn retry(state: &RunState, by: Actor) -> Result<Vec<Event>, Refusal> {
    if !matches!(state.phase, Phase::Failed(_)) {
        return Err(Refusal::Status(state.status()));
    }
    if state.plan.is_none() {
        return Ok(vec![Event::run(Planning { planner: state.planner.clone() })]);
    }
    let failed = |stage: &Stage| matches!(stage, Stage::Failed { continued: false, .. });
    let retried = state.steps.iter().filter(|(_, step)| failed(&step.stage)).map(|(key, _)| key.clone()).collect();
    Ok(vec![Event::run(Executing { by, retried })])
}

fn finish(state: &RunState, output: Result<Option<Arc<Value>>, Failure>) -> Result<Vec<Event>, Refusal> {
    if state.phase != Phase::Executing && state.cancelling.is_none() {
        return Err(Refusal::Status(state.status()));
    }
    if state.in_flight() {
        return Err(Refusal::TooEarly);
    }
    if let Some(RunCancelling { by, reason }) = state.cancelling.clone() {
        return Ok(ending(state, Event::run(Cancelled { by, reason })));
    }
    if let Some((key, failure)) = state.doom() {
        let error = Failure { step_id: Some(key.clone()), ..failure.clone() };
        return Ok(ending(state, Event::run(Failed { error })));
    }
    if !state.all_ended() {
        return Err(Refusal::TooEarly);
    }
    Ok(vec![match output {
        Ok(output) => Event::run(Completed { output, output_bytes: None }),
        Err(error) => Event::run(Failed { error }),
    }])
}
