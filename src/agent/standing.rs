//! How the gate stands to a model's calls of a tool, before there is one. Pure.

use serde::Serialize;
use utoipa::ToSchema;

use super::{AgentDefinition, pin::given};
use crate::{
    journal::{ApprovalRule, Effect, Wanted, Word},
    tool::{Described, Tool},
};

/// What the gate would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StandingVerdict {
    /// A call may be made.
    Allow,
    /// Somebody has to consent first.
    Hold,
    /// One or the other: that depends on the arguments.
    Depends,
    /// It may not be made.
    Forbid,
}

/// A tool, and how the gate stands to it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StandingTool {
    /// The tool.
    #[serde(flatten)]
    pub tool: Described,
    /// What the gate would say to a model that wants to call it.
    pub verdict: StandingVerdict,
    /// Why.
    #[schema(example = "repeating a call would do something again")]
    pub reason: String,
}

/// An agent whose calls are judged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The tools that a run of it would be given.
    given: Vec<String>,
    approval: Vec<ApprovalRule>,
}

impl Judged {
    /// That agent, where there are these tools.
    #[must_use]
    pub fn new(name: &str, agent: &AgentDefinition, tools: &[String]) -> Self {
        let given = given(name, tools, agent.tools.as_deref().unwrap_or_default());
        Self { given, approval: agent.approval.clone().unwrap_or_default() }
    }
}

impl StandingTool {
    /// As it stands to any model, or to that of an agent.
    #[must_use]
    pub fn of(tool: &dyn Tool, agent: Option<&Judged>) -> Self {
        let (verdict, reason) = match (agent, tool.out_of_use()) {
            (_, Some(why)) => (StandingVerdict::Forbid, why),
            (Some(agent), None) if !agent.given.iter().any(|given| given == tool.name()) => {
                (StandingVerdict::Forbid, "the agent was not given it".to_owned())
            }
            _ => verdict(tool, agent.map(|agent| &*agent.approval).unwrap_or_default()),
        };
        Self { tool: Described::of(tool), verdict, reason }
    }
}

fn verdict(tool: &dyn Tool, rules: &[ApprovalRule]) -> (StandingVerdict, String) {
    let effects = tool.effects();
    let said: Vec<_> = effects
        .iter()
        .map(|effect| Wanted { tool: tool.name(), effect: *effect, own: tool.rule() }.word(rules))
        .collect();
    let held = |holds: bool| said.iter().all(|(_, held)| *held == holds);
    let verdict = match (held(false), held(true)) {
        (true, _) => StandingVerdict::Allow,
        (_, true) => StandingVerdict::Hold,
        _ => StandingVerdict::Depends,
    };
    let does = |holds| if holds { "holds it" } else { "lets it pass" };
    let reason = match said.first().filter(|_| verdict != StandingVerdict::Depends) {
        Some((Word::Agent(rule), holds)) => {
            format!("the agent's rule for {} {}", listed(rule), does(*holds))
        }
        Some((Word::Tool(_), holds)) => format!("the tool's own rule {}", does(*holds)),
        _ => by_effect(&effects),
    };
    (verdict, reason)
}

fn listed(rule: &ApprovalRule) -> String {
    rule.tools.iter().map(|pattern| format!("`{pattern}`")).collect::<Vec<_>>().join(", ")
}

fn by_effect(effects: &[Effect]) -> String {
    match effects {
        [Effect::Pure] => "it only reads or computes",
        [Effect::Repeatable] => "repeating a call does no harm",
        [Effect::Once] => "repeating a call would do something again",
        _ if effects.contains(&Effect::Once) => {
            "calls whose repetition would do something again are held: see `effects`"
        }
        _ => "repeating a call does no harm",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use serde_json::{Value, json};

    use super::*;
    use crate::tool::{Call, Outcome, ToolError};

    struct Fake(Vec<Effect>, Option<ApprovalRule>);

    #[async_trait]
    impl Tool for Fake {
        fn name(&self) -> &str {
            "shop.refund"
        }

        fn description(&self) -> &str {
            "For tests."
        }

        fn arguments(&self) -> Value {
            json!({})
        }

        fn output(&self) -> Value {
            json!({})
        }

        fn effect(&self, _: &Value) -> Effect {
            self.0[0]
        }

        fn effects(&self) -> Vec<Effect> {
            self.0.clone()
        }

        fn rule(&self) -> Option<&ApprovalRule> {
            self.1.as_ref()
        }

        async fn call(&self, _: Call) -> Result<Outcome, ToolError> {
            Err(ToolError::cancelled())
        }
    }

    fn agent(body: Value) -> AgentDefinition {
        let mut whole = json!({ "instructions": "Be." });
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn the_gate_stands_by_the_agents_rules_the_tools_own_and_its_effects() {
        use {Effect::*, StandingVerdict::*};
        let own = |hold| Some(ApprovalRule { hold, ..ApprovalRule::default() });
        let free = json!({ "tools": ["shop.*"], "approval": [{ "tools": ["shop.*"], "hold": false }] });
        let strict = json!({ "tools": ["*"], "approval": [{ "tools": ["shop.refund", "x"] }] });
        let plain = json!({ "tools": ["shop.refund"] });
        let dear = json!({ "tools": ["*"], "approval": [{ "tools": ["shop.*"], "cost": ">100" }] });
        for (effects, rule, of, verdict, reason) in [
            (vec![Pure], None, None, Allow, "it only reads or computes"),
            (vec![Repeatable], None, None, Allow, "repeating a call does no harm"),
            (vec![Pure, Repeatable], None, None, Allow, "repeating a call does no harm"),
            (vec![Once], None, None, Hold, "repeating a call would do something again"),
            (vec![Pure, Once], None, None, Depends, "calls whose repetition"),
            (vec![Once], own(None), None, Hold, "repeating a call would do something again"),
            (vec![Once], own(Some(false)), None, Allow, "the tool's own rule lets it pass"),
            (vec![Pure, Once], own(Some(true)), None, Hold, "the tool's own rule holds it"),
            (vec![Once], own(Some(true)), Some(&free), Allow, "the agent's rule for `shop.*` lets it pass"),
            (vec![Pure], own(Some(false)), Some(&strict), Hold, "the agent's rule for `shop.refund`, `x` holds it"),
            (vec![Once], own(Some(false)), Some(&plain), Allow, "the tool's own rule lets it pass"),
            (vec![Once], None, Some(&plain), Hold, "repeating a call would do something again"),
            (vec![Once, Pure], None, Some(&dear), Depends, "calls whose repetition"),
            (vec![Once], None, Some(&dear), Hold, "the agent's rule for `shop.*` holds it"),
            (vec![Pure], None, Some(&json!({ "tools": ["shop.read"] })), Forbid, "the agent was not given it"),
            (vec![Pure], None, Some(&json!({})), Forbid, "the agent was not given it"),
        ] {
            let tools = ["shop.refund".to_owned()];
            let agent = of.map(|body| Judged::new("clerk", &agent(body.clone()), &tools));
            let stands = StandingTool::of(&Fake(effects.clone(), rule.clone()), agent.as_ref());
            assert_eq!(stands.verdict, verdict, "{effects:?} {rule:?} {of:?}");
            assert!(stands.reason.starts_with(reason), "{}", stands.reason);
        }
    }

    #[test]
    fn an_agent_is_judged_by_what_a_run_of_it_would_be_given() {
        let tools = ["shop.refund", "output.read", "agent:clerk", "agent:other"].map(str::to_owned);
        let given = |patterns: Value| Judged::new("clerk", &agent(json!({ "tools": patterns })), &tools).given;
        assert_eq!(given(json!(["shop.*"])), ["shop.refund", "output.read"], "whoever has any can read what they gave");
        assert_eq!(given(json!(["*"])), ["shop.refund", "output.read", "agent:other"], "itself only by its name");
        assert_eq!(given(json!(["agent:clerk"])), ["agent:clerk", "output.read"]);
        assert_eq!(given(json!(["nothing"])), Vec::<String>::new());
    }
}
