//! How a run comes to its plan: it is brought along, or a model makes it, in as many drafts as it takes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    AgentPin, Event, Executing, Failed, Failure, Phase, Plan, Refusal, Report, RunState, TurnRate,
    agent::usual_window,
    plan::{Forecast, StepKey},
};
use crate::kernel::{Actor, Pinned};

/// What a call that makes a plan goes by, where steps have their ids.
pub const PLANNING: &str = "planning";

/// The most drafts that a model may make.
pub const DRAFTS: usize = 4;

/// Payload of `planning`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Planning {
    /// Who makes the plan, where it is a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planner: Option<Planner>,
}

/// A model that makes a plan, as it was when the run was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Planner {
    /// The model configuration, as `name@version`; what the server brings along with its provider and model.
    #[schema(value_type = String, example = "default-smart@0=openai/gpt-5.4")]
    pub config: Pinned,
    /// Those to fall back on, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub fallback: Vec<Pinned>,
    /// What a draft is expected to cost; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<TurnRate>,
    /// The most tokens of a draft.
    pub longest_answer: u32,
    /// The most tokens of a question.
    #[serde(default = "usual_window")]
    pub window: u32,
    /// Whether the run begins as soon as the plan stands.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub execute: bool,
    /// The agent that it plans as: with its instructions and tools, and held by its rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<AgentPin>)]
    pub agent: Option<Arc<AgentPin>>,
}

impl Planner {
    /// The model of an agent, planning as that.
    #[must_use]
    pub fn of(agent: AgentPin) -> Self {
        Self {
            config: agent.config.clone(),
            fallback: agent.fallback.clone(),
            rate: agent.rate,
            longest_answer: agent.longest_answer,
            window: agent.window,
            execute: false,
            agent: Some(Arc::new(agent)),
        }
    }
}

/// Payload of `plan.refused`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanRefused {
    /// What the model said.
    pub text: String,
    /// The plan that it drew up, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub plan: Option<Value>,
    /// What the provider wants to see again with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signatures: Option<Vec<String>>,
    /// Why it will not do, as the model is told.
    pub mistakes: Vec<String>,
}

/// Payload of `plan.ready`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanReady {
    /// The steps to come.
    #[schema(value_type = Plan)]
    pub plan: Arc<Plan>,
    /// What would become of each step, as things stand; absent where the run begins at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forecast: Vec<Forecast>,
    /// Who put it in the place of the plan before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited_by: Option<Actor>,
}

/// What happens to a run that has no plan, or one that has not begun.
#[derive(Clone, Debug, PartialEq)]
pub enum Draft {
    /// The plan.
    Ready {
        /// The steps.
        plan: Arc<Plan>,
        /// What would become of them.
        forecast: Vec<Forecast>,
    },
    /// Another plan in its place.
    Edited {
        /// The steps.
        plan: Arc<Plan>,
        /// What would become of them.
        forecast: Vec<Forecast>,
        /// Who says so.
        by: Actor,
    },
    /// What a model drew up will not do.
    Refused(PlanRefused),
    /// Something is said by the model that makes it.
    Told(Report),
    /// There will be none.
    Failed(Failure),
}

/// What follows from a draft.
pub(super) fn draft(state: &RunState, draft: Draft) -> Result<Vec<Event>, Refusal> {
    let planned = match (&state.phase, &state.plan) {
        (Phase::Planning, plan) => plan.as_ref(),
        _ => return Err(Refusal::Status(state.status())),
    };
    let by_model = state.planner.is_some() && planned.is_none();
    // What it took is told all the same.
    if state.cancelling.is_some() && !matches!(draft, Draft::Told(_)) {
        return Err(Refusal::Stale);
    }
    match draft {
        Draft::Ready { plan, forecast } if planned.is_none() => {
            let ready = Event::run(PlanReady { plan, forecast, edited_by: None });
            let by = state.created_by.clone();
            let goes = state.planner.as_ref().is_some_and(|planner| planner.execute);
            let begins = goes.then(|| Event::run(Executing { by, retried: vec![] }));
            Ok([ready].into_iter().chain(begins).collect())
        }
        // An agent's plan is its first turn: what it comes to is for the model to say.
        Draft::Edited { plan, forecast, by } if planned.is_some_and(|plan| plan.agent.is_none()) => {
            Ok(vec![Event::run(PlanReady { plan, forecast, edited_by: Some(by) })])
        }
        Draft::Refused(refused) if by_model && state.refused.len() < DRAFTS => Ok(vec![Event::run(refused)]),
        Draft::Told(report) if by_model => Ok(vec![Event::run(report)]),
        Draft::Failed(error) if by_model => Ok(vec![Event::run(Failed { error })]),
        Draft::Ready { .. } | Draft::Edited { .. } | Draft::Refused(_) | Draft::Told(_) | Draft::Failed(_) => {
            Err(Refusal::Status(state.status()))
        }
    }
}

impl RunState {
    /// The number of the draft that is asked for next, from 1.
    #[must_use]
    pub fn next_draft(&self) -> u32 {
        u32::try_from(self.refused.len()).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// The key of the call that makes a plan.
#[must_use]
pub fn planning_key() -> StepKey {
    StepKey::whole(PLANNING)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{
        journal::{Ask, Cap, Command, Effect, Intent, OnDenied, Raise, Status, decide},
        kernel::{Id, Timestamp},
    };

    const NOW: Timestamp = DateTime::UNIX_EPOCH;

    struct Life(RunState);

    impl Life {
        /// A run for which a model plans, or that brings its plan along.
        fn begin(planner: Option<bool>) -> Self {
            let planner = planner.map(|execute| Planner {
                config: "c@1".parse().unwrap(),
                fallback: vec![],
                rate: None,
                longest_answer: 1,
                window: 1000,
                execute,
                agent: None,
            });
            let state = RunState::new(Id::new(NOW), Id::new(NOW), Actor::System, OnDenied::Fail);
            let mut life = Self(state);
            let goal = Some("g".to_owned());
            life.decide(Command::Open { goal, workflow: None, parent: None, planner, budget: Default::default() })
                .unwrap();
            life
        }

        fn decide(&mut self, command: Command) -> Result<(), Refusal> {
            for event in decide(&self.0, command, NOW)? {
                self.0.apply(NOW, &event);
            }
            Ok(())
        }

        fn draft(&mut self, draft: Draft) -> Result<(), Refusal> {
            self.decide(Command::Draft(draft))
        }
    }

    fn ready() -> Draft {
        Draft::Ready { plan: Arc::new(Plan::default()), forecast: vec![] }
    }

    fn refused() -> Draft {
        Draft::Refused(PlanRefused { text: "t".to_owned(), plan: None, signatures: None, mistakes: vec![] })
    }

    fn failed() -> Draft {
        Draft::Failed(Failure::new("plan_invalid", "no"))
    }

    fn said(cost: f64) -> Draft {
        let message = serde_json::from_value(serde_json::json!({ "reply": 1, "textBytes": 1, "config": "c@1",
            "provider": "p", "model": "m", "inputTokens": 1, "cachedTokens": 0, "outputTokens": 1, "cost": cost }));
        Draft::Told(Report::Message(message.unwrap()))
    }

    fn edited() -> Draft {
        Draft::Edited { plan: Arc::new(Plan::default()), forecast: vec![], by: Actor::System }
    }

    #[test]
    fn a_model_has_so_many_drafts_and_a_retry_gives_it_as_many_again() {
        let mut life = Life::begin(Some(false));
        for _ in 0..DRAFTS {
            life.draft(refused()).unwrap();
        }
        assert!(life.draft(refused()).is_err());
        life.draft(failed()).unwrap();
        assert_eq!(life.0.status(), Status::Failed);
        assert!(life.draft(ready()).is_err(), "what has ended gets no plan");
        life.decide(Command::Retry { by: Actor::System }).unwrap();
        assert_eq!((life.0.status(), life.0.refused.len()), (Status::Planning, 0));
        life.draft(ready()).unwrap();
        assert!(life.0.is_planned());
    }

    #[test]
    fn a_plan_begins_at_once_only_where_that_was_said() {
        for (execute, status) in [(false, Status::Planning), (true, Status::Executing)] {
            let mut life = Life::begin(Some(execute));
            assert!(life.decide(Command::Execute { by: Actor::System }).is_err(), "there is nothing to begin with");
            life.draft(ready()).unwrap();
            assert_eq!(life.0.status(), status);
        }
    }

    #[test]
    fn only_what_stands_and_has_not_begun_is_edited() {
        let mut life = Life::begin(Some(false));
        assert!(life.draft(edited()).is_err());
        life.draft(ready()).unwrap();
        life.draft(edited()).unwrap();
        assert!(life.draft(ready()).is_err() && life.draft(refused()).is_err() && life.draft(failed()).is_err());
        life.decide(Command::Execute { by: Actor::System }).unwrap();
        assert!(life.draft(edited()).is_err());
    }

    #[test]
    fn nothing_is_drafted_where_no_model_plans() {
        let mut life = Life::begin(None);
        let said = Draft::Told(crate::journal::ToolProgress { message: None, fraction: None, data: None }.into());
        assert!(life.draft(refused()).is_err() && life.draft(failed()).is_err() && life.draft(said).is_err());
        life.draft(ready()).unwrap();
        assert!(life.0.is_planned());
    }

    #[test]
    fn what_a_model_says_of_the_plan_counts_in_the_cost() {
        let mut life = Life::begin(Some(false));
        life.draft(said(0.25)).unwrap();
        assert!((life.0.cost - 0.25).abs() < f64::EPSILON);
    }

    #[test]
    fn a_run_that_is_cancelled_while_a_model_may_be_at_its_plan_first_hears_what_that_took() {
        let cancel = || Command::Cancel { by: Actor::System, reason: None };
        let finish = || Command::Finish { output: Ok(None) };
        let mut life = Life::begin(Some(true));
        life.decide(finish()).unwrap_err();
        life.decide(cancel()).unwrap();
        assert_eq!(life.0.status(), Status::Planning);
        assert_eq!(life.decide(cancel()), Err(Refusal::AlreadySo));
        assert!(life.draft(ready()).is_err() && life.draft(refused()).is_err() && life.draft(failed()).is_err());
        life.draft(said(0.5)).unwrap();
        life.decide(finish()).unwrap();
        assert_eq!((life.0.status(), life.0.cost), (Status::Cancelled, 0.5));
        // A plan that stands waits for nobody.
        let mut life = Life::begin(Some(false));
        life.draft(ready()).unwrap();
        life.decide(cancel()).unwrap();
        assert_eq!(life.0.status(), Status::Cancelled);
    }

    #[test]
    fn a_draft_that_there_is_no_money_for_waits_for_a_word() {
        let hold = |key: StepKey, ask: Ask| Command::Hold {
            step: key,
            intent: Intent {
                tool: "agent.turn".to_owned(),
                tool_version: "1".to_owned(),
                effect: Effect::Repeatable,
                arguments: Arc::new(Value::Null),
                digest: "d".to_owned(),
            },
            approval_id: Id::new(NOW),
            ask,
        };
        let raise = || Ask::Raise(Raise { cap: Cap::Cost, by: 1.0, day: None });
        let decide = |life: &Life, approve| {
            let (approval_id, _) = life.0.open_holds().next().unwrap();
            let by: Actor = "user_b".parse().unwrap();
            Command::Decide { approval_id, approve, by, known_as: vec![], reason: None, instead: None, input: None }
        };
        let mut life = Life::begin(Some(false));
        life.draft(refused()).unwrap();
        life.decide(hold(planning_key(), Ask::Consent)).unwrap_err();
        life.decide(hold(StepKey::whole("other"), raise())).unwrap_err();
        life.decide(hold(planning_key(), raise())).unwrap();
        assert_eq!((life.0.status(), life.0.next_draft()), (Status::AwaitingApproval, 2));
        life.decide(hold(planning_key(), raise())).unwrap_err();
        life.decide(decide(&life, true)).unwrap();
        assert_eq!(life.0.status(), Status::Planning);
        // It may be short again, and then somebody says no.
        life.decide(hold(planning_key(), raise())).unwrap();
        life.decide(decide(&life, false)).unwrap();
        assert_eq!(life.0.status(), Status::Failed);
        life.decide(Command::Retry { by: Actor::System }).unwrap();
        assert_eq!((life.0.status(), life.0.next_draft()), (Status::Planning, 1));
        life.draft(ready()).unwrap();
        assert!(life.0.steps.is_empty(), "what was asked about the drafts is over");
        Life::begin(None).decide(hold(planning_key(), raise())).unwrap_err();
    }
}
