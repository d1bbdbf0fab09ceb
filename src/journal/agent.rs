use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{ApprovalTerms, Budget, CostBound, Effect, Estimate, GateWord, Outlook, Step, WordOf};
use crate::kernel::{Pinned, Span};

/// The tool of the steps in which an agent's model is asked. Only the engine puts it into plans.
pub const AGENT_TURN: &str = "agent.turn";

/// Tokens of the longest answer, where a model's configuration sets no bound: models rarely say more at once.
pub const LONGEST_ANSWER: u32 = 4096;

fn longest_answer() -> u32 {
    LONGEST_ANSWER
}

/// Tokens that a model takes, where its configuration does not say: few take less.
pub const WINDOW: u32 = 128_000;

/// What they leave for a question, for runs that began before it was pinned.
pub(super) const fn usual_window() -> u32 {
    WINDOW - LONGEST_ANSWER
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
    /// The model configuration, as `name@version`; what the server brings along with its provider and model.
    #[schema(value_type = String, example = "default-smart@0=openai/gpt-5.4")]
    pub config: Pinned,
    /// Those that are asked, in this order, when it gives no answer, each as that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, example = json!(["default-fast@0=openai/gpt-5.4-mini"]))]
    pub fallback: Vec<Pinned>,
    /// What the model is told to be, in full.
    pub instructions: String,
    /// The tools it was given; any other is forbidden, whatever the model says.
    pub tools: Vec<String>,
    /// The names and patterns that it was given and that meant no tool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
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
    /// The most that a run which begins with it may take.
    #[serde(default, skip_serializing_if = "Budget::is_empty")]
    pub budget: Budget,
    /// JSON Schema of the run's output where this agent has the last word; it is text when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    /// Whether what its model thinks is told and kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reasoning: bool,
    /// Tokens of an answer at the longest.
    #[serde(default = "longest_answer")]
    pub longest_answer: u32,
    /// The most tokens of a question: what the model takes, less its longest answer.
    #[serde(default = "usual_window")]
    #[schema(minimum = 1)]
    pub window: u32,
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
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

/// A call that somebody wants, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The tool.
    pub tool: &'a str,
    /// What repeating it would do.
    pub effect: Effect,
    /// What the tool itself says; where that is not whether it is held, its effect does.
    pub own: Option<&'a ApprovalRule>,
}

impl ApprovalRule {
    fn is_about(&self, wanted: &Wanted<'_>) -> bool {
        let holds = self.hold != Some(false);
        let costs = self.cost.is_none_or(|bound| match wanted.cost() {
            Some(cost) => bound.holds(cost),
            // The worse is taken for granted.
            None => holds && wanted.effect == Effect::Once,
        });
        costs && self.tools.iter().any(|pattern| fits(pattern, wanted.tool))
    }

    /// What consent needs by this rule, if it holds.
    fn terms(&self) -> ApprovalTerms {
        let terms = self.terms.clone().unwrap_or_default();
        let approvers = if self.approvers.is_empty() { terms.approvers } else { self.approvers.clone() };
        ApprovalTerms { approvers, expires: self.expires.or(terms.expires), ..terms }
    }
}

/// Who says whether a call is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Word<'a> {
    /// A rule of the agent's.
    Agent(&'a ApprovalRule),
    /// The tool's own rule.
    Tool(&'a ApprovalRule),
    /// Nobody, so what repeating it would do.
    Effect,
}

impl Word<'_> {
    /// Whose word it is.
    #[must_use]
    pub const fn of(self) -> WordOf {
        match self {
            Self::Agent(_) => WordOf::Agent,
            Self::Tool(_) => WordOf::Tool,
            Self::Effect => WordOf::Effect,
        }
    }
}

impl<'a> Wanted<'a> {
    /// Who says whether it is held under these rules, and what: first the rules, of which the first that fits counts,
    /// then the tool itself, and then its effect.
    #[must_use]
    pub fn word(&self, rules: &'a [ApprovalRule]) -> (Word<'a>, bool) {
        if let Some(rule) = rules.iter().find(|rule| rule.is_about(self)) {
            return (Word::Agent(rule), rule.hold != Some(false));
        }
        match self.own.and_then(|own| Some((own, own.hold?))) {
            Some((own, hold)) => (Word::Tool(own), hold),
            None => (Word::Effect, self.effect == Effect::Once),
        }
    }

    /// What it is expected to cost, where the tool tells.
    #[must_use]
    pub fn cost(&self) -> Option<f64> {
        self.own?.terms.as_ref()?.cost
    }

    /// What consent to it needs under these rules, where it needs some. What it touches and costs is the tool's to say,
    /// whoever holds it.
    #[must_use]
    pub fn terms(&self, rules: &[ApprovalRule]) -> Option<ApprovalTerms> {
        let own = self.own.map(ApprovalRule::terms).unwrap_or_default();
        let said = match self.word(rules) {
            (_, false) => return None,
            (Word::Agent(rule), true) => rule.terms(),
            (Word::Tool(_) | Word::Effect, true) => own.clone(),
        };
        let or = |said: Vec<String>, own: Vec<String>| if said.is_empty() { own } else { said };
        let (scope, requires) = (or(said.scope, own.scope), or(said.requires, own.requires));
        let approvers = or(said.approvers, own.approvers);
        Some(ApprovalTerms { scope, requires, approvers, cost: said.cost.or(own.cost), ..said })
    }
}

impl AgentPin {
    /// What the gate says to a call that its model wants.
    #[must_use]
    pub fn gate(&self, wanted: &Wanted<'_>) -> GateWord {
        if !self.may_call(wanted.tool) {
            return GateWord { verdict: Outlook::Forbid, by: WordOf::Agent };
        }
        let (word, holds) = wanted.word(&self.approval);
        GateWord { verdict: if holds { Outlook::Hold } else { Outlook::Allow }, by: word.of() }
    }

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

    fn rule(tools: &[&str], hold: Option<bool>) -> ApprovalRule {
        let terms = ApprovalTerms { reason: tools.first().map(ToString::to_string), ..ApprovalTerms::default() };
        let tools = tools.iter().map(ToString::to_string).collect();
        ApprovalRule { tools, hold, terms: Some(terms), ..ApprovalRule::default() }
    }

    #[test]
    fn the_first_rule_that_fits_counts_and_what_acts_is_held_without_one() {
        let rules = [rule(&["pay.ask"], Some(false)), rule(&["pay.*"], None), rule(&["*"], None)];
        let reason = |rules: &[ApprovalRule], tool, effect| {
            Wanted { tool, effect, own: None }.terms(rules).map(|terms| terms.reason)
        };
        assert_eq!(reason(&rules, "pay.ask", Effect::Once), None);
        assert_eq!(reason(&rules, "pay.send", Effect::Pure), Some(Some("pay.*".to_owned())));
        assert_eq!(reason(&rules, "other", Effect::Pure), Some(Some("*".to_owned())));
        assert_eq!(reason(&[], "other", Effect::Once), Some(None));
        assert_eq!(reason(&[], "other", Effect::Repeatable), None);
    }

    #[test]
    fn a_tools_own_rule_comes_after_the_agents_and_its_facts_are_always_shown() {
        let facts = ApprovalTerms { scope: vec!["orders".to_owned()], cost: Some(2.0), ..ApprovalTerms::default() };
        let own = |hold| ApprovalRule { terms: Some(facts.clone()), ..rule(&["pay.send"], hold) };
        for (rules, hold, effect, held) in [
            (vec![], None, Effect::Once, true),
            (vec![], None, Effect::Pure, false),
            (vec![], Some(true), Effect::Pure, true),
            (vec![], Some(false), Effect::Once, false),
            (vec![rule(&["pay.*"], None)], Some(false), Effect::Pure, true),
            (vec![rule(&["pay.*"], Some(false))], Some(true), Effect::Once, false),
            (vec![rule(&["other"], Some(false))], Some(true), Effect::Pure, true),
        ] {
            let own = own(hold);
            let terms = Wanted { tool: "pay.send", effect, own: Some(&own) }.terms(&rules);
            assert_eq!(terms.is_some(), held, "{rules:?} {hold:?} {effect:?}");
            if let Some(terms) = terms {
                assert_eq!((terms.scope, terms.cost), (facts.scope.clone(), facts.cost));
                assert_eq!(terms.reason.is_some(), rules.iter().any(|rule| fits(&rule.tools[0], "pay.send")));
            }
        }
        let dearer = ApprovalTerms { cost: Some(9.0), ..ApprovalTerms::default() };
        let rules = [ApprovalRule { terms: Some(dearer), ..rule(&["*"], None) }];
        let own = own(None);
        let terms = Wanted { tool: "pay.send", effect: Effect::Pure, own: Some(&own) }.terms(&rules).unwrap();
        assert_eq!((terms.scope, terms.cost), (facts.scope, Some(9.0)));
    }

    #[test]
    fn a_rule_looks_at_the_cost_and_takes_the_worse_for_granted() {
        let rules = json!([
            { "tools": ["pay.*"], "cost": ">100", "approvers": ["finance"], "expires": "4h", "terms": { "expires": "1h" } },
            { "tools": ["pay.*"], "cost": "<=1", "hold": false },
        ]);
        let rules: Vec<ApprovalRule> = serde_json::from_value(rules).unwrap();
        let terms = |effect, cost| {
            let own = ApprovalRule { terms: Some(ApprovalTerms { cost, ..Default::default() }), ..rule(&[], None) };
            Wanted { tool: "pay.send", effect, own: Some(&own) }.terms(&rules)
        };
        let dear = terms(Effect::Once, Some(101.0)).unwrap();
        assert_eq!((&dear.approvers[..], dear.cost), (&["finance".to_owned()][..], Some(101.0)));
        assert_eq!(dear.expires, Some(Span::seconds(4 * 3600)));
        assert_eq!(terms(Effect::Once, Some(100.0)).unwrap().approvers, Vec::<String>::new());
        assert_eq!(terms(Effect::Once, Some(1.0)), None);
        assert_eq!(terms(Effect::Once, None).unwrap().approvers, ["finance"], "nobody tells, so it may be dear");
        assert_eq!(terms(Effect::Repeatable, None), None);
    }
}
