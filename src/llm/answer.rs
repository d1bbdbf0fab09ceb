use std::ops::AddAssign;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Price, Thoughts};

/// What a model said.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its words.
    pub text: String,
    /// The words as JSON, where that was asked for.
    pub json: Option<Value>,
    /// What it thought meanwhile, where the provider tells.
    pub reasoning: Option<String>,
    /// What it wants called.
    pub calls: Vec<ToolCall>,
    /// What its provider wants to see again of its thoughts, where it wants something called.
    pub thoughts: Option<Thoughts>,
    /// Why it stopped.
    pub stop: Stop,
    /// What it took, repetitions counted.
    pub usage: Usage,
    /// What that cost by the configuration's prices.
    pub cost: f64,
    /// What all that were asked cost, those before it that gave nothing as well.
    pub spent: f64,
    /// Tokens of the question as it was asked the last time, as the provider counted.
    pub asked: u64,
    /// The configuration that answered, as `name@version`.
    pub config: String,
    /// Its provider.
    pub provider: String,
    /// Its model.
    pub model: String,
    /// Which reply it is, from 1: those before it broke off or would not do.
    pub reply: u32,
}

impl Answer {
    /// Who gave it and what it took, without what it says.
    #[must_use]
    pub fn given(&self) -> Given<()> {
        let Self { usage, cost, spent, reply, .. } = *self;
        let (config, provider, model) = (self.config.clone(), self.provider.clone(), self.model.clone());
        Given { it: (), usage, cost, spent, config, provider, model, reply }
    }
}

/// What a model gave that is no conversation, and what it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given<T> {
    /// It.
    pub it: T,
    /// What it took, repetitions counted.
    pub usage: Usage,
    /// What that cost by the configuration's prices.
    pub cost: f64,
    /// What all that were asked cost, those before it that gave nothing as well.
    pub spent: f64,
    /// The configuration that gave it, as `name@version`.
    pub config: String,
    /// Its provider.
    pub provider: String,
    /// Its model.
    pub model: String,
    /// Which reply it is, from 1.
    pub reply: u32,
}

/// A call that a model wants made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToolCall {
    /// What the model calls the call.
    pub id: String,
    /// The tool, as the model was told its name.
    pub name: String,
    /// What to call it with.
    pub arguments: Value,
    /// What the provider wants to see again with the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signatures: Option<Vec<String>>,
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stop {
    /// It had said all.
    Done,
    /// It wants tools called.
    Calls,
    /// It was cut off at the most tokens it may say.
    Length,
    /// The provider held its answer back.
    Filtered,
}

/// Tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Of what was asked, the cached ones counted.
    pub input_tokens: u64,
    /// Of those, the ones the provider had in its cache.
    pub cached_tokens: u64,
    /// Of what was said and thought.
    pub output_tokens: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input_tokens += other.input_tokens;
        self.cached_tokens += other.cached_tokens;
        self.output_tokens += other.output_tokens;
    }
}

impl Usage {
    /// What it costs at these prices.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "tokens far below 2^53")]
    pub fn cost(&self, price: &Price) -> f64 {
        let fresh = self.input_tokens.saturating_sub(self.cached_tokens);
        let million = |tokens: u64| tokens as f64 / 1_000_000.0;
        million(fresh) * price.input
            + million(self.cached_tokens) * price.cached.unwrap_or(price.input)
            + million(self.output_tokens) * price.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_tokens_have_their_own_price_or_that_of_the_others() {
        let usage = Usage { input_tokens: 1_000_000, cached_tokens: 400_000, output_tokens: 500_000 };
        let price = |cached| Price { input: 2.0, output: 8.0, cached };
        assert!((usage.cost(&price(Some(0.5))) - (1.2 + 0.2 + 4.0)).abs() < 1e-9);
        assert!((usage.cost(&price(None)) - (2.0 + 4.0)).abs() < 1e-9);
    }
}
