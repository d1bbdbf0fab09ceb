//! What would become of each step of a plan, as things stand.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::{Map, Value, json};

use crate::{
    journal::{ApprovalTerms, Budget, Estimate, Forecast, Outlook, Plan, Step, as_f64, turn_of},
    kernel::{
        TenantId,
        template::{self, Context, Scope},
    },
    tool::{Registry, fits},
};

/// The bytes of arguments that the input is put into beforehand, in all steps of a plan together.
const KNOWN: usize = 1024 * 1024;

/// Bytes that are said of whom a call would reach, where there is little room.
const TOUCHES: usize = 100;

/// What is known beforehand of the steps of a plan.
#[derive(Clone, Debug)]
pub struct Foresight {
    tools: Registry,
    /// What a call is expected to take and how many there are, by the ids of their steps.
    calls: HashMap<String, Foreseen>,
    /// What is left of their tenant's day.
    day: Budget,
}

/// What is known of a step's calls.
#[derive(Clone, Debug)]
struct Foreseen {
    /// What one takes.
    call: Estimate,
    /// How many there are.
    times: u64,
    /// Whom it would reach.
    touches: Option<String>,
}

impl Foresight {
    /// Asks the tools, each once, what the calls of the plan would take in a run with that input, where `day` is left of
    /// the tenant's day.
    pub async fn of(tools: &Registry, tenant: TenantId, (plan, input): (&Plan, &Arc<Value>), day: Budget) -> Self {
        let context = Context::Run(Arc::new(Scope { input: Arc::clone(input), ..Scope::default() }));
        let (mut room, mut calls) = (KNOWN, HashMap::with_capacity(plan.steps.len()));
        let mut asked: BTreeMap<&str, Vec<(&Step, Value)>> = BTreeMap::new();
        for step in &plan.steps {
            match turn_of(step) {
                Some(_) => {
                    calls.insert(step.id.clone(), Foreseen { call: turn(plan), times: 1, touches: None });
                }
                None => asked.entry(&step.uses).or_default().push((step, known(step, &context, &mut room))),
            }
        }
        for (uses, steps) in asked {
            let arguments: Vec<_> = steps.iter().map(|(_, arguments)| arguments).collect();
            let tool = tools.tool(uses).ok();
            let told = match tool {
                Some(tool) => tool.expects_each(tenant, &arguments, plan.models.as_deref()).await,
                None => vec![],
            };
            let told = told.into_iter().chain(std::iter::repeat(Estimate::default()));
            for ((step, arguments), told) in steps.iter().zip(told) {
                let (call, times) = (Estimate { tool_calls: 1, ..told }, items(step, &context, &mut room));
                let touches = tool.and_then(|tool| tool.touches(arguments));
                calls.insert(step.id.clone(), Foreseen { call, times, touches });
            }
        }
        Self { tools: tools.clone(), calls, day }
    }

    /// The forecast as it goes into an event beside its plan. What that has no room for is there for the asking.
    #[must_use]
    pub fn announce(&self, plan: &Plan, left: Budget) -> Vec<Forecast> {
        let mut all = self.forecast(&plan.steps, left);
        let has_room = |all: &Vec<Forecast>| fits(&(plan, all), self.tools.limits().payload());
        if !has_room(&all) {
            all.iter_mut().filter_map(|one| one.touches.as_mut()).for_each(shorten);
        }
        if !has_room(&all) {
            all.clear();
        }
        all
    }

    /// What the gate would say of each step, and what it would touch and cost, where so much of the run's budget is left.
    #[must_use]
    pub fn forecast<'a>(&self, steps: impl IntoIterator<Item = &'a Arc<Step>>, left: Budget) -> Vec<Forecast> {
        let mut before = Estimate::default();
        let mut all = Vec::new();
        for step in steps {
            let none = || Foreseen { call: Estimate::default(), times: 1, touches: None };
            let Foreseen { call: told, times, touches } = self.calls.get(&step.id).cloned().unwrap_or_else(none);
            let mut one = Forecast { touches, ..of_step(step, &self.tools, told) };
            one.cost = one.cost.map(|cost| cost * as_f64(times));
            let call = Estimate {
                cost: one.cost.unwrap_or_default(),
                tokens: told.tokens.saturating_mul(times),
                tool_calls: told.tool_calls.saturating_mul(times),
            };
            let whose =
                [(left, "run would be past its budget"), (self.day, "tenant would be past its budget of the day")];
            let past = whose.into_iter().find(|(left, _)| is_past(left, before, call));
            before = before + call;
            if let (Outlook::Allow, Some((_, past))) = (one.verdict, past) {
                one.verdict = Outlook::Hold;
                one.reason = Some(format!("by then the {past}"));
            }
            all.push(one);
        }
        all
    }
}

/// What the turn of an agent is expected to take.
fn turn(plan: &Plan) -> Estimate {
    let asked = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX);
    plan.agent.as_ref().map(|agent| agent.turn(asked(&agent.instructions))).unwrap_or_default()
}

/// The arguments of a step's call as far as they hang on nothing but the input. All else stays as it is written, and so does
/// what there is no room for, and what fails: the step itself says so.
fn known(step: &Step, context: &Context, room: &mut usize) -> Value {
    let mut known = Map::new();
    for (name, value) in &step.with {
        let rendered = (!step.verbatim && template::is_template(value) && is_of_input(value))
            .then(|| template::render(&json!({ name: value }), context).ok())
            .flatten()
            .and_then(|rendered| Some((room.checked_sub(rendered.to_string().len())?, rendered)));
        match rendered {
            Some((left, Value::Object(rendered))) => {
                *room = left;
                known.extend(rendered);
            }
            _ => drop(known.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(known)
}

/// How many calls a step makes: one for each item of its list, as far as that hangs on nothing but the input; else one.
fn items(step: &Step, context: &Context, room: &mut usize) -> u64 {
    let list = step.for_each.as_ref().filter(|list| *room > 0 && is_of_input(list));
    match list.and_then(|list| template::render(list, context).ok()) {
        Some(Value::Array(items)) => {
            *room = room.saturating_sub(items.len());
            u64::try_from(items.len()).unwrap_or(u64::MAX)
        }
        _ => 1,
    }
}

fn is_of_input(value: &Value) -> bool {
    match value {
        Value::String(text) => template::check(text).is_ok_and(|names| names.are_of_input()),
        Value::Array(items) => items.iter().all(is_of_input),
        Value::Object(fields) => fields.values().all(is_of_input),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Whom a call would reach, in few words: an address can be long.
fn shorten(touches: &mut String) {
    if touches.len() > TOUCHES {
        touches.truncate(touches.floor_char_boundary(TOUCHES));
        touches.push('…');
    }
}

/// Whether a call would take what is left of something past its end.
fn is_past(left: &Budget, before: Estimate, call: Estimate) -> bool {
    let after = before + call;
    left.cost.is_some_and(|most| call.cost > 0.0 && after.cost > most)
        || left.tokens.is_some_and(|most| call.tokens > 0 && after.tokens > most)
        || left.tool_calls.is_some_and(|most| call.tool_calls > 0 && after.tool_calls > most)
}

fn of_step(step: &Step, tools: &Registry, expected: Estimate) -> Forecast {
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
    let cost = terms.and_then(|terms| terms.cost).or(own.and_then(|own| own.cost));
    Forecast {
        step_id: step.id.clone(),
        verdict,
        reason,
        effect,
        cost: cost.or((expected.cost > 0.0).then_some(expected.cost)),
        touches: None,
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
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::{
        config::{LimitSettings, ToolSettings},
        journal::{Effect, ModelPins},
        kernel::{Id, Timestamp},
        tool::{self, Call, Outcome, Tool, ToolError},
    };

    fn forecast_of(steps: Value, cost: Option<f64>) -> Vec<Value> {
        foresee(steps, Budget { cost: cost.map(|cost| cost - 0.5), ..Budget::default() }, Budget::default())
    }

    /// What is known of steps whose tools say nothing of what they take.
    fn calls(tools: &Registry, plan: &Plan) -> HashMap<String, Foreseen> {
        let foreseen = |step: &Arc<Step>| {
            let touches = tools.tool(&step.uses).ok().and_then(|tool| tool.touches(&Value::Object(step.with.clone())));
            let call = Estimate { tool_calls: 1, ..Estimate::default() };
            (step.id.clone(), Foreseen { call, times: 1, touches })
        };
        plan.steps.iter().map(foreseen).collect()
    }

    fn foresee(steps: Value, left: Budget, day: Budget) -> Vec<Value> {
        let settings = ToolSettings { debug: true, ..ToolSettings::default() };
        let tools = Registry::builtin(&settings, &Default::default(), tool::fixture::ports(&settings)).unwrap();
        let plan: Plan = serde_json::from_value(json!({ "steps": steps })).unwrap();
        let foresight = Foresight { calls: calls(&tools, &plan), tools, day };
        foresight.forecast(&plan.steps, left).iter().map(|one| serde_json::to_value(one).unwrap()).collect()
    }

    /// Costs one a call, and keeps what it was asked of.
    #[derive(Default)]
    struct Meter(Mutex<Vec<Vec<Value>>>);

    #[async_trait]
    impl Tool for Meter {
        fn name(&self) -> &str {
            "meter"
        }

        fn description(&self) -> &str {
            "Costs one."
        }

        fn arguments(&self) -> Value {
            json!({ "type": "object" })
        }

        fn output(&self) -> Value {
            json!({ "type": "object" })
        }

        fn effect(&self, _: &Value) -> Effect {
            Effect::Pure
        }

        async fn expects_each(&self, _: TenantId, calls: &[&Value], _: Option<&ModelPins>) -> Vec<Estimate> {
            self.0.lock().unwrap().push(calls.iter().copied().cloned().collect());
            vec![Estimate { cost: 1.0, ..Estimate::default() }; calls.len()]
        }

        async fn call(&self, _: Call) -> Result<Outcome, ToolError> {
            unreachable!()
        }
    }

    #[tokio::test]
    async fn a_tool_is_asked_once_of_all_its_calls_with_what_is_known_of_them() {
        let meter = Arc::new(Meter::default());
        let tools = Registry::new([Arc::clone(&meter) as Arc<dyn Tool>], &LimitSettings::default()).unwrap();
        let with = json!({ "config": "{{ input.config }}", "none": "{{ input.none | default(omit) }}",
            "list": [{ "url": "{{ input.config }}" }], "later": "{{ steps.s1.output }}", "missing": "{{ input.a.b }}" });
        let step = |n| json!({ "id": format!("s{n}"), "uses": "meter", "with": with });
        let steps: Vec<_> = (1..=20).map(step).collect();
        let plan: Plan = serde_json::from_value(json!({ "steps": steps })).unwrap();
        let input = Arc::new(json!({ "config": "mine" }));
        let foresight = Foresight::of(&tools, Id::new(Timestamp::UNIX_EPOCH), (&plan, &input), Budget::default()).await;
        let asked = meter.0.lock().unwrap().clone();
        assert_eq!((asked.len(), asked[0].len()), (1, 20));
        let expected = json!({ "config": "mine", "list": [{ "url": "mine" }], "later": "{{ steps.s1.output }}",
            "missing": "{{ input.a.b }}" });
        assert!(asked[0].iter().all(|call| *call == expected), "{}", asked[0][0]);
        let costs: Vec<_> = foresight.forecast(&plan.steps, Budget::default()).iter().map(|one| one.cost).collect();
        assert_eq!(costs, [Some(1.0); 20]);
        // What there is no room for stays as it is written.
        let context = Context::Run(Arc::new(Scope { input, ..Scope::default() }));
        let step = Step { with: with.as_object().unwrap().clone(), ..Step::of("a", "meter") };
        let mut room = r#"{"config":"mine"}"#.len();
        let some = super::known(&step, &context, &mut room);
        assert_eq!((&some["config"], &some["list"], room), (&json!("mine"), &with["list"], 0));
    }

    #[tokio::test]
    async fn a_step_for_each_of_a_list_takes_as_many_calls_as_that_has_items() {
        let tools = Registry::new([Arc::new(Meter::default()) as Arc<dyn Tool>], &LimitSettings::default()).unwrap();
        let step = |id: &str, list: Value| json!({ "id": id, "uses": "meter", "forEach": list });
        let steps = [
            step("written", json!([1, 2, "{{ input.a }}"])),
            step("given", json!("{{ input.all }}")),
            step("later", json!("{{ steps.written.output }}")),
            step("none", json!([])),
            step("wrong", json!("{{ input.a }}")),
        ];
        let plan: Plan = serde_json::from_value(json!({ "steps": steps })).unwrap();
        let input = Arc::new(json!({ "a": 1, "all": [1, 2, 3, 4] }));
        let foresight = Foresight::of(&tools, Id::new(Timestamp::UNIX_EPOCH), (&plan, &input), Budget::default()).await;
        let told = |left: Budget| foresight.forecast(&plan.steps, left);
        let costs: Vec<_> = told(Budget::default()).iter().map(|one| one.cost).collect();
        assert_eq!(costs, [Some(3.0), Some(4.0), Some(1.0), Some(0.0), Some(1.0)]);
        // So are they counted against what is left.
        let held = |left| told(left).iter().position(|one| one.verdict == Outlook::Hold);
        assert_eq!(held(Budget { tool_calls: Some(6), ..Budget::default() }), Some(1));
        assert_eq!(held(Budget { cost: Some(7.5), ..Budget::default() }), Some(2));
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
                json!({ "stepId": "read", "verdict": "allow", "effect": "pure", "touches": "GET https://a.example" }),
                json!({ "stepId": "send", "verdict": "hold", "reason": "It sends", "effect": "once", "cost": 2.0,
                    "touches": "POST https://a.example", "scope": ["mail"], "requires": ["mail:send"] }),
                json!({ "stepId": "open", "verdict": "allow", "touches": "{{ input.method }} https://a.example" }),
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

    #[test]
    fn an_event_has_as_much_of_it_as_it_has_room_for() {
        let limits = LimitSettings { event: 8 * 1024, ..LimitSettings::default() };
        let settings = ToolSettings::default();
        let tools = Registry::builtin(&settings, &limits, tool::fixture::ports(&settings)).unwrap();
        let announced = |steps: usize, path: usize| {
            let url = format!("https://a.example/{}", "p".repeat(path));
            let step = |n| json!({ "id": format!("s{n}"), "uses": "http.request", "with": { "url": url } });
            let plan: Plan =
                serde_json::from_value(json!({ "steps": (0..steps).map(step).collect::<Vec<_>>() })).unwrap();
            let foresight = Foresight { calls: calls(&tools, &plan), tools: tools.clone(), day: Budget::default() };
            let all = foresight.announce(&plan, Budget::default());
            assert!(all.is_empty() || fits(&(&plan, &all), limits.payload()));
            all.iter().map(|one| one.touches.as_ref().unwrap().len()).collect::<Vec<_>>()
        };
        assert_eq!(announced(2, 1000), [1022; 2]);
        assert_eq!(announced(2, 2000), [TOUCHES + 3; 2]);
        assert_eq!(announced(2, 3400), [0; 0]);
    }

    #[test]
    fn each_thing_that_the_run_or_the_day_bounds_is_looked_at() {
        let steps = || json!([{ "id": "a", "uses": "debug.echo" }, { "id": "b", "uses": "debug.echo" }]);
        let calls = Budget { tool_calls: Some(1), ..Budget::default() };
        for (left, day, reason) in [
            (calls, Budget::default(), "by then the run would be past its budget"),
            (Budget::default(), calls, "by then the tenant would be past its budget of the day"),
        ] {
            let all = foresee(steps(), left, day);
            assert_eq!((&all[0]["verdict"], &all[1]["verdict"]), (&json!("allow"), &json!("hold")));
            assert_eq!(all[1]["reason"], reason);
        }
    }
}
