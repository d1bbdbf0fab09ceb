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

#[tokio::test]
async fn a_draft_that_is_too_long_to_be_told_is_cut_and_planning_goes_on() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let padded = |uses: &str, bytes: usize| json!({ "steps": [{ "id": "a", "uses": uses, "with": { "value": "x".repeat(bytes) } }] });
    provider.script([
        // Words alone, then a plan that has room where the words are cut, and one that has none.
        Turn::Say(vec!["\"".repeat(EVENT)]),
        Turn::call("plan", padded("crm.sync", PAYLOAD / 2)),
        Turn::call("plan", padded("crm.sync", 2 * EVENT)),
        Turn::call("plan", padded("data.transform", 7)),
    ]);
    let run = world.operator().execute(json!({ "goal": "Plan" })).await;
    run.completes().await;
    let refused = payloads(&run, "plan.refused").await;
    let [words, small, large] = &refused[..] else { panic!("three drafts: {refused:#?}") };
    let text = words["text"].as_str().unwrap();
    assert!(text.len() < PAYLOAD / 8 && text.ends_with(&format!("(cut: it has {EVENT} bytes)")), "{text}");
    assert_eq!((small["plan"].is_object(), large["plan"].is_object()), (true, false));
    let told = large["mistakes"].as_array().unwrap();
    assert!(told.iter().any(|told| told.as_str().unwrap().contains("too large to be shown again")), "{told:?}");
    assert!(told[0].as_str().unwrap().contains("crm.sync"), "what was wrong is told all the same: {told:?}");
    // The model hears why, of each.
    let last = provider.asked().last().unwrap().body.to_string();
    assert!(last.contains("it hands no plan in") && last.contains("too large to be shown again"), "{last}");
}

#[tokio::test]
async fn a_plan_without_room_for_its_forecast_has_it_for_the_asking() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let url = format!("https://a.example/{}", "p".repeat(3650));
    let step = |id: &str| json!({ "id": id, "uses": "http.request", "with": { "url": url } });
    let steps = json!([step("a"), step("b"), step("c"), step("d")]);
    provider.script([Turn::call("plan", json!({ "steps": steps }))]);
    let forecast = async |body: Value| {
        let run = world.operator().post("/agent/plan", &body).await.expect(202);
        let run = world.operator().run(run["runId"].as_str().unwrap());
        run.wait_for("plan.ready").await;
        let [ready] = &payloads(&run, "plan.ready").await[..] else { panic!("one plan") };
        assert_eq!(ready["plan"]["steps"].as_array().unwrap().len(), 4);
        let asked = world.viewer().get(&run.path("/forecast")).await.expect(200);
        assert_eq!(asked["items"][3]["touches"], format!("GET {url}"));
        ready["forecast"].clone()
    };
    assert_eq!(forecast(json!({ "plan": { "steps": steps } })).await, Value::Null);
    assert_eq!(forecast(json!({ "goal": "Plan" })).await, Value::Null);
}
