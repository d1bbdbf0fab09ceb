//! Whether there is room for a call: in its run's budget, and in that of its tenant's day.

use std::sync::Arc;

use chrono::TimeDelta;
use tokio::sync::oneshot;

use super::turn::Turn;
use crate::{
    journal::{Ask, Budget, Command, Estimate, Intent, Raise, Stage, Step, StepKey, turn_of},
    kernel::{ApprovalId, Result, Timestamp},
    usage::Share,
};

/// A call that will take more than it was expected to.
pub(super) struct Want {
    pub(super) step: StepKey,
    pub(super) attempt: u32,
    pub(super) total: Estimate,
    pub(super) granted: oneshot::Sender<bool>,
}

/// What the budgets say of a call.
pub(super) enum Room {
    /// There is.
    There {
        /// What it is expected to take is reserved in its tenant's day.
        reserved: bool,
        /// What the run that it starts may take of this one's budget.
        lent: Option<Budget>,
    },
    /// There is not, unless one of them is raised.
    Lacks(Raise),
    /// Nobody knows before child runs give back what they do not take, or while the database is away.
    Later,
}

impl Turn {
    /// Looks for room, and takes it.
    pub(super) async fn room(&mut self, step: &Step, key: &StepKey, intent: &Intent, now: Timestamp) -> Room {
        let room = self.try_room(step, key, intent, now).await;
        self.or_later(room, now)
    }

    /// The same for an attempt of which it is known what it takes.
    pub(super) async fn room_for(&mut self, attempt: (&StepKey, u32), call: Estimate, now: Timestamp) -> Room {
        let room = self.reserve(attempt, call, None, now).await;
        let is_bounded = !self.state.purse.budget.is_empty() || matches!(room, Ok(Room::There { reserved: true, .. }));
        self.estimates.extend(is_bounded.then(|| (attempt.0.clone(), call)));
        self.or_later(room, now)
    }

    fn or_later(&mut self, room: Result<Room>, now: Timestamp) -> Room {
        room.unwrap_or_else(|error| {
            tracing::warn!(?error, run = %self.state.run_id, "a budget could not be asked");
            self.again_at = now.checked_add_signed(TimeDelta::seconds(1));
            Room::Later
        })
    }

    async fn try_room(&mut self, step: &Step, key: &StepKey, intent: &Intent, now: Timestamp) -> Result<Room> {
        let no_day = self.shared.days.budget(self.state.tenant_id, now).await?.is_none();
        if no_day && self.state.purse.budget.is_empty() {
            return Ok(Room::There { reserved: false, lent: None });
        }
        let call = self.expects(step, key, intent).await;
        self.estimates.insert(key.clone(), call);
        // What was under way when a process died has its room.
        if matches!(self.state.stage(key), Some(Stage::Running { .. })) {
            return Ok(Room::There { reserved: false, lent: self.state.purse.lent_to(key) });
        }
        let starts = self.tools.tool(&intent.tool).ok().and_then(|tool| tool.starts(&intent.arguments));
        self.reserve((key, self.state.next_attempt(key)), call, starts, now).await
    }

    /// Reserves what a call takes; where it starts a run, all that is left of this one's budget, or what it asks for, is
    /// that one's until it ends.
    async fn reserve(
        &self,
        attempt: (&StepKey, u32),
        call: Estimate,
        starts: Option<Budget>,
        now: Timestamp,
    ) -> Result<Room> {
        let (out, lent) = (self.out(attempt.0), self.state.purse.lent_besides(attempt.0));
        if let Some(raise) = self.state.lacks(call, out + lent, now) {
            let comes_back = self.state.lacks(call, out, now).is_none();
            return Ok(if comes_back { Room::Later } else { Room::Lacks(raise) });
        }
        let is_bounded = !self.state.purse.budget.is_empty();
        let given = starts.filter(|_| is_bounded).map(|it| it.within(self.state.left(call, out + lent, now)));
        if given.is_some_and(|given| given.is_used_up()) && lent != Estimate::default() {
            return Ok(Room::Later);
        }
        Ok(match self.shared.days.reserve(self.run_key(), attempt, &call, false, now).await? {
            Share::Lacks(raise) => Room::Lacks(raise),
            share => Room::There { reserved: share == Share::Reserved, lent: given },
        })
    }

    /// Says to the calls that wait for it whether there is room for more than they were expected to take.
    ///
    /// # Errors
    /// When a budget cannot be asked now; whoever waits goes on waiting.
    pub(super) async fn grant(&mut self, now: Timestamp) -> Result<()> {
        while let Some(want) = self.wants.pop() {
            let room = match self.estimates.get(&want.step).copied() {
                // Nothing bounds it.
                None => Ok(true),
                Some(had) => self.widen((&want.step, want.attempt), had, want.total, now).await,
            };
            match room {
                // It may have been called off meanwhile.
                Ok(room) => drop(want.granted.send(room)),
                Err(error) => {
                    self.wants.push(want);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn widen(
        &mut self,
        attempt: (&StepKey, u32),
        had: Estimate,
        total: Estimate,
        now: Timestamp,
    ) -> Result<bool> {
        // That it is a call is counted.
        let total = Estimate { tool_calls: 0, ..total.most(had) };
        if total.is_within(had) {
            return Ok(true);
        }
        let out = self.out(attempt.0) + self.state.purse.lent_besides(attempt.0);
        let lacks = match self.state.lacks(total, out, now) {
            Some(raise) => Some(raise),
            None => {
                let total = Estimate { tool_calls: had.tool_calls, ..total };
                match self.shared.days.reserve(self.run_key(), attempt, &total, true, now).await? {
                    Share::Lacks(raise) => Some(raise),
                    Share::Reserved | Share::Unbounded => None,
                }
            }
        };
        match lacks {
            Some(raise) => drop(self.short.insert(attempt.0.clone(), raise)),
            None => drop(self.estimates.insert(attempt.0.clone(), Estimate { tool_calls: had.tool_calls, ..total })),
        }
        Ok(lacks.is_none())
    }

    /// The question whether the budget is raised for a call that had to stop for want of it.
    pub(super) fn lacking(&mut self, key: &StepKey) -> Option<Command> {
        let raise = self.short.remove(key)?;
        let Some(Stage::Running { arguments, .. }) = self.state.stage(key) else { return None };
        let (step, arguments) = (self.state.step(key)?.clone(), Arc::clone(arguments));
        let intent = self.intent(&step, key, arguments).ok()?;
        let approval_id = ApprovalId::new(self.shared.clock.now());
        Some(Command::Hold { step: key.clone(), intent, approval_id, ask: Ask::Raise(raise) })
    }

    /// What a call is expected to take: by what the tool can tell and, of money, what whoever approves is told.
    async fn expects(&self, step: &Step, key: &StepKey, intent: &Intent) -> Estimate {
        if turn_of(step).is_some() {
            let turn = self.conversation(step).zip(self.state.agent_of(step));
            return turn
                .map(|(turn, agent)| agent.turn(turn.prompt.most_tokens(&agent.config.reference())))
                .unwrap_or_default();
        }
        let told = match self.tools.tool(&intent.tool) {
            Ok(tool) => tool.expects(self.state.tenant_id, &intent.arguments, self.models().as_deref()).await,
            Err(_) => Estimate::default(),
        };
        Estimate { cost: told.cost.max(self.terms_cost(key)), tool_calls: 1, ..told }
    }

    /// What the other calls that are out are expected to take: they have not said yet. That they are calls is counted.
    fn out(&self, key: &StepKey) -> Estimate {
        let out = self.state.open_steps().filter(|(other, step)| {
            *other != key && matches!(step.stage, Stage::Running { .. } | Stage::Waiting { .. })
        });
        let estimates = out.map(|(other, _)| {
            // Those that another process began and left waiting.
            let left = || Estimate { cost: self.terms_cost(other), ..Estimate::default() };
            self.estimates.get(other).copied().unwrap_or_else(left)
        });
        Estimate { tool_calls: 0, ..estimates.fold(Estimate::default(), |sum, one| sum + one) }
    }

    fn terms_cost(&self, key: &StepKey) -> f64 {
        let own = || self.tools.terms(&self.state.step(key)?.uses)?.cost;
        self.state.terms(key).and_then(|terms| terms.cost).or_else(own).unwrap_or_default()
    }
}
