//! The workflow that the server brings along: moderation, a router, and the agent that answers.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    agents::world_with,
    world::{Provider, Run, Turn, World},
};

fn judged(allowed: bool) -> Turn {
    Turn::Say(vec![json!({ "allowed": allowed, "reason": "so it is" }).to_string()])
}

fn routed(route: &str) -> Turn {
    Turn::Say(vec![json!({ "route": route, "reason": "so it goes" }).to_string()])
}

async fn says(world: &World, message: &str) -> Run {
    let history = json!([{ "role": "user", "text": "Is it open?" }, { "role": "assistant", "text": "Until six." }]);
    let input = json!({ "message": message, "history": history });
    world.operator().execute(json!({ "workflow": "conversation", "input": input })).await
}

async fn put(world: &World, path: &str, body: &Value) -> Value {
    let answer = world.admin().request(Method::PUT, path).json(body).send().await;
    assert!([200, 201].contains(&answer.status), "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn a_message_goes_where_the_router_says() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for route in ["main", "followup", "fallback"] {
        let before = provider.asked().len();
        provider.script([judged(true), routed(route), Turn::say("So it is.")]);
        let run = says(&world, "And on Sundays?").await;
        let done = run.completes().await;
        let moderation = json!({ "allowed": true, "reason": "so it is" });
        assert_eq!(done["output"], json!({ "answer": "So it is.", "route": route, "moderation": moderation }));
        assert_eq!(done["workflow"], "conversation@0");
        for other in ["main", "followup", "fallback"] {
            let status = if other == route { "completed" } else { "skipped" };
            assert_eq!(run.step(other).await["status"], status, "{other}");
        }
        let asked = &provider.asked()[before..];
        assert_eq!(asked.iter().map(|it| &it.body["model"]).collect::<Vec<_>>(), ["small", "small", "big"]);
        let told = asked[2].body.to_string();
        assert!(told.contains("And on Sundays?") && told.contains("Until six."), "{told}");
    }
}

#[tokio::test]
async fn what_is_refused_or_fails_is_answered_by_the_fallback_agent() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    provider.script([judged(false), Turn::say("I cannot help with that.")]);
    let run = says(&world, "Tell me their address").await;
    let done = run.completes().await;
    let moderation = json!({ "allowed": false, "reason": "so it is" });
    let answer = json!({ "answer": "I cannot help with that.", "route": "fallback", "moderation": moderation });
    assert_eq!(done["output"], answer);
    assert_eq!(run.step("router").await["status"], "skipped");
    assert!(provider.asked()[1].body.to_string().contains("\\\"refused\\\":true"));
    // Nobody answers what nobody has judged.
    provider.script([Turn::Status(401, vec![]), Turn::say("Something went wrong.")]);
    let done = says(&world, "Is it open?").await.completes().await;
    assert_eq!(done["output"], json!({ "answer": "Something went wrong.", "route": "fallback", "moderation": null }));
    provider.script([judged(true), routed("main"), Turn::Status(401, vec![]), Turn::say("Something went wrong.")]);
    let done = says(&world, "Is it open?").await.completes().await;
    assert_eq!(
        (&done["output"]["route"], &done["output"]["moderation"]["allowed"]),
        (&json!("fallback"), &json!(true))
    );
    assert!(provider.asked().last().unwrap().body.to_string().contains("\\\"refused\\\":false"));
}

#[tokio::test]
async fn anyone_can_read_it_and_put_their_own_over_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let viewer = world.viewer();
    let path = "/workflow/definitions/conversation";
    let brought = viewer.get(path).await.expect(200);
    assert_eq!((&brought["version"], &brought["createdBy"]), (&json!(0), &json!("system")));
    assert_eq!(viewer.get(&format!("{path}?version=0")).await.expect(200), brought);
    assert_eq!(viewer.get(&format!("{path}/versions")).await.expect(200)["items"], json!([]));
    let listed = async |path: &str, name: &str| {
        let page = viewer.get(path).await.expect(200);
        let versions = page["items"].as_array().unwrap().iter().filter(|it| it["name"] == name);
        versions.map(|it| it["version"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(listed("/workflow/definitions", "conversation").await, [0]);
    for name in ["moderation", "router", "main", "followup", "fallback"] {
        let agent = viewer.get(&format!("/agents/{name}")).await.expect(200);
        assert_eq!((&agent["version"], &agent["body"]["type"]), (&json!(0), &json!(name)));
        assert_eq!(listed("/agents", name).await, [0]);
        assert!(listed("/tools?limit=200", &format!("agent:{name}")).await.len() == 1);
    }
    // It passes the checks that every definition passes.
    let source = brought["source"].as_str().unwrap();
    assert_eq!(world.operator().put_yaml("conversation", source).await.expect(201)["version"], 1);
    let own = source.replace("goal: Answer the message.", "goal: Answer as we do.");
    assert_eq!(world.operator().put_yaml("conversation", &own).await.expect(201)["version"], 2);
    assert_eq!(listed("/workflow/definitions", "conversation").await, [2]);
    assert_eq!(viewer.get(&format!("{path}?version=0")).await.expect(200), brought);
    let ours = json!({ "instructions": "You are ours.", "type": "main" });
    assert_eq!(put(&world, "/agents/main", &ours).await["version"], 1);
    assert_eq!(listed("/agents", "main").await, [1]);
    provider.script([judged(true), routed("main"), Turn::say("Ours.")]);
    assert_eq!(says(&world, "Hello").await.completes().await["workflow"], "conversation@2");
    let asked = provider.asked()[2].body.to_string();
    assert!(asked.contains("You are ours.") && asked.contains("Answer as we do."), "{asked}");
    world.admin().request(Method::DELETE, "/agents/main").send().await.expect(204);
    assert_eq!(listed("/agents", "main").await, [0]);
}

#[tokio::test]
async fn without_a_model_it_fails_and_says_what_to_set() {
    let world = World::with(|settings| settings.llm.providers.retain(|name, _| name == "openai")).await;
    let failed = says(&world, "Hello").await.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("no_planner")));
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("default-smart") && message.contains("have the operator set a key"), "{message}");
    let wrong = json!({ "workflow": "conversation", "input": { "text": "Hello" } });
    world.operator().post("/agent/plan", &wrong).await.problem(422, "invalid-input");
}
