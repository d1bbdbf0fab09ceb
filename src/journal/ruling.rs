//! The part of [`decide`](super::decide) that is about holds: asking, answering, and running out of time.

use std::sync::Arc;

use chrono::{NaiveDate, NaiveTime};
use serde_json::Value;

use super::{
    ApprovalCancelled, ApprovalExpired, ApprovalTerms, Approved, Ask, AwaitingApproval, Denied, Effect, Event, Failed,
    Failure, Form, Hold, Intent, OnDenied, Question, Refusal, Ruling, RunState, SkipReason, Stage, StepFailed, StepKey,
    StepSkipped,
    command::{advancing, beginnable, kept},
    planning::planning_key,
};
use crate::kernel::{Actor, ApprovalId, Timestamp};

pub(super) fn hold(
    state: &RunState,
    key: &StepKey,
    intent: Intent,
    approval_id: ApprovalId,
    ask: Ask,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    may_ask(state, key, &intent, ask, now)?;
    let terms = state.terms(key);
    let question = ask.question();
    let consent = terms.filter(|_| ask == Ask::Consent);
    let raise = match ask {
        Ask::Raise(raise) => Some(raise),
        Ask::Consent | Ask::Repeat => None,
    };
    let asked = AwaitingApproval {
        approval_id,
        question,
        action: intent.tool,
        tool_version: intent.tool_version,
        arguments: intent.arguments,
        digest: intent.digest,
        reason: match ask {
            Ask::Consent => consent.and_then(|terms| terms.reason.clone()),
            Ask::Repeat => {
                Some("It may have been done already: approve to do it again, deny to take it as done".into())
            }
            Ask::Raise(raise) => Some(raise.reason()),
        },
        raise: raise.map(|raise| raise.by),
        raises: raise.map(|raise| raise.cap),
        day: raise.and_then(|raise| raise.day),
        form: None,
        cost_estimate: terms.and_then(|terms| terms.cost),
        scope: terms.map(|terms| terms.scope.clone()).unwrap_or_default(),
        requires: terms.map(|terms| terms.requires.clone()).unwrap_or_default(),
        // A step that never asked for consent belongs to whoever started the run; but not the money.
        approvers: terms.map(|terms| terms.approvers.clone()).unwrap_or_default(),
        self_approval: raise.is_none() && terms.is_none_or(|terms| terms.self_approval),
        expires_at: match raise {
            Some(raise) => raise.day.and_then(day_end),
            None => deadline(consent, now),
        },
    };
    Ok(vec![Event::step(key, state.next_attempt(key), asked)])
}

/// Whether the question is one that the step is at: of a plan that is drawn up, only whether the budget is raised for it.
fn may_ask(state: &RunState, key: &StepKey, intent: &Intent, ask: Ask, now: Timestamp) -> Result<(), Refusal> {
    if !state.is_drafted() {
        advancing(state)?;
        beginnable(state, key)?;
    }
    let has_terms = state.terms(key).is_some();
    let may = match (ask, state.stage(key)) {
        (Ask::Raise(_), _) if state.is_drafting() => *key == planning_key() && state.cancelling.is_none(),
        _ if state.is_drafted() => false,
        (Ask::Consent, None) => true,
        (Ask::Consent, Some(Stage::Retrying { at })) => *at <= now,
        // Consent that no longer matches the call is worth nothing: ask again.
        (Ask::Consent, Some(Stage::Cleared { digest, .. })) => *digest != intent.digest,
        // Nor does consent to a call cover its repetition by another version of the tool.
        (Ask::Consent, Some(Stage::Running { tool_version, effect, arguments, .. })) => {
            *effect != Effect::Once && (*tool_version != intent.tool_version || *arguments != intent.arguments)
        }
        (Ask::Repeat, Some(Stage::Running { effect, .. })) => *effect == Effect::Once,
        // Money is no consent: where the step asks for that, it has it already.
        (Ask::Raise(_), None) => !has_terms,
        (Ask::Raise(_), Some(Stage::Retrying { at })) => !has_terms && *at <= now,
        (Ask::Raise(_), Some(Stage::Cleared { digest, .. })) => *digest == intent.digest,
        // It came back before it was done, for want of it.
        (Ask::Raise(_), Some(Stage::Running { effect, arguments, .. })) => {
            *effect != Effect::Once && *arguments == intent.arguments
        }
        _ => false,
    };
    if may { Ok(()) } else { Err(Refusal::Stale) }
}

/// A call that is under way came back for what it needs, and goes on once it has that.
pub(super) fn ask(
    state: &RunState,
    (key, attempt): (&StepKey, u32),
    running: &Stage,
    (approval_id, digest): (ApprovalId, String),
    form: Form,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    let (Stage::Running { tool_version, arguments, .. }, Some(step)) = (running, state.step(key)) else {
        return Err(Refusal::Stale);
    };
    let terms = step.approval.as_ref();
    let asked = AwaitingApproval {
        approval_id,
        question: Question::Input,
        action: step.uses.clone(),
        tool_version: tool_version.clone(),
        arguments: Arc::clone(arguments),
        digest,
        reason: None,
        raise: None,
        raises: None,
        day: None,
        form: Some(form),
        cost_estimate: terms.and_then(|terms| terms.cost),
        scope: terms.map(|terms| terms.scope.clone()).unwrap_or_default(),
        requires: terms.map(|terms| terms.requires.clone()).unwrap_or_default(),
        // It is no consent: that the call has.
        approvers: vec![],
        self_approval: true,
        expires_at: deadline(terms, now),
    };
    Ok(vec![Event::step(key, attempt, asked)])
}

/// Until when a question stands.
fn deadline(terms: Option<&ApprovalTerms>, now: Timestamp) -> Option<Timestamp> {
    let lifetime = chrono::TimeDelta::from_std(terms?.expires?.0).ok()?;
    now.checked_add_signed(lifetime).map(kept)
}

/// When there is another day's budget to ask.
fn day_end(day: NaiveDate) -> Option<Timestamp> {
    Some(day.succ_opt()?.and_time(NaiveTime::MIN).and_utc())
}

/// The hold, if it still stands; else what it came to.
fn standing(state: &RunState, approval_id: ApprovalId) -> Result<&Hold, Refusal> {
    let hold = state.holds.get(&approval_id).ok_or(Refusal::UnknownHold)?;
    match &hold.ruling {
        None => Ok(hold),
        Some(ruling) => Err(Refusal::Ruled(ruling.clone())),
    }
}

/// Whether this decider may decide: not on a run of their own, unless that is said, and only who is among the approvers,
/// where these are named.
pub(super) fn entitled(
    state: &RunState,
    approval_id: ApprovalId,
    by: &Actor,
    known_as: &[String],
) -> Result<(), Refusal> {
    let asked = &state.holds.get(&approval_id).ok_or(Refusal::UnknownHold)?.asked;
    if *by == state.created_by && !asked.self_approval {
        return Err(Refusal::OwnRun);
    }
    let by = by.to_string();
    let is_named = |name: &String| *name == by || known_as.contains(name);
    if asked.approvers.is_empty() || asked.approvers.iter().any(is_named) {
        Ok(())
    } else {
        Err(Refusal::NotApprover(asked.approvers.clone()))
    }
}

pub(super) fn rule(
    state: &RunState,
    approval_id: ApprovalId,
    approve: bool,
    (by, reason): (Actor, Option<String>),
    instead: Option<(Arc<Value>, String)>,
    input: Option<Arc<Value>>,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    let hold = state.holds.get(&approval_id).ok_or(Refusal::UnknownHold)?;
    if input.is_some() != (approve && hold.asked.question == Question::Input) {
        return Err(Refusal::Form);
    }
    let wanted = instead.as_ref().map_or(&hold.asked.digest, |(_, digest)| digest);
    match &hold.ruling {
        None => {}
        Some(Ruling::Approved { digest, input: given, .. }) if approve && digest == wanted && *given == input => {
            return Err(Refusal::AlreadySo);
        }
        Some(Ruling::Denied { .. }) if !approve => return Err(Refusal::AlreadySo),
        Some(ruling) => return Err(Refusal::Ruled(ruling.clone())),
    }
    if hold.asked.expires_at.is_some_and(|deadline| deadline <= now) {
        return Err(Refusal::Ruled(Ruling::Expired));
    }
    if approve {
        let digest = wanted.clone();
        let arguments = instead.map(|(arguments, _)| arguments);
        let approved = Approved { approval_id, by, reason, digest, arguments, input };
        Ok(vec![Event::step(&hold.step, hold.attempt, approved)])
    } else {
        let denied = Event::step(&hold.step, hold.attempt, Denied { approval_id, by, reason });
        Ok(vec![denied, refused(state, hold, "denied", "the call was denied")])
    }
}

pub(super) fn expire(state: &RunState, approval_id: ApprovalId, now: Timestamp) -> Result<Vec<Event>, Refusal> {
    let hold = standing(state, approval_id)?;
    if hold.asked.expires_at.is_none_or(|deadline| deadline > now) {
        return Err(Refusal::TooEarly);
    }
    if hold.asked.day.is_some() {
        return Ok(vec![Event::step(&hold.step, hold.attempt, ApprovalCancelled { approval_id })]);
    }
    let expired = Event::step(&hold.step, hold.attempt, ApprovalExpired { approval_id });
    Ok(vec![expired, refused(state, hold, "expired", "nobody decided in time")])
}

/// What becomes of a step that may not act.
fn refused(state: &RunState, hold: &Hold, code: &str, message: &str) -> Event {
    let on_denied = state.step(&hold.step).and_then(|step| step.on_denied).unwrap_or(state.on_denied);
    let skip = |reason| Event::step(&hold.step, hold.attempt, StepSkipped::new(reason));
    match (hold.asked.question, on_denied) {
        (Question::Repeat, _) => skip(SkipReason::TakenAsDone),
        (Question::Consent | Question::Budget | Question::Input, OnDenied::Skip) if !state.is_drafted() => {
            skip(SkipReason::Denied)
        }
        (question, OnDenied::Fail | OnDenied::Skip) => {
            let error = match question {
                Question::Budget => {
                    let whose = if hold.asked.day.is_some() { "tenant" } else { "run" };
                    Failure::new("budget_exceeded", format!("the {whose}'s budget was not raised"))
                }
                Question::Consent | Question::Repeat | Question::Input => Failure::new(code, message),
            };
            if state.is_drafted() {
                return Event::run(Failed { error });
            }
            Event::step(&hold.step, hold.attempt, StepFailed { error, continued: false, taken: None, carried: false })
        }
    }
}
