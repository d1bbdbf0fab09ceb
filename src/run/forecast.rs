//! What would become of each step of a plan, as things stand. Pure.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    journal::{ApprovalTerms, Forecast, Outlook, Step},
    kernel::template,
    tool::Registry,
};

/// What the gate would say of each step, and what it would touch and cost; `spent` of the budget is gone.
#[must_use]
pub fn forecast<'a>(
    steps: impl IntoIterator<Item = &'a Arc<Step>>,
    tools: &Registry,
    budget: Option<f64>,
    spent: f64,
) -> Vec<Forecast> {
    let mut expected = spent;
    let mut all = Vec::new();
    for step in steps {
        let mut one = of_step(step, tools);
        expected += one.cost.unwrap_or_default();
        let is_past = budget.is_some_and(|budget| one.cost.is_some() && expected > budget);
        if one.verdict == Outlook::Allow && is_past {
            one.verdict = Outlook::Hold;
            one.reason = Some("by then the run would be past its budget".to_owned());
        }
        all.push(one);
    }
    all
}

fn of_step(step: &Step, tools: &Registry) -> Forecast {
    let terms = step.approval.as_ref();
    let own = tools.terms(&step.uses);
    let with = Value::Object(step.with.clone());
    let tool = tools.tool(&step.uses).ok();
    let effect = tool.and_then(|tool| match tool.effects()[..] {
        [only] => Some(only),
        // What a template comes to is not known yet: the effect is, where it does not hang on that.
        _ => Some(tool.effect(&with)).filter(|effect| tool.effect(&Value::Object(constant(step))) == *effect),
    });
    let unusable = match tool {
        None => Some(format!("there is no tool `{}`", step.uses)),
        Some(tool) => tool.out_of_use(),
    };
    let (verdict, reason) = match (unusable, terms) {
        (Some(why), _) => (Outlook::Forbid, Some(why)),
        (None, Some(terms)) => (Outlook::Hold, terms.reason.clone()),
        (None, None) => (Outlook::Allow, None),
    };
    // What the step does not say of the call, the tool may.
    let of = |of: fn(&ApprovalTerms) -> &Vec<String>| {
        let said = terms.map(of).filter(|said| !said.is_empty()).or_else(|| own.map(of));
        said.cloned().unwrap_or_default()
    };
    Forecast {
        step_id: step.id.clone(),
        verdict,
        reason,
        effect,
        cost: terms.and_then(|terms| terms.cost).or(own.and_then(|own| own.cost)),
        scope: of(|terms| &terms.scope),
        requires: of(|terms| &terms.requires),
    }
}

/// The arguments that are no templates.
fn constant(step: &Step) -> Map<String, Value> {
    let with = step.with.iter().filter(|(_, value)| step.verbatim || !template::is_template(value));
    with.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{config::ToolSettings, journal::Plan, tool};

    fn forecast_of(steps: Value, budget: Option<f64>) -> Vec<Value> {
        let settings = ToolSettings { debug: true, ..ToolSettings::default() };
        let tools = Registry::builtin(&settings, &Default::default(), tool::fixture::ports(&settings)).unwrap();
        let plan: Plan = serde_json::from_value(json!({ "steps": steps })).unwrap();
        forecast(&plan.steps, &tools, budget, 0.5).iter().map(|one| serde_json::to_value(one).unwrap()).collect()
    }

    #[test]
    fn each_step_has_its_verdict_effect_and_cost() {
        let url = "https://a.example";
        let steps = json!([
            { "id": "read", "uses": "http.request", "with": { "url": url } },
            { "id": "send", "uses": "http.request", "with": { "url": url, "method": "POST" },
              "approval": { "reason": "It sends", "cost": 2.0, "scope": ["mail"], "requires": ["mail:send"] } },
            { "id": "open", "uses": "http.request", "with": { "url": url, "method": "{{ input.method }}" } },
            { "id": "gone", "uses": "crm.sync" },
        ]);
        assert_eq!(
            forecast_of(steps, None),
            [
                json!({ "stepId": "read", "verdict": "allow", "effect": "pure" }),
                json!({ "stepId": "send", "verdict": "hold", "reason": "It sends", "effect": "once", "cost": 2.0,
                    "scope": ["mail"], "requires": ["mail:send"] }),
                json!({ "stepId": "open", "verdict": "allow" }),
                json!({ "stepId": "gone", "verdict": "forbid", "reason": "there is no tool `crm.sync`" }),
            ]
        );
    }

    #[test]
    fn what_would_be_past_the_budget_is_forecast_to_be_held() {
        let step = |id: &str, cost: f64| json!({ "id": id, "uses": "debug.echo", "approval": { "cost": cost } });
        let mut steps = json!([step("a", 1.0), step("b", 1.0)]);
        let verdicts = |all: Vec<Value>| all.iter().map(|one| one["verdict"].clone()).collect::<Vec<_>>();
        assert_eq!(verdicts(forecast_of(steps.clone(), Some(1.0))), ["hold", "hold"]);
        steps[0].as_object_mut().unwrap().remove("approval");
        assert_eq!(verdicts(forecast_of(steps, Some(1.0))), ["allow", "hold"]);
    }
}
