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
    agent,
    journal::{AGENT_TURN, Command, DRAFTS, Draft, Estimate, Failure, Plan, PlanRefused, Refusal, planning_key},
    kernel::{Error, Result, Timestamp},
    tool::{Handed, TurnOutput},
};

impl Turn {
    /// Has the model asked for the next draft.
    pub(super) async fn plan(&mut self, now: Timestamp) -> Result<(), Refusal> {
        let Some(planner) = self.state.planner.clone() else { return Err(Refusal::Stale) };
        let conversation = agent::question(&planner, &self.head, &self.state.refused, &self.tools);
        let Some(slot) = self.slot.take().or_else(|| self.shared.try_slot(self.state.tenant_id)) else {
            self.starved = true;
            return Ok(());
        };
        let attempt = u32::try_from(self.state.refused.len()).unwrap_or(u32::MAX).saturating_add(1);
        let asked = conversation.prompt.tokens();
        let call = Estimate::of_question(planner.rate, asked, planner.longest_answer);
        let arguments = match conversation.digest() {
            Ok(arguments) => Arc::new(arguments),
            Err(failure) => return self.decide(Command::Draft(Draft::Failed(failure)), now),
        };
        let failed = match self.room_for((&planning_key(), attempt), call, now).await {
            Room::There { .. } => None,
            Room::Lacks(raise) => Some(Failure::new("budget_exceeded", raise.lack())),
            Room::Later => return Ok(()),
        };
        if let Some(failure) = failed {
            return self.decide(Command::Draft(Draft::Failed(failure)), now);
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

    /// What came of it, as commands; none where it is to be asked again.
    pub(super) fn drafted(&self, ended: &Ended) -> Vec<Command> {
        let said = match &ended.end {
            End::Done { output, .. } => TurnOutput::deserialize(&**output).map_err(|error| error.to_string()),
            End::Failed(error) => return vec![Command::Draft(Draft::Failed(error.clone()))],
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
                *forecast = Foresight::of(&self.tools, tenant, plan, day).await.forecast(&plan.steps, left);
            }
        }
        Ok(())
    }

    fn judge(&self, mut handed: PlanRefused, attempt: u32) -> Vec<Draft> {
        if let (Some(drawn), true) = (&handed.plan, handed.mistakes.is_empty()) {
            match self.check(drawn) {
                Ok(plan) => {
                    return vec![Draft::Ready { plan: Arc::new(plan), forecast: vec![] }];
                }
                Err(mistakes) => handed.mistakes = mistakes,
            }
        }
        let drafts = usize::try_from(attempt).unwrap_or(usize::MAX);
        let message = format!("no plan in {DRAFTS} drafts: {}", handed.mistakes.join("; "));
        let failed = (drafts >= DRAFTS).then(|| Draft::Failed(Failure::new("plan_invalid", message)));
        [Draft::Refused(handed)].into_iter().chain(failed).collect()
    }

    /// The plan, checked as any that a person writes, and held where it acts.
    fn check(&self, drawn: &Value) -> Result<Plan, Vec<String>> {
        let plan = definition::check_plan(drawn, &self.tools).map_err(|error| mistakes(&error))?;
        Ok(agent::guarded(plan, &self.tools))
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
