//! Long histories: what an agent's model is asked stays within its window, and what is left out can be read.

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{APIS, Provider, Run, Turn, World};

/// An agent of a model with this window and answers of 200 tokens.
async fn agent(world: &World, name: &str, api: &str, window: u32) {
    let config = json!({ "provider": api, "model": "m", "window": window, "maxTokens": 200 });
    let agent = json!({ "instructions": "Look.", "config": name, "tools": ["data.transform"], "maxTurns": 40 });
    for (path, body) in [(format!("/llm/configs/{name}"), config), (format!("/agents/{name}"), agent)] {
        world.admin().request(Method::PUT, &path).json(&body).send().await.expect(201);
    }
}

async fn world_with(provider: &Provider) -> World {
    World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
    })
    .await
}

async fn begin(world: &World, agent: &str, goal: &str) -> Run {
    world.owner().execute(json!({ "agent": agent, "goal": goal })).await
}

/// A call that gives so many bytes.
fn giving(bytes: usize) -> Turn {
    Turn::Call(vec![("data_transform".to_owned(), json!({ "value": "{}".repeat(bytes / 2) }))])
}

fn reading(arguments: Value) -> (String, Value) {
    ("output_read".to_owned(), arguments)
}

/// What the journal says that each turn left out.
async fn compacted(run: &Run) -> Vec<Value> {
    let events = run.events().await;
    let turns = events.iter().filter(|event| {
        event["step"] == "step.started" && event["stepId"].as_str().is_some_and(|step| step.starts_with("turn-"))
    });
    turns.map(|event| event["payload"]["arguments"]["compacted"].clone()).collect()
}

#[tokio::test]
async fn an_agent_goes_on_to_its_end_within_the_window_of_its_model() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (place, (name, _)) in APIS.into_iter().enumerate() {
        agent(&world, name, name, 5000).await;
        provider.script((0..20).map(|_| giving(1500)));
        provider.script([Turn::Call(vec![reading(json!({ "step": "call-2-1", "offset": 1490 }))]), Turn::say("Seen.")]);
        let run = begin(&world, name, "Look at all of it").await;
        let done = run.completes().await;
        assert_eq!((&done["output"], &done["plan"]["agent"]["window"]), (&json!("Seen."), &json!(4800)), "{name}");
        let asked = &provider.asked()[place * 22..];
        assert_eq!(asked.len(), 22);
        for (n, asked) in asked.iter().enumerate() {
            let text = asked.body.to_string();
            // Four bytes a token, and what the protocol itself takes.
            assert!(text.len() < 4800 * 4 + 4000, "question {n} of {name} has {} bytes", text.len());
            assert!(text.contains("Look at all of it"), "the goal is always there");
        }
        let last = asked[21].body.to_string();
        assert!(last.contains("[bytes 1490 to 1500 of 1500]\\n{}{}{}{}{}\""), "{last}");
        assert!(last.contains("left out here") && last.contains("call-1-1 data_transform: gave 1500 bytes"), "{last}");
        let said = compacted(&run).await;
        assert_eq!((&said[0], &said[1]), (&Value::Null, &Value::Null), "{said:?}");
        let last = &said[21];
        assert!(last["turns"].as_u64() > Some(0) && last["turns"].as_u64() < Some(20), "{said:?}");
        assert!(said.iter().any(|said| said["outputs"].as_u64() > Some(0)), "outputs go before turns: {said:?}");
    }
}

#[tokio::test]
async fn what_is_denser_than_usual_stays_within_the_window_too() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    provider.dense();
    agent(&world, "dense", "fake-openai", 10_000).await;
    provider.script((0..20).map(|_| giving(1500)).chain([Turn::say("Seen.")]));
    let run = begin(&world, "dense", "Look at all of it").await;
    run.completes().await;
    let said = run.events().await.into_iter().filter(|event| event["step"] == "message.completed");
    let asked: Vec<_> = said.map(|event| event["payload"]["inputTokens"].as_u64().unwrap()).collect();
    assert_eq!(asked.len(), 21);
    assert!(asked.iter().all(|tokens| *tokens <= 9800) && asked.iter().any(|tokens| *tokens > 5000), "{asked:?}");
}

#[tokio::test]
async fn a_large_output_is_cut_where_it_is_shown_and_read_on_in_parts() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "reader", "fake-openai", 100_000).await;
    let rows: Vec<_> = (0..2500).map(|n| json!({ "row": n, "text": format!("Zeile {n}") })).collect();
    let text = serde_json::to_string(&rows).unwrap();
    provider.script([
        Turn::call("data_transform", json!({ "value": rows })),
        Turn::Call(vec![
            reading(json!({ "step": "call-1-1", "offset": 32_768, "length": 32_000 })),
            reading(json!({ "step": "call-1-1", "pointer": "/2499/text" })),
        ]),
        Turn::say("The last is Zeile 2499."),
    ]);
    let run = begin(&world, "reader", "Read the last row").await;
    run.completes().await;
    let heard = |n: usize, id: &str| {
        let messages = provider.asked()[n].body["messages"].as_array().unwrap().clone();
        let found = messages.into_iter().find(|message| message["tool_call_id"] == id).unwrap();
        found["content"].as_str().unwrap().to_owned()
    };
    let first = heard(1, "call-1-1");
    let note = format!(
        "\n[cut off here: these are 32768 of {} bytes; go on with output_read, step \"call-1-1\", offset 32768]",
        text.len()
    );
    assert_eq!(first, format!("{}{note}", &text[..32_768]));
    let part = format!("[bytes 32768 to 64768 of {}]\n{}", text.len(), &text[32_768..64_768]);
    assert_eq!(heard(2, "call-2-1"), part, "a part is shown whole");
    assert_eq!(heard(2, "call-2-2"), "[bytes 0 to 10 of 10]\nZeile 2499");
    // It is a step like any other, and passes the gate as what touches nothing.
    assert_eq!(run.step("call-2-1").await["status"], "completed");
    assert!(!run.event_names().await.contains(&"awaiting_approval".to_owned()));
    assert!(compacted(&run).await.iter().all(Value::is_null));
}

#[tokio::test]
async fn nothing_is_read_but_what_this_very_run_was_given() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "nosy", "fake-openai", 100_000).await;
    provider.script([Turn::call("data_transform", json!({ "value": "the other run's secret" })), Turn::say("Kept.")]);
    let other = begin(&world, "nosy", "Keep a secret").await;
    other.completes().await;
    let foreign = format!("{}/call-1-1", other.id);
    provider.script([
        Turn::Call(vec![
            // The other run has it and this one has not begun it.
            reading(json!({ "step": "call-2-1" })),
            reading(json!({ "step": foreign })),
            reading(json!({ "step": "../call-1-1" })),
            ("data_transform".to_owned(), json!({ "value": "mine" })),
        ]),
        Turn::Call(vec![
            reading(json!({ "step": "call-1-1" })),
            reading(json!({ "step": "call-1-4", "offset": 4 })),
            reading(json!({ "step": "call-1-4", "pointer": "/secret" })),
        ]),
        Turn::say("Nothing."),
    ]);
    let run = begin(&world, "nosy", "Find secrets").await;
    assert_eq!(run.completes().await["output"], "Nothing.");
    let code = async |step: &str| run.step(step).await["error"]["code"].as_str().unwrap_or("none").to_owned();
    for step in ["call-1-1", "call-1-2", "call-1-3"] {
        assert_eq!(code(step).await, "unknown_step", "{step}");
    }
    for (step, wanted) in [("call-2-1", "no_output"), ("call-2-2", "beyond_the_end"), ("call-2-3", "unknown_pointer")] {
        assert_eq!(code(step).await, wanted, "{step}");
    }
    let mine = provider.asked()[2..].iter().map(|asked| asked.body.to_string()).collect::<String>();
    assert!(!mine.contains("the other run's secret") && mine.contains("The call failed: unknown_step"), "{mine}");
}

#[tokio::test]
async fn a_goal_that_is_too_long_for_the_model_fails_before_anybody_is_asked() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "small", "fake-openai", 1000).await;
    let body = json!({ "agent": "small", "goal": "Sum up", "input": { "text": "word ".repeat(2000) } });
    let run = world.owner().execute(body).await;
    let failed = run.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("window_exceeded")));
    assert_eq!(failed["error"]["stepId"], "turn-1");
    assert!(provider.asked().is_empty());
}

#[tokio::test]
async fn a_question_fits_every_model_that_may_have_to_answer_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    agent(&world, "small", "fake-gemini", 3000).await;
    agent(&world, "large", "fake-openai", 9000).await;
    let config = json!({ "provider": "fake-openai", "model": "m", "window": 9000, "fallback": ["small"] });
    world.admin().request(Method::PUT, "/llm/configs/large").json(&config).send().await.expect(201);
    let done = begin(&world, "large", "Say hello").await.completes().await;
    assert_eq!(done["plan"]["agent"]["window"], 2800);
}

#[tokio::test]
async fn an_agent_without_tools_is_given_none() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let body = json!({ "instructions": "Help." });
    world.admin().request(Method::PUT, "/agents/plain").json(&body).send().await.expect(201);
    let done = begin(&world, "plain", "Say hello").await.completes().await;
    assert_eq!(done["plan"]["agent"]["tools"], json!([]));
    assert_eq!(provider.asked()[0].body["tools"], Value::Null);
}
