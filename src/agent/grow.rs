//! How a plan grows: a turn, the calls its answer wants, and the next turn once they have ended. Pure.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    journal::{
        AGENT_TURN, AgentPin, Effect, Failure, OnDenied, OnError, Plan, Retry, RunState, Stage, Step, StepKey, turn_of,
    },
    tool::TurnOutput,
};

/// Attempts at a turn for which no model answers, before the run fails.
const ATTEMPTS: u32 = 3;

/// The id of the n-th turn.
pub(super) fn turn_id(n: u32) -> String {
    format!("turn-{n}")
}

/// The id of a call that the n-th turn wants, from 1.
pub(super) fn call_id(n: u32, call: usize) -> String {
    format!("call-{n}-{call}")
}

/// The n-th turn, after those steps.
pub(super) fn turn(n: u32, needs: Vec<String>) -> Step {
    Step {
        retry: Some(Retry { attempts: ATTEMPTS, backoff: None, max_backoff: None }),
        ..step(&turn_id(n), needs, AGENT_TURN)
    }
}

fn step(id: &str, needs: Vec<String>, uses: &str) -> Step {
    // With a condition it begins also after a call that was denied.
    Step { needs, condition: Some("true".to_owned()), verbatim: true, ..Step::of(id, uses) }
}

/// What the turn of a plan came to, if it has come to something.
pub(super) fn said(state: &RunState, n: u32) -> Option<TurnOutput> {
    match state.stage(&StepKey::whole(&turn_id(n)))? {
        Stage::Completed { output: Some(output) } => TurnOutput::deserialize(&**output).ok(),
        _ => None,
    }
}

/// The number of the last turn of the plan.
pub(super) fn last_turn(plan: &Plan) -> u32 {
    plan.steps.iter().rev().find_map(|step| turn_of(step)).unwrap_or_default()
}

/// Whether the plan of a run that has ended its steps is to grow.
#[must_use]
pub fn grows(state: &RunState) -> bool {
    let Some(plan) = &state.plan else { return false };
    let Some(agent) = &plan.agent else { return false };
    let last = last_turn(plan);
    last < agent.max_turns && said(state, last).is_some_and(|said| !said.calls.is_empty())
}

/// What the plan grows by, if it does; `effect` says what repeating a call would do.
#[must_use]
pub fn grow(state: &RunState, effect: impl Fn(&str, &Value) -> Effect) -> Vec<Arc<Step>> {
    let Some(plan) = state.plan.as_ref().filter(|_| grows(state)) else { return vec![] };
    let Some(agent) = &plan.agent else { return vec![] };
    let last = last_turn(plan);
    let calls = said(state, last).map(|said| said.calls).unwrap_or_default();
    let mut steps = Vec::with_capacity(calls.len() + 1);
    let most = usize::try_from(agent.max_parallel.max(1)).unwrap_or(usize::MAX);
    for (place, call) in calls.into_iter().enumerate() {
        // So many at once: the others come after those before them.
        let after = place.checked_sub(most).map(|before| call_id(last, before + 1));
        let needs = after.or_else(|| Some(turn_id(last))).into_iter().collect();
        let acts = effect(&call.tool, &call.arguments) == Effect::Once;
        let approval = agent.terms(&call.tool, acts);
        let with = match call.arguments {
            Value::Object(fields) => fields,
            other => Map::from_iter([("arguments".to_owned(), other)]),
        };
        let step = Step {
            with,
            approval,
            // The model hears of it, and may think of something else.
            on_denied: Some(OnDenied::Skip),
            on_error: OnError::Continue,
            ..step(&call_id(last, place + 1), needs, &call.tool)
        };
        steps.push(Arc::new(step));
    }
    let needs = steps.iter().map(|step| step.id.clone()).collect();
    steps.push(Arc::new(turn(last + 1, needs)));
    steps
}

/// What the run comes to, once nothing more grows.
///
/// # Errors
/// Why it comes to nothing.
pub fn outcome(state: &RunState, agent: &AgentPin) -> Result<Arc<Value>, Failure> {
    let last = state.plan.as_deref().map(last_turn).unwrap_or_default();
    let Some(said) = said(state, last) else {
        return Err(Failure::new("no_answer", "the agent's last turn gave no answer"));
    };
    if !said.calls.is_empty() {
        let message = format!("the agent still wanted to act after {} turns", agent.max_turns);
        return Err(Failure::new("max_turns", message));
    }
    Ok(Arc::new(said.json.unwrap_or(Value::String(said.text))))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        agent::conversation,
        journal::{Ask, Command, Event, Hold, Intent, RunHead, decide},
        kernel::{Actor, ApprovalId, Id, Timestamp},
        llm::Message,
        run::scheduler::{self, Move},
        tool::{Registry, Tool},
    };

    /// What becomes of a call.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Given,
        Failed,
        Denied,
    }

    const NOW: Timestamp = DateTime::UNIX_EPOCH;

    struct Life {
        state: RunState,
        events: Vec<Event>,
        /// What each turn wants, and what becomes of it.
        script: Vec<Vec<Fate>>,
    }

    impl Life {
        fn begin(script: Vec<Vec<Fate>>, max_turns: u32, max_parallel: u32) -> Self {
            let state = RunState::new(Id::new(NOW), Id::new(NOW), Actor::System, OnDenied::Fail);
            let agent = AgentPin {
                agent: "a@1".to_owned(),
                config: "c@1".parse().unwrap(),
                instructions: "Be.".to_owned(),
                tools: vec!["act".to_owned()],
                approval: vec![],
                max_turns,
                max_parallel,
                output: None,
                window: 100_000,
                rate: None,
            };
            let plan = Plan { steps: vec![Arc::new(turn(1, vec![]))], output: None, agent: Some(Arc::new(agent)) };
            let mut life = Self { state, events: vec![], script };
            life.decide(Command::Open { goal: Some("g".to_owned()), workflow: None, parent: None });
            life.decide(Command::Plan(Arc::new(plan)));
            life.decide(Command::Execute { by: Actor::System });
            life
        }

        fn decide(&mut self, command: Command) {
            let events = decide(&self.state, command.clone(), NOW).unwrap_or_else(|no| panic!("{command:?}: {no:?}"));
            events.iter().for_each(|event| self.state.apply(NOW, event));
            self.events.extend(events);
        }

        /// One call of a step, with consent where it needs some.
        fn make(&mut self, key: &StepKey, effect: Effect, fate: Fate, output: Value) {
            let step = self.state.step(key).unwrap().clone();
            let arguments = Arc::new(Value::Object(step.with.clone()));
            let (tool, tool_version, digest) = (step.uses.clone(), "1".to_owned(), "d".to_owned());
            let intent = Intent { tool, tool_version, effect, arguments, digest };
            if step.approval.is_some() {
                let (step, approval_id) = (key.clone(), ApprovalId::new(NOW));
                self.decide(Command::Hold { step, intent: intent.clone(), approval_id, ask: Ask::Consent });
                let (by, reason) = (Actor::User("user_1".parse().unwrap()), Some("no".to_owned()));
                let approve = !matches!(fate, Fate::Denied);
                self.decide(Command::Decide { approval_id, approve, by, reason, instead: None });
                if !approve {
                    return;
                }
            }
            self.decide(Command::Start { step: key.clone(), intent });
            let (step, attempt) = (key.clone(), 1);
            self.decide(match fate {
                Fate::Failed => Command::Fail { step, attempt, error: Failure::new("broken", "it broke"), jitter: 0.0 },
                _ => Command::Complete { step, attempt, output: Arc::new(output), cost: None },
            });
        }

        fn live(&mut self) {
            loop {
                let moves = scheduler::moves(&self.state, |_| false, NOW);
                let Some(one) = moves.into_iter().next() else { panic!("stuck: {:?}", self.state) };
                match one {
                    Move::Grow => {
                        let steps = grow(&self.state, |_, _| Effect::Once);
                        self.decide(Command::Extend { steps });
                    }
                    Move::Finish => {
                        let agent = self.state.plan.as_ref().unwrap().agent.clone().unwrap();
                        let output = outcome(&self.state, &agent).map(Some);
                        return self.decide(Command::Finish { output });
                    }
                    Move::Begin(key) => self.begin_step(&key),
                    other => panic!("{other:?}"),
                }
            }
        }

        fn begin_step(&mut self, key: &StepKey) {
            if let Some(n) = turn_of(self.state.step(key).unwrap()) {
                let wanted = self.script.get(n as usize - 1).map_or(0, Vec::len);
                let calls: Vec<_> = (0..wanted).map(|i| json!({ "tool": "act", "arguments": { "i": i } })).collect();
                let said = json!({ "text": format!("turn {n}"), "calls": calls, "stop": "done", "config": "c@1",
                    "usage": { "inputTokens": 1, "cachedTokens": 0, "outputTokens": 1 }, "provider": "p", "model": "m" });
                return self.make(key, Effect::Repeatable, Fate::Given, said);
            }
            let (turn, call) = key.id.strip_prefix("call-").unwrap().split_once('-').unwrap();
            let place = |text: &str| text.parse::<usize>().unwrap() - 1;
            let fate = self.script[place(turn)][place(call)];
            self.make(key, Effect::Once, fate, json!({ "given": key.id }));
        }
    }

    fn fates() -> impl Strategy<Value = Vec<Vec<Fate>>> {
        let fate = prop_oneof![Just(Fate::Given), Just(Fate::Failed), Just(Fate::Denied)];
        proptest::collection::vec(proptest::collection::vec(fate, 1..5), 0..5)
    }

    fn head() -> RunHead {
        RunHead {
            goal: Some("g".to_owned()),
            workflow: None,
            input: Arc::new(json!({})),
            budget: None,
            metadata: Arc::new(json!({})),
            created_by: Actor::System,
            parent: None,
            created_at: NOW,
        }
    }

    proptest! {
        #[test]
        fn a_run_of_an_agent_ends_as_its_model_ends_it(script in fates(), max_turns in 1_u32..6, max_parallel in 1_u32..4) {
            let mut life = Life::begin(script.clone(), max_turns, max_parallel);
            life.live();
            let state = &life.state;
            let asked = u32::try_from(script.len()).unwrap() + 1;
            prop_assert_eq!(state.status().name(), if asked <= max_turns { "completed" } else { "failed" });
            prop_assert_eq!(last_turn(state.plan.as_ref().unwrap()), asked.min(max_turns));
            // What was lived is what its events give.
            let mut again = RunState::new(state.tenant_id, state.run_id, Actor::System, OnDenied::Fail);
            life.events.iter().for_each(|event| again.apply(NOW, event));
            prop_assert_eq!(&again, state);
            // Whatever became of a call, the model hears of it, and of each once.
            let agent = state.plan.as_ref().unwrap().agent.clone().unwrap();
            let registry = Registry::new(Vec::<Arc<dyn Tool>>::new(), &Default::default()).unwrap();
            let said = conversation(state, &head(), &agent, asked.min(max_turns), &registry).prompt.messages;
            let calls = |message: &Message| match message {
                Message::Assistant { calls, .. } => calls.iter().map(|call| call.id.clone()).collect(),
                _ => vec![],
            };
            let wanted: Vec<_> = said.iter().flat_map(calls).collect();
            let heard: Vec<_> = said.iter().filter_map(|message| match message {
                Message::Tool { call_id, .. } => Some(call_id.clone()),
                _ => None,
            }).collect();
            prop_assert_eq!(&wanted, &heard);
            let done = script.iter().take(asked.min(max_turns) as usize - 1).map(Vec::len).sum::<usize>();
            prop_assert_eq!(heard.len(), done);
            // Each call that acts was held by itself.
            prop_assert_eq!(state.holds.values().map(|Hold { step, .. }| step).collect::<std::collections::HashSet<_>>().len(),
                state.holds.len());
        }
    }
}
