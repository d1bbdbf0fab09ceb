//! What a run may take, what it has taken, and what it lacks for a call.

use std::{fmt, ops::Add};

use chrono::NaiveDate;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use utoipa::ToSchema;

use super::{AwaitingApproval, TurnRate};
use crate::kernel::{Error, Result, Span};

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

    /// Whether nothing is left of one of the things that it bounds.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        Cap::ALL.into_iter().any(|cap| self.most(cap).is_some_and(|most| most <= 0.0))
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

impl Estimate {
    /// Of each thing the more of both.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            cost: self.cost.max(other.cost),
            tokens: self.tokens.max(other.tokens),
            tool_calls: self.tool_calls.max(other.tool_calls),
        }
    }

    /// Whether it is no more of anything than that.
    #[must_use]
    pub fn is_within(self, other: Self) -> bool {
        self.most(other) == other
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

/// As a number with a fraction; exact far beyond what anybody counts.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

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
}
