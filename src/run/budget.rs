//! Whether there is room for a call: in its run's budget, and in that of its tenant's day.

use chrono::TimeDelta;

use super::turn::Turn;
use crate::{
    journal::{Estimate, Intent, Raise, Stage, Step, StepKey, turn_of},
    kernel::{Result, Timestamp},
    usage::Share,
};

/// What the budgets say of a call.
pub(super) enum Room {
    /// There is.
    There {
        /// What it is expected to take is reserved in its tenant's day.
        reserved: bool,
    },
    /// There is not, unless one of them is raised.
    Lacks(Raise),
    /// Nobody knows while the database is away.
    Unknown,
}

impl Turn {
    /// Looks for room, and takes it.
    pub(super) async fn room(&mut self, step: &Step, key: &StepKey, intent: &Intent, now: Timestamp) -> Room {
        let room = self.try_room(step, key, intent, now).await;
        self.or_unknown(room, now)
    }

    /// The same for an attempt of which it is known what it takes.
    pub(super) async fn room_for(&mut self, attempt: (&StepKey, u32), call: Estimate, now: Timestamp) -> Room {
        let room = self.reserve(attempt, call, now).await;
        self.or_unknown(room, now)
    }

    fn or_unknown(&mut self, room: Result<Room>, now: Timestamp) -> Room {
        room.unwrap_or_else(|error| {
            tracing::warn!(?error, run = %self.state.run_id, "a budget could not be asked");
            self.again_at = now.checked_add_signed(TimeDelta::seconds(1));
            Room::Unknown
        })
    }

    async fn try_room(&mut self, step: &Step, key: &StepKey, intent: &Intent, now: Timestamp) -> Result<Room> {
        let no_day = self.shared.days.budget(self.state.tenant_id, now).await?.is_none();
        if no_day && self.state.purse.budget.is_empty() {
            return Ok(Room::There { reserved: false });
        }
        let call = self.expects(step, key, intent).await;
        self.estimates.insert(key.clone(), call);
        // What was under way when a process died has its room.
        if matches!(self.state.stage(key), Some(Stage::Running { .. })) {
            return Ok(Room::There { reserved: false });
        }
        self.reserve((key, self.state.next_attempt(key)), call, now).await
    }

    async fn reserve(&self, attempt: (&StepKey, u32), call: Estimate, now: Timestamp) -> Result<Room> {
        if let Some(raise) = self.state.lacks(call, self.out(attempt.0), now) {
            return Ok(Room::Lacks(raise));
        }
        Ok(match self.shared.days.reserve(self.run_key(), attempt, &call, now).await? {
            Share::Lacks(raise) => Room::Lacks(raise),
            share => Room::There { reserved: share == Share::Reserved },
        })
    }

    /// What a call is expected to take: by what the tool can tell and, of money, what whoever approves is told.
    async fn expects(&self, step: &Step, key: &StepKey, intent: &Intent) -> Estimate {
        if turn_of(step).is_some() {
            let turn = self.conversation(step).zip(self.state.agent_of(step));
            return turn.map(|(turn, agent)| agent.turn(turn.prompt.tokens())).unwrap_or_default();
        }
        let told = match self.tools.tool(&intent.tool) {
            Ok(tool) => tool.expects(self.state.tenant_id, &intent.arguments).await,
            Err(_) => Estimate::default(),
        };
        Estimate { cost: told.cost.max(self.terms_cost(key)), tool_calls: 1, ..told }
    }

    /// What the other calls that are out are expected to take: they have not said yet.
    fn out(&self, key: &StepKey) -> Estimate {
        let out = self.state.open_steps().filter(|(other, step)| {
            *other != key && matches!(step.stage, Stage::Running { .. } | Stage::Waiting { .. })
        });
        let estimates = out.map(|(other, _)| {
            // Those that another process began and left waiting.
            let left = || Estimate { cost: self.terms_cost(other), ..Estimate::default() };
            self.estimates.get(other).copied().unwrap_or_else(left)
        });
        estimates.fold(Estimate::default(), |sum, one| sum + one)
    }

    fn terms_cost(&self, key: &StepKey) -> f64 {
        let own = || self.tools.terms(&self.state.step(key)?.uses)?.cost;
        self.state.terms(key).and_then(|terms| terms.cost).or_else(own).unwrap_or_default()
    }
}
