//! What models say at length: the events about it have it whole as far as there is room, and never take more than an event
//! may.

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Provider, Run, Turn, World};

/// The most bytes of an event, here.
const EVENT: usize = 16 * 1024;
/// The most bytes of its payload.
const PAYLOAD: usize = EVENT - 1024;

async fn world_with(provider: &Provider) -> World {
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.limits.event = EVENT;
        settings.limits.arguments = EVENT / 2;
    })
    .await;
    let config = json!({ "provider": "fake-openai", "model": "m" });
    world.admin().request(Method::PUT, "/llm/configs/default-smart").json(&config).send().await.expect(201);
    world
}

async fn ask(world: &World) -> Run {
    world.operator().start(json!([{ "id": "ask", "uses": "llm.generate", "with": { "prompt": "Tell" } }])).await
}

/// All its events, of which none is larger than an event may be.
async fn events(run: &Run) -> Vec<Value> {
    let events = run.events().await;
    for event in &events {
        let bytes = event.to_string().len();
        // What a step gave has room of its own.
        assert!(bytes <= EVENT || event["step"] == "step.completed", "{bytes} bytes of {}", event["step"]);
    }
    events
}

async fn payloads(run: &Run, name: &str) -> Vec<Value> {
    events(run).await.into_iter().filter(|event| event["step"] == name).map(|event| event["payload"].clone()).collect()
}

#[tokio::test]
async fn a_message_has_the_whole_text_whenever_its_event_can_carry_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    // Of spaces alone it would be no answer.
    let told = async |letters: String| {
        let text = format!("I{letters}");
        provider.script([Turn::Say(vec![text.clone()])]);
        let run = ask(&world).await;
        run.completes().await;
        assert!(run.step("ask").await["output"]["text"] == text, "the step has it in any case");
        let [message] = &payloads(&run, "message.completed").await[..] else { panic!("one message") };
        assert_eq!(message["textBytes"], text.len());
        (message.to_string().len(), message["text"].is_string())
    };
    // What is said besides the text, in a message whose text is of five figures.
    let besides = told("x".repeat(10_000)).await.0 - 10_000;
    for letter in ["x", "\"", "\n", "\u{e9}", "\u{1}"] {
        let each = json!(letter).to_string().len() - 2;
        let most = (PAYLOAD - besides) / each;
        assert!(told(letter.repeat(most)).await.1, "{letter:?}");
        // The bytes of fewer letters may have a figure less.
        assert!(!told(letter.repeat(most + 2)).await.1, "{letter:?}");
    }
}
