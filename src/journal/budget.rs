//! What a run may take, what it has taken, and what it lacks for a call.

use std::{fmt, ops::Add};

use chrono::{NaiveDate, TimeDelta};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use utoipa::ToSchema;

use super::{AGENT_TURN, AwaitingApproval, MessageCompleted, RunState, StepStarted, TurnRate};
use crate::kernel::{Error, Result, Span, Timestamp};

/// What a budget can cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Cap {
    /// Money, in the tenant's unit.
    Cost,
    /// Tokens, asked and said.
    Tokens,
    /// Calls of tools; an agent's turns are none.
    ToolCalls,
    /// Seconds of being carried out, of a day those of its calls; waiting for a person does not count.
    WallTime,
}

impl Cap {
    /// Every one, in the order in which they are looked at.
    pub const ALL: [Self; 4] = [Self::Cost, Self::Tokens, Self::ToolCalls, Self::WallTime];

    /// Its name on the wire and in the tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cost => "cost",
            Self::Tokens => "tokens",
            Self::ToolCalls => "toolCalls",
            Self::WallTime => "wallTime",
        }
    }

    /// The cap of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cap| cap.name() == name)
    }
}

/// The most that a run may take, or all of a tenant's in a day; what is absent is not bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Budget {
    /// Money, in the tenant's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub cost: Option<f64>,
    /// Tokens, asked and said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub tokens: Option<u64>,
    /// Calls of tools; an agent's turns are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub tool_calls: Option<u64>,
    /// Time of being carried out, of a day that of its calls; waiting for a person does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_time: Option<Span>,
}

impl Budget {
    /// Whether it bounds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The most of one thing.
    #[must_use]
    pub fn most(&self, cap: Cap) -> Option<f64> {
        match cap {
            Cap::Cost => self.cost,
            Cap::Tokens => self.tokens.map(as_f64),
            Cap::ToolCalls => self.tool_calls.map(as_f64),
            Cap::WallTime => self.wall_time.map(|span| span.0.as_secs_f64()),
        }
    }

    /// Of each thing the lesser cap of both.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        let cost = [self.cost, other.cost].into_iter().flatten().reduce(f64::min);
        let tokens = [self.tokens, other.tokens].into_iter().flatten().min();
        let tool_calls = [self.tool_calls, other.tool_calls].into_iter().flatten().min();
        let wall_time = [self.wall_time, other.wall_time].into_iter().flatten().min_by_key(|span| span.0);
        Self { cost, tokens, tool_calls, wall_time }
    }

    /// Which of its caps cannot be, and what would be right.
    #[must_use]
    pub fn flaw(&self) -> Option<(Cap, &'static str)> {
        let countable = |count: Option<u64>| count.is_none_or(|count| i64::try_from(count).is_ok());
        let rules = [
            (Cap::Cost, self.cost.is_none_or(|cost| cost.is_finite() && cost >= 0.0), "`cost` is a number from 0"),
            (Cap::Tokens, countable(self.tokens), "`tokens` is a number below 2^63"),
            (Cap::ToolCalls, countable(self.tool_calls), "`toolCalls` is a number below 2^63"),
            (
                Cap::WallTime,
                self.wall_time.is_none_or(|span| !span.0.is_zero()),
                "`wallTime` is longer than nothing: `10m`",
            ),
        ];
        rules.into_iter().find_map(|(cap, holds, rule)| (!holds).then_some((cap, rule)))
    }

    /// Whether it can be, as a field `budget`.
    ///
    /// # Errors
    /// Invalid (422), naming the field.
    pub fn check(&self) -> Result<()> {
        match self.flaw() {
            None => Ok(()),
            Some((Cap::Cost, _)) => Err(Error::invalid("budget", "`budget` is a number from 0, or has such a `cost`")),
            Some((cap, rule)) => Err(Error::invalid(&format!("budget.{}", cap.name()), rule)),
        }
    }
}

/// A budget as callers write it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum BudgetBody {
    /// The most it may cost, in the tenant's unit.
    Cost(f64),
    /// One cap or several.
    Caps(Budget),
}

impl From<BudgetBody> for Budget {
    fn from(body: BudgetBody) -> Self {
        match body {
            BudgetBody::Cost(cost) => Self { cost: Some(cost), ..Self::default() },
            BudgetBody::Caps(budget) => budget,
        }
    }
}

impl<'de> Deserialize<'de> for BudgetBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BudgetVisitor)
    }
}

/// Tells a number from an object, so that what is wrong in either is named.
struct BudgetVisitor;

impl<'de> Visitor<'de> for BudgetVisitor {
    type Value = BudgetBody;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or an object of `cost`, `tokens`, `toolCalls` and `wallTime`")
    }

    fn visit_f64<E: serde::de::Error>(self, cost: f64) -> Result<BudgetBody, E> {
        Ok(BudgetBody::Cost(cost))
    }

    fn visit_u64<E: serde::de::Error>(self, cost: u64) -> Result<BudgetBody, E> {
        Ok(BudgetBody::Cost(as_f64(cost)))
    }

    #[expect(clippy::cast_precision_loss, reason = "it is refused for being negative, whatever it is")]
    fn visit_i64<E: serde::de::Error>(self, cost: i64) -> Result<BudgetBody, E> {
        Ok(BudgetBody::Cost(cost as f64))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<BudgetBody, A::Error> {
        Budget::deserialize(MapAccessDeserializer::new(fields)).map(BudgetBody::Caps)
    }
}

/// What a call is expected to take at most, before it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Money.
    pub cost: f64,
    /// Tokens, asked and said.
    pub tokens: u64,
    /// Calls of tools.
    pub tool_calls: u64,
}

impl Estimate {
    /// Of a question of so many tokens to a model, by its prices and the longest answer.
    #[must_use]
    pub fn of_question(rate: Option<TurnRate>, asked: u32, longest_answer: u32) -> Self {
        let cost = rate.map_or(0.0, |rate| rate.cost(asked));
        Self { cost, tokens: u64::from(asked) + u64::from(longest_answer), tool_calls: 0 }
    }
}

impl Add for Estimate {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cost: self.cost + other.cost,
            tokens: self.tokens + other.tokens,
            tool_calls: self.tool_calls + other.tool_calls,
        }
    }
}

/// By how much which budget is to be raised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Raise {
    /// Which of its caps.
    pub cap: Cap,
    /// By how much; seconds, of time.
    pub by: f64,
    /// The day (UTC) of the tenant whose budget it is; that of the run where there is none.
    pub day: Option<NaiveDate>,
}

impl Raise {
    /// What a question asks to be raised.
    #[must_use]
    pub fn asked(asked: &AwaitingApproval) -> Option<Self> {
        asked.raise.map(|by| Self { cap: asked.raises.unwrap_or(Cap::Cost), by, day: asked.day })
    }

    /// What is lacking, for a person.
    #[must_use]
    pub fn lack(&self) -> String {
        let whose =
            self.day.map_or_else(|| "the run's budget".to_owned(), |day| format!("the tenant's budget of {day}"));
        format!("{whose} lacks {} of `{}`", self.by, self.cap.name())
    }

    /// The question, for a person.
    pub(super) fn reason(&self) -> String {
        let Self { cap, by, day } = self;
        let of = match cap {
            Cap::Cost => "",
            Cap::Tokens => " of tokens",
            Cap::ToolCalls => " of tool calls",
            Cap::WallTime => " of time",
        };
        let unit = if *cap == Cap::WallTime { " seconds" } else { "" };
        match day {
            Some(day) if *cap == Cap::WallTime => {
                format!("The tenant has used up its budget{of} of {day}: approve to raise that by {by}{unit}")
            }
            Some(day) => {
                format!("It would take the tenant past its budget{of} of {day}: approve to raise that by {by}{unit}")
            }
            None if *cap == Cap::WallTime => {
                format!("The run has used up its budget{of}: approve to raise that by {by}{unit}")
            }
            None => format!("It would take the run past its budget{of}: approve to raise that by {by}{unit}"),
        }
    }
}

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
}

impl Purse {
    pub(super) fn start(&mut self, started: &StepStarted) {
        // A repetition is the same call.
        self.tool_calls += u64::from(started.tool != AGENT_TURN && !started.repeated);
        self.reserves |= started.reserved;
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

    fn seconds(&self, now: Timestamp) -> f64 {
        let under_way = self.since.map_or(TimeDelta::zero(), |since| now - since);
        (self.carried_out + under_way).as_seconds_f64()
    }
}

impl RunState {
    /// What its budget lacks for a call beside those that are out, if it does. Of money and tokens as much as is lacking;
    /// of calls and time, of which nobody knows how much more it takes, the cap once more.
    #[must_use]
    pub fn lacks(&self, call: Estimate, out: Estimate, now: Timestamp) -> Option<Raise> {
        let Purse { budget, raised, tokens, tool_calls, .. } = &self.purse;
        Cap::ALL.into_iter().zip(raised).find_map(|(cap, raised)| {
            let most = budget.most(cap)?;
            let needed = match cap {
                Cap::Cost => self.cost + out.cost + call.cost,
                Cap::Tokens => as_f64(tokens + out.tokens + call.tokens),
                Cap::ToolCalls => as_f64(tool_calls + call.tool_calls),
                Cap::WallTime => self.purse.seconds(now),
            };
            let lack = needed - (most + raised);
            let by = match cap {
                Cap::Cost | Cap::Tokens if lack > 0.0 => lack,
                Cap::ToolCalls if lack > 0.0 => lack.max(most),
                Cap::WallTime if lack >= 0.0 => (lack + most).ceil(),
                _ => return None,
            };
            Some(Raise { cap, by, day: None })
        })
    }
}

/// As a number with a fraction; exact far beyond what anybody counts.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        journal::OnDenied,
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
    fn a_number_is_a_cap_on_the_cost_and_an_object_has_one_cap_or_several() {
        let read = |value: Value| serde_json::from_value::<BudgetBody>(value).map(Budget::from);
        let cost = |cost| Budget { cost: Some(cost), ..Budget::default() };
        assert_eq!(read(json!(2)).unwrap(), cost(2.0));
        assert_eq!(read(json!(2.5)).unwrap(), cost(2.5));
        assert!(read(json!(-1)).unwrap().check().is_err());
        let all = read(json!({ "cost": 1, "tokens": 2, "toolCalls": 3, "wallTime": "4m" })).unwrap();
        assert_eq!(Cap::ALL.map(|cap| all.most(cap).unwrap()), [1.0, 2.0, 3.0, 240.0]);
        assert_eq!(serde_json::to_value(cost(2.0)).unwrap(), json!({ "cost": 2.0 }));
        for wrong in [json!("2"), json!({ "tokens": -1 }), json!({ "money": 1 }), json!([1]), json!(null)] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(read(json!({ "wallTime": "0s" })).unwrap().check().is_err());
    }

    #[test]
    fn of_two_budgets_the_lesser_cap_of_each_thing_counts() {
        let budget = |value: Value| serde_json::from_value::<Budget>(value).unwrap();
        let some = budget(json!({ "cost": 2, "tokens": 10, "wallTime": "2m" }));
        let other = budget(json!({ "cost": 1, "tokens": 20, "toolCalls": 3, "wallTime": "3m" }));
        let both = budget(json!({ "cost": 1, "tokens": 10, "toolCalls": 3, "wallTime": "2m" }));
        assert_eq!((some.within(other), other.within(some)), (both, both));
        assert_eq!((some.within(Budget::default()), Budget::default().within(some)), (some, some));
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
