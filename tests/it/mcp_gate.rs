//! How the gate stands to calls of MCP servers' tools, what is unknown after one, and what of a caller's secrets comes back.

use std::collections::BTreeMap;

use fermata::config::McpCommand;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::{
    mcp::{failure, hold_after, put, registered, run},
    world::{Mcp, REVISIONS, Revision, Run, World},
};

/// Tries a tool out, through the same gate as a model's call.
async fn trial(world: &World, tool: &str) -> Run {
    let path = format!("/tools/mcp%3Afake%2F{tool}/test");
    let tried = world.operator().post(&path, &json!({ "arguments": { "text": "hello" } })).await.expect(202);
    world.operator().run(tried["runId"].as_str().unwrap())
}

/// How the gate stands to a tool: its effects, the verdict and the reason.
async fn standing(world: &World, tool: &str) -> (Value, Value) {
    let tool = world.viewer().get(&format!("/tools/mcp%3Afake%2F{tool}")).await.expect(200);
    (tool["effects"].clone(), tool["verdict"].clone())
}

#[tokio::test]
async fn rules_of_a_server_hold_what_they_name_whatever_its_effect() {
    let world = World::new().await;
    let rules = json!([
        { "tools": ["mcp:fake/ask*"], "cost": "<=1", "hold": false },
        { "tools": ["mcp:fake/echo"], "approvers": ["finance"], "expires": "4h" },
        { "tools": ["mcp:fake/big"], "hold": false },
    ]);
    registered(&world, Revision::Newer, json!({ "effects": { "echo": "pure" }, "approval": rules })).await;
    for (tool, verdict) in [("echo", "hold"), ("big", "allow"), ("ask", "hold"), ("fail", "hold")] {
        let standing = world.viewer().get(&format!("/tools/mcp%3Afake%2F{tool}")).await.expect(200);
        assert_eq!(standing["verdict"], verdict, "{tool}: {standing}");
    }
    let trial = json!({ "arguments": { "text": "hello" } });
    let held = world.operator().post("/tools/mcp%3Afake%2Fecho/test", &trial).await.expect(202);
    let run = world.operator().run(held["runId"].as_str().unwrap());
    let approval = world.viewer().get(&format!("/approvals/{}", run.hold().await)).await.expect(200);
    assert_eq!((&approval["action"], &approval["approvers"]), (&json!("mcp:fake/echo"), &json!(["finance"])));
}

#[tokio::test]
async fn the_first_rule_that_fits_has_the_word_on_a_trial() {
    let world = World::new().await;
    let rules = json!([
        { "tools": ["mcp:fake/b*"], "hold": false },
        { "tools": ["mcp:fake/*"], "terms": { "reason": "It is theirs", "scope": ["orders"] } },
        { "tools": ["mcp:fake/echo"], "hold": false },
    ]);
    let server = registered(&world, Revision::Newer, json!({ "effects": { "echo": "pure" }, "approval": rules })).await;
    trial(&world, "big").await.completes().await;
    let held = trial(&world, "echo").await;
    let approval = world.viewer().get(&format!("/approvals/{}", held.hold().await)).await.expect(200);
    assert_eq!((&approval["reason"], &approval["scope"]), (&json!("It is theirs"), &json!(["orders"])));
    assert!(server.calls("echo").is_empty(), "not before somebody consents");
    world.approver().approve(approval["approvalId"].as_str().unwrap()).await;
    assert_eq!(held.completes().await["output"], json!({ "text": "hello" }));
    let denied = trial(&world, "echo").await;
    world.approver().deny(&denied.hold().await, "no").await;
    assert_eq!(failure(&denied).await["code"], "denied");
    assert_eq!(server.calls("echo").len(), 1);
    let wrong = json!({ "arguments": { "text": 7 } });
    let problem = world.operator().post("/tools/mcp%3Afake%2Fecho/test", &wrong).await.problem(422, "invalid-input");
    assert!(problem.to_string().contains("arguments.text"), "{problem}");
    world.operator().post("/tools/mcp%3Afake%2Fnothing/test", &wrong).await.problem(404, "not-found");
    world.viewer().post("/tools/mcp%3Afake%2Fecho/test", &wrong).await.problem(403, "forbidden");
    world.stranger().post("/tools/mcp%3Afake%2Fecho/test", &wrong).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_servers_hints_count_where_they_are_trusted_and_nowhere_else() {
    let world = World::new().await;
    let server = Mcp::start(Revision::Newer).await;
    server.change("echo", "annotations", json!({ "readOnlyHint": true }));
    server.change("big", "annotations", json!({ "idempotentHint": true }));
    server.change("fail", "annotations", json!({ "readOnlyHint": false, "destructiveHint": false }));
    let register = async |body: Value| put(&world.operator(), "fake", &body).await;
    register(json!({ "url": server.url() })).await.expect(201);
    assert_eq!(standing(&world, "echo").await, (json!(["once"]), json!("hold")), "a hint is a server's word");
    trial(&world, "echo").await.hold().await;
    register(json!({ "url": server.url(), "trustHints": true })).await.expect(201);
    assert_eq!(standing(&world, "echo").await, (json!(["pure"]), json!("allow")));
    assert_eq!(standing(&world, "big").await, (json!(["repeatable"]), json!("allow")));
    assert_eq!(standing(&world, "fail").await, (json!(["once"]), json!("hold")), "no hint of use");
    trial(&world, "echo").await.completes().await;
    register(json!({ "url": server.url(), "trustHints": true, "effects": { "echo": "once" } })).await.expect(201);
    assert_eq!(standing(&world, "echo").await, (json!(["once"]), json!("hold")), "the tenant's word comes first");
    // A hint that changes is a change of the tool, and helps nobody to what was not allowed before.
    server.change("fail", "annotations", json!({ "readOnlyHint": true }));
    register(json!({ "url": server.url(), "trustHints": true })).await.expect(201);
    assert_eq!(standing(&world, "fail").await, (json!(["once"]), json!("forbid")));
}

#[tokio::test]
async fn what_a_gateway_answers_leaves_a_question_only_where_it_matters() {
    for revision in REVISIONS {
        let world = World::new().await;
        let server = registered(&world, revision, json!({})).await;
        let retry = json!({ "retry": { "attempts": 3, "backoff": "1ms" } });
        let once = run(&world, "gateway", retry.clone()).await;
        let asked = hold_after(&once, 0).await;
        assert_eq!(asked["question"], "repeat", "{asked:#}");
        assert_eq!(server.calls("gateway").len(), 1, "it may have arrived");
        world.approver().approve(asked["approvalId"].as_str().unwrap()).await;
        let again = hold_after(&once, 1).await;
        assert_eq!(server.calls("gateway").len(), 2);
        world.approver().deny(again["approvalId"].as_str().unwrap(), "it arrived").await;
        once.completes().await;
        let effects = json!({ "url": server.url(), "effects": { "*": "repeatable" } });
        put(&world.operator(), "fake", &effects).await.expect(201);
        let failed = failure(&run(&world, "gateway", retry).await).await;
        assert_eq!((&failed["code"], &failed["retryable"]), (&json!("mcp_http_status"), &json!(true)), "{failed}");
        assert!(failed["message"].as_str().unwrap().contains("502"), "{failed}");
        assert_eq!(server.calls("gateway").len(), 5);
    }
}

#[tokio::test]
async fn a_key_goes_to_the_server_and_nowhere_else() {
    let world = World::new().await;
    let secret = "sk-tenant-0123456789";
    let key = world.admin().request(Method::PUT, "/llm/keys/ours").json(&json!({ "secret": secret })).send().await;
    key.expect(201);
    for (revision, header) in [(Revision::Older, Value::Null), (Revision::Newer, json!("X-Api-Key"))] {
        let server = Mcp::start(revision).await;
        let mut key = json!({ "name": "ours" });
        if !header.is_null() {
            key["header"] = header.clone();
        }
        let body = json!({ "url": server.url(), "key": key, "headers": { "X-Team": "a" }, "effects": { "*": "pure" } });
        put(&world.operator(), "fake", &body).await.problem(403, "forbidden");
        let answer = put(&world.admin(), "fake", &body).await;
        answer.expect(201);
        assert!(!answer.text().contains(secret));
        let run = run(&world, "echo", json!({})).await;
        run.completes().await;
        let call = server.heard("tools/call").pop().unwrap();
        let sent = |name: &str| call.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        match header.as_str() {
            None => assert_eq!(sent("authorization"), Some(format!("Bearer {secret}"))),
            Some(name) => assert_eq!((sent(name), sent("authorization")), (Some(secret.to_owned()), None)),
        }
        assert_eq!(sent("x-team").as_deref(), Some("a"));
        let shown = world.owner().get("/tools/mcp/fake").await.text();
        let events = Value::from(run.events().await).to_string();
        assert!(!shown.contains(secret) && !events.contains(secret));
        world.operator().request(Method::DELETE, "/tools/mcp/fake").send().await.expect(204);
    }
}

#[tokio::test]
async fn a_key_that_a_server_says_back_is_told_to_nobody() {
    let world = World::new().await;
    let secret = "sk-tenant-0123456789";
    let key = world.admin().request(Method::PUT, "/llm/keys/ours").json(&json!({ "secret": secret })).send().await;
    key.expect(201);
    for (revision, header) in [(Revision::Older, "Authorization"), (Revision::Newer, "X-Api-Key")] {
        let server = Mcp::start(revision).await;
        let key = json!({ "name": "ours", "header": header });
        let body = json!({ "url": server.url(), "key": key, "effects": { "*": "pure" } });
        put(&world.admin(), "fake", &body).await.expect(201);
        let leak = async |how: &str| run(&world, "leak", json!({ "with": { "text": how } })).await;
        let said = leak("say").await;
        said.completes().await;
        let output = said.step("call").await["output"].clone();
        assert!(output["text"].as_str().unwrap().ends_with("[sealed key]"), "{output}");
        assert!(output["structured"]["shown"][0].as_str().unwrap().ends_with("[sealed key]"), "{output}");
        let (fail, refuse) = (leak("fail").await, leak("refuse").await);
        assert_eq!(failure(&fail).await["code"], "mcp_error");
        assert_eq!(failure(&refuse).await["code"], "mcp_error");
        for run in [said, fail, refuse] {
            let events = Value::from(run.events().await).to_string();
            assert!(!events.contains("sk-tenant"), "not even a part of it: {events}");
        }
        // Nor where it describes itself by what it was shown.
        server.change("echo", "description", json!(format!("For {secret}.")));
        let view = put(&world.admin(), "fake", &body).await;
        assert_eq!(view.expect(200)["changes"][0]["seen"]["description"], "For [sealed key].");
        world.operator().request(Method::DELETE, "/tools/mcp/fake").send().await.expect(204);
    }
}

/// A server that is a process, and says the secret of its environment wherever it can.
const TELLTALE: &str = r#"
while read -r line; do
  id=${line#*'"id":'}; id=${id%%[!0-9]*}
  answer() { printf '%s\n' "{\"jsonrpc\":\"2.0\",\"id\":$id,$1}"; }
  said() { answer "\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"it is $TOKEN, $MODE\"}],\"isError\":$1}"; }
  tool() { printf '%s' "{\"name\":\"$1\",\"description\":\"For $TOKEN.\",\"inputSchema\":{\"type\":\"object\"}}"; }
  case $line in
  *'"server/discover"'*) answer '"error":{"code":-32601,"message":"no such method"}' ;;
  *'"initialize"'*)
    info="{\"name\":\"of $TOKEN\",\"version\":\"1\"}"
    answer "\"result\":{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{\"tools\":{}},\"serverInfo\":$info}" ;;
  *'"tools/list"'*) answer "\"result\":{\"tools\":[$(tool say),$(tool fail),$(tool refuse)]}" ;;
  *'"name":"say"'*) said false ;;
  *'"name":"fail"'*) said true ;;
  *'"name":"refuse"'*) answer "\"error\":{\"code\":-32602,\"message\":\"not with $TOKEN\"}" ;;
  esac
done
"#;

#[tokio::test]
async fn what_is_in_a_commands_environment_is_told_to_nobody() {
    let secret = "token-of-the-operator";
    let world = World::with(|settings| {
        let env = [("TOKEN", secret), ("MODE", "calm")];
        let env: BTreeMap<_, _> = env.map(|(name, value)| (name.to_owned(), SecretString::from(value))).into();
        let command = McpCommand { command: "sh".into(), args: vec!["-c".to_owned(), TELLTALE.to_owned()], env };
        settings.tools.mcp.insert("telltale".to_owned(), command);
    })
    .await;
    let body = json!({ "command": "telltale", "effects": { "*": "pure" } });
    let view = put(&world.operator(), "fake", &body).await.expect(201);
    assert_eq!(view["body"]["implementation"], "of [sealed key] 1", "{view:#}");
    assert_eq!(view["body"]["tools"][0]["description"], "For [sealed key].", "{view:#}");
    let call = async |tool: &str| run(&world, tool, json!({ "with": {} })).await;
    let said = call("say").await;
    said.completes().await;
    assert_eq!(said.step("call").await["output"]["text"], "it is [sealed key], calm", "what is short may be anything");
    for tool in ["fail", "refuse"] {
        let failed = failure(&call(tool).await).await;
        assert_eq!(failed["code"], "mcp_error", "{failed}");
        let message = failed["message"].as_str().unwrap();
        assert!(message.contains("[sealed key]") && !message.contains(secret), "{message}");
    }
    world.stop().await;
}
