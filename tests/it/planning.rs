//! Plans that a model makes from a goal: checked as any, asked for again with what is wrong, forecast, and changed by people
//! before they begin.

use fermata::{app::Role, kernel::Span};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{APIS, Follow, Provider, Run, Turn, Upstream, World};

async fn world_with(provider: &Provider) -> World {
    World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
    })
    .await
}

/// Whoever plans by default, at that provider.
async fn planner(world: &World, provider: &str) {
    let body = json!({ "provider": provider, "model": "m", "price": { "input": 100.0, "output": 100.0 } });
    let answer = world.admin().request(Method::PUT, "/llm/configs/default-smart").json(&body).send().await;
    assert!([200, 201].contains(&answer.status), "{}", answer.text());
}

fn draft(plan: Value) -> Turn {
    Turn::call("plan", plan)
}

fn one(id: &str, uses: &str, with: Value) -> Value {
    json!({ "steps": [{ "id": id, "uses": uses, "with": with }] })
}

/// A run that is planned, by the operator.
async fn plan(world: &World, goal: &str) -> Run {
    let body = world.operator().post("/agent/plan", &json!({ "goal": goal })).await.expect(202);
    world.operator().run(body["runId"].as_str().unwrap())
}

async fn edit(world: &World, run: &Run, plan: &Value) -> crate::world::Answer {
    world.operator().request(Method::PATCH, &run.path("")).json(&json!({ "plan": plan })).send().await
}

/// The plan as it was told.
async fn ready(run: &Run) -> Value {
    run.wait_for("plan.ready").await.data["payload"].clone()
}

/// The next question that is asked.
async fn held(follow: &mut Follow) -> String {
    follow.until("awaiting_approval").await.data["payload"]["approvalId"].as_str().unwrap().to_owned()
}

async fn execute(world: &World, run: &Run) {
    world.operator().post("/agent/execute", &json!({ "runId": run.id })).await.expect(202);
}

#[tokio::test]
async fn a_goal_comes_to_a_plan_with_a_forecast_which_is_edited_and_then_carried_out() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider).await;
    for (name, _) in APIS {
        planner(&world, name).await;
        let before = (provider.asked().len(), upstream.requests().len());
        provider.script([draft(json!({
            "steps": [
                { "id": "look", "name": "Look the order up", "uses": "data.transform", "with": { "value": { "order": 1042 } } },
                { "id": "refund", "needs": ["look"], "uses": "http.request",
                  "with": { "method": "POST", "url": upstream.url("/refund"), "json": "{{ steps.look.output }}" } },
            ],
            "output": "{{ steps.look.output.order }}",
        }))]);
        let run = plan(&world, "Refund order 1042").await;
        let told = ready(&run).await;
        assert_eq!(told["plan"]["steps"].as_array().unwrap().len(), 2, "{name}");
        let forecast = &told["forecast"];
        assert_eq!(forecast[0], json!({ "stepId": "look", "verdict": "allow", "effect": "pure" }));
        assert_eq!((&forecast[1]["verdict"], &forecast[1]["effect"]), (&json!("hold"), &json!("once")));
        let planned = run.get().await;
        assert_eq!((&planned["status"], &planned["goal"]), (&json!("planning"), &json!("Refund order 1042")));
        assert!(planned["cost"].as_f64().unwrap() > 0.0, "what the plan cost counts");
        let question = provider.asked()[before.0].body.to_string();
        assert!(question.contains("Refund order 1042") && question.contains("http.request"), "{question}");
        // Somebody looks at it, and would have another order refunded.
        let mut other = told["plan"].clone();
        other["steps"][0]["with"]["value"]["order"] = json!(1043);
        edit(&world, &run, &other).await.expect(200);
        let mut follow = run.follow_after(planned["lastEventId"].as_str().unwrap()).await;
        let edited = follow.until("plan.ready").await.data["payload"].clone();
        assert_eq!(edited["plan"], other);
        assert_eq!(edited["editedBy"], run.get().await["createdBy"]);
        execute(&world, &run).await;
        let approval = run.hold().await;
        assert_eq!(
            world.viewer().get(&format!("{}/forecast", run.path(""))).await.expect(200)["items"][0]["stepId"],
            "refund"
        );
        assert_eq!(upstream.requests().len(), before.1);
        world.operator().decide(&approval, &json!({ "status": "approved" })).await.problem(403, "forbidden");
        world.approver().approve(&approval).await;
        assert_eq!(run.completes().await["output"], 1043, "{name}");
        assert_eq!(upstream.requests().last().unwrap().json(), json!({ "order": 1043 }));
        assert_eq!(provider.asked().len(), before.0 + 1);
    }
}

#[tokio::test]
async fn what_a_model_costs_that_the_input_names_is_told_as_the_run_has_pinned_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let price = async |output: f64| {
        let config = json!({ "provider": "fake-openai", "model": "m", "maxTokens": 1000, "price": { "input": 1.0, "output": output } });
        let answer = world.admin().request(Method::PUT, "/llm/configs/mine").json(&config).send().await;
        assert!([200, 201].contains(&answer.status), "{}", answer.text());
    };
    price(100.0).await;
    let step = |id: &str, config: &str| json!({ "id": id, "uses": "llm.generate", "with": { "config": config, "prompt": "Hello" } });
    let mut later = step("later", "{{ steps.said.output.text }}");
    later["needs"] = json!(["said"]);
    let steps = [step("said", "mine"), step("given", "{{ input.config_name }}"), later];
    let body = json!({ "plan": { "steps": steps }, "input": { "config_name": "mine" } });
    let planned = world.operator().post("/agent/plan", &body).await.expect(202);
    let run = world.operator().run(planned["runId"].as_str().unwrap());
    let costs = |forecast: &Value| [0, 1, 2].map(|at| forecast[at]["cost"].as_f64());
    let told = costs(&ready(&run).await["forecast"]);
    assert!(told[0] > Some(0.1) && told[0] == told[1] && told[2].is_none(), "{told:?}");
    price(900.0).await;
    let now = world.viewer().get(&format!("{}/forecast", run.path(""))).await.expect(200)["items"].clone();
    assert_eq!(costs(&now), told);
}

#[tokio::test]
async fn an_agent_draws_the_plan_up_with_its_own_words_tools_rules_and_budget() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider).await;
    let put = async |path: &str, body: Value| world.admin().request(Method::PUT, path).json(&body).send().await;
    for (name, _) in APIS {
        put("/llm/configs/clerk", json!({ "provider": name, "model": "m", "maxTokens": 500 })).await;
        let body = json!({
            "instructions": "You are the clerk of {{ input.shop }}.", "config": "clerk", "tools": ["data.*", "http.request"],
            "approval": [{ "tools": ["http.*"], "approvers": ["finance"], "terms": { "reason": "It reaches the shop" } }],
            "output": { "type": "object" }, "budget": { "toolCalls": 5 },
        });
        put("/agents/clerk", body).await;
        let before = provider.asked().len();
        let get = json!({ "url": upstream.url("/order") });
        provider.script([
            draft(json!({ "steps": [
                { "id": "wait", "uses": "time.wait", "with": { "for": "1s" } },
                { "id": "look", "uses": "http.request", "with": get },
            ] })),
            draft(one("look", "http.request", get)),
        ]);
        let body = json!({ "agent": "clerk", "goal": "Look the order up", "input": { "shop": "Acme" } });
        let taken = world.operator().post("/agent/plan", &body).await.expect(202);
        let run = world.operator().run(taken["runId"].as_str().unwrap());
        assert_eq!(run.wait_for("idle").await.data["payload"]["budget"], json!({ "toolCalls": 5 }));
        let told = ready(&run).await;
        assert_eq!(told["forecast"][0]["verdict"], "hold", "{name}");
        assert_eq!(told["forecast"][0]["reason"], "It reaches the shop");
        let refused = run.wait_for("plan.refused").await.data["payload"]["mistakes"].clone();
        assert_eq!(refused, json!(["step `wait` uses `time.wait`, which the agent was not given"]));
        let asked = provider.asked().split_off(before);
        let question = asked[0].body.to_string();
        assert!(question.contains("You are the clerk of Acme.") && question.contains("http.request"), "{question}");
        assert!(question.contains("fits this JSON Schema"), "{question}");
        assert!(!question.contains("time.wait") && !question.contains("run.start"), "{question}");
        assert!(question.contains("500"), "it is its own model that is asked: {question}");
        // It is a plan like any: a person may change it, and the gate holds it where it says so.
        edit(&world, &run, &told["plan"]).await.expect(200);
        execute(&world, &run).await;
        let held = run.wait_for("awaiting_approval").await.data["payload"].clone();
        assert_eq!((&held["action"], &held["approvers"]), (&json!("http.request"), &json!(["finance"])));
    }
    // Whoever begins at once plans as it goes.
    provider.script([Turn::say(r#"{"done": true}"#)]);
    let body = json!({ "agent": "clerk", "goal": "Look", "input": { "shop": "Acme" } });
    let run = world.operator().execute(body).await;
    assert_eq!(run.completes().await["output"], json!({ "done": true }));
    assert_eq!(run.steps().await[0]["stepId"], "turn-1");
}

#[tokio::test]
async fn a_plan_that_will_not_do_is_asked_for_again_with_what_is_wrong() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (name, _) in APIS {
        planner(&world, name).await;
        let before = provider.asked().len();
        provider.script([
            Turn::say("First I would look at it."),
            draft(one("a", "crm.sync", json!({}))),
            draft(json!({ "steps": [
                { "id": "a", "uses": "data.transform", "with": { "value": 1 }, "needs": ["b"] },
                { "id": "b", "uses": "data.transform", "with": { "values": 1 }, "needs": ["a"] },
            ] })),
            draft(one("a", "data.transform", json!({ "value": "{{ input.n }}" }))),
        ]);
        let body = json!({ "goal": "Compute", "input": { "n": 7 } });
        let run = world.operator().execute(body).await;
        run.completes().await;
        assert_eq!(run.step("a").await["output"], 7, "{name}");
        let events = run.events().await;
        let refused: Vec<_> = events.iter().filter(|event| event["step"] == "plan.refused").collect();
        let mistakes: Vec<_> = refused.iter().map(|event| event["payload"]["mistakes"].to_string()).collect();
        assert_eq!(mistakes.len(), 3, "{name}");
        assert!(mistakes[0].contains("hands no plan in"), "{mistakes:?}");
        assert!(mistakes[1].contains("there is no tool `crm.sync`"), "{mistakes:?}");
        assert!(mistakes[2].contains("circle") && mistakes[2].contains("values"), "{mistakes:?}");
        let last = provider.asked()[before + 3].body.to_string();
        assert!(last.contains("hands no plan in") && last.contains("crm.sync") && last.contains("circle"), "{last}");
        assert_eq!(provider.asked().len(), before + 4, "{name}");
    }
}

#[tokio::test]
async fn a_model_that_never_gets_it_right_fails_the_run_which_can_be_retried() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    provider.script(std::iter::repeat_n(draft(one("a", "crm.sync", json!({}))), 4));
    let run = plan(&world, "Compute").await;
    let failed = run.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("plan_invalid")));
    assert_eq!(provider.asked().len(), 4);
    world.operator().post("/agent/execute", &json!({ "runId": run.id })).await.problem(409, "conflict");
    provider.script([draft(one("a", "data.transform", json!({ "value": 1 })))]);
    run.retry().await.expect(202);
    let mut follow = run.follow_after(failed["lastEventId"].as_str().unwrap()).await;
    follow.until("plan.ready").await;
    execute(&world, &run).await;
    run.completes().await;
}

#[tokio::test]
async fn a_model_cannot_plan_around_the_gate() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider).await;
    let post = |more: Value| {
        let mut with = json!({ "method": "POST", "url": upstream.url("/pay"), "json": {} });
        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with
    };
    // It says of itself that it needs no consent; that it may be repeated; that it is a GET, until it is rendered.
    let mut own = one("pay", "http.request", post(json!({})));
    own["steps"][0]["approval"] = json!({ "selfApproval": true });
    provider.script([draft(own), draft(one("pay", "http.request", post(json!({ "repeatable": true }))))]);
    let run = plan(&world, "Pay").await;
    assert_eq!(ready(&run).await["forecast"][0]["verdict"], "hold");
    assert!(provider.asked()[1].body.to_string().contains("will not do"), "a plan with terms of its own is none");
    provider.script([draft(one("pay", "http.request", post(json!({ "method": "{{ input.method }}" }))))]);
    let run = plan(&world, "Pay").await;
    assert_eq!(ready(&run).await["forecast"][0]["verdict"], "hold");
    execute(&world, &run).await;
    run.wait_end().await;
    // What only the engine may put into plans.
    provider.script([
        draft(one("turn-1", "agent.turn", json!({}))),
        draft(one("a", "data.transform", json!({ "value": 1 }))),
    ]);
    let run = plan(&world, "Pay").await;
    ready(&run).await;
    assert_eq!(run.event_names().await.iter().filter(|name| *name == "plan.refused").count(), 1);
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn a_plan_survives_whoever_makes_it_and_no_draft_is_asked_for_twice() {
    let provider = Provider::start().await;
    let world = World::without_worker(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.worker.lease = Span::seconds(3);
    })
    .await;
    planner(&world, "fake-openai").await;
    let first = world.mortal(Role::Worker).await;
    let held = || Turn::SayHeld(vec!["I ".to_owned(), "think.".to_owned()], 1);
    let good = draft(one("a", "data.transform", json!({ "value": 1 })));
    provider.script([draft(one("a", "crm.sync", json!({}))), held(), good]);
    let run = world.operator().execute(json!({ "goal": "Compute" })).await;
    run.wait_for("message.delta").await;
    let mut follow = run.follow().await;
    follow.until("plan.refused").await;
    follow.until("message.delta").await;
    first.kill();
    // A later version of who plans does not touch the run.
    planner(&world, "fake-anthropic").await;
    let second = world.server(Role::Worker).await;
    run.completes().await;
    let asked = provider.asked();
    assert_eq!(asked.len(), 3, "the draft that was refused is not asked for again");
    assert_eq!(
        (&asked[1].body, &asked[1].path),
        (&asked[2].body, &asked[2].path),
        "the one that broke off is, in the same words"
    );
    second.stop().await;
}

#[tokio::test]
async fn a_run_is_edited_only_while_it_waits_to_begin() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let good = one("a", "data.transform", json!({ "value": 1 }));
    provider.script([Turn::SayHeld(vec!["I ".to_owned(), "think.".to_owned()], 1), draft(good.clone())]);
    let run = plan(&world, "Compute").await;
    run.wait_for("message.delta").await;
    edit(&world, &run, &good).await.problem(409, "conflict");
    world.operator().post("/agent/execute", &json!({ "runId": run.id })).await.problem(409, "conflict");
    provider.release();
    ready(&run).await;
    let wrong = edit(&world, &run, &one("a", "crm.sync", json!({}))).await.problem(422, "invalid-definition");
    assert!(wrong["detail"].as_str().unwrap().contains("crm.sync"), "{wrong}");
    let strange = world.stranger().request(Method::PATCH, &run.path("")).json(&json!({ "plan": good })).send().await;
    strange.problem(404, "not-found");
    let other = one("b", "data.transform", json!({ "value": 2 }));
    assert_eq!(edit(&world, &run, &other).await.expect(200)["plan"], other);
    // Nobody has been at it meanwhile.
    assert_eq!(run.get().await["status"], "planning");
    execute(&world, &run).await;
    run.completes().await;
    assert_eq!(run.steps().await[0]["stepId"], "b");
    edit(&world, &run, &good).await.problem(409, "conflict");
}

#[tokio::test]
async fn whoever_waits_for_a_plan_has_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    provider.script([draft(one("a", "data.transform", json!({ "value": 1 })))]);
    let request = world.operator().request(Method::POST, "/agent/plan").json(&json!({ "goal": "Compute" }));
    let run = request.header("prefer", "wait=30").send().await.expect(202);
    assert_eq!(run["plan"]["steps"][0]["id"], "a");
    // A cancelled run is asked nothing any more.
    provider.script([Turn::Hang]);
    let run = plan(&world, "Compute").await;
    provider.asked_times(2).await;
    run.cancel().await.expect(202);
    assert_eq!(run.wait_end().await["status"], "cancelled");
}

#[tokio::test]
async fn a_plan_that_would_cost_more_than_there_is_waits_until_somebody_raises_the_budget() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    planner(&world, "fake-openai").await;
    let poor = async || world.operator().execute(json!({ "goal": "Compute", "budget": 0.0001 })).await;
    let run = poor().await;
    let mut follow = run.follow().await;
    let first = held(&mut follow).await;
    let stands = run.get().await;
    assert_eq!((&stands["status"], &stands["plan"]), (&json!("awaiting_approval"), &Value::Null));
    let asked = run.wait_for("awaiting_approval").await.data["payload"].clone();
    assert_eq!((&asked["question"], &asked["action"]), (&json!("budget"), &json!("agent.turn")));
    assert!(asked["raise"].as_f64().unwrap() > 0.0, "{asked}");
    assert!(provider.asked().is_empty(), "nothing is spent past the budget");
    world.operator().decide(&first, &json!({ "status": "approved" })).await.problem(403, "forbidden");
    // An answer that will not do has to be asked for again, and of that nobody has heard.
    provider.script([Turn::say(" "), draft(one("a", "data.transform", json!({ "value": 7 })))]);
    world.approver().approve(&first).await;
    provider.asked_times(1).await;
    let second = held(&mut follow).await;
    assert_eq!(provider.asked().len(), 1);
    world.approver().approve(&second).await;
    run.completes().await;
    assert_eq!(run.step("a").await["output"], 7);
    assert_eq!(provider.asked().len(), 2);
    // Nobody raises it: the run fails, and may be retried; or it is cancelled, and with it the question.
    let run = poor().await;
    let mut follow = run.follow().await;
    world.approver().deny(&held(&mut follow).await, "No").await;
    let failed = run.wait_end().await;
    assert_eq!(failed["error"]["code"], "budget_exceeded");
    run.retry().await.expect(202);
    let mut follow = run.follow_after(failed["lastEventId"].as_str().unwrap()).await;
    let again = held(&mut follow).await;
    run.cancel().await.expect(202);
    assert_eq!(run.wait_end().await["status"], "cancelled");
    assert_eq!(world.approver().get(&format!("/approvals/{again}")).await.expect(200)["status"], "cancelled");
    assert_eq!(provider.asked().len(), 2);
}

#[tokio::test]
async fn a_configuration_that_cannot_be_asked_is_none_to_plan_with() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let body = json!({ "provider": "fake-openai", "model": "m", "key": "lost" });
    let path = "/llm/configs/default-smart";
    world.admin().request(Method::PUT, path).json(&body).send().await.expect(201);
    let problem = world.operator().post("/agent/plan", &json!({ "goal": "Compute" })).await.problem(422, "no-planner");
    assert!(problem["detail"].as_str().unwrap().contains("no sealed key `lost`"), "{problem}");
    // One to fall back on is enough.
    world
        .admin()
        .request(Method::PUT, "/llm/configs/spare")
        .json(&json!({ "provider": "fake-openai", "model": "spare" }))
        .send()
        .await
        .expect(201);
    let mut body = body;
    body["fallback"] = json!(["spare"]);
    world.admin().request(Method::PUT, path).json(&body).send().await.expect(201);
    provider.script([draft(one("a", "data.transform", json!({ "value": 7 })))]);
    ready(&plan(&world, "Compute").await).await;
    assert_eq!(provider.asked()[0].body["model"], "spare");
}
