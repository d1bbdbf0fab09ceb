use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};

/// Which costs are meant: `>100`, `<=2.5`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostBound {
    sign: Sign,
    amount: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    AtLeast,
    AtMost,
    Above,
    Below,
    Exactly,
}

impl Sign {
    /// The longer ones first: `>=` begins as `>` does.
    const ALL: [(&'static str, Self); 5] =
        [(">=", Self::AtLeast), ("<=", Self::AtMost), (">", Self::Above), ("<", Self::Below), ("=", Self::Exactly)];
}

impl CostBound {
    /// Whether the cost is one of those.
    #[must_use]
    pub fn holds(&self, cost: f64) -> bool {
        match self.sign {
            Sign::AtLeast => cost >= self.amount,
            Sign::AtMost => cost <= self.amount,
            Sign::Above => cost > self.amount,
            Sign::Below => cost < self.amount,
            Sign::Exactly => cost.partial_cmp(&self.amount).is_some_and(Ordering::is_eq),
        }
    }
}

impl FromStr for CostBound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no bound of a cost: write `>100`, with one of > >= < <= =");
        let (sign, amount) =
            Sign::ALL.into_iter().find_map(|(name, sign)| Some((sign, text.strip_prefix(name)?))).ok_or_else(wrong)?;
        let amount: f64 = amount.trim().parse().map_err(|_| wrong())?;
        if amount.is_finite() && amount >= 0.0 { Ok(Self { sign, amount }) } else { Err(wrong()) }
    }
}

impl fmt::Display for CostBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Sign::ALL.into_iter().find(|(_, sign)| *sign == self.sign).map_or("", |(name, _)| name);
        write!(f, "{name}{}", self.amount)
    }
}

impl Serialize for CostBound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CostBound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl PartialSchema for CostBound {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("A bound of costs: one of > >= < <= = and a number from 0."))
            .pattern(Some(r"^(>=|<=|>|<|=) *[0-9]+(\.[0-9]+)?$"))
            .examples([">100"])
            .into()
    }
}

impl ToSchema for CostBound {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_sign_and_an_amount() {
        for (bound, below, at, above) in [
            (">100", false, false, true),
            (">=100", false, true, true),
            ("<100", true, false, false),
            ("<=100", true, true, false),
            ("=100", false, true, false),
        ] {
            let read: CostBound = bound.parse().unwrap();
            assert_eq!((read.holds(99.99), read.holds(100.0), read.holds(100.01)), (below, at, above), "{bound}");
            assert_eq!(read.to_string(), bound);
        }
        assert_eq!("> 2.50".parse::<CostBound>().unwrap().to_string(), ">2.5");
        for wrong in ["", "100", "=>1", ">", ">-1", ">x", "> inf", "> NaN", "!=1"] {
            assert!(wrong.parse::<CostBound>().is_err(), "{wrong}");
        }
    }
}
