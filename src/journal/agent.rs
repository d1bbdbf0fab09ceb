use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{ApprovalTerms, CostBound, Effect, Estimate, Step};
use crate::kernel::{Pinned, Span};

/// The tool of the steps in which an agent's model is asked. Only the engine puts it into plans.
pub const AGENT_TURN: &str = "agent.turn";

/// Tokens of the longest answer, where a model's configuration sets no bound: models rarely say more at once.
pub const LONGEST_ANSWER: u32 = 4096;

fn longest_answer() -> u32 {
    LONGEST_ANSWER
}

/// The tool of the steps in which a conversation goes over to another agent. Only the engine puts it into plans.
pub const AGENT_HANDOFF: &str = "agent.handoff";

/// The id of the n-th turn.
#[must_use]
pub fn turn_id(n: u32) -> String {
    format!("turn-{n}")
}

/// Which turn of an agent a step is, if it is one.
#[must_use]
pub fn turn_of(step: &Step) -> Option<u32> {
    step.id.strip_prefix("turn-").filter(|_| step.uses == AGENT_TURN)?.parse().ok()
}

/// The id of a call that the n-th turn wants, from 1.
#[must_use]
pub fn call_id(n: u32, call: usize) -> String {
    format!("call-{n}-{call}")
}

/// Which turn's answer wanted the call that a step is, if it is one.
#[must_use]
pub fn call_of(step: &Step) -> Option<u32> {
    step.id.strip_prefix("call-")?.split_once('-')?.0.parse().ok()
}

/// The agent whose answers a run's plan grows by, as it was when the run began: later versions of anything in it do not
/// touch the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentPin {
    /// The agent, as `name@version`.
    #[schema(example = "support@3")]
    pub agent: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The model configuration, as `name@version`.
    #[schema(value_type = String, example = "default-smart@0")]
    pub config: Pinned,
    /// What the model is told to be, in full.
    pub instructions: String,
    /// The tools it was given; any other is forbidden, whatever the model says.
    pub tools: Vec<String>,
    /// The agents that it may hand the conversation to, each as `name@version`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["billing@2"]))]
    pub handoffs: Vec<String>,
    /// When its calls are held; the first rule that fits a call counts. A call that none fits is held where its
    /// repetition would do something again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approval: Vec<ApprovalRule>,
    /// As often may the model be asked as this agent.
    #[schema(minimum = 1)]
    pub max_turns: u32,
    /// So many calls of one answer are made at once.
    #[schema(minimum = 1)]
    pub max_parallel: u32,
    /// JSON Schema of the run's output where this agent has the last word; it is text when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    /// Tokens of an answer at the longest.
    #[serde(default = "longest_answer")]
    pub longest_answer: u32,
    /// What a turn is expected to cost; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<TurnRate>,
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

impl TurnRate {
    /// What a question of so many tokens is expected to cost.
    #[must_use]
    pub fn cost(&self, tokens: u32) -> f64 {
        f64::from(tokens) * self.input / 1_000_000.0 + self.answer
    }
}

/// What becomes of an agent's calls of some tools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalRule {
    /// The tools it is about, by name or pattern (`crm.*`).
    pub tools: Vec<String>,
    /// Only calls that are expected to cost so much: `>100`. One whose cost nobody tells is among them where the rule
    /// holds and the call's repetition would do something again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostBound>,
    /// Whether they are held (they are when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
    /// Who may decide, by subject, role or group: short for the same in `terms`, and before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 50)]
    pub approvers: Vec<String>,
    /// How long the question stands: short for the same in `terms`, and before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Span>,
    /// What an approver is shown, and until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<ApprovalTerms>,
}

/// A call that an agent's model wants, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The tool.
    pub tool: &'a str,
    /// What repeating it would do.
    pub effect: Effect,
    /// What it is expected to cost, where somebody tells.
    pub cost: Option<f64>,
}

impl ApprovalRule {
    fn is_about(&self, wanted: &Wanted<'_>) -> bool {
        let holds = self.hold != Some(false);
        let costs = self.cost.is_none_or(|bound| match wanted.cost {
            Some(cost) => bound.holds(cost),
            // The worse is taken for granted.
            None => holds && wanted.effect == Effect::Once,
        });
        costs && self.tools.iter().any(|pattern| fits(pattern, wanted.tool))
    }

    /// What consent needs by this rule, where it holds.
    fn terms(&self) -> Option<ApprovalTerms> {
        if self.hold == Some(false) {
            return None;
        }
        let terms = self.terms.clone().unwrap_or_default();
        let approvers = if self.approvers.is_empty() { terms.approvers } else { self.approvers.clone() };
        Some(ApprovalTerms { approvers, expires: self.expires.or(terms.expires), ..terms })
    }
}

impl AgentPin {
    /// Whether it may call the tool.
    #[must_use]
    pub fn may_call(&self, tool: &str) -> bool {
        self.tools.iter().any(|given| given == tool)
    }

    /// What a turn that asks so many tokens is expected to take.
    #[must_use]
    pub fn turn(&self, asked: u32) -> Estimate {
        Estimate::of_question(self.rate, asked, self.longest_answer)
    }

    /// What consent to a call needs, where it needs some.
    #[must_use]
    pub fn terms(&self, wanted: &Wanted<'_>) -> Option<ApprovalTerms> {
        let terms = match self.approval.iter().find(|rule| rule.is_about(wanted)) {
            Some(rule) => rule.terms()?,
            None if wanted.effect == Effect::Once => ApprovalTerms::default(),
            None => return None,
        };
        Some(ApprovalTerms { cost: terms.cost.or(wanted.cost), ..terms })
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
    use serde_json::json;

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
            cost: None,
            hold,
            approvers: vec![],
            expires: None,
            terms: Some(ApprovalTerms { reason: tools.first().map(ToString::to_string), ..ApprovalTerms::default() }),
        };
        let approval = vec![rule(&["pay.ask"], Some(false)), rule(&["pay.*"], None), rule(&["*"], None)];
        let pin = AgentPin { approval, ..bare() };
        let wanted = |tool, effect| Wanted { tool, effect, cost: None };
        let reason = |pin: &AgentPin, tool, effect| pin.terms(&wanted(tool, effect)).map(|terms| terms.reason);
        assert_eq!(reason(&pin, "pay.ask", Effect::Once), None);
        assert_eq!(reason(&pin, "pay.send", Effect::Pure), Some(Some("pay.*".to_owned())));
        assert_eq!(reason(&pin, "other", Effect::Pure), Some(Some("*".to_owned())));
        let bare = AgentPin { approval: vec![], ..pin };
        assert_eq!(reason(&bare, "other", Effect::Once), Some(None));
        assert_eq!(reason(&bare, "other", Effect::Repeatable), None);
        assert!(bare.may_call("pay.send") && !bare.may_call("pay.sendmore"));
    }

    #[test]
    fn a_rule_looks_at_the_cost_and_takes_the_worse_for_granted() {
        let rules = json!([
            { "tools": ["pay.*"], "cost": ">100", "approvers": ["finance"], "expires": "4h", "terms": { "expires": "1h" } },
            { "tools": ["pay.*"], "cost": "<=1", "hold": false },
        ]);
        let pin = AgentPin { approval: serde_json::from_value(rules).unwrap(), ..bare() };
        let terms = |effect, cost| pin.terms(&Wanted { tool: "pay.send", effect, cost });
        let dear = terms(Effect::Once, Some(101.0)).unwrap();
        assert_eq!((&dear.approvers[..], dear.cost), (&["finance".to_owned()][..], Some(101.0)));
        assert_eq!(dear.expires, Some(Span::seconds(4 * 3600)));
        assert_eq!(terms(Effect::Once, Some(100.0)).unwrap().approvers, Vec::<String>::new());
        assert_eq!(terms(Effect::Once, Some(1.0)), None);
        assert_eq!(terms(Effect::Once, None).unwrap().approvers, ["finance"], "nobody tells, so it may be dear");
        assert_eq!(terms(Effect::Repeatable, None), None);
    }

    fn bare() -> AgentPin {
        AgentPin {
            agent: "a@1".to_owned(),
            description: None,
            handoffs: vec![],
            config: "c@1".parse().unwrap(),
            instructions: String::new(),
            tools: vec!["pay.send".to_owned()],
            approval: vec![],
            max_turns: 1,
            max_parallel: 1,
            output: None,
            longest_answer: LONGEST_ANSWER,
            rate: None,
        }
    }
}
