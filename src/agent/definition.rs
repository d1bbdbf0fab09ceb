use std::{collections::HashSet, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    journal::{ApprovalRule, Budget, BudgetBody},
    kernel::{Error, Reference, Result, compile, template},
    llm::DocumentKind,
};

/// Who a model is to be, and what it may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentDefinition {
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2000)]
    pub description: Option<String>,
    /// What part it plays in a conversation; `main` when absent.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<AgentKind>,
    /// What the model is told to be: a template over `goal` and `input`.
    #[schema(
        min_length = 1,
        max_length = 65_536,
        example = "You look after refunds. Look an order up before you refund it."
    )]
    pub instructions: String,
    /// The model configuration (`default-smart` when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "default-smart")]
    pub config: Option<String>,
    /// The tools it is given, by name or pattern (`http.*`, `agent:billing` for another agent); none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 128)]
    pub tools: Option<Vec<String>>,
    /// The agents that it may hand the conversation over to, `billing` or `billing@2`; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 16, example = json!(["billing"]))]
    pub handoffs: Option<Vec<String>>,
    /// When its calls are held; the first rule that fits a call counts. A call that none fits is held where its
    /// repetition would do something again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 64)]
    pub approval: Option<Vec<ApprovalRule>>,
    /// As often may the model be asked as this agent (10 when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub max_turns: Option<u32>,
    /// So many calls of one answer are made at once (8 when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub max_parallel: Option<u32>,
    /// The most that a run which begins with it may take: whoever starts one may ask for less, not for more. A number is
    /// the most it may cost, in the tenant's unit; not bounded when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetBody>,
    /// JSON Schema of its output; it is text when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    /// Whether what its model thinks is told and kept, apart from what it says; it is not when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<bool>,
}

/// The part an agent plays in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AgentKind {
    /// It answers.
    Main,
    /// It answers where others cannot or must not.
    Fallback,
    /// It carries a conversation on.
    Followup,
    /// It judges what others say.
    Moderation,
    /// It says which of the others answers.
    Router,
}

/// What instructions can name.
pub(super) const NAMES: [&str; 2] = ["goal", "input"];

const LONGEST: usize = 65_536;
/// As many agents may the others be that a conversation can be handed to.
pub(super) const MOST_HANDOFFS: usize = 16;
/// Ten years.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 366 * 86_400);

impl DocumentKind for AgentDefinition {
    const KIND: &'static str = "agent";
    const NOUN: &'static str = "agent";
    const PUT: &'static str = "agent.put";
    const DELETE: &'static str = "agent.delete";

    fn check(&self, name: &str) -> Result<()> {
        let instructions = &self.instructions;
        let names = template::check(instructions).map_err(|error| {
            Error::invalid("instructions", format!("byte {}: {error}", error.offset())).with("offset", error.offset())
        })?;
        let stranger = names.roots.iter().map(String::as_str).find(|name| !NAMES.contains(name));
        let stranger = stranger.or_else(|| (names.any_step || !names.steps.is_empty()).then_some("steps"));
        if let Some(stranger) = stranger {
            let detail = format!("`instructions` name `{stranger}`; there are `goal` and `input`");
            return Err(Error::invalid("instructions", detail));
        }
        let tools = self.tools.as_deref().unwrap_or_default();
        let rules = self.approval.as_deref().unwrap_or_default();
        let handoffs = self.handoffs.as_deref().unwrap_or_default();
        let is_pattern = |text: &String| (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        let checks = [
            ("instructions", (1..=LONGEST).contains(&instructions.len()), "`instructions` have 1 to 65,536 bytes"),
            (
                "description",
                self.description.as_ref().is_none_or(|text| text.chars().count() <= 2000),
                "`description` has more than 2,000 characters",
            ),
            (
                "config",
                self.config.as_ref().is_none_or(|config| config.parse::<Reference>().is_ok()),
                "`config` is a model configuration, `support` or `support@3`",
            ),
            ("tools", tools.len() <= 128 && tools.iter().all(is_pattern), "`tools` are 128 names or patterns at most"),
            (
                "handoffs",
                are_others(handoffs, name),
                "`handoffs` are 16 other agents at most, `billing` or `billing@2`, each once",
            ),
            (
                "approval",
                rules.len() <= 64
                    && rules.iter().all(|rule| !rule.tools.is_empty() && rule.tools.iter().all(is_pattern)),
                "`approval` has 64 rules at most, each for `tools` by name or pattern",
            ),
            (
                "approval",
                rules.iter().all(is_fair),
                "in `approval`, `approvers` are 50 names of 200 characters at most, and `expires` is between nothing and ten years",
            ),
            ("maxTurns", self.max_turns.is_none_or(|most| (1..=100).contains(&most)), "`maxTurns` is from 1 to 100"),
            (
                "maxParallel",
                self.max_parallel.is_none_or(|most| (1..=64).contains(&most)),
                "`maxParallel` is from 1 to 64",
            ),
            ("output", self.output.as_ref().is_none_or(Value::is_object), "`output` is a JSON Schema (2020-12)"),
        ];
        if let Some(Err(why)) = self.output.as_ref().filter(|schema| schema.is_object()).map(compile) {
            return Err(Error::invalid("output", format!("`output` is no JSON Schema (2020-12): {why}")));
        }
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            None => self.budget.map(Budget::from).unwrap_or_default().check(),
            Some((field, _, rule)) => Err(Error::invalid(field, rule)),
        }
    }
}

/// Whether these are agents, each once, and none of them this one.
fn are_others(handoffs: &[String], name: &str) -> bool {
    let names: Vec<_> = handoffs.iter().filter_map(|to| Some(to.parse::<Reference>().ok()?.name)).collect();
    let distinct: HashSet<_> = names.iter().map(String::as_str).filter(|other| *other != name).collect();
    handoffs.len() <= MOST_HANDOFFS && distinct.len() == handoffs.len()
}

/// Whether a rule asks somebody, and in a time that comes.
fn is_fair(rule: &ApprovalRule) -> bool {
    let terms = rule.terms.as_ref();
    let approvers = rule.approvers.iter().chain(terms.iter().flat_map(|terms| &terms.approvers));
    let mut expires = rule.expires.iter().chain(terms.and_then(|terms| terms.expires.as_ref()));
    let few = rule.approvers.len() <= 50 && terms.is_none_or(|terms| terms.approvers.len() <= 50);
    few && approvers.into_iter().all(|name| (1..=200).contains(&name.chars().count()))
        && expires.all(|span| !span.0.is_zero() && span.0 <= LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_output_that_cannot_be_checked_is_refused_with_the_reason() {
        let refused = |output: Value| {
            let agent: AgentDefinition =
                serde_json::from_value(json!({ "instructions": "Be.", "output": output })).unwrap();
            agent.check("clerk").err().map(|error| (error.members()["field"].clone(), error.detail().to_owned()))
        };
        assert_eq!(refused(json!({ "type": "string", "pattern": "^a+$" })), None);
        for output in [json!(7), json!({ "pattern": "(?=a)b" }), json!({ "$ref": "https://elsewhere.example/" })] {
            let (field, detail) = refused(output.clone()).unwrap();
            assert_eq!(field, "output", "{output}");
            assert!(detail.contains("JSON Schema (2020-12)"), "{detail}");
        }
    }
}
