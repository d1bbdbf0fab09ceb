//! What would become of each step of a plan, as things stand. Pure.

use serde_json::{Map, Value};

use crate::{
    journal::{Forecast, Outlook, Plan, Step},
    kernel::template,
    tool::Registry,
};

/// What the gate would say of each step, and what it would touch and cost; `spent` of the budget is gone.
#[must_use]
pub fn forecast(plan: &Plan, tools: &Registry, budget: Option<f64>, spent: f64) -> Vec<Forecast> {
    let mut expected = spent;
    let mut all = Vec::with_capacity(plan.steps.len());
    for step in &plan.steps {
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
    let with = Value::Object(step.with.clone());
    let tool = tools.tool(&step.uses).ok();
    let effect = tool.and_then(|tool| match tool.effects()[..] {
        [only] => Some(only),
        // What a template comes to is not known yet: the effect is, where it does not hang on that.
        _ => Some(tool.effect(&with)).filter(|effect| tool.effect(&Value::Object(constant(step))) == *effect),
    });
    let (verdict, reason) = match (tool, terms) {
        (None, _) => (Outlook::Forbid, Some(format!("there is no tool `{}`", step.uses))),
        (Some(_), Some(terms)) => (Outlook::Hold, terms.reason.clone()),
        (Some(_), None) => (Outlook::Allow, None),
    };
    Forecast {
        step_id: step.id.clone(),
        verdict,
        reason,
        effect,
        cost: terms.and_then(|terms| terms.cost),
        scope: terms.map(|terms| terms.scope.clone()).unwrap_or_default(),
        requires: terms.map(|terms| terms.requires.clone()).unwrap_or_default(),
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
    use crate::{config::ToolSettings, tool};

    fn forecast_of(steps: Value, budget: Option<f64>) -> Vec<Value> {
        let settings = ToolSettings { debug: true, ..ToolSettings::default() };
        let tools = Registry::builtin(&settings, &Default::default(), tool::fixture::ports(&settings)).unwrap();
        let plan: Plan = serde_json::from_value(json!({ "steps": steps })).unwrap();
        forecast(&plan, &tools, budget, 0.5).iter().map(|one| serde_json::to_value(one).unwrap()).collect()
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
