//! How a plan grows: a turn, the calls its answer wants, and the next turn once they have ended. Pure.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::names;
use crate::{
    journal::{
        AGENT_HANDOFF, AGENT_TURN, AgentPin, Failure, OnDenied, OnError, Plan, Retry, RunState, Stage, Step, StepKey,
        call_id, turn_id, turn_of,
    },
    tool::{Registry, TurnCall, TurnOutput},
};

/// Attempts at a turn for which no model answers, before the run fails.
const ATTEMPTS: u32 = 3;

/// The n-th turn, which is that agent's, after those steps.
pub(super) fn turn(n: u32, agent: &AgentPin, needs: Vec<String>) -> Step {
    Step {
        with: Map::from_iter([("agent".to_owned(), Value::from(agent.agent.as_str()))]),
        retry: Some(Retry { attempts: ATTEMPTS, backoff: None, max_backoff: None, min_backoff: None }),
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

/// What the last answer asks for.
struct Growth<'s> {
    last: u32,
    /// The agent whose answer it was.
    speaker: &'s AgentPin,
    /// The agent whose turn is next: the first that the answer hands over to, or the same.
    next: &'s AgentPin,
    calls: Vec<TurnCall>,
}

impl<'s> Growth<'s> {
    /// None when nothing is asked for.
    fn of(state: &'s RunState) -> Option<Self> {
        let plan = state.plan.as_deref()?;
        let last = last_turn(plan);
        let speaker = plan.speaker(plan.step(&turn_id(last))?)?;
        let calls = said(state, last)?.calls;
        let handed = calls.iter().find_map(|call| handoff(speaker, &call.tool)).and_then(|to| plan.pin(to));
        let next = handed.unwrap_or(speaker);
        (!calls.is_empty()).then_some(Self { last, speaker, next, calls })
    }

    /// Whether the next agent may be asked once more. Each counts its own turns, so that a run has at most those of all
    /// its agents together, however often they hand over.
    fn has_turns(&self, plan: &Plan) -> bool {
        let is_its = |step: &&Arc<Step>| {
            turn_of(step).is_some() && plan.speaker(step).is_some_and(|pin| pin.agent == self.next.agent)
        };
        plan.steps.iter().filter(is_its).count() < usize::try_from(self.next.max_turns).unwrap_or(usize::MAX)
    }
}

/// The agent, as `name@version`, that a call hands over to, where the speaker may.
fn handoff<'p>(speaker: &'p AgentPin, tool: &str) -> Option<&'p str> {
    speaker.handoffs.iter().map(String::as_str).find(|to| names::handoff(to) == tool)
}

/// Whether the plan of a run that has ended its steps is to grow.
#[must_use]
pub fn grows(state: &RunState) -> bool {
    state.plan.as_ref().is_some_and(|plan| Growth::of(state).is_some_and(|growth| growth.has_turns(plan)))
}

/// What the plan grows by, if it does.
#[must_use]
pub fn grow(state: &RunState, tools: &Registry) -> Vec<Arc<Step>> {
    let Some(plan) = &state.plan else { return vec![] };
    let Some(growth) = Growth::of(state).filter(|growth| growth.has_turns(plan)) else { return vec![] };
    let Growth { last, speaker: agent, next, calls } = growth;
    let mut steps = Vec::with_capacity(calls.len() + 1);
    let most = usize::try_from(agent.max_parallel.max(1)).unwrap_or(usize::MAX);
    for (place, call) in calls.into_iter().enumerate() {
        // So many at once: the others come after those before them.
        let after = place.checked_sub(most).map(|before| call_id(last, before + 1));
        let needs = after.or_else(|| Some(turn_id(last))).into_iter().collect();
        if let Some(to) = handoff(agent, &call.tool) {
            // It touches nothing: what the other agent wants is looked at by its own rules.
            let with = Map::from_iter([("agent".to_owned(), Value::from(to))]);
            steps.push(Arc::new(wanted(&call_id(last, place + 1), needs, AGENT_HANDOFF, with)));
            continue;
        }
        let wants = tools.wanted(&call.tool, &call.arguments);
        let (approval, gate) = (wants.terms(&agent.approval), Some(agent.gate(&wants)));
        let with = match call.arguments {
            Value::Object(fields) => fields,
            other => Map::from_iter([("arguments".to_owned(), other)]),
        };
        steps.push(Arc::new(Step { approval, gate, ..wanted(&call_id(last, place + 1), needs, &call.tool, with) }));
    }
    let needs = steps.iter().map(|step| step.id.clone()).collect();
    steps.push(Arc::new(turn(last + 1, next, needs)));
    steps
}

/// A call that a model wants: it hears what becomes of it, and may think of something else.
fn wanted(id: &str, needs: Vec<String>, uses: &str, with: Map<String, Value>) -> Step {
    Step { with, on_denied: Some(OnDenied::Skip), on_error: OnError::Continue, ..step(id, needs, uses) }
}

/// What the run comes to, once nothing more grows.
///
/// # Errors
/// Why it comes to nothing.
pub fn outcome(state: &RunState) -> Result<Arc<Value>, Failure> {
    if let Some(Growth { next, .. }) = Growth::of(state) {
        let message = format!("more was wanted after all {} turns of the agent `{}`", next.max_turns, next.agent);
        return Err(Failure::new("max_turns", message));
    }
    let last = state.plan.as_deref().map(last_turn).unwrap_or_default();
    let Some(said) = said(state, last) else {
        return Err(Failure::new("no_answer", "the agent's last turn gave no answer"));
    };
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
        approval::{self, Verdict},
        journal::{Ask, Budget, Command, Draft, Effect, Event, Hold, Intent, RunHead, decide},
        kernel::{Actor, ApprovalId, Id, Timestamp},
        llm::Message,
        run::scheduler::{self, Move},
        tool::Tool,
    };

    /// What becomes of a call.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Given,
        Failed,
        Denied,
        /// It is of a tool that only the other agent was given.
        Beyond,
        /// It hands the conversation over to the other agent.
        Handed,
    }

    const NOW: Timestamp = DateTime::UNIX_EPOCH;

    /// What is not known is taken for the worst.
    fn no_tools() -> Registry {
        Registry::new(Vec::<Arc<dyn Tool>>::new(), &Default::default()).unwrap()
    }

    struct Life {
        state: RunState,
        events: Vec<Event>,
        /// What each turn wants, and what becomes of it.
        script: Vec<Vec<Fate>>,
    }

    impl Life {
        fn begin(script: Vec<Vec<Fate>>, max_turns: u32, max_parallel: u32) -> Self {
            let state = RunState::new(Id::new(NOW), Id::new(NOW), Actor::System, OnDenied::Fail);
            let agent = |name: &str, other: &str| AgentPin {
                agent: format!("{name}@1"),
                description: Some("Acts.".to_owned()),
                config: "c@1".parse().unwrap(),
                fallback: vec![],
                instructions: format!("Be {name}."),
                tools: vec![format!("{name}.act")],
                missing: vec![],
                handoffs: vec![format!("{other}@1")],
                approval: vec![],
                max_turns,
                max_parallel,
                budget: Budget::default(),
                output: None,
                reasoning: false,
                longest_answer: 100,
                window: 100_000,
                rate: None,
            };
            let [first, second] = [agent("a", "b"), agent("b", "a")].map(Arc::new);
            let steps = vec![Arc::new(turn(1, &first, vec![]))];
            let plan = Plan { steps, agent: Some(first), agents: vec![second], ..Plan::default() };
            let mut life = Self { state, events: vec![], script };
            life.decide(Command::Open {
                goal: Some("g".to_owned()),
                workflow: None,
                parent: None,
                planner: None,
                budget: Budget::default(),
            });
            life.decide(Command::Draft(Draft::Ready { plan: Arc::new(plan), forecast: vec![] }));
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
            if let Verdict::Forbid(reason) = approval::verdict(&self.state, key, &intent) {
                let (step, error) = (key.clone(), Failure::new("forbidden", reason));
                return self.decide(Command::Fail { step, attempt: 1, error, jitter: 0.0 });
            }
            if step.approval.is_some() {
                let (step, approval_id) = (key.clone(), ApprovalId::new(NOW));
                self.decide(Command::Hold { step, intent: intent.clone(), approval_id, ask: Ask::Consent });
                let (by, reason) = (Actor::User("user_1".parse().unwrap()), Some("no".to_owned()));
                let approve = !matches!(fate, Fate::Denied);
                let decide =
                    Command::Decide { approval_id, approve, by, known_as: vec![], reason, instead: None, input: None };
                self.decide(decide);
                if !approve {
                    return;
                }
            }
            self.decide(Command::Start { step: key.clone(), intent, reserved: false, budget: None });
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
                        let steps = grow(&self.state, &no_tools());
                        self.decide(Command::Extend { steps });
                    }
                    Move::Finish => {
                        let output = outcome(&self.state).map(Some);
                        return self.decide(Command::Finish { output });
                    }
                    Move::Begin(key) => self.begin_step(&key),
                    other => panic!("{other:?}"),
                }
            }
        }

        fn begin_step(&mut self, key: &StepKey) {
            let step = self.state.step(key).unwrap();
            let speaker = self.state.agent_of(step).unwrap().agent.split_once('@').unwrap().0.to_owned();
            if let Some(n) = turn_of(step) {
                let other = if speaker == "a" { "b" } else { "a" };
                let wanted = self.script.get(n as usize - 1).into_iter().flatten().enumerate();
                let call = |(i, fate): (usize, &Fate)| {
                    let tool = match fate {
                        Fate::Handed => format!("handoff:{other}"),
                        Fate::Beyond => format!("{other}.act"),
                        _ => format!("{speaker}.act"),
                    };
                    json!({ "tool": tool, "arguments": { "i": i } })
                };
                let calls: Vec<_> = wanted.map(call).collect();
                let said = json!({ "text": format!("turn {n}"), "calls": calls, "stop": "done", "config": "c@1",
                    "usage": { "inputTokens": 1, "cachedTokens": 0, "outputTokens": 1 }, "provider": "p", "model": "m" });
                return self.make(key, Effect::Repeatable, Fate::Given, said);
            }
            let fate = fate(&self.script, key);
            let effect = if matches!(fate, Fate::Handed) { Effect::Pure } else { Effect::Once };
            self.make(key, effect, fate, json!({ "given": key.id }));
        }
    }

    /// What becomes of the call.
    fn fate(script: &[Vec<Fate>], key: &StepKey) -> Fate {
        let (turn, call) = key.id.strip_prefix("call-").unwrap().split_once('-').unwrap();
        let place = |text: &str| text.parse::<usize>().unwrap() - 1;
        script[place(turn)][place(call)]
    }

    /// Whose turns there are, and whether the last of them ends the run.
    fn speakers(script: &[Vec<Fate>], max_turns: u32) -> (Vec<&'static str>, bool) {
        let mut turns = vec!["a@1"];
        for wanted in script {
            let (speaker, hands) = (*turns.last().unwrap(), wanted.iter().any(|fate| matches!(fate, Fate::Handed)));
            let next = if hands { ["b@1", "a@1"][usize::from(speaker == "b@1")] } else { speaker };
            if turns.iter().filter(|agent| **agent == next).count() == max_turns as usize {
                return (turns, false);
            }
            turns.push(next);
        }
        (turns, true)
    }

    fn fates() -> impl Strategy<Value = Vec<Vec<Fate>>> {
        let fate = prop_oneof![
            Just(Fate::Given),
            Just(Fate::Failed),
            Just(Fate::Denied),
            Just(Fate::Beyond),
            Just(Fate::Handed)
        ];
        proptest::collection::vec(proptest::collection::vec(fate, 1..5), 0..7)
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
            let plan = state.plan.as_ref().unwrap();
            let (speakers, ends) = speakers(&script, max_turns);
            prop_assert_eq!(state.status().name(), if ends { "completed" } else { "failed" });
            let turns: Vec<_> = plan.steps.iter().filter(|step| turn_of(step).is_some()).collect();
            prop_assert_eq!(turns.iter().map(|turn| &*plan.speaker(turn).unwrap().agent).collect::<Vec<_>>(), speakers.clone());
            prop_assert!(speakers.len() <= 2 * max_turns as usize);
            // Nobody does what only the other was given.
            for (turn, wanted) in script.iter().enumerate().take(turns.len() - 1) {
                for (place, fate) in wanted.iter().enumerate() {
                    let key = StepKey::whole(&call_id(u32::try_from(turn).unwrap() + 1, place + 1));
                    let forbidden = matches!(state.stage(&key),
                        Some(Stage::Failed { error, .. }) if error.code == "forbidden");
                    prop_assert_eq!(forbidden, matches!(fate, Fate::Beyond), "{}", key);
                }
            }
            // What was lived is what its events give.
            let mut again = RunState::new(state.tenant_id, state.run_id, Actor::System, OnDenied::Fail);
            life.events.iter().for_each(|event| again.apply(NOW, event));
            prop_assert_eq!(&again, state);
            // Whatever became of a call, the model hears of it, and of each once.
            let last = u32::try_from(turns.len()).unwrap();
            let agent = plan.speaker(turns[turns.len() - 1]).unwrap();
            let said = conversation(state, &head(), agent, last, &no_tools());
            let system = said.prompt.system.unwrap();
            let told = if agent.agent == "a@1" { "Be a." } else { "Be b." };
            prop_assert!(system.starts_with(told), "{}", system);
            prop_assert_eq!(said.prompt.tools[0].name.as_str(), if agent.agent == "a@1" { "handoff_b" } else { "handoff_a" });
            let said = said.prompt.messages;
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
            let done = script.iter().take(turns.len() - 1).map(Vec::len).sum::<usize>();
            prop_assert_eq!(heard.len(), done);
            // Each call that acts was held by itself.
            prop_assert_eq!(state.holds.values().map(|Hold { step, .. }| step).collect::<std::collections::HashSet<_>>().len(),
                state.holds.len());
        }
    }
}
