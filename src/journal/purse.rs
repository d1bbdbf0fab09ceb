//! What a run has taken of its budget, what of it the runs that it started may take meanwhile, and what it lacks for a call.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AGENT_TURN, Body, Budget, Cap, Estimate, MessageCompleted, Raise, RunState, StepCompleted, StepKey, StepStarted,
    as_f64,
};
use crate::kernel::{Span, Timestamp};

/// Of fractions the last bits may be missing: less than this of money is nothing.
const NOTHING: f64 = 1e-9;

/// The budget of a run, and what has been taken of it besides money.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Purse {
    /// What it may take.
    pub budget: Budget,
    /// By how much each cap has been raised, in the order of [`Cap::ALL`].
    raised: [f64; 4],
    tokens: u64,
    tool_calls: u64,
    /// How long it was carried out, and since when it is.
    carried_out: TimeDelta,
    since: Option<Timestamp>,
    /// Whether anything was ever reserved for it in its tenant's day.
    pub(super) reserves: bool,
    /// What child runs may take of it until they end, by the steps that started them.
    lent: BTreeMap<StepKey, Budget>,
    /// Money that child runs may take which nobody waits for: it does not come back.
    given: f64,
}

/// What a run took, for the budget of the one that started it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Taken {
    /// Money.
    pub cost: f64,
    /// Tokens, asked and said.
    pub tokens: u64,
    /// Calls of tools.
    pub tool_calls: u64,
    /// Money that runs may still take which it started and did not wait for.
    #[serde(skip_serializing_if = "is_nothing")]
    pub given: f64,
    /// By how much people raised its own budget.
    #[serde(skip_serializing_if = "Budget::is_empty")]
    pub raised: Budget,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_nothing(money: &f64) -> bool {
    *money == 0.0
}

impl Purse {
    /// Takes note of what a step comes to.
    pub(super) fn note(&mut self, key: &StepKey, body: &Body) {
        match body {
            Body::StepStarted(started) => self.start(key, started),
            Body::StepCompleted(completed) => self.complete(key, completed),
            Body::StepFailed(failed) => self.come_back(key, &failed.taken.unwrap_or_default()),
            // Nothing was started after all.
            Body::StepRetrying(_) | Body::StepSkipped(_) => self.come_back(key, &Taken::default()),
            _ => {}
        }
    }

    fn start(&mut self, key: &StepKey, started: &StepStarted) {
        // A repetition is the same call.
        self.tool_calls += u64::from(started.tool != AGENT_TURN && !started.repeated);
        self.reserves |= started.reserved;
        self.lent.extend(started.budget.map(|budget| (key.clone(), budget)));
    }

    /// A step has ended: its child run gives back what it did not take, unless that goes on by itself.
    fn complete(&mut self, key: &StepKey, completed: &StepCompleted) {
        if let Some(taken) = &completed.taken {
            return self.come_back(key, taken);
        }
        if let Some(lent) = self.lent.remove(key) {
            let Estimate { cost, tokens, tool_calls } = lent.into();
            self.given += cost;
            self.tokens += tokens;
            self.tool_calls += tool_calls;
        }
    }

    /// What the child run of a step took is taken, and the rest of what it might have is there again. What it took beyond
    /// that because people raised its budget, they have allowed: nobody is asked for it twice.
    fn come_back(&mut self, key: &StepKey, taken: &Taken) {
        let lent = self.lent.remove(key).unwrap_or_default();
        let all = [taken.cost + taken.given, as_f64(taken.tokens), as_f64(taken.tool_calls)];
        for ((cap, all), raised) in Cap::ALL.into_iter().zip(all).zip(&mut self.raised) {
            if let (Some(lent), Some(allowed)) = (lent.most(cap), taken.raised.most(cap)) {
                *raised += (all - lent).clamp(0.0, allowed);
            }
        }
        self.given += taken.given;
        self.tokens += taken.tokens;
        self.tool_calls += taken.tool_calls;
    }

    pub(super) fn hear(&mut self, said: &MessageCompleted) {
        self.tokens += said.input_tokens + said.output_tokens;
    }

    pub(super) fn raise(&mut self, raise: Raise) {
        // That of a tenant's day is the tenant's.
        if raise.day.is_none()
            && let Some((_, raised)) = Cap::ALL.iter().zip(&mut self.raised).find(|(cap, _)| **cap == raise.cap)
        {
            *raised += raise.by;
        }
    }

    /// Takes note of whether the run is being carried out from now on.
    pub(super) fn watch(&mut self, carried_out: bool, now: Timestamp) {
        match (self.since, carried_out) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.carried_out += now - since;
                self.since = None;
            }
            _ => {}
        }
    }

    /// The most it may cost, with all that it was raised by.
    #[must_use]
    pub fn most_cost(&self) -> Option<f64> {
        let [raised, ..] = self.raised;
        self.budget.cost.map(|cost| cost + raised)
    }

    /// What the child run of a step may take.
    #[must_use]
    pub fn lent_to(&self, key: &StepKey) -> Option<Budget> {
        self.lent.get(key).copied()
    }

    /// What other steps' child runs may take until they end.
    #[must_use]
    pub fn lent_besides(&self, key: &StepKey) -> Estimate {
        let others = self.lent.iter().filter(|(other, _)| *other != key);
        others.fold(Estimate::default(), |sum, (_, budget)| sum + (*budget).into())
    }

    fn seconds(&self, now: Timestamp) -> f64 {
        let under_way = self.since.map_or(TimeDelta::zero(), |since| now - since);
        (self.carried_out + under_way).as_seconds_f64()
    }
}

impl From<Budget> for Estimate {
    fn from(budget: Budget) -> Self {
        let Budget { cost, tokens, tool_calls, wall_time: _ } = budget;
        Self {
            cost: cost.unwrap_or_default(),
            tokens: tokens.unwrap_or_default(),
            tool_calls: tool_calls.unwrap_or_default(),
        }
    }
}

impl RunState {
    /// What it took, for whoever started it.
    #[must_use]
    pub fn taken(&self) -> Taken {
        let Purse { tokens, tool_calls, given, raised: [cost, more_tokens, more_calls, more_time], .. } = self.purse;
        let raised = Budget {
            cost: (cost > 0.0).then_some(cost),
            tokens: (more_tokens > 0.0).then(|| count(more_tokens)),
            tool_calls: (more_calls > 0.0).then(|| count(more_calls)),
            wall_time: (more_time > 0.0).then(|| time(more_time)),
        };
        Taken { cost: self.cost, tokens, tool_calls, given, raised }
    }

    /// How much of a thing is needed for a call beside those that are out.
    fn needed(&self, cap: Cap, call: Estimate, out: Estimate, now: Timestamp) -> f64 {
        let Purse { tokens, tool_calls, given, .. } = &self.purse;
        match cap {
            Cap::Cost => self.cost + given + out.cost + call.cost,
            Cap::Tokens => as_f64(tokens + out.tokens + call.tokens),
            Cap::ToolCalls => as_f64(tool_calls + out.tool_calls + call.tool_calls),
            Cap::WallTime => self.purse.seconds(now),
        }
    }

    /// What its budget lacks for a call beside those that are out, if it does. Of money and tokens as much as is lacking;
    /// of calls and time, of which nobody knows how much more it takes, the cap once more. The calls that are out are
    /// counted already.
    #[must_use]
    pub fn lacks(&self, call: Estimate, out: Estimate, now: Timestamp) -> Option<Raise> {
        Cap::ALL.into_iter().zip(self.purse.raised).find_map(|(cap, raised)| {
            let most = self.purse.budget.most(cap)?;
            let lack = self.needed(cap, call, out, now) - (most + raised);
            let by = match cap {
                Cap::Cost if lack > NOTHING => lack,
                Cap::Tokens if lack > 0.0 => lack,
                Cap::ToolCalls if lack > 0.0 => lack.max(most),
                Cap::WallTime if lack >= 0.0 => (lack + most).ceil(),
                _ => return None,
            };
            Some(Raise { cap, by, day: None })
        })
    }

    /// What is left of each thing that its budget caps, beside the calls that are out and one that is about to be.
    #[must_use]
    pub fn left(&self, call: Estimate, out: Estimate, now: Timestamp) -> Budget {
        let of = |cap: Cap| {
            let raised = Cap::ALL.iter().zip(self.purse.raised).find_map(|(it, raised)| (*it == cap).then_some(raised));
            let most = self.purse.budget.most(cap)? + raised.unwrap_or_default();
            Some((most - self.needed(cap, call, out, now)).max(0.0))
        };
        Budget {
            cost: of(Cap::Cost),
            tokens: of(Cap::Tokens).map(count),
            tool_calls: of(Cap::ToolCalls).map(count),
            wall_time: of(Cap::WallTime).map(time),
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0, and counts far below 2^53")]
const fn count(of: f64) -> u64 {
    of as u64
}

fn time(seconds: f64) -> Span {
    Span(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        journal::{BudgetBody, OnDenied},
        kernel::{Actor, Id},
    };

    const NOW: Timestamp = DateTime::UNIX_EPOCH;

    fn run(budget: Value) -> RunState {
        let mut run = RunState::new(Id::new(NOW), Id::new(NOW), Actor::System, OnDenied::Fail);
        run.purse.budget = serde_json::from_value::<BudgetBody>(budget).unwrap().into();
        run
    }

    fn lack(run: &RunState, call: Estimate, seconds: i64) -> Option<(Cap, f64)> {
        let raise = run.lacks(call, Estimate::default(), NOW + TimeDelta::seconds(seconds))?;
        Some((raise.cap, raise.by))
    }

    #[test]
    fn each_cap_lacks_by_its_own_measure() {
        let call = Estimate { cost: 2.0, tokens: 30, tool_calls: 1 };
        assert_eq!(lack(&run(json!({})), call, 1_000_000), None);
        assert_eq!(lack(&run(json!(2)), call, 0), None);
        assert_eq!(lack(&run(json!(1.5)), call, 0), Some((Cap::Cost, 0.5)));
        assert_eq!(lack(&run(json!({ "tokens": 30 })), call, 0), None);
        assert_eq!(lack(&run(json!({ "tokens": 10 })), call, 0), Some((Cap::Tokens, 20.0)));
        let mut calls = run(json!({ "toolCalls": 5 }));
        calls.purse.tool_calls = 5;
        assert_eq!(lack(&calls, call, 0), Some((Cap::ToolCalls, 5.0)));
        assert_eq!(lack(&calls, Estimate { tool_calls: 0, ..call }, 0), None);
        let mut timed = run(json!({ "wallTime": "10s" }));
        timed.purse.watch(true, NOW);
        assert_eq!(lack(&timed, call, 9), None);
        assert_eq!(lack(&timed, call, 10), Some((Cap::WallTime, 10.0)));
        assert_eq!(lack(&timed, call, 25), Some((Cap::WallTime, 25.0)));
        timed.purse.watch(false, NOW + TimeDelta::seconds(9));
        assert_eq!(lack(&timed, call, 1000), None, "waiting for a person does not count");
    }

    #[test]
    fn what_people_allowed_a_child_beyond_what_it_was_lent_they_allowed_its_parent() {
        let lent = |budget: Value, took: f64, raised: Value| {
            let mut parent = run(json!(10));
            let key = StepKey::whole("child");
            parent.purse.lent.insert(key.clone(), serde_json::from_value(budget).unwrap());
            let raised = serde_json::from_value(raised).unwrap();
            parent.purse.come_back(&key, &Taken { cost: took, raised, ..Taken::default() });
            parent.purse.most_cost()
        };
        assert_eq!(lent(json!({ "cost": 4 }), 5.5, json!({ "cost": 2 })), Some(11.5));
        // Its own cap was the lesser: what it took is within what it was lent.
        assert_eq!(lent(json!({ "cost": 4 }), 3.5, json!({ "cost": 2 })), Some(10.0));
        // Nobody allowed more than that.
        assert_eq!(lent(json!({ "cost": 4 }), 9.0, json!({ "cost": 2 })), Some(12.0));
        assert_eq!(lent(json!({ "cost": 4 }), 5.5, json!({})), Some(10.0));
        assert_eq!(lent(json!({}), 5.5, json!({ "cost": 2 })), Some(10.0));
    }

    proptest! {
        #[test]
        fn what_is_lacking_is_enough(
            caps in proptest::option::of(0.0..100.0_f64), tokens in proptest::option::of(0..100_u64),
            calls in proptest::option::of(0..9_u64), time in proptest::option::of(1..100_u64),
            call in (0.0..100.0_f64, 0..100_u64, 0..2_u64), seconds in 0..1000_i64,
        ) {
            let (cost, tool_calls, wall_time) = (caps, calls, time.map(Span::seconds));
            let mut run = run(json!({}));
            run.purse.budget = Budget { cost, tokens, tool_calls, wall_time };
            run.purse.watch(true, NOW);
            let call = Estimate { cost: call.0, tokens: call.1, tool_calls: call.2 };
            let now = NOW + TimeDelta::seconds(seconds);
            for _ in Cap::ALL {
                if let Some(raise) = run.lacks(call, Estimate::default(), now) {
                    prop_assert!(raise.by > 0.0);
                    run.purse.raise(raise);
                }
            }
            // Of fractions the last bit may be missing.
            let left = run.lacks(call, Estimate::default(), now).map_or(0.0, |raise| raise.by);
            prop_assert!(left < 1e-9, "{left} is lacking still");
        }
    }
}
