//! What models think: told and kept where that is asked for, apart from what they say, and said to them again only as their
//! providers seal it.

use reqwest::Method;
use serde_json::{Value, json};

use fermata::app::Role;

use crate::{
    agents::{begin, world_with},
    world::{APIS, Asked, Provider, Run, SEALED, Turn, World},
};

/// More than goes into one event.
fn thoughts() -> Vec<String> {
    (0..300).map(|at| format!("Hmm {at}, ")).collect()
}

fn thinks(then: Turn) -> Turn {
    Turn::Think(thoughts(), Box::new(then))
}

/// Puts a configuration named as its provider, and an agent of that name which asks it.
async fn prepare(world: &World, name: &str, config: Value, agent: Value) {
    let mut whole = json!({ "provider": name, "model": "m" });
    whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    let mut who = json!({ "instructions": "Compute.", "config": name, "tools": ["data.*"] });
    who.as_object_mut().unwrap().extend(agent.as_object().unwrap().clone());
    for (path, body) in [(format!("/llm/configs/{name}"), whole), (format!("/agents/{name}"), who)] {
        let answer = world.admin().request(Method::PUT, &path).json(&body).send().await;
        assert!([200, 201].contains(&answer.status), "{}", answer.text());
    }
}

async fn ask(world: &World, config: &str, reasoning: bool) -> Run {
    let with = json!({ "config": config, "prompt": "What is seven times six?", "reasoning": reasoning });
    world.operator().start(json!([{ "id": "ask", "uses": "llm.generate", "with": with }])).await
}

/// What is told of a step, said and thought: each with offsets that follow each other.
async fn told(run: &Run, step: &str) -> (String, String) {
    let (mut said, mut thought) = (String::new(), String::new());
    for event in run.events().await {
        if event["step"] == "message.delta" && event["stepId"] == step {
            let text = if event["payload"]["reasoning"] == true { &mut thought } else { &mut said };
            assert_eq!(event["payload"]["offset"], text.len(), "{event}");
            text.push_str(event["payload"]["text"].as_str().unwrap());
        }
    }
    (said, thought)
}

/// Whether a question asks to be told what the model thinks, where the protocol has that, and how much it is to think.
fn wants(name: &str, asked: &Asked) -> (Option<bool>, Value) {
    let body = &asked.body;
    match name {
        "fake-openai" => (None, body["reasoning_effort"].clone()),
        "fake-responses" => (Some(body["reasoning"]["summary"].is_string()), body["reasoning"]["effort"].clone()),
        "fake-anthropic" => (None, body["thinking"]["budget_tokens"].clone()),
        "fake-gemini" => {
            let config = &body["generationConfig"]["thinkingConfig"];
            (Some(config["includeThoughts"] == true), config["thinkingBudget"].clone())
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn thoughts_are_told_apart_from_the_words_and_only_where_they_are_wanted() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (name, _) in APIS {
        prepare(&world, name, json!({}), json!({})).await;
        for wanted in [false, true] {
            provider.script([thinks(Turn::say("It is 42."))]);
            let run = ask(&world, name, wanted).await;
            run.completes().await;
            let output = run.step("ask").await["output"].clone();
            assert_eq!(output["text"], "It is 42.", "{name}");
            let thought = if wanted { thoughts().concat() } else { String::new() };
            assert_eq!(told(&run, "ask").await, ("It is 42.".to_owned(), thought.clone()), "{name}");
            assert_eq!(output["reasoning"].as_str().unwrap_or_default(), thought, "{name}");
            let completed = run.wait_for("message.completed").await.data;
            assert_eq!(completed["payload"]["text"], "It is 42.", "{name}");
            let (asks, effort) = wants(name, provider.asked().last().unwrap());
            assert!(asks.is_none_or(|asks| asks == wanted) && effort.is_null(), "{name}");
        }
    }
}

#[tokio::test]
async fn a_configuration_says_how_much_a_model_thinks() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (name, effort, sent) in [
        ("fake-openai", "low", json!("low")),
        ("fake-responses", "medium", json!("medium")),
        ("fake-anthropic", "high", json!(24_000)),
        ("fake-gemini", "low", json!(1000)),
    ] {
        prepare(&world, name, json!({ "reasoning": effort }), json!({})).await;
        ask(&world, name, false).await.completes().await;
        let asked = provider.asked();
        assert_eq!(wants(name, asked.last().unwrap()).1, sent, "{name}: {}", asked.last().unwrap().body);
    }
    let body = json!({ "provider": "fake-openai", "model": "m", "reasoning": "much" });
    let answer = world.admin().request(Method::PUT, "/llm/configs/fake-openai").json(&body).send().await;
    assert_eq!(answer.status, 422, "{}", answer.text());
}

#[tokio::test]
async fn an_agent_tells_what_it_thinks_where_it_says_so_and_hears_it_again_only_sealed() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (name, _) in APIS {
        for wanted in [false, true] {
            let agent = if wanted { json!({ "reasoning": true }) } else { json!({}) };
            prepare(&world, name, json!({ "reasoning": "low" }), agent).await;
            provider
                .script([thinks(Turn::call("data_transform", json!({ "value": 42 }))), thinks(Turn::say("It is 42."))]);
            let run = begin(&world, name, "What is seven times six?").await;
            let done = run.completes().await;
            assert_eq!(done["output"], "It is 42.", "{name}: a thought is no answer");
            assert_eq!(done["plan"]["agent"]["reasoning"] == true, wanted, "{name}");
            let thought = if wanted { thoughts().concat() } else { String::new() };
            for (turn, said) in [("turn-1", "Well. "), ("turn-2", "It is 42.")] {
                assert_eq!(told(&run, turn).await, (said.to_owned(), thought.clone()), "{name} {turn}");
                let output = run.step(turn).await["output"].clone();
                assert_eq!(output["reasoning"].as_str().unwrap_or_default(), thought, "{name} {turn}");
            }
            let mut heard = provider.asked().last().unwrap().body.clone();
            assert!(heard.to_string().contains("call-1-1") || name == "fake-gemini", "{name}: {heard}");
            assert_eq!(heard.to_string().contains(SEALED), name != "fake-openai", "{name}: {heard}");
            if name == "fake-anthropic" {
                assert_eq!(heard["messages"][1]["content"][0], sealed(), "{heard}");
                heard["messages"][1]["content"][0].take();
            }
            assert!(!heard.to_string().contains("Hmm 7"), "{name}: {heard}");
        }
    }
    assert_eq!(provider.asked().len(), APIS.len() * 2 * 2, "no question is refused and asked anew");
}

/// A thought as Anthropic wants to see it again.
fn sealed() -> Value {
    json!({ "type": "thinking", "thinking": thoughts().concat(), "signature": SEALED })
}

#[tokio::test]
async fn what_was_thought_before_a_call_outlives_the_server() {
    let provider = Provider::start().await;
    let world = World::without_worker(|settings| settings.llm.providers = provider.settings().collect()).await;
    let rules = json!([{ "tools": ["data.*"], "terms": { "reason": "Look at it" } }]);
    prepare(&world, "fake-anthropic", json!({ "reasoning": "low" }), json!({ "approval": rules })).await;
    provider.script([thinks(Turn::call("data_transform", json!({ "value": 42 }))), Turn::say("It is 42.")]);
    let first = world.mortal(Role::Worker).await;
    let run = begin(&world, "fake-anthropic", "What is seven times six?").await;
    let held = run.hold().await;
    first.kill();
    world.approver().approve(&held).await;
    let _second = world.mortal(Role::Worker).await;
    assert_eq!(run.completes().await["output"], "It is 42.");
    let asked = provider.asked();
    assert_eq!((asked.len(), &asked[1].body["messages"][1]["content"][0]), (2, &sealed()));
}

#[tokio::test]
async fn a_thought_is_left_out_where_something_else_is_said_before_it_or_to_another_model() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    // The answer that the model was told will not do is no part of what it hears later.
    prepare(&world, "fake-anthropic", json!({ "reasoning": "low" }), json!({})).await;
    let call = || thinks(Turn::call("data_transform", json!({ "value": 42 })));
    provider.script([Turn::Empty, call(), call(), Turn::say("It is 42.")]);
    begin(&world, "fake-anthropic", "What is seven times six?").await.completes().await;
    let asked = provider.asked();
    let thinks = |asked: &Asked| asked.body["thinking"]["type"] == "enabled";
    // Refused without the thought, asked anew without thinking, and so once more.
    assert_eq!(asked.iter().map(thinks).collect::<Vec<_>>(), [true, true, true, false, true, false]);
    assert!(asked.iter().all(|asked| !asked.body.to_string().contains(SEALED)), "{asked:#?}");
    // Another model had the first turn: Gemini signs its calls, and no other provider knows what to do with that.
    prepare(&world, "fake-responses", json!({}), json!({})).await;
    let config =
        json!({ "model": "gemini-3-pro", "reasoning": "low", "fallback": ["fake-responses", "fake-anthropic"] });
    prepare(&world, "fake-gemini", config, json!({})).await;
    let away = || Turn::Status(400, vec![]);
    provider.script([call(), away(), Turn::call("data_transform", json!({ "value": 1 })), Turn::say("It is 42.")]);
    let done = begin(&world, "fake-gemini", "What is seven times six?").await.completes().await;
    assert_eq!(done["output"], "It is 42.");
    let sealed: Vec<_> =
        provider.asked().split_off(6).iter().map(|asked| asked.body.to_string().contains(SEALED)).collect();
    assert_eq!(sealed, [false, true, false, true]);
}
