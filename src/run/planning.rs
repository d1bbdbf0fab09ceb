//! How a run comes to a plan that a model makes: asked outside of any step, since there are none yet, and in as many drafts
//! as it takes. Every draft is journaled, so that none is asked for twice.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{
    budget::Room,
    call::{End, Ended},
    definition,
    forecast::Foresight,
    perform::Launch,
    turn::Turn,
};
use crate::{
    agent, approval,
    journal::{
        AGENT_TURN, Ask, Command, DRAFTS, Draft, Effect, Estimate, Failure, Intent, Plan, PlanRefused, Planner, Raise,
        Refusal, planning_key,
    },
    kernel::{ApprovalId, Error, Result, Timestamp},
    tool::{Handed, TurnOutput},
};

impl Turn {
    /// Has the model asked for the next draft.
    pub(super) async fn plan(&mut self, now: Timestamp) -> Result<(), Refusal> {
        let Some(planner) = self.state.planner.clone() else { return Err(Refusal::Stale) };
        let attempt = self.state.next_draft();
        let conversation = agent::question(&planner, &self.head, &self.state.refused, &self.tools);
        let Some(slot) = self.slot.take().or_else(|| self.shared.try_slot(self.state.tenant_id)) else {
            self.starved = true;
            return Ok(());
        };
        let asked = conversation.prompt.most_tokens(&planner.config.reference());
        let call = Estimate::of_question(planner.rate, asked, planner.longest_answer);
        let arguments = match conversation.digest() {
            Ok(arguments) => Arc::new(arguments),
            Err(failure) => return self.decide(Command::Draft(Draft::Failed(failure)), now),
        };
        match self.room_for((&planning_key(), attempt), call, now).await {
            Room::There { .. } => {}
            Room::Lacks(raise) => return self.decide(self.short_of(raise, arguments), now),
            Room::Later => return Ok(()),
        }
        let timeout = self.tools.tool(AGENT_TURN).map(|tool| tool.timeout()).unwrap_or_default();
        self.prepare(Launch {
            step: planning_key(),
            attempt,
            tool: AGENT_TURN.to_owned(),
            arguments,
            handed: Handed::Conversation(Arc::new(conversation)),
            timeout,
            budget: None,
            at_once: false,
            slot,
        });
        Ok(())
    }

    /// The question whether the budget is raised for a draft, that has these arguments.
    fn short_of(&self, raise: Raise, arguments: Arc<Value>) -> Command {
        let (key, approval_id) = (planning_key(), ApprovalId::new(self.shared.clock.now()));
        let tool_version = self.tools.tool(AGENT_TURN).map(|tool| tool.version().to_owned()).unwrap_or_default();
        let call = (AGENT_TURN, tool_version.as_str());
        match approval::digest(&self.state, &key, self.state.next_draft(), call, &arguments) {
            Ok(digest) => {
                let effect = Effect::Repeatable;
                let intent = Intent { tool: AGENT_TURN.to_owned(), tool_version, effect, arguments, digest };
                Command::Hold { step: key, intent, approval_id, ask: Ask::Raise(raise) }
            }
            Err(error) => Command::Draft(Draft::Failed(Failure::new("internal", error.detail()))),
        }
    }

    /// The same for one that had to stop for want of it.
    fn drafting_stopped(&mut self) -> Option<Command> {
        let raise = self.short.remove(&planning_key())?;
        let planner = self.state.planner.as_ref()?;
        let question = agent::question(planner, &self.head, &self.state.refused, &self.tools);
        Some(self.short_of(raise, Arc::new(question.digest().ok()?)))
    }

    /// What came of it, as commands; none where it is to be asked again.
    pub(super) fn drafted(&mut self, ended: &Ended) -> Vec<Command> {
        let said = match &ended.end {
            End::Done { output, .. } => TurnOutput::deserialize(&**output).map_err(|error| error.to_string()),
            End::Failed(error) => {
                let failed = || Command::Draft(Draft::Failed(error.clone()));
                return vec![self.drafting_stopped().unwrap_or_else(failed)];
            }
            End::Wait(_) | End::Ask(_) | End::Unknown => return vec![],
        };
        let drafts = match said {
            Ok(said) => self.judge(agent::handed_in(said), ended.attempt),
            Err(reason) => vec![Draft::Failed(Failure::new("plan_invalid", reason))],
        };
        drafts.into_iter().map(Command::Draft).collect()
    }

    /// A plan that was drawn up stays at the models of now, and is forecast.
    pub(super) async fn pin_drafts(&mut self, now: Timestamp) -> Result<()> {
        for command in &mut self.heard {
            if let Command::Draft(Draft::Ready { plan, forecast }) = command {
                let tenant = self.state.tenant_id;
                *plan = Arc::new(self.shared.children.pin(tenant, plan, &self.head.input).await?);
                let day = self.shared.days.left(tenant, now).await?;
                let left = self.state.left(Estimate::default(), Estimate::default(), now);
                *forecast =
                    Foresight::of(&self.tools, tenant, (plan, &self.head.input), day).await.announce(plan, left);
            }
        }
        Ok(())
    }

    fn judge(&self, mut handed: PlanRefused, attempt: u32) -> Vec<Draft> {
        if let (Some(planner), Some(drawn), true) = (&self.state.planner, &handed.plan, handed.mistakes.is_empty()) {
            match self.check(planner, drawn) {
                Ok(plan) => {
                    return vec![Draft::Ready { plan: Arc::new(plan), forecast: vec![] }];
                }
                Err(mistakes) => handed.mistakes = mistakes,
            }
        }
        let handed = agent::brief(handed, self.tools.limits().payload());
        let drafts = usize::try_from(attempt).unwrap_or(usize::MAX);
        let message = format!("no plan in {DRAFTS} drafts: {}", handed.mistakes.join("; "));
        let failed = (drafts >= DRAFTS).then(|| Draft::Failed(Failure::new("plan_invalid", message)));
        [Draft::Refused(handed)].into_iter().chain(failed).collect()
    }

    /// The plan, checked as any that a person writes, and held where it acts.
    fn check(&self, planner: &Planner, drawn: &Value) -> Result<Plan, Vec<String>> {
        let plan = definition::check_plan(drawn, &self.tools).map_err(|error| mistakes(&error))?;
        match agent::beyond(planner, &plan) {
            none if none.is_empty() => Ok(agent::guarded(planner, plan, &self.tools)),
            beyond => Err(beyond),
        }
    }
}

/// What is wrong with a plan, a line each.
fn mistakes(error: &Error) -> Vec<String> {
    let named = error.members().get("errors").cloned().unwrap_or_default();
    let named: Vec<definition::Mistake> = serde_json::from_value(named).unwrap_or_default();
    if named.is_empty() {
        return vec![error.detail().to_owned()];
    }
    named.iter().map(definition::Mistake::sentence).collect()
}
