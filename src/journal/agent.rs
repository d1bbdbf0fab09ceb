use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{ApprovalTerms, Step};
use crate::kernel::Pinned;

/// The tool of the steps in which an agent's model is asked. Only the engine puts it into plans.
pub const AGENT_TURN: &str = "agent.turn";

/// Which turn of an agent a step is, if it is one.
#[must_use]
pub fn turn_of(step: &Step) -> Option<u32> {
    step.id.strip_prefix("turn-").filter(|_| step.uses == AGENT_TURN)?.parse().ok()
}

/// The agent whose answers a run's plan grows by, as it was when the run began: later versions of anything in it do not
/// touch the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentPin {
    /// The agent, as `name@version`.
    #[schema(example = "support@3")]
    pub agent: String,
    /// The model configuration, as `name@version`.
    #[schema(value_type = String, example = "default-smart@0")]
    pub config: Pinned,
    /// What the model is told to be, in full.
    pub instructions: String,
    /// The tools it was given; any other is forbidden, whatever the model says.
    pub tools: Vec<String>,
    /// When its calls are held; the first rule that fits a call counts. A call that none fits is held where its
    /// repetition would do something again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approval: Vec<ApprovalRule>,
    /// As often may the model be asked.
    #[schema(minimum = 1)]
    pub max_turns: u32,
    /// So many calls of one answer are made at once.
    #[schema(minimum = 1)]
    pub max_parallel: u32,
    /// JSON Schema of the run's output; it is text when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    /// The most tokens of a question: what the model takes, less its longest answer.
    #[serde(default = "usual_window")]
    #[schema(minimum = 1)]
    pub window: u32,
    /// What a turn is expected to cost; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<TurnRate>,
}

/// The window of runs that began before it was pinned: of 128,000 tokens, what an answer of 4,096 leaves.
const fn usual_window() -> u32 {
    123_904
}

/// What a turn of an agent is expected to cost at most, before it is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TurnRate {
    /// A million tokens asked.
    pub input: f64,
    /// The longest answer.
    pub answer: f64,
}

/// What becomes of an agent's calls of some tools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalRule {
    /// The tools it is about, by name or pattern (`crm.*`).
    pub tools: Vec<String>,
    /// Whether they are held (they are when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
    /// What an approver is shown, and until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<ApprovalTerms>,
}

impl AgentPin {
    /// Whether it may call the tool.
    #[must_use]
    pub fn may_call(&self, tool: &str) -> bool {
        self.tools.iter().any(|given| given == tool)
    }

    /// What a turn of so many tokens is expected to cost.
    #[must_use]
    pub fn turn_cost(&self, tokens: u32) -> f64 {
        self.rate.map_or(0.0, |rate| f64::from(tokens) * rate.input / 1_000_000.0 + rate.answer)
    }

    /// What consent to a call needs, where it needs some; `acts` says whether its repetition would do something again.
    #[must_use]
    pub fn terms(&self, tool: &str, acts: bool) -> Option<ApprovalTerms> {
        match self.approval.iter().find(|rule| rule.tools.iter().any(|pattern| fits(pattern, tool))) {
            Some(rule) if rule.hold == Some(false) => None,
            Some(rule) => Some(rule.terms.clone().unwrap_or_default()),
            None => acts.then(ApprovalTerms::default),
        }
    }
}

/// Whether a tool's name fits a pattern, in which a `*` stands for any letters.
#[must_use]
pub fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(before) = last.replace(part) {
            let Some(at) = rest.find(before) else { return false };
            rest = rest.get(at + before.len()..).unwrap_or_default();
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_letters() {
        for (pattern, name, does) in [
            ("crm.sync", "crm.sync", true),
            ("crm.sync", "crm.syncs", false),
            ("crm.*", "crm.sync", true),
            ("crm.*", "crm.", true),
            ("crm.*", "crms.sync", false),
            ("*", "anything", true),
            ("*.read", "crm.read", true),
            ("*.read", "crm.reader", false),
            ("mcp:github/*", "mcp:github/issues", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "ac", false),
            ("a*bb", "abb", true),
            ("ab*b", "ab", false),
        ] {
            assert_eq!(fits(pattern, name), does, "{pattern} {name}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_counts_and_what_acts_is_held_without_one() {
        let rule = |tools: &[&str], hold| ApprovalRule {
            tools: tools.iter().map(ToString::to_string).collect(),
            hold,
            terms: Some(ApprovalTerms { reason: tools.first().map(ToString::to_string), ..ApprovalTerms::default() }),
        };
        let pin = AgentPin {
            agent: "a@1".to_owned(),
            config: "c@1".parse().unwrap(),
            instructions: String::new(),
            tools: vec!["pay.send".to_owned()],
            approval: vec![rule(&["pay.ask"], Some(false)), rule(&["pay.*"], None), rule(&["*"], None)],
            max_turns: 1,
            max_parallel: 1,
            output: None,
            window: 1000,
            rate: None,
        };
        let reason = |pin: &AgentPin, tool: &str, acts| pin.terms(tool, acts).map(|terms| terms.reason);
        assert_eq!(reason(&pin, "pay.ask", true), None);
        assert_eq!(reason(&pin, "pay.send", false), Some(Some("pay.*".to_owned())));
        assert_eq!(reason(&pin, "other", false), Some(Some("*".to_owned())));
        let bare = AgentPin { approval: vec![], ..pin };
        assert_eq!((reason(&bare, "other", true), reason(&bare, "other", false)), (Some(None), None));
        assert!(bare.may_call("pay.send") && !bare.may_call("pay.sendmore"));
    }
}
