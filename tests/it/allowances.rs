//! What a budget leaves to the runs that a run starts, and to questions that have to be asked again.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    budgets::{approve, is_near, lack, talker, twenty, world_with},
    world::{APIS, Midway, Provider, Run, Turn, World},
};

/// Workflows of one question to the talker, which costs 2, and with `then` more steps after it.
async fn workflow(world: &World, name: &str, then: &[Value]) {
    let ask = json!({ "id": "ask", "uses": "llm.generate", "with": { "config": "talker", "prompt": "Talk" } });
    let steps: Vec<_> = [ask].iter().chain(then).cloned().collect();
    let request = world.operator().request(Method::PUT, &format!("/workflow/definitions/{name}"));
    request.json(&json!({ "name": name, "steps": steps })).send().await.expect(201);
}

fn start(id: &str, workflow: &str, more: Value) -> Value {
    let mut with = json!({ "workflow": workflow });
    with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "id": id, "uses": "run.start", "with": with, "onError": "continue" })
}

async fn budget_of(run: &Run) -> Value {
    run.wait_for("idle").await.data["payload"]["budget"].clone()
}

#[tokio::test]
async fn children_have_what_is_left_of_their_parents_budget_and_share_it_by_turns() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    workflow(&world, "ask", &[]).await;
    provider.script([Turn::SayHeld(twenty(), 2), Turn::Say(twenty())]);
    let plan = json!([start("a", "ask", json!({})), start("b", "ask", json!({}))]);
    let budget = json!({ "cost": 3, "tokens": 1000, "toolCalls": 9 });
    let parent = world.owner().execute(json!({ "plan": plan, "budget": budget })).await;
    provider.asked_times(1).await;
    let started: Vec<_> = parent.events().await.into_iter().filter(|event| event["step"] == "step.started").collect();
    assert_eq!(started.len(), 1, "the other waits for what the first gives back: {started:?}");
    assert_eq!(started[0]["payload"]["budget"], json!({ "cost": 3.0, "tokens": 1000, "toolCalls": 8 }));
    let first = started[0]["stepId"].as_str().unwrap().to_owned();
    let child = parent.child(&world.viewer(), &first).await;
    assert_eq!(budget_of(&child).await, started[0]["payload"]["budget"]);
    provider.release();
    let second = parent.child(&world.viewer(), if first == "a" { "b" } else { "a" }).await;
    let taken = parent.wait_for_step("step.completed", &first).await.data["payload"]["taken"].clone();
    is_near(&taken["cost"], 2.0);
    assert_eq!(taken["toolCalls"], 1);
    let left = budget_of(&second).await;
    is_near(&left["cost"], 1.0);
    assert_eq!((&left["tokens"], &left["toolCalls"]), (&json!(1000 - taken["tokens"].as_u64().unwrap()), &json!(6)));
    let asked = lack(&second).await;
    is_near(&asked["raise"], 1.0);
    approve(&world, &asked).await;
    is_near(&parent.completes().await["cost"], 4.0);
}

#[tokio::test]
async fn what_a_child_took_that_failed_counts_too() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    workflow(
        &world,
        "vain",
        &[json!({ "id": "no", "uses": "debug.fail", "needs": ["ask"], "with": { "times": 1, "retryable": false } })],
    )
    .await;
    provider.script([Turn::Say(twenty())]);
    let ask = json!({ "id": "ask", "uses": "llm.generate", "needs": ["child"],
        "with": { "config": "talker", "prompt": "Talk" } });
    let plan = json!([start("child", "vain", json!({})), ask]);
    let parent = world.owner().execute(json!({ "plan": plan, "budget": 3 })).await;
    is_near(&parent.wait_for_step("step.failed", "child").await.data["payload"]["taken"]["cost"], 2.0);
    is_near(&lack(&parent).await["raise"], 1.0);
    is_near(&parent.get().await["cost"], 2.0);
}

#[tokio::test]
async fn what_a_child_may_take_that_nobody_waits_for_is_gone() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    workflow(&world, "ask", &[]).await;
    provider.answering(|_| Turn::Say(twenty()));
    let ask = json!({ "id": "ask", "uses": "llm.generate", "needs": ["child"],
        "with": { "config": "talker", "prompt": "Talk" } });
    let plan = json!([start("child", "ask", json!({ "wait": false, "budget": 2 })), ask]);
    let parent = world.owner().execute(json!({ "plan": plan, "budget": 3 })).await;
    is_near(&lack(&parent).await["raise"], 1.0);
}

#[tokio::test]
async fn an_agent_as_a_tool_has_what_is_left_to_its_caller_and_so_on_down() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    let inner = json!([{ "id": "ask", "uses": "agent:talker", "with": { "goal": "Talk" } }]);
    let request = world.operator().request(Method::PUT, "/workflow/definitions/middle");
    request.json(&json!({ "name": "middle", "steps": inner })).send().await.expect(201);
    let plan = json!([start("child", "middle", json!({ "budget": 9 }))]);
    let parent = world.owner().execute(json!({ "plan": plan, "budget": { "cost": 1.5, "toolCalls": 5 } })).await;
    let middle = parent.child(&world.viewer(), "child").await;
    assert_eq!(budget_of(&middle).await, json!({ "cost": 1.5, "toolCalls": 4 }));
    let agent = middle.child(&world.viewer(), "ask").await;
    assert_eq!(budget_of(&agent).await, json!({ "cost": 1.5, "toolCalls": 3 }));
    provider.script([Turn::Say(twenty())]);
    let asked = lack(&agent).await;
    is_near(&asked["raise"], 0.5);
    approve(&world, &asked).await;
    is_near(&parent.completes().await["cost"], 2.0);
}

/// The talker's answers have to be longer than what it says in twenty short words.
async fn choosy(world: &World, more: Value) {
    let mut config = json!({ "provider": "fake-openai", "model": "m", "maxTokens": 20,
        "price": { "input": 0.0, "output": 100_000.0 }, "expect": { "minLength": 200 } });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.admin().request(Method::PUT, "/llm/configs/choosy").json(&config).send().await.expect(201);
}

fn long() -> Vec<String> {
    (0..20).map(|number| format!("wordiness-{number:02} ")).collect()
}

fn ask_choosy() -> Value {
    json!([{ "id": "ask", "uses": "llm.generate", "with": { "config": "choosy", "prompt": "Talk" } }])
}

async fn spent(world: &World, run: &Run) -> f64 {
    let usage = world.viewer().get(&format!("/usage?groupBy=step&runId={}", run.id)).await.expect(200);
    usage["items"].as_array().unwrap().iter().map(|row| row["cost"].as_f64().unwrap()).sum()
}

#[tokio::test]
async fn a_question_is_asked_again_only_where_the_budget_has_room_for_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    choosy(&world, json!({})).await;
    provider.script([Turn::Say(twenty()), Turn::Say(long())]);
    let run = world.owner().execute(json!({ "plan": ask_choosy(), "budget": 3 })).await;
    let asked = lack(&run).await;
    is_near(&asked["raise"], 1.0);
    provider.asked_times(1).await;
    is_near(&run.get().await["cost"], 2.0);
    approve(&world, &asked).await;
    is_near(&run.completes().await["cost"], 4.0);
    provider.asked_times(2).await;
    assert!((spent(&world, &run).await - 4.0).abs() < 1e-6);
    // Where there is room it is asked at once, with the reason.
    provider.script([Turn::Say(twenty()), Turn::Say(long())]);
    let run = world.owner().execute(json!({ "plan": ask_choosy(), "budget": 4 })).await;
    is_near(&run.completes().await["cost"], 4.0);
    assert!(provider.asked().last().unwrap().body.to_string().contains("cannot be used"));
}

#[tokio::test]
async fn who_approves_is_asked_for_room_and_no_cheaper_model_instead() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let free = json!({ "provider": "fake-openai", "model": "m" });
    world.admin().request(Method::PUT, "/llm/configs/free").json(&free).send().await.expect(201);
    choosy(&world, json!({ "fallback": ["free"] })).await;
    provider.script([Turn::Say(twenty()), Turn::Say(long())]);
    let run = world.owner().execute(json!({ "plan": ask_choosy(), "budget": 3 })).await;
    let asked = lack(&run).await;
    is_near(&asked["raise"], 1.0);
    assert_eq!(provider.asked().len(), 1);
    approve(&world, &asked).await;
    is_near(&run.completes().await["cost"], 4.0);
    assert_eq!(run.steps().await[0]["output"]["config"], "choosy@1");
}

#[tokio::test]
async fn a_day_has_room_for_a_question_again_or_it_waits() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    choosy(&world, json!({})).await;
    world.admin().request(Method::PUT, "/usage/budget").json(&json!({ "cost": 3 })).send().await.expect(200);
    provider.script([Turn::Say(twenty()), Turn::Say(long())]);
    let run = world.owner().execute(json!({ "plan": ask_choosy() })).await;
    let asked = lack(&run).await;
    assert!(asked["day"].is_string(), "{asked}");
    is_near(&asked["raise"], 1.0);
    let day = world.admin().get("/usage/budget").await.expect(200);
    is_near(&day["spent"]["cost"], 2.0);
    approve(&world, &asked).await;
    is_near(&run.completes().await["cost"], 4.0);
    is_near(&world.admin().get("/usage/budget").await.expect(200)["spent"]["cost"], 4.0);
}

#[tokio::test]
async fn what_was_paid_for_nothing_is_in_the_books_whoever_answers() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
        settings.llm.max_retries = 1;
    })
    .await;
    talker(&world).await;
    choosy(&world, json!({ "fallback": ["talker"] })).await;
    provider.script([Turn::Say(twenty()), Turn::Say(twenty()), Turn::Say(twenty())]);
    let run = world.owner().execute(json!({ "plan": ask_choosy() })).await;
    is_near(&run.completes().await["cost"], 6.0);
    let by_model = world.viewer().get(&format!("/usage?groupBy=model&runId={}", run.id)).await.expect(200);
    let mut costs: Vec<_> = by_model["items"].as_array().unwrap().iter().map(|row| row["config"].clone()).collect();
    costs.sort_by_key(ToString::to_string);
    assert_eq!(costs, ["choosy@1", "talker@1"], "{by_model}");
    // Nobody answers at all: it is paid for all the same.
    choosy(&world, json!({})).await;
    provider.script([Turn::Say(twenty()), Turn::Say(twenty())]);
    let run = world.owner().execute(json!({ "plan": ask_choosy() })).await;
    assert_eq!(run.wait_end().await["error"]["code"], "model_answer_invalid");
    is_near(&run.get().await["cost"], 4.0);
    assert!((spent(&world, &run).await - 4.0).abs() < 1e-6);
}

#[tokio::test]
async fn what_a_stream_said_before_it_broke_off_is_paid_for() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    provider.script([Turn::Cut(twenty()), Turn::Say(twenty())]);
    let plan = json!([{ "id": "ask", "uses": "llm.generate", "with": { "config": "talker", "prompt": "Talk" } }]);
    let run = world.owner().execute(json!({ "plan": plan })).await;
    let cost = run.completes().await["cost"].as_f64().unwrap();
    assert!(cost > 3.0 && cost < 5.0, "twenty tokens, and about as many that were cut off: {cost}");
}

#[tokio::test]
async fn what_a_provider_does_not_say_that_it_took_is_taken_to_be_four_bytes_a_token() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (api, _) in APIS {
        let price = json!({ "input": 0.0, "output": 100_000.0 });
        let config = json!({ "provider": api, "model": "m", "price": price });
        world.admin().request(Method::PUT, &format!("/llm/configs/{api}")).json(&config).send().await.expect(201);
        provider.script([Turn::Untold(twenty())]);
        let with = json!({ "config": api, "prompt": "x".repeat(4000) });
        let plan = json!([{ "id": "ask", "uses": "llm.generate", "with": with }]);
        let run = world.owner().execute(json!({ "plan": plan })).await;
        // Seventy bytes, at 0.1 a token.
        is_near(&run.completes().await["cost"], 1.8);
        let said = run.wait_for("message.completed").await.data["payload"].clone();
        assert!((1000..1100).contains(&said["inputTokens"].as_u64().unwrap()), "{api}: {said}");
        assert_eq!(said["outputTokens"], 18, "{api}");
    }
}

#[tokio::test]
async fn what_a_call_has_taken_of_which_nothing_is_of_use_is_paid_for() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for name in ["fake-openai", "fake-anthropic", "fake-gemini"] {
        let config = json!({ "provider": name, "model": "m" });
        world.admin().request(Method::PUT, &format!("/llm/configs/{name}")).json(&config).send().await.expect(201);
    }
    let taken = async |uses: &str, with: Value, first: Turn| {
        provider.script([first, Turn::say("It is well.")]);
        let run = world.owner().start(json!([{ "id": "ask", "uses": uses, "with": with }])).await;
        run.completes().await;
        let usage = run.steps().await[0]["output"]["usage"].clone();
        (usage["inputTokens"].as_u64().unwrap(), usage["outputTokens"].as_u64().unwrap())
    };
    let broken = |midway| Turn::Broken("search".to_owned(), json!({ "for": "x".repeat(4000) }), midway);
    let ask = |config: &str| json!({ "config": config, "prompt": "Well? ".repeat(100) });
    for config in ["fake-openai", "fake-anthropic"] {
        // Half of the call came, and a word: 2,000 bytes, and the question has 600.
        let (asked, said) = taken("llm.generate", ask(config), broken(Midway::Short)).await;
        assert!((150..200).contains(&asked) && (500..550).contains(&said), "{config}: {asked}, {said}");
        // It began, and said nothing.
        let (asked, said) = taken("llm.generate", ask(config), Turn::Short(vec![])).await;
        assert!((150..200).contains(&asked) && said == 3, "{config}: {asked}, {said}");
    }
    // The provider says itself what the broken call took.
    assert_eq!(taken("llm.generate", ask("fake-gemini"), broken(Midway::Truncated)).await, (20, 4));
    let texts = json!({ "config": "fake-openai", "texts": ["a letter", "a parcel"] });
    assert_eq!(taken("llm.embed", texts, Turn::Empty).await, (20, 0));
}

#[tokio::test]
async fn the_dearest_that_may_answer_is_reserved_for_as_the_run_pinned_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    let put = async |price: f64| {
        let config = json!({ "provider": "fake-openai", "model": "m", "maxTokens": 20, "fallback": ["talker"],
            "price": { "input": 0.0, "output": price } });
        world.admin().request(Method::PUT, "/llm/configs/cheap").json(&config).send().await
    };
    put(1000.0).await.expect(201);
    let agent = json!({ "instructions": "You look after orders.", "config": "cheap" });
    world.admin().request(Method::PUT, "/agents/cheap").json(&agent).send().await.expect(201);
    let ask = json!([
        { "id": "first", "uses": "debug.echo", "approval": {} },
        { "id": "ask", "uses": "llm.generate", "needs": ["first"], "with": { "config": "cheap", "prompt": "Talk" } },
    ]);
    let run = world.owner().execute(json!({ "plan": ask, "budget": 1.5 })).await;
    let consent = run.hold().await;
    // What it costs from now on is nothing to a run that has begun.
    put(1_000_000.0).await.expect(201);
    world.approver().approve(&consent).await;
    let mut follow = run.follow().await;
    follow.until("awaiting_approval").await;
    is_near(&follow.until("awaiting_approval").await.data["payload"]["raise"], 0.5);
    put(1000.0).await.expect(201);
    let run = world.owner().execute(json!({ "agent": "cheap", "goal": "Talk", "budget": 1.5 })).await;
    is_near(&lack(&run).await["raise"], 0.5);
}

/// An agent whose goal is long, with tools, under a cap on tokens that leaves room for one question of unknown length.
async fn long_winded(world: &World, fallback: &[&str]) -> Run {
    let config = json!({ "provider": "fake-openai", "model": "m", "maxTokens": 20, "fallback": fallback });
    let agent = json!({ "instructions": "Help.", "config": "winded", "tools": ["data.transform"] });
    for (path, body) in [("/llm/configs/winded", config), ("/agents/winded", agent)] {
        world.admin().request(Method::PUT, path).json(&body).send().await.expect(201);
    }
    let (goal, budget) = ("7 ".repeat(2000), json!({ "tokens": 7_000 }));
    world.owner().execute(json!({ "agent": "winded", "goal": goal, "budget": budget })).await
}

#[tokio::test]
async fn what_a_provider_has_counted_is_not_reserved_for_by_the_byte_again() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let call = || Turn::call("data_transform", json!({ "value": "x".repeat(1000) }));
    provider.script([call(), Turn::say("Done.")]);
    let run = long_winded(&world, &[]).await;
    run.completes().await;
    assert!(run.events().await.iter().all(|event| event["step"] != "awaiting_approval"));
}

#[tokio::test]
async fn what_a_provider_has_counted_does_not_count_for_a_fork_that_asks_something_else() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    let call = || Turn::call("data_transform", json!({ "value": 7 }));
    provider.script([call(), Turn::say("Done.")]);
    let body = json!({ "agent": "talker", "goal": "Talk", "budget": { "tokens": 6_500 } });
    let source = world.owner().execute(body).await;
    source.completes().await;
    let fork = async |edit: Value| {
        let forked = world.owner().post(&source.path("/fork"), &json!({ "stepId": "turn-2", "edit": edit })).await;
        world.owner().run(forked.expect(202)["runId"].as_str().unwrap())
    };
    provider.script([Turn::say("Done.")]);
    fork(json!({ "goal": "Talk more" })).await.completes().await;
    assert_eq!(lack(&fork(json!({ "goal": "7 ".repeat(2000) })).await).await["raises"], "tokens");
}

#[tokio::test]
async fn a_model_that_has_counted_nothing_yet_asks_for_room_by_the_byte_before_it_answers_instead() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.max_retries = 0;
    })
    .await;
    talker(&world).await;
    let call = || Turn::call("data_transform", json!({ "value": "x".repeat(1000) }));
    provider.script([call(), Turn::Status(500, vec![])]);
    let run = long_winded(&world, &["talker"]).await;
    let asked = lack(&run).await;
    assert_eq!((&asked["raises"], provider.asked().len()), (&json!("tokens"), 2), "{asked}");
    provider.script([Turn::Status(500, vec![]), Turn::say("Done.")]);
    approve(&world, &asked).await;
    assert_eq!(run.completes().await["output"], "Done.");
}

#[tokio::test]
async fn an_answer_under_a_budget_keeps_to_the_length_that_is_reserved_for_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let config = json!({ "provider": "fake-openai", "model": "m" });
    world.admin().request(Method::PUT, "/llm/configs/plain").json(&config).send().await.expect(201);
    let plan = json!([{ "id": "ask", "uses": "llm.generate", "with": { "config": "plain", "prompt": "Talk" } }]);
    for (budget, most) in [(json!({ "cost": 1 }), json!(4096)), (Value::Null, Value::Null)] {
        let mut body = json!({ "plan": plan });
        if !budget.is_null() {
            body["budget"] = budget;
        }
        world.owner().execute(body).await.completes().await;
        let asked = provider.asked().last().unwrap().body.clone();
        let said = ["max_tokens", "max_completion_tokens"].map(|name| asked[name].clone());
        assert!(said.contains(&most), "{asked}");
    }
}

#[tokio::test]
async fn a_forecast_says_what_a_model_would_cost_whom_a_call_would_reach_and_what_a_day_has_no_room_for() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    let ask = |id: &str| json!({ "id": id, "uses": "llm.generate", "with": { "config": "talker", "prompt": "Talk" } });
    let call =
        json!({ "id": "call", "uses": "http.request", "with": { "url": "https://shop.example/{{ input.order }}" } });
    let forecast = async |body: Value| {
        let run = world.owner().post("/agent/plan", &body).await.expect(202)["runId"].as_str().unwrap().to_owned();
        let run = world.owner().run(&run);
        let told = run.wait_for("plan.ready").await.data["payload"]["forecast"].clone();
        let again = world.viewer().get(&run.path("/forecast")).await.expect(200)["items"].clone();
        assert_eq!(told, again, "nothing has changed since");
        told
    };
    let steps = json!([ask("a"), ask("b"), call]);
    let told = forecast(json!({ "plan": steps, "budget": 3 })).await;
    is_near(&told[0]["cost"], 2.0);
    assert_eq!((&told[0]["verdict"], &told[1]["verdict"]), (&json!("allow"), &json!("hold")));
    assert_eq!(told[1]["reason"], "by then the run would be past its budget");
    assert_eq!(told[2]["touches"], "GET https://shop.example/{{ input.order }}");
    let known = forecast(json!({ "plan": steps, "input": { "order": 7 } })).await;
    assert_eq!(known[2]["touches"], "GET https://shop.example/7");
    world.admin().request(Method::PUT, "/usage/budget").json(&json!({ "cost": 3 })).send().await.expect(200);
    let told = forecast(json!({ "plan": steps })).await;
    assert_eq!(told[1]["reason"], "by then the tenant would be past its budget of the day");
    workflow(&world, "ask", &[]).await;
    is_near(&forecast(json!({ "workflow": "ask" })).await[0]["cost"], 2.0);
    let inner = json!([start("child", "ask", json!({})), { "id": "agent", "uses": "agent:talker", "with": { "goal": "Talk" } }]);
    let told = forecast(json!({ "plan": inner })).await;
    assert_eq!((&told[0]["touches"], &told[1]["touches"]), (&json!("the workflow ask"), &json!("the agent talker@1")));
}
