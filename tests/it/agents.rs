//! Agents: plans that grow as a model speaks, under the same gate as all others.

use std::collections::HashSet;

use fermata::{app::Role, kernel::Span};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{APIS, Provider, Reply, Run, Turn, Upstream, World};

pub async fn world_with(provider: &Provider) -> World {
    World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
    })
    .await
}

/// Puts an agent and, under the same name, the configuration it asks.
pub async fn agent(world: &World, name: &str, api: &str, body: Value) {
    let mut whole = json!({ "instructions": "You look after orders.", "config": name });
    whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    for (path, body) in [
        (
            format!("/llm/configs/{name}"),
            json!({ "provider": api, "model": "m", "price": { "input": 100.0, "output": 100.0 } }),
        ),
        (format!("/agents/{name}"), whole),
    ] {
        let answer = world.admin().request(Method::PUT, &path).json(&body).send().await;
        assert!([200, 201].contains(&answer.status), "{}", answer.text());
    }
}

/// Begins a run, as the owner.
pub async fn begin(world: &World, agent: &str, goal: &str) -> Run {
    world.owner().execute(json!({ "agent": agent, "goal": goal })).await
}

/// The ids and statuses of all steps.
pub async fn steps(run: &Run) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    run.steps().await.iter().map(|step| (text(&step["stepId"]), text(&step["status"]))).collect()
}

pub fn named(steps: &[(&str, &str)]) -> Vec<(String, String)> {
    steps.iter().map(|(id, status)| ((*id).to_owned(), (*status).to_owned())).collect()
}

/// A POST, whose repetition would do something again.
pub fn post(upstream: &Upstream, path: &str) -> (String, Value) {
    ("http_request".to_owned(), json!({ "method": "POST", "url": upstream.url(path), "json": { "order": 1042 } }))
}

#[tokio::test]
async fn a_model_calls_tools_hears_what_they_gave_and_answers() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (place, (name, _)) in APIS.into_iter().enumerate() {
        agent(&world, name, name, json!({ "tools": ["data.*"], "instructions": "Help with {{ goal }}." })).await;
        let both = [json!({ "value": { "n": 41 } }), json!({ "value": "second" })];
        let both = both.map(|arguments| ("data_transform".to_owned(), arguments));
        provider.script([Turn::Call(both.to_vec()), Turn::say("It is forty-one.")]);
        let run = begin(&world, name, "order 1042").await;
        let done = run.completes().await;
        assert_eq!(done["output"], "It is forty-one.", "{name}");
        let all =
            [("turn-1", "completed"), ("call-1-1", "completed"), ("call-1-2", "completed"), ("turn-2", "completed")];
        assert_eq!(steps(&run).await, named(&all), "{name}");
        assert_eq!(run.step("call-1-1").await["output"], json!({ "n": 41 }));
        assert_eq!(done["plan"]["agent"]["agent"], format!("{name}@1"));
        assert_eq!(done["plan"]["steps"].as_array().unwrap().len(), 4, "the run shows the plan as it grew");
        let asked = provider.asked();
        let [first, second] = &asked[place * 2..] else { panic!("two questions") };
        assert!(first.body.to_string().contains("Help with order 1042."), "{}", first.body);
        assert!(first.body.to_string().contains("data_transform"), "the model is told of its tools");
        let heard = second.body.to_string();
        assert!(heard.contains("{\\\"n\\\":41}") && heard.contains("second"), "{heard}");
        assert!(done["cost"].as_f64().unwrap() > 0.0);
        let names = run.event_names().await;
        assert_eq!(names.iter().filter(|name| *name == "plan.extended").count(), 1);
        assert_eq!(names.iter().filter(|name| *name == "message.completed").count(), 2);
    }
}

#[tokio::test]
async fn what_acts_is_held_call_by_call_and_a_denial_is_told_with_its_reason() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider).await;
    agent(&world, "support", "fake-openai", json!({ "tools": ["http.request"] })).await;
    provider.script([Turn::Call(vec![post(&upstream, "/refund"), post(&upstream, "/gift")]), Turn::say("One of two.")]);
    let run = begin(&world, "support", "Refund order 1042").await;
    let mut follow = run.follow().await;
    let mut held = Vec::new();
    while held.len() < 2 {
        held.push(follow.until("awaiting_approval").await.data);
    }
    assert_eq!(run.get().await["status"], "awaiting_approval");
    assert!(upstream.requests().is_empty());
    let id = |path: &str| {
        let asked = held.iter().find(|event| event["payload"]["arguments"]["url"] == upstream.url(path)).unwrap();
        asked["payload"]["approvalId"].as_str().unwrap().to_owned()
    };
    // Whoever began the run does not decide on it.
    world.owner().decide(&id("/refund"), &json!({ "status": "approved" })).await.problem(403, "forbidden");
    world.approver().approve(&id("/refund")).await;
    world.approver().deny(&id("/gift"), "not twice in a year").await;
    assert_eq!(run.completes().await["output"], "One of two.");
    assert_eq!(upstream.requests().iter().map(|request| request.path.as_str()).collect::<Vec<_>>(), ["/refund"]);
    let heard = provider.asked()[1].body.to_string();
    assert!(heard.contains("A person denied the call: not twice in a year"), "{heard}");
    assert_eq!(run.step("call-1-2").await["status"], "skipped");
}

/// What the gate said of the calls that the run's first answer wanted.
async fn gates(run: &Run) -> Vec<Value> {
    let grown = run.wait_for("plan.extended").await.data["payload"]["steps"].clone();
    grown.as_array().unwrap().iter().filter_map(|step| step.get("gate").cloned()).collect()
}

#[tokio::test]
async fn rules_say_what_is_held_and_what_is_not() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider).await;
    let free = json!([{ "tools": ["http.*"], "hold": false }]);
    agent(&world, "free", "fake-openai", json!({ "tools": ["http.request"], "approval": free })).await;
    provider.script([Turn::Call(vec![post(&upstream, "/note")])]);
    let run = begin(&world, "free", "Note it").await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/note").len(), 1);
    assert_eq!(gates(&run).await, [json!({ "verdict": "allow", "by": "agent" })]);
    let strict =
        json!([{ "tools": ["data.*"], "terms": { "reason": "Look at it", "expires": "1h", "selfApproval": true } }]);
    agent(&world, "strict", "fake-openai", json!({ "tools": ["data.*"], "approval": strict })).await;
    provider.script([Turn::call("data_transform", json!({ "value": 1 }))]);
    let run = begin(&world, "strict", "Compute").await;
    let held = run.wait_for("awaiting_approval").await.data;
    assert_eq!(held["payload"]["reason"], "Look at it");
    world.owner().approve(held["payload"]["approvalId"].as_str().unwrap()).await;
    run.completes().await;
    assert_eq!(gates(&run).await, [json!({ "verdict": "hold", "by": "agent" })]);
    // Nobody decides in time: the model hears that.
    provider.script([Turn::call("data_transform", json!({ "value": 2 }))]);
    let run = begin(&world, "strict", "Compute").await;
    run.hold().await;
    world.advance(std::time::Duration::from_secs(3601));
    run.completes().await;
    assert!(provider.asked().last().unwrap().body.to_string().contains("Nobody decided on the call in time"));
}

#[tokio::test]
async fn a_tool_that_was_not_given_is_forbidden_and_errors_go_back_to_the_model() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider).await;
    agent(&world, "reader", "fake-openai", json!({ "tools": ["data.transform", "debug.fail"] })).await;
    let (_, arguments) = post(&upstream, "/steal");
    provider.script([
        Turn::Call(vec![
            ("http.request".to_owned(), arguments.clone()),
            ("http_request".to_owned(), arguments),
            ("agent.turn".to_owned(), json!({})),
            ("debug_fail".to_owned(), json!({ "times": 1 })),
        ]),
        Turn::say("I could not."),
    ]);
    let run = begin(&world, "reader", "Steal").await;
    assert_eq!(run.completes().await["output"], "I could not.");
    let mut codes = Vec::new();
    for call in 1..=4 {
        codes.push(run.step(&format!("call-1-{call}")).await["error"]["code"].clone());
    }
    assert_eq!(codes, ["forbidden", "unknown_tool", "forbidden", "debug"]);
    let forbid = json!({ "verdict": "forbid", "by": "agent" });
    let gates = gates(&run).await;
    assert_eq!(gates[..3], [forbid.clone(), forbid.clone(), forbid]);
    assert_eq!(gates[3]["by"], "effect");
    assert!(upstream.requests().is_empty());
    let heard = provider.asked()[1].body.to_string();
    assert!(heard.contains("was not given the tool") && heard.contains("attempt 1 of 1"), "{heard}");
}

#[tokio::test]
async fn a_models_arguments_are_taken_as_they_stand() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "plain", "fake-openai", json!({ "tools": ["data.transform"] })).await;
    let sly = json!({ "value": "{{ input.secret }} {% for x in range(3) %}{{ steps }}{% endfor %}" });
    provider.script([Turn::call("data_transform", sly.clone())]);
    let body = json!({ "agent": "plain", "goal": "Tell", "input": { "secret": "hush" } });
    let run = world.operator().execute(body).await;
    run.completes().await;
    assert_eq!(run.step("call-1-1").await["output"], sly["value"]);
}

#[tokio::test]
async fn turns_are_bounded_and_an_output_fits_its_schema() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "loops", "fake-openai", json!({ "tools": ["data.transform"], "maxTurns": 3 })).await;
    provider.script(std::iter::repeat_n(Turn::call("data_transform", json!({ "value": 1 })), 3));
    let failed = begin(&world, "loops", "Go round").await.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("max_turns")));
    assert_eq!(provider.asked().len(), 3);
    let schema = json!({ "type": "object", "required": ["total"], "properties": { "total": { "type": "number" } } });
    agent(&world, "exact", "fake-openai", json!({ "output": schema, "tools": ["data.transform"] })).await;
    provider.script([Turn::say("Seven."), Turn::say("{\"total\": 7}")]);
    let run = begin(&world, "exact", "Add").await;
    assert_eq!(run.completes().await["output"], json!({ "total": 7 }));
    assert!(provider.asked()[3].body.to_string().contains("fits this JSON Schema"));
}

#[tokio::test]
async fn a_turn_that_nobody_answers_is_tried_again_and_then_the_run_fails_and_can_be_retried() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.max_retries = 0;
        settings.circuit_breaker.failure_threshold = 100;
    })
    .await;
    agent(&world, "unlucky", "fake-openai", json!({ "tools": ["data.transform"] })).await;
    provider.script([Turn::call("data_transform", json!({ "value": 7 }))]);
    provider.script(std::iter::repeat_n(Turn::Status(503, vec![]), 3));
    let run = begin(&world, "unlucky", "Compute").await;
    for _ in 0..2 {
        run.wait_for("step.retrying").await;
        world.advance(std::time::Duration::from_secs(300));
    }
    let failed = run.wait_end().await;
    assert_eq!((&failed["error"]["code"], &failed["error"]["stepId"]), (&json!("model_unavailable"), &json!("turn-2")));
    run.retry().await.expect(202);
    assert_eq!(run.completes().await["output"], "Hello there.");
    assert_eq!(provider.asked().len(), 5, "what was answered is not asked again");
}

#[tokio::test]
async fn a_budget_parks_the_run_until_somebody_raises_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    // 100 a million tokens: a first turn of 4,096 tokens at the longest costs 0.41 at the most, and its question of some
    // two thousand bytes a token each.
    agent(&world, "thrifty", "fake-openai", json!({ "tools": ["data.transform"] })).await;
    let begin = async |budget: f64| {
        let body = json!({ "agent": "thrifty", "goal": "Compute", "budget": budget });
        world.owner().execute(body).await
    };
    begin(0.8).await.completes().await;
    assert_eq!(provider.asked().len(), 1);
    let run = begin(0.4).await;
    let held = run.wait_for("awaiting_approval").await.data["payload"].clone();
    assert_eq!((&held["question"], &held["action"]), (&json!("budget"), &json!("agent.turn")));
    let raise = held["raise"].as_f64().unwrap();
    assert!((0.1..0.4).contains(&raise), "{held}");
    assert_eq!(run.get().await["status"], "awaiting_approval");
    assert_eq!(provider.asked().len(), 1, "nobody is asked before");
    let id = held["approvalId"].as_str().unwrap();
    world.owner().decide(id, &json!({ "status": "approved" })).await.problem(403, "forbidden");
    let other = json!({ "status": "approved", "arguments": {} });
    world.approver().decide(id, &other).await.problem(422, "invalid-input");
    assert_eq!(world.approver().approve(id).await["question"], "budget");
    run.completes().await;
    let run = begin(0.4).await;
    world.approver().deny(&run.hold().await, "too dear").await;
    assert_eq!(run.wait_end().await["error"]["code"], "budget_exceeded");
    assert_eq!(provider.asked().len(), 2);
}

#[tokio::test]
async fn an_agent_that_names_no_model_has_the_usual_one() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let body = json!({ "instructions": "Help.", "tools": ["data.transfrom", "mcp:gone/*", "data.*"] });
    world.admin().request(Method::PUT, "/agents/plain").json(&body).send().await.expect(201);
    let done = begin(&world, "plain", "Say hello").await.completes().await;
    assert_eq!(
        (&done["output"], &done["plan"]["agent"]["config"]),
        (&json!("Hello there."), &json!("default-smart@0=fake-anthropic/big"))
    );
    assert_eq!(done["plan"]["agent"]["missing"], json!(["data.transfrom", "mcp:gone/*"]), "what means no tool is told");
    assert_eq!(provider.asked()[0].body["model"], "big");
}

#[tokio::test]
async fn calls_of_one_answer_run_so_many_at_once() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "pair", "fake-openai", json!({ "tools": ["debug.sleep"], "maxParallel": 2 })).await;
    let calls = (0..5).map(|_| ("debug_sleep".to_owned(), json!({ "ms": 20 })));
    provider.script([Turn::Call(calls.collect()), Turn::say("Rested.")]);
    let run = begin(&world, "pair", "Rest").await;
    run.completes().await;
    let (mut open, mut most) = (HashSet::new(), 0);
    for event in run.events().await {
        let step = event["stepId"].as_str().unwrap_or_default().to_owned();
        if !step.starts_with("call-") {
            continue;
        }
        match event["step"].as_str().unwrap() {
            "step.started" => drop(open.insert(step)),
            "step.completed" => drop(open.remove(&step)),
            _ => {}
        }
        most = most.max(open.len());
    }
    assert_eq!(most, 2);
}

#[tokio::test]
async fn what_was_answered_is_not_asked_again_whoever_dies_and_versions_stay() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = World::without_worker(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.worker.lease = Span::seconds(3);
    })
    .await;
    agent(&world, "support", "fake-anthropic", json!({ "tools": ["http.request", "data.transform"] })).await;
    let first = world.mortal(Role::Worker).await;
    provider.script([
        Turn::call("data_transform", json!({ "value": 1 })),
        Turn::Call(vec![post(&upstream, "/refund")]),
        Turn::SayHeld(vec!["It is ".to_owned(), "done.".to_owned()], 1),
        Turn::say("It is done."),
    ]);
    let run = begin(&world, "support", "Refund order 1042").await;
    let approval = run.hold().await;
    first.kill();
    // Another version does not touch the run.
    agent(&world, "support", "fake-anthropic", json!({ "instructions": "You are rude.", "tools": [] })).await;
    let second = world.mortal(Role::Worker).await;
    world.approver().approve(&approval).await;
    let mut follow = run.follow().await;
    while follow.until("message.delta").await.data["stepId"] != "turn-3" {}
    assert_eq!(upstream.requests().len(), 1);
    second.kill();
    let third = world.server(Role::Worker).await;
    assert_eq!(run.completes().await["output"], "It is done.");
    assert_eq!(upstream.requests().len(), 1, "the refund is made once");
    let asked = provider.asked();
    assert_eq!(asked.len(), 4, "only the sentence that broke off is asked for again");
    assert_eq!(asked[2].body, asked[3].body, "in the same words");
    assert!(asked.iter().all(|asked| asked.body.to_string().contains("You look after orders.")));
    third.stop().await;
}

/// The question whether a call is made again, after the first so many holds; nothing has been sent twice until then.
async fn asks_whether_to_repeat(world: &World, run: &Run, upstream: &Upstream) {
    let mut follow = run.follow().await;
    let asked = loop {
        let asked = follow.until("awaiting_approval").await.data["payload"].clone();
        if asked["question"] == "repeat" {
            break asked;
        }
    };
    assert_eq!(asked["arguments"]["repeatable"], true, "whatever it says of itself");
    assert_eq!(upstream.requests_to("/refund").len(), 1);
    world.approver().deny(asked["approvalId"].as_str().unwrap(), "it is in the books").await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/refund").len(), 1);
}

#[tokio::test]
async fn what_a_model_vouches_for_is_not_made_again_unasked() {
    let provider = Provider::start().await;
    let world = World::without_worker(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.worker.lease = Span::seconds(3);
    })
    .await;
    // Nobody holds its calls, so that only what became of them is asked about.
    let free = json!([{ "tools": ["http.*"], "hold": false }]);
    agent(&world, "free", "fake-openai", json!({ "tools": ["http.request"], "approval": free })).await;
    let vouched = |upstream: &Upstream| {
        let (_, mut call) = post(upstream, "/refund");
        call["repeatable"] = json!(true);
        call
    };
    // Whoever made it died before the answer: a call of an agent, one of a plan that a model drew up, and one of its fork.
    for (by_a_plan, forked) in [(false, false), (true, false), (true, true)] {
        let upstream = Upstream::start().await;
        let worker = world.mortal(Role::Worker).await;
        upstream.hold("/refund");
        let run = if by_a_plan {
            let steps = json!({ "steps": [{ "id": "a", "uses": "http.request", "with": vouched(&upstream) }] });
            provider.script([Turn::call("plan", steps)]);
            let mut run = world.owner().execute(json!({ "goal": "Refund" })).await;
            let mut held = run.hold().await;
            if forked {
                let whole = json!({ "eventId": run.wait_for("plan.ready").await.id });
                let fork = world.owner().post(&run.path("/fork"), &whole).await.expect(202);
                run.cancel().await.expect(202);
                run = world.owner().run(fork["runId"].as_str().unwrap());
                held = run.hold().await;
            }
            world.approver().approve(&held).await;
            run
        } else {
            provider.script([Turn::call("http_request", vouched(&upstream)), Turn::say("Done.")]);
            begin(&world, "free", "Refund").await
        };
        upstream.arrived("/refund", 1).await;
        worker.kill();
        upstream.release("/refund");
        let _worker = world.mortal(Role::Worker).await;
        asks_whether_to_repeat(&world, &run, &upstream).await;
    }
    // The answer broke off, and nobody died.
    let upstream = Upstream::start().await;
    let _worker = world.mortal(Role::Worker).await;
    upstream.next("/refund", 1, Reply::Cut);
    provider.script([Turn::call("http_request", vouched(&upstream)), Turn::say("Done.")]);
    let run = begin(&world, "free", "Refund").await;
    asks_whether_to_repeat(&world, &run, &upstream).await;
}

/// What the journal has of the first turn of a run: the intent, with which configuration is asked what.
async fn first_question(run: &Run) -> Value {
    let events = run.events().await;
    let started = events.iter().find(|event| event["step"] == "step.started" && event["stepId"] == "turn-1");
    started.unwrap()["payload"]["arguments"].clone()
}

#[tokio::test]
async fn the_journal_has_what_was_asked_by_its_digest_and_which_versions_were_pinned() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "support", "fake-openai", json!({ "tools": ["data.*"] })).await;
    provider.script([Turn::call("data_transform", json!({ "value": 1 })), Turn::say("One.")]);
    let run = begin(&world, "support", "Compute").await;
    let done = run.completes().await;
    let pinned = &done["plan"]["agent"];
    assert_eq!((&pinned["agent"], &pinned["config"]), (&json!("support@1"), &json!("support@1")));
    let asked = first_question(&run).await;
    let digest = asked["request"].as_str().unwrap().to_owned();
    assert_eq!((&asked["config"], &asked["messages"]), (&json!("support@1"), &json!(1)));
    assert!(digest.starts_with("sha256:") && digest.len() == "sha256:".len() + 64, "{asked}");
    // The same question has the same digest, in whatever run, and another one another.
    provider.script([Turn::say("One.")]);
    let again = begin(&world, "support", "Compute").await;
    again.completes().await;
    assert_eq!(first_question(&again).await["request"], *digest);
    let others = [
        ("Compute it", json!({ "tools": ["data.*"] }), "support@1"),
        ("Compute", json!({ "tools": ["data.*", "time.wait"] }), "support@1"),
        ("Compute", json!({ "tools": ["data.*"], "instructions": "You are rude." }), "support@1"),
    ];
    let mut digests = HashSet::from([digest]);
    for (goal, body, config) in others {
        agent(&world, "support", "fake-openai", body).await;
        let run = begin(&world, "support", goal).await;
        run.completes().await;
        let asked = first_question(&run).await;
        assert_eq!(asked["config"], config);
        assert!(digests.insert(asked["request"].as_str().unwrap().to_owned()), "{goal}: {asked}");
    }
    // Another model is another version, and the run says which it asked.
    let config = json!({ "provider": "fake-openai", "model": "other" });
    world.admin().request(Method::PUT, "/llm/configs/support").json(&config).send().await.expect(201);
    let run = begin(&world, "support", "Compute").await;
    let done = run.completes().await;
    assert_eq!(
        (&first_question(&run).await["config"], &done["plan"]["agent"]["config"]),
        (&json!("support@2"), &json!("support@2"))
    );
}

#[tokio::test]
async fn an_agent_has_versions_and_needs_a_goal_and_a_model() {
    let world = World::with(|settings| settings.llm.providers.retain(|name, _| name == "openai")).await;
    let admin = world.admin();
    let put = async |body: &Value| admin.request(Method::PUT, "/agents/support").json(body).send().await;
    let body = json!({ "instructions": "Help.", "tools": ["data.*"] });
    let first = put(&body).await;
    assert_eq!(first.expect(201)["version"], 1);
    assert_eq!(first.header("location"), Some("/agents/support?version=1"));
    assert_eq!(put(&body).await.expect(200)["version"], 1);
    assert_eq!(world.viewer().get("/agents/support").await.expect(200)["body"], body);
    for (wrong, field) in [
        (json!({ "instructions": "{{ secrets }}" }), "instructions"),
        (json!({ "instructions": "{{ goal" }), "instructions"),
        (json!({ "instructions": "x", "maxTurns": 0 }), "maxTurns"),
        (json!({ "instructions": "x", "output": { "type": 7 } }), "output"),
        (json!({ "instructions": "x", "config": "No Name" }), "config"),
    ] {
        assert_eq!(put(&wrong).await.problem(422, "invalid-input")["field"], field, "{wrong}");
    }
    let begin = async |body: Value| world.operator().post("/agent/plan", &body).await;
    let problem = begin(json!({ "agent": "support", "goal": "Help" })).await.problem(422, "no-planner");
    assert!(problem["detail"].as_str().unwrap().contains("default-smart"), "{problem}");
    assert_eq!(begin(json!({ "agent": "support" })).await.problem(422, "invalid-input")["field"], "goal");
    begin(json!({ "agent": "nobody", "goal": "Help" })).await.problem(404, "not-found");
    let both = json!({ "agent": "support", "goal": "Help", "workflow": "crm-sync" });
    assert_eq!(begin(both).await.problem(422, "invalid-input")["field"], "agent");
    // What only the engine may put into plans, nobody else can.
    let turn = json!({ "plan": [{ "id": "turn-1", "uses": "agent.turn" }] });
    begin(turn).await.problem(422, "invalid-definition");
    admin.request(Method::DELETE, "/agents/support").send().await.expect(204);
    begin(json!({ "agent": "support", "goal": "Help" })).await.problem(404, "not-found");
}
