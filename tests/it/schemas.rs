//! What providers are told of tools: no more than they take of a schema and of a description. The fake provider refuses what
//! the real ones refuse.

use reqwest::Method;
use serde_json::json;

use crate::{
    agents::{agent, begin, world_with},
    world::{APIS, Provider, Turn},
};

#[tokio::test]
async fn every_tool_can_be_told_to_every_provider() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let described = format!("{} Ask for the colour last.", "Looks an order up. ".repeat(90));
    let either = json!([{ "required": ["id"] }, { "required": ["number"] }]);
    let schema = json!({ "type": "object", "anyOf": either,
        "properties": { "id": { "type": "string" }, "number": { "type": "integer" } } });
    let tool = json!({ "description": described, "method": "GET", "url": "https://shop.example/orders",
        "arguments": schema, "effect": "pure" });
    world.admin().request(Method::PUT, "/tools/http/orders.look").json(&tool).send().await.expect(201);
    for (place, (name, _)) in APIS.into_iter().enumerate() {
        agent(&world, name, name, json!({ "tools": ["*"] })).await;
        // The whole schema counts all the same.
        provider.script([Turn::call("orders_look", json!({})), Turn::say("Seen.")]);
        let run = begin(&world, name, "Look").await;
        assert_eq!(run.completes().await["output"], "Seen.", "{name}");
        let asked = &provider.asked()[place * 2..];
        for told in ["http_request", "time_wait", "llm_generate", "llm_embed", "speech_transcribe", "orders_look"] {
            assert!(asked[0].body.to_string().contains(told), "{name}: {told}");
        }
        assert!(asked[0].body.to_string().contains("Ask for the colour last."), "{name}: nothing of it is lost");
        assert!(asked[1].body.to_string().contains("cannot be used"), "{name}: {}", asked[1].body);
    }
}
