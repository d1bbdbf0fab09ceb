//! Budgets of runs: what would go past one waits for more, and the books say what was taken.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Client, Provider, Run, Turn, World};

pub async fn world_with(provider: &Provider) -> World {
    World::with(|settings| settings.llm.providers = provider.settings().collect()).await
}

/// An agent whose model may say twenty words a turn, at 0.1 each.
pub async fn talker(world: &World) {
    let price = json!({ "input": 0.0, "output": 100_000.0 });
    let config = json!({ "provider": "fake-openai", "model": "m", "maxTokens": 20, "price": price });
    let agent = json!({ "instructions": "You look after orders.", "config": "talker", "tools": ["data.transform"] });
    for (path, body) in [("/llm/configs/talker", config), ("/agents/talker", agent)] {
        world.admin().request(Method::PUT, path).json(&body).send().await.expect(201);
    }
}

pub fn twenty() -> Vec<String> {
    (0..20).map(|number| format!("w{number} ")).collect()
}

pub async fn talk(world: &World, budget: Value) -> Run {
    let mut body = json!({ "agent": "talker", "goal": "Talk" });
    if !budget.is_null() {
        body["budget"] = budget;
    }
    world.owner().execute(body).await
}

async fn usage(client: &Client, query: &str) -> Vec<Value> {
    client.get(&format!("/usage{query}")).await.expect(200)["items"].as_array().unwrap().clone()
}

/// What is asked first that is about a budget.
pub async fn lack(run: &Run) -> Value {
    let asked = run.wait_for("awaiting_approval").await.data["payload"].clone();
    assert_eq!(asked["question"], "budget", "{asked}");
    asked
}

pub async fn approve(world: &World, asked: &Value) {
    world.approver().approve(asked["approvalId"].as_str().unwrap()).await;
}

#[track_caller]
pub fn is_near(value: &Value, wanted: f64) {
    let value = value.as_f64().unwrap();
    assert!((value - wanted).abs() < 1e-6, "{value}, not {wanted}");
}

/// Steps one after the other that only echo.
pub fn chain(steps: usize) -> Value {
    let step = |number: usize| {
        let needs: Vec<_> = (number > 0).then(|| format!("s{}", number - 1)).into_iter().collect();
        json!({ "id": format!("s{number}"), "uses": "debug.echo", "needs": needs, "with": { "value": 1 } })
    };
    (0..steps).map(step).collect()
}

#[tokio::test]
async fn money_and_tokens_that_lack_for_a_turn_are_asked_for() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    for (budget, cap) in [(json!(1.5), "cost"), (json!({ "cost": 1.5 }), "cost"), (json!({ "tokens": 100 }), "tokens")]
    {
        let before = provider.asked().len();
        provider.script([Turn::Say(twenty())]);
        let run = talk(&world, budget.clone()).await;
        let asked = lack(&run).await;
        assert_eq!((&asked["raises"], &asked["day"]), (&json!(cap), &Value::Null), "{budget}");
        if cap == "cost" {
            is_near(&asked["raise"], 0.5);
        } else {
            // The question has two thousand bytes, which may be a token each, and the answer twenty.
            assert!((1000.0..3000.0).contains(&asked["raise"].as_f64().unwrap()), "{asked}");
            assert!(asked["reason"].as_str().unwrap().contains("tokens"), "{asked}");
        }
        assert_eq!((provider.asked().len(), &run.get().await["status"]), (before, &json!("awaiting_approval")));
        approve(&world, &asked).await;
        is_near(&run.completes().await["cost"], 2.0);
    }
}

#[tokio::test]
async fn a_run_of_an_agent_takes_no_more_than_the_agent_may() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    let put = async |budget: Value| {
        let agent = json!({ "instructions": "You look after orders.", "config": "talker", "budget": budget });
        world.admin().request(Method::PUT, "/agents/thrifty").json(&agent).send().await
    };
    assert_eq!(put(json!({ "tokens": -1 })).await.problem(422, "invalid-input")["field"], "budget.tokens");
    assert_eq!(put(json!({ "cost": -1 })).await.problem(422, "invalid-input")["field"], "budget");
    put(json!({ "cost": 1.5, "toolCalls": 4 })).await.expect(201);
    let begin = async |budget: Option<Value>| {
        let mut body = json!({ "agent": "thrifty", "goal": "Talk" });
        if let Some(budget) = budget {
            body["budget"] = budget;
        }
        world.owner().execute(body).await
    };
    let own = json!({ "cost": 1.5, "toolCalls": 4 });
    for (asked, budget, raise) in [
        (None, own.clone(), 0.5),
        (Some(json!({ "cost": 5, "toolCalls": 9 })), own.clone(), 0.5),
        (Some(json!(1)), json!({ "cost": 1.0, "toolCalls": 4 }), 1.0),
    ] {
        let run = begin(asked).await;
        assert_eq!(run.wait_for("idle").await.data["payload"]["budget"], budget);
        is_near(&lack(&run).await["raise"], raise);
    }
    let whole = json!([{ "id": "ask", "uses": "agent:thrifty", "with": { "goal": "Talk" } }]);
    let parent = world.owner().execute(json!({ "plan": whole, "budget": 9 })).await;
    let child = parent.child(&world.viewer(), "ask").await;
    assert_eq!(child.wait_for("idle").await.data["payload"]["budget"], own, "as another's tool it may no more");
    let asked = lack(&child).await;
    provider.script([Turn::Say(twenty())]);
    approve(&world, &asked).await;
    is_near(&parent.completes().await["cost"], 2.0);
    // Where the parent had no more to lend, what was allowed its child is not asked for again.
    let step = json!([
        { "id": "ask", "uses": "agent:thrifty", "with": { "goal": "Talk" } },
        { "id": "end", "needs": ["ask"], "uses": "debug.echo" },
    ]);
    let parent = world.owner().execute(json!({ "plan": step, "budget": 1 })).await;
    let asked = lack(&parent.child(&world.viewer(), "ask").await).await;
    is_near(&asked["raise"], 1.0);
    provider.script([Turn::Say(twenty())]);
    approve(&world, &asked).await;
    is_near(&parent.completes().await["cost"], 2.0);
    let taken = parent.wait_for_step("step.completed", "ask").await.data["payload"]["taken"].clone();
    is_near(&taken["raised"]["cost"], 1.0);
}

#[tokio::test]
async fn calls_of_tools_past_their_number_wait_for_as_many_again() {
    let world = World::new().await;
    let begin = async || world.operator().execute(json!({ "plan": chain(5), "budget": { "toolCalls": 2 } })).await;
    let run = begin().await;
    let idle = run.wait_for("idle").await.data["payload"].clone();
    assert_eq!(idle["budget"], json!({ "toolCalls": 2 }));
    let mut follow = run.follow().await;
    for step in ["s2", "s4"] {
        let event = follow.until("awaiting_approval").await.data;
        let asked = &event["payload"];
        assert_eq!(
            (&event["stepId"], &asked["raises"], &asked["raise"]),
            (&json!(step), &json!("toolCalls"), &json!(2.0))
        );
        approve(&world, asked).await;
    }
    run.completes().await;
    let run = begin().await;
    let asked = lack(&run).await;
    world.approver().deny(asked["approvalId"].as_str().unwrap(), "enough").await;
    let failed = run.wait_end().await;
    assert_eq!((&failed["error"]["code"], &failed["error"]["stepId"]), (&json!("budget_exceeded"), &json!("s2")));
}

#[tokio::test]
async fn time_is_that_of_being_carried_out_and_waiting_for_a_person_does_not_count() {
    let world = World::new().await;
    let plan = json!([
        { "id": "ask", "uses": "debug.echo", "approval": { "selfApproval": true } },
        { "id": "nap", "needs": ["ask"], "uses": "time.wait", "with": { "for": "2m" } },
        { "id": "end", "needs": ["nap"], "uses": "debug.echo" },
    ]);
    let run = world.owner().execute(json!({ "plan": plan, "budget": { "wallTime": "1m" } })).await;
    let held = run.hold().await;
    world.advance(Duration::from_secs(3600));
    world.owner().approve(&held).await;
    run.wait_for("step.waiting").await;
    world.advance(Duration::from_secs(120));
    let mut follow = run.follow().await;
    let asked = loop {
        let event = follow.until("awaiting_approval").await.data;
        if event["stepId"] == "end" {
            break event["payload"].clone();
        }
    };
    assert_eq!((&asked["question"], &asked["raises"]), (&json!("budget"), &json!("wallTime")));
    // A minute too much has gone, and there is to be another; the machine took some time of its own.
    assert!((120.0..150.0).contains(&asked["raise"].as_f64().unwrap()), "{asked}");
    approve(&world, &asked).await;
    run.completes().await;
}

#[tokio::test]
async fn single_questions_to_models_side_by_side_share_their_runs_budget() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    provider.script([Turn::SayHeld(twenty(), 2), Turn::Say(twenty())]);
    let ask = |id: &str| json!({ "id": id, "uses": "llm.generate", "with": { "config": "talker", "prompt": "Talk" } });
    let run = world.owner().execute(json!({ "plan": [ask("a"), ask("b")], "budget": 3 })).await;
    let asked = lack(&run).await;
    is_near(&asked["raise"], 1.0);
    provider.asked_times(1).await;
    approve(&world, &asked).await;
    provider.asked_times(2).await;
    provider.release();
    is_near(&run.completes().await["cost"], 4.0);
}

#[tokio::test]
async fn a_budget_that_cannot_be_is_refused_by_its_field() {
    let world = World::new().await;
    for (budget, field) in [
        (json!(-1), "budget"),
        (json!("much"), "budget"),
        (json!([1]), "budget"),
        (json!({ "money": 1 }), "budget.money"),
        (json!({ "tokens": -1 }), "budget.tokens"),
        (json!({ "wallTime": "0s" }), "budget.wallTime"),
        (json!({ "wallTime": 5 }), "budget.wallTime"),
    ] {
        let answer = world.owner().post("/agent/plan", &json!({ "plan": chain(1), "budget": budget })).await;
        assert_eq!(answer.problem(422, "invalid-input")["field"], field, "{budget}");
    }
    for (budget, field) in
        [(json!({ "cost": -1 }), "cost"), (json!({ "wallTime": "0s" }), "wallTime"), (json!({ "money": 1 }), "money")]
    {
        let answer = world.admin().request(Method::PUT, "/usage/budget").json(&budget).send().await;
        assert_eq!(answer.problem(422, "invalid-input")["field"], field, "{budget}");
    }
}

#[tokio::test]
async fn usage_is_what_the_runs_cost_by_day_run_step_and_model_and_behind_the_wall() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    let call = Turn::call("data_transform", json!({ "value": 7 }));
    provider.script([call, Turn::Say(twenty()), Turn::Say(twenty())]);
    let (first, second) = (talk(&world, Value::Null).await, talk(&world, Value::Null).await);
    let steps = json!([
        { "id": "dear", "uses": "debug.echo", "approval": { "cost": 60.0, "selfApproval": true } },
        { "id": "free", "uses": "debug.echo" },
    ]);
    let third = world.owner().start(steps).await;
    world.owner().approve(&third.hold().await).await;
    let runs = [first, second, third];
    let mut costs = Vec::new();
    for run in &runs {
        costs.push(run.completes().await["cost"].as_f64().unwrap());
    }
    let sum = |rows: &[Value], field: &str| rows.iter().map(|row| row[field].as_f64().unwrap()).sum::<f64>();
    let all: f64 = costs.iter().sum();
    let by_day = usage(&world.viewer(), "").await;
    assert_eq!((by_day.len(), &by_day[0]["day"]), (1, &json!(world.now().date_naive().to_string())));
    // Three answers of ten tokens asked each, four of them known, and the echo.
    let counts = ["calls", "inputTokens", "cachedTokens"].map(|field| by_day[0][field].as_u64().unwrap());
    assert_eq!(counts, [4, 30, 12]);
    for group in ["day", "run", "model"] {
        let rows = usage(&world.viewer(), &format!("?groupBy={group}")).await;
        assert!((sum(&rows, "cost") - all).abs() < 1e-6, "{group}: {rows:?}");
    }
    let by_run = usage(&world.viewer(), "?groupBy=run").await;
    assert_eq!(by_run.len(), 3);
    for (run, cost) in runs.iter().zip(&costs) {
        let rows = by_run.iter().filter(|row| row["runId"] == run.id).cloned().collect::<Vec<_>>();
        assert!((sum(&rows, "cost") - cost).abs() < 1e-6, "{rows:?}");
        let steps = usage(&world.viewer(), &format!("?groupBy=step&runId={}", run.id)).await;
        assert!((sum(&steps, "cost") - cost).abs() < 1e-6, "{steps:?}");
    }
    let steps = usage(&world.viewer(), &format!("?groupBy=step&runId={}", runs[2].id)).await;
    assert_eq!((steps.len(), &steps[0]["stepId"], &steps[0]["calls"]), (1, &json!("dear"), &json!(1)));
    let models = usage(&world.viewer(), "?groupBy=model").await;
    assert_eq!(
        (models.len(), &models[1]["config"], &models[1]["provider"]),
        (2, &json!("talker@1"), &json!("fake-openai"))
    );
    assert_eq!((&models[0]["config"], &models[0]["cost"]), (&Value::Null, &json!(60.0)));

    // Page by page it is the same.
    let page = world.viewer().get("/usage?groupBy=run&limit=2").await.expect(200);
    let cursor = page["nextCursor"].as_str().unwrap();
    let rest = usage(&world.viewer(), &format!("?groupBy=run&limit=2&cursor={cursor}")).await;
    assert_eq!([page["items"].as_array().unwrap().clone(), rest].concat(), by_run);
    // What was not asked for is not there.
    assert_eq!(usage(&world.viewer(), "?to=2020-01-01").await, Vec::<Value>::new());
    world.viewer().get("/usage?groupBy=step").await.problem(422, "invalid-input");
    world.viewer().get("/usage?from=2020-01-01").await.problem(422, "invalid-input");
    world.viewer().get("/usage?to=%2B262142-12-31").await.problem(422, "invalid-input");
    world.viewer().get("/usage?from=yesterday").await.problem(400, "malformed-request");
    assert_eq!(usage(&world.stranger(), &format!("?groupBy=step&runId={}", runs[2].id)).await, Vec::<Value>::new());
    assert_eq!(usage(&world.stranger(), "").await, Vec::<Value>::new());
}

#[tokio::test]
async fn what_a_child_run_took_is_its_own_and_a_retry_counts_all_that_was_said() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    let child = "name: child\nsteps: [{ id: ask, uses: llm.generate, with: { config: talker, prompt: Talk } }]";
    world.operator().put_yaml("child", child).await.expect(201);
    provider.script([Turn::Say(twenty())]);
    let start =
        json!([{ "id": "start", "uses": "run.start", "with": { "workflow": "child", "budget": { "tokens": 1000 } } }]);
    let run = world.operator().start(start).await;
    is_near(&run.completes().await["cost"], 2.0);
    let by_run = usage(&world.viewer(), "?groupBy=run").await;
    assert_eq!(by_run.len(), 1, "{by_run:?}");
    assert_eq!(by_run[0]["runId"], run.step("start").await["output"]["runId"]);
    is_near(&usage(&world.viewer(), "").await[0]["cost"], 2.0);
}
