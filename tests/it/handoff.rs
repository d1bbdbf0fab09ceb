//! Several agents: a conversation that goes over from one to another, and agents that others use as tools.

use fermata::{app::Role, kernel::Span};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    agents::{agent, begin, named, post, steps, world_with},
    world::{APIS, Provider, Turn, Upstream, World},
};

fn hand_over(to: &str) -> (String, Value) {
    (format!("handoff_{to}"), json!({}))
}

#[tokio::test]
async fn a_conversation_goes_over_with_all_that_was_said() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (place, (name, _)) in APIS.into_iter().enumerate() {
        let tools = if place % 2 == 0 { json!(["data.*"]) } else { json!([]) };
        let billing = json!({ "instructions": "You bill.", "description": "Looks after bills", "tools": tools });
        agent(&world, &format!("billing-{name}"), name, billing).await;
        let handoffs = [format!("billing-{name}")];
        agent(&world, name, name, json!({ "tools": ["data.*"], "handoffs": handoffs })).await;
        let to = format!("billing-{name}");
        provider.script([
            Turn::call("data_transform", json!({ "value": { "n": 41 } })),
            Turn::Call(vec![hand_over(&to)]),
            Turn::say("It is billed."),
        ]);
        let run = begin(&world, name, "Bill order 1042").await;
        let done = run.completes().await;
        assert_eq!(done["output"], "It is billed.", "{name}");
        let all = ["turn-1", "call-1-1", "turn-2", "call-2-1", "turn-3"].map(|id| (id, "completed"));
        assert_eq!(steps(&run).await, named(&all));
        let handed = run.step("call-2-1").await;
        let pin = json!(format!("{to}@1"));
        assert_eq!((&handed["uses"], &handed["output"]), (&json!("agent.handoff"), &json!({ "agent": pin })));
        let turns = [&done["plan"]["steps"][2]["with"]["agent"], &done["plan"]["steps"][4]["with"]["agent"]];
        assert_eq!(turns, [&json!(format!("{name}@1")), &pin]);
        assert_eq!(done["plan"]["agents"][0]["agent"], pin);
        let asked = provider.asked();
        let [first, _, last] = &asked[place * 3..] else { panic!("three questions") };
        let (first, last) = (first.body.to_string(), last.body.to_string());
        assert!(first.contains("Looks after bills") && first.contains(&format!("handoff_{to}")), "{first}");
        assert!(last.contains("You bill.") && !last.contains("You look after orders."), "{last}");
        assert!(last.contains("Bill order 1042") && last.contains("41"), "{last}");
        assert_eq!(last.contains("(calls `data_transform` with"), place % 2 == 1, "{last}");
    }
}

#[tokio::test]
async fn tools_and_rules_are_those_of_the_agent_whose_turn_it_is() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider).await;
    let rules = json!([{ "tools": ["http.*"], "approvers": ["finance"], "terms": { "reason": "Money" } }]);
    agent(&world, "billing", "fake-openai", json!({ "tools": ["http.request"], "approval": rules })).await;
    let free = json!([{ "tools": ["*"], "hold": false }]);
    let support = json!({ "tools": ["data.*"], "handoffs": ["billing"], "approval": free });
    agent(&world, "support", "fake-openai", support).await;
    let transform = || ("data_transform".to_owned(), json!({ "value": 1 }));
    provider.script([
        Turn::Call(vec![("http.request".to_owned(), post(&upstream, "/early").1), transform(), hand_over("billing")]),
        Turn::Call(vec![post(&upstream, "/pay"), ("data.transform".to_owned(), json!({ "value": 1 }))]),
        Turn::say("It is paid."),
    ]);
    let run = begin(&world, "support", "Pay").await;
    let held = run.wait_for("awaiting_approval").await.data["payload"].clone();
    assert_eq!((&held["reason"], &held["approvers"]), (&json!("Money"), &json!(["finance"])));
    let id = held["approvalId"].as_str().unwrap();
    world.approver().decide(id, &json!({ "status": "approved" })).await.problem(403, "forbidden");
    let grant = world.grant(world.home(), "user_money", vec![fermata::auth::Role::Approver], None);
    world.bearer(&fermata::auth::Grant { groups: vec!["finance".to_owned()], ..grant }).approve(id).await;
    run.completes().await;
    assert_eq!(upstream.requests().iter().map(|request| request.path.as_str()).collect::<Vec<_>>(), ["/pay"]);
    for (step, code) in [("call-1-1", json!("forbidden")), ("call-1-2", Value::Null), ("call-2-2", json!("forbidden"))]
    {
        assert_eq!(run.step(step).await["error"]["code"], code, "{step}");
    }
}

#[tokio::test]
async fn it_goes_to_one_agent_at_once_and_only_where_it_may() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for name in ["billing", "shipping", "secret"] {
        agent(&world, name, "fake-openai", json!({ "instructions": format!("You are {name}.") })).await;
    }
    agent(&world, "support", "fake-openai", json!({ "handoffs": ["billing", "shipping"] })).await;
    provider.script([
        Turn::Call(vec![
            hand_over("secret"),
            ("agent.handoff".to_owned(), json!({ "agent": "shipping@1" })),
            hand_over("billing"),
            hand_over("shipping"),
        ]),
        Turn::say("Billed."),
    ]);
    let run = begin(&world, "support", "Bill and ship").await;
    run.completes().await;
    let mut codes = Vec::new();
    for call in 1..=4 {
        codes.push(run.step(&format!("call-1-{call}")).await["error"]["code"].clone());
    }
    assert_eq!(codes, [json!("unknown_tool"), json!("forbidden"), Value::Null, json!("forbidden")]);
    assert!(provider.asked()[1].body.to_string().contains("You are billing."));
}

#[tokio::test]
async fn each_agent_counts_its_own_turns() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (name, other, most) in [("ping", "pong", 2), ("pong", "ping", 1), ("ping", "pong", 2)] {
        let body = json!({ "instructions": format!("You are {name}."), "maxTurns": most, "handoffs": [other] });
        agent(&world, name, "fake-openai", body).await;
    }
    provider.script(["pong", "ping", "pong"].map(|to| Turn::Call(vec![hand_over(to)])));
    let failed = begin(&world, "ping", "Play").await.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("max_turns")));
    assert!(failed["error"]["message"].as_str().unwrap().contains("pong@1"), "{failed}");
    assert_eq!(provider.asked().len(), 3);
    assert_eq!(failed["plan"]["agents"].as_array().unwrap().len(), 1, "whoever it comes back to is pinned once");
}

#[tokio::test]
async fn hand_offs_lead_to_agents_that_are_there_and_not_to_too_many() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let put = async |name: &str, handoffs: Value| {
        let body = json!({ "instructions": "Help.", "handoffs": handoffs });
        world.admin().request(Method::PUT, &format!("/agents/{name}")).json(&body).send().await
    };
    for wrong in [json!(["a"]), json!(["b", "b@1"]), json!(["No Name"]), json!(vec!["b"; 17])] {
        assert_eq!(put("a", wrong).await.problem(422, "invalid-input")["field"], "handoffs");
    }
    let begin = async || world.operator().post("/agent/execute", &json!({ "agent": "a", "goal": "Help" })).await;
    put("a", json!(["chain-1"])).await.expect(201);
    let problem = begin().await.problem(422, "invalid-input");
    assert!(problem["detail"].as_str().unwrap().contains("chain-1"), "{problem}");
    for link in 1..=17 {
        let next = if link < 17 { json!([format!("chain-{}", link + 1)]) } else { json!([]) };
        put(&format!("chain-{link}"), next).await.expect(201);
    }
    let problem = begin().await.problem(422, "invalid-input");
    assert!(problem["detail"].as_str().unwrap().contains("more than 16"), "{problem}");
    put("chain-16", json!([])).await.expect(201);
    assert_eq!(begin().await.expect(202)["plan"]["agents"].as_array().unwrap().len(), 16);
}

#[tokio::test]
async fn a_conversation_that_went_over_stays_there_whoever_dies() {
    let provider = Provider::start().await;
    let world = World::without_worker(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.worker.lease = Span::seconds(3);
    })
    .await;
    agent(&world, "billing", "fake-anthropic", json!({ "instructions": "You bill.", "tools": ["data.*"] })).await;
    agent(&world, "support", "fake-anthropic", json!({ "handoffs": ["billing"] })).await;
    let first = world.mortal(Role::Worker).await;
    provider.script([
        Turn::Call(vec![hand_over("billing")]),
        Turn::SayHeld(vec!["It is ".to_owned(), "billed.".to_owned()], 1),
        Turn::say("It is billed."),
    ]);
    let run = begin(&world, "support", "Bill it").await;
    let mut follow = run.follow().await;
    while follow.until("message.delta").await.data["stepId"] != "turn-2" {}
    first.kill();
    // Another version does not touch the run.
    agent(&world, "billing", "fake-anthropic", json!({ "instructions": "You are rude." })).await;
    let second = world.server(Role::Worker).await;
    assert_eq!(run.completes().await["output"], "It is billed.");
    let asked = provider.asked();
    assert_eq!(asked.len(), 3, "only the sentence that broke off is asked for again");
    assert_eq!(asked[1].body, asked[2].body);
    assert!(asked[2].body.to_string().contains("You bill."));
    second.stop().await;
}

#[tokio::test]
async fn an_agent_is_a_tool_of_others_and_gives_what_it_came_to() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let schema = json!({ "type": "object", "required": ["total"], "properties": { "total": { "type": "number" } } });
    let billing =
        json!({ "instructions": "You bill {{ input.order }}.", "description": "Looks after bills", "output": schema });
    agent(&world, "billing", "fake-openai", billing).await;
    agent(&world, "support", "fake-openai", json!({ "tools": ["agent:*"] })).await;
    provider.script([
        Turn::call("agent_billing", json!({ "goal": "Bill it", "input": { "order": 1042 } })),
        Turn::say("{\"total\": 7}"),
        Turn::say("Seven."),
    ]);
    let run = begin(&world, "support", "What is it?").await;
    let done = run.completes().await;
    assert_eq!(done["output"], "Seven.");
    assert_eq!(run.step("call-1-1").await["output"], json!({ "total": 7 }));
    let given = done["plan"]["agent"]["tools"].as_array().unwrap();
    assert!(given.contains(&json!("agent:billing")) && !given.contains(&json!("agent:support")), "{given:?}");
    let own = run.child(&world.viewer(), "call-1-1").await.get().await;
    assert_eq!((&own["goal"], &own["input"]), (&json!("Bill it"), &json!({ "order": 1042 })));
    assert_eq!((&own["createdBy"], &own["parent"]["stepId"]), (&json!("user_owner"), &json!("call-1-1")));
    assert!(done["cost"].as_f64().unwrap() > own["cost"].as_f64().unwrap(), "what it cost is its parent's too");
    let asked = provider.asked();
    assert!(asked[0].body.to_string().contains("Looks after bills"), "{}", asked[0].body);
    assert!(asked[1].body.to_string().contains("You bill 1042."), "{}", asked[1].body);
    assert!(asked[2].body.to_string().contains("{\\\"total\\\":7}"), "{}", asked[2].body);
    let tools = world.viewer().get("/tools?limit=200").await.expect(200);
    let tool = tools["items"].as_array().unwrap().iter().find(|tool| tool["name"] == "agent:billing").unwrap();
    assert_eq!((&tool["version"], &tool["output"]), (&json!("1"), &schema));
    // A workflow uses it as well.
    provider.script([Turn::say("{\"total\": 8}")]);
    let step = json!({ "id": "bill", "uses": "agent:billing", "with": { "goal": "Bill it", "input": { "order": 7 } } });
    let plan = json!({ "steps": [step], "output": "{{ steps.bill.output.total }}" });
    assert_eq!(world.operator().start(plan).await.completes().await["output"], 8.0);
    let wrong = json!({ "plan": [{ "id": "bill", "uses": "agent:nobody", "with": { "goal": "x" } }] });
    world.operator().post("/agent/plan", &wrong).await.problem(422, "invalid-definition");
}

#[tokio::test]
async fn agents_ask_agents_so_deep_and_no_deeper() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "deep", "fake-openai", json!({ "tools": ["data.transform"] })).await;
    agent(&world, "deep", "fake-openai", json!({ "tools": ["agent:deep"] })).await;
    provider.script(std::iter::repeat_n(Turn::call("agent_deep", json!({ "goal": "Deeper" })), 17));
    begin(&world, "deep", "Deep").await.completes().await;
    let runs = world.viewer().get("/workflow/runs?limit=100").await.expect(200);
    assert_eq!(runs["items"].as_array().unwrap().len(), 17);
    assert!(provider.asked()[17].body.to_string().contains("16 deep at most"));
}

#[tokio::test]
async fn a_parent_takes_its_agents_along_when_it_is_cancelled() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "slow", "fake-openai", json!({})).await;
    agent(&world, "support", "fake-openai", json!({ "tools": ["agent:slow"] })).await;
    provider.script([Turn::call("agent_slow", json!({ "goal": "Take your time" })), Turn::Hang]);
    let run = begin(&world, "support", "Wait").await;
    let slow = run.child(&world.owner(), "call-1-1").await;
    provider.asked_times(2).await;
    run.cancel().await.expect(202);
    assert_eq!(slow.wait_end().await["status"], "cancelled");
    assert_eq!(run.wait_end().await["status"], "cancelled");
}

#[tokio::test]
async fn all_agents_of_a_fork_are_told_of_another_goal() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "billing", "fake-openai", json!({ "instructions": "Bill {{ goal }}." })).await;
    agent(&world, "shipping", "fake-openai", json!({ "instructions": "Ship {{ goal }}." })).await;
    let support = json!({ "instructions": "Help with {{ goal }}.", "handoffs": ["shipping", "billing"] });
    agent(&world, "support", "fake-openai", support).await;
    let source = begin(&world, "support", "order 1042").await;
    source.completes().await;
    let edit = json!({ "stepId": "turn-1", "edit": { "goal": "order 7" } });
    let forked = world.operator().post(&source.path("/fork"), &edit).await.expect(202);
    let plan = world.operator().run(forked["runId"].as_str().unwrap()).completes().await["plan"].clone();
    let told: Vec<_> = plan["agents"].as_array().unwrap().iter().chain([&plan["agent"]]).collect();
    let told: Vec<_> = told.iter().map(|agent| (agent["agent"].clone(), agent["instructions"].clone())).collect();
    let wanted = [("shipping@1", "Ship order 7."), ("billing@1", "Bill order 7."), ("support@1", "Help with order 7.")];
    assert_eq!(told, wanted.map(|(agent, told)| (json!(agent), json!(told))));
    assert!(provider.asked()[1].body.to_string().contains("Help with order 7."));
}
