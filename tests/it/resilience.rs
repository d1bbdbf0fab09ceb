//! Each part of what is done about providers' faults can be seen: in the events of the run and in the metrics.

use std::time::Duration;

use fermata::kernel::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Provider, Run, Turn, World};

async fn put(world: &World, name: &str, more: Value) {
    let mut config = json!({ "provider": "fake-openai", "model": name });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.admin().request(Method::PUT, &format!("/llm/configs/{name}")).json(&config).send().await.expect(201);
}

/// A world in which nothing is asked again, and one failure opens a breaker.
async fn touchy(provider: &Provider) -> World {
    World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.max_retries = 0;
        settings.circuit_breaker.failure_threshold = 1;
    })
    .await
}

async fn ask(world: &World, config: &str) -> Run {
    world.operator().start(json!([question("ask", config)])).await
}

fn question(id: &str, config: &str) -> Value {
    json!({ "id": id, "uses": "llm.generate", "with": { "config": config, "prompt": "Up?" } })
}

/// What is told of the asking, in words.
async fn told(run: &Run) -> Vec<Value> {
    let events = run.events().await.into_iter().filter(|event| event["step"] == "tool.progress");
    events.map(|event| event["payload"]["data"].clone()).filter(|data| data["model"].is_string()).collect()
}

/// Lines of the metrics page that are about the model.
async fn metrics(world: &World, name: &str, model: &str) -> Vec<String> {
    let page = world.nobody().get("/metrics").await.text();
    let about = |line: &&str| line.starts_with(name) && line.contains(&format!("model=\"{model}\""));
    page.lines().filter(about).map(str::to_owned).collect()
}

#[track_caller]
fn has(lines: &[String], label: &str, value: u32) {
    let line = lines.iter().find(|line| line.contains(label)).unwrap_or_else(|| panic!("no {label} in {lines:?}"));
    assert_eq!(line.rsplit(' ').next().unwrap(), value.to_string(), "{line}");
}

#[tokio::test]
async fn a_circuit_breaker_tells_how_it_turns_and_calls_that_it_refuses_are_counted() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.providers.get_mut("fake-openai").unwrap().smart = Some("turning".to_owned());
        settings.llm.max_retries = 0;
        settings.circuit_breaker.failure_threshold = 2;
        settings.circuit_breaker.success_threshold = 1;
    })
    .await;
    put(&world, "turning", json!({})).await;
    let circuits = async |run: Run| {
        run.wait_end().await;
        let told = told(&run).await.into_iter().filter(|data| data["model"] == "circuit");
        told.map(|data| data["circuit"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    provider.script([Turn::Status(500, vec![]), Turn::Status(500, vec![])]);
    assert_eq!(circuits(ask(&world, "turning").await).await, [""; 0]);
    assert_eq!(circuits(ask(&world, "turning").await).await, ["open"]);
    let refused = ask(&world, "turning").await;
    assert_eq!(refused.wait_end().await["error"]["code"], "model_left_alone");
    world.advance(Duration::from_secs(61));
    assert_eq!(circuits(ask(&world, "turning").await).await, ["half_open", "closed"]);
    let calls = metrics(&world, "fermata_llm_calls_total", "turning").await;
    has(&calls, "outcome=\"model_unavailable\"", 2);
    has(&calls, "outcome=\"model_left_alone\"", 1);
    has(&calls, "outcome=\"answered\"", 1);
    let changes = metrics(&world, "fermata_llm_circuit_changes_total", "turning").await;
    for to in ["open", "half_open", "closed"] {
        has(&changes, &format!("to=\"{to}\""), 1);
    }
    has(&metrics(&world, "fermata_llm_circuit{", "turning").await, "model=", 0);
}

#[tokio::test]
async fn metrics_name_what_the_operator_names_and_nothing_of_tenants() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.providers.get_mut("fake-openai").unwrap().fast = Some("named".to_owned());
    })
    .await;
    put(&world, "named", json!({})).await;
    put(&world, "unheard", json!({})).await;
    put(&world, "elsewhere", json!({ "model": "named", "endpoint": format!("{}hidden/", provider.url()) })).await;
    for config in ["named", "unheard", "elsewhere"] {
        ask(&world, config).await.completes().await;
    }
    has(&metrics(&world, "fermata_llm_calls_total", "named").await, "outcome=\"answered\"", 1);
    let page = world.nobody().get("/metrics").await.text();
    let others = "fermata_llm_circuit{provider=\"fake-openai\",model=\"other\"}";
    assert!(page.contains(others) && !page.contains("unheard") && !page.contains("hidden"), "{page}");
}

#[tokio::test]
async fn while_one_call_tries_a_model_again_the_others_wait_or_ask_another() {
    let provider = Provider::start().await;
    let world = touchy(&provider).await;
    put(&world, "spare", json!({})).await;
    put(&world, "slow", json!({})).await;
    put(&world, "either", json!({ "model": "slow", "fallback": ["spare"] })).await;
    provider.script([Turn::Status(500, vec![])]);
    assert_eq!(ask(&world, "slow").await.wait_end().await["error"]["code"], "model_unavailable");
    world.advance(Duration::from_secs(61));
    provider.script([Turn::SayHeld(vec!["I am ".to_owned(), "back.".to_owned()], 1)]);
    let first = ask(&world, "slow").await;
    provider.asked_times(2).await;
    let others = [ask(&world, "slow").await, ask(&world, "slow").await, ask(&world, "slow").await];
    for other in &others {
        let mut follow = other.follow().await;
        while follow.until("tool.progress").await.data["payload"]["data"]["model"] != "queued" {}
    }
    ask(&world, "either").await.completes().await;
    assert_eq!(provider.asked().last().unwrap().body["model"], "spare");
    provider.release();
    for run in [&first].into_iter().chain(&others) {
        run.completes().await;
    }
    assert_eq!(provider.asked().len(), 6);
}

#[tokio::test]
async fn a_call_that_waits_for_its_keys_share_says_so() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.concurrency = 1;
    })
    .await;
    put(&world, "queued", json!({})).await;
    provider.script([Turn::SayHeld(vec!["Yes ".to_owned(), "it is.".to_owned()], 1), Turn::say("Yes.")]);
    let run = world.operator().start(json!([question("a", "queued"), question("b", "queued")])).await;
    let mut follow = run.follow().await;
    while follow.until("tool.progress").await.data["payload"]["data"]["model"] != "queued" {}
    provider.asked_times(1).await;
    provider.release();
    run.completes().await;
    let queued = told(&run).await.into_iter().filter(|data| data["model"] == "queued").count();
    assert_eq!(queued, 1);
    let page = world.nobody().get("/metrics").await.text();
    assert!(page.contains("fermata_llm_share_wait_seconds"), "{page}");
}

#[tokio::test]
async fn what_one_tenant_wants_at_once_opens_no_breaker_for_others() {
    let provider = Provider::start().await;
    let world = touchy(&provider).await;
    put(&world, "hasty", json!({ "model": "shared", "timeout": "1s" })).await;
    put(&world, "patient", json!({ "model": "shared" })).await;
    provider.script([Turn::Hang]);
    let run = ask(&world, "hasty").await;
    provider.asked_times(1).await;
    world.advance(Duration::from_secs(2));
    assert_eq!(run.wait_end().await["error"]["code"], "model_timeout");
    ask(&world, "patient").await.completes().await;
    // A key of one's own is limited on its own.
    world
        .admin()
        .request(Method::PUT, "/llm/keys/own")
        .json(&json!({ "secret": "sk-own-0123456789" }))
        .send()
        .await
        .expect(201);
    put(&world, "own", json!({ "model": "shared", "key": "own" })).await;
    provider.script([Turn::Status(429, vec![])]);
    assert_eq!(ask(&world, "own").await.wait_end().await["error"]["code"], "model_rate_limited");
    assert_eq!(ask(&world, "own").await.wait_end().await["error"]["code"], "model_left_alone");
    ask(&world, "patient").await.completes().await;
}

#[tokio::test]
async fn a_provider_that_asks_for_more_time_than_anybody_has_is_left_for_another() {
    let provider = Provider::start().await;
    let world = World::with(|settings| settings.llm.providers = provider.settings().collect()).await;
    put(&world, "spare", json!({})).await;
    put(&world, "busy", json!({ "fallback": ["spare"] })).await;
    // Nobody moves the clock on: whoever waited would wait for ever.
    provider.script([Turn::Status(429, vec![("retry-after", "3600")]), Turn::say("Yes.")]);
    let run = ask(&world, "busy").await;
    run.completes().await;
    let told: Vec<_> = told(&run).await.into_iter().map(|data| data["model"].clone()).collect();
    assert_eq!(told, [json!("fell_back")]);
    let models: Vec<_> = provider.asked().iter().map(|asked| asked.body["model"].clone()).collect();
    assert_eq!(models, ["busy", "spare"]);
}

#[tokio::test]
async fn time_that_a_provider_asks_for_is_waited_for_without_a_slot_where_the_step_is_retried() {
    let provider = Provider::start().await;
    let world = World::with(|settings| settings.llm.providers = provider.settings().collect()).await;
    put(&world, "busy", json!({})).await;
    let hour = || Turn::Status(429, vec![("retry-after", "3600")]);
    let at = |event: &Value, name: &str| -> Timestamp { event[name].as_str().unwrap().parse().unwrap() };
    provider.script([hour(), Turn::say("Yes.")]);
    let before = world.now();
    let mut retried = question("ask", "busy");
    retried["retry"] = json!({ "attempts": 2 });
    let run = world.operator().start(json!([retried])).await;
    let told = run.wait_for("step.retrying").await.data["payload"].clone();
    let wait = (at(&told, "retryAt") - before).num_seconds();
    assert!((3600..3660).contains(&wait) && told["error"]["retryAfterSeconds"] == 3600, "{told}");
    world.advance(Duration::from_secs(3660));
    run.completes().await;
    // Nobody asks again later: a step without a retry, and a draft of a plan.
    provider.script([Turn::Status(429, vec![("retry-after", "90")]), Turn::say("Yes.")]);
    let run = ask(&world, "busy").await;
    let told = run.wait_for("tool.progress").await.data["payload"]["data"].clone();
    assert_eq!(told["model"], "retrying", "{told}");
    world.advance(Duration::from_secs(91));
    run.completes().await;
    let plan = json!({ "steps": [{ "id": "a", "uses": "debug.echo", "with": { "value": 1 } }] });
    provider.script([Turn::Status(429, vec![("retry-after", "90")]), Turn::call("plan", plan)]);
    let run = world.operator().execute(json!({ "goal": "Compute" })).await;
    let told = run.wait_for("tool.progress").await.data["payload"]["data"].clone();
    assert_eq!(told["model"], "retrying", "{told}");
    world.advance(Duration::from_secs(91));
    run.completes().await;
    assert_eq!(provider.asked().len(), 6);
}
