//! Tools: those that tenants declare, how the gate stands to each, and trying one out.

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Answer, Client, Provider, Reply, Run, Turn, Upstream, World};

async fn put(client: &Client, name: &str, body: &Value) -> Answer {
    client.request(Method::PUT, &format!("/tools/http/{name}")).json(body).send().await
}

async fn delete(client: &Client, name: &str) -> Answer {
    client.request(Method::DELETE, &format!("/tools/http/{name}")).send().await
}

/// A refund, with an argument in every place there is.
fn refund(upstream: &Upstream) -> Value {
    json!({
        "description": "Refunds an order",
        "method": "POST",
        "url": upstream.url("/orders/{order}/refunds?notify={notify}"),
        "arguments": {
            "type": "object",
            "required": ["order", "notify", "amount"],
            "additionalProperties": false,
            "properties": {
                "order": { "type": "string" }, "notify": { "type": "boolean" }, "tag": { "type": "array" },
                "shop": { "type": "string" }, "amount": { "type": "number" }, "note": { "type": "string" },
            },
        },
        "query": ["tag"],
        "headers": { "X-Shop": "{shop}", "X-Api": "7" },
    })
}

fn with(body: Value, more: Value) -> Value {
    let mut whole = body;
    whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    whole
}

/// A tool that reads `/things/{id}`.
fn read(upstream: &Upstream) -> Value {
    let arguments = json!({ "type": "object", "required": ["id"], "properties": { "id": { "type": "string" } } });
    json!({ "description": "Reads a thing", "method": "GET", "url": upstream.url("/things/{id}"), "arguments": arguments })
}

/// Calls a tool in a workflow's step, which nobody holds.
async fn call(world: &World, tool: &str, arguments: Value) -> Run {
    let plan =
        json!({ "steps": [{ "id": "call", "uses": tool, "with": arguments }], "output": "{{ steps.call.output }}" });
    world.operator().start(plan).await
}

async fn test(client: &Client, tool: &str, arguments: Value) -> Answer {
    let request = client.request(Method::POST, &format!("/tools/{tool}/test")).header("prefer", "wait=20");
    request.json(&json!({ "arguments": arguments })).send().await
}

#[tokio::test]
async fn every_argument_goes_to_its_place() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let put = put(&world.operator(), "shop.refund", &refund(&upstream)).await;
    let document = put.expect(201);
    assert_eq!(put.header("location"), Some("/tools/http/shop.refund?version=1"));
    assert_eq!((&document["body"]["effect"], &document["version"]), (&json!("once"), &json!(1)));
    upstream.reply("/orders/A%201%2F2/refunds", Reply::Json(201, json!({ "refund": 9 })));
    let arguments = json!({ "order": "A 1/2", "notify": true, "tag": ["a&b", "c"], "shop": "s 1", "amount": 5.5, "note": "{{ x }}" });
    let arguments = with(arguments, json!({ "note": "as agreed" }));
    let run = call(&world, "shop.refund", arguments).await;
    assert_eq!(run.completes().await["output"], json!({ "status": 201, "body": { "refund": 9 } }));
    let [arrived] = &upstream.requests()[..] else { panic!("one request") };
    assert_eq!((arrived.method.as_str(), arrived.path.as_str()), ("POST", "/orders/A%201%2F2/refunds"));
    assert_eq!(arrived.query.as_deref(), Some("notify=true&tag=a%26b&tag=c"));
    assert_eq!((arrived.header("x-shop"), arrived.header("x-api")), (Some("s 1"), Some("7")));
    assert_eq!(arrived.json(), json!({ "amount": 5.5, "note": "as agreed" }));
    assert!(arrived.header("idempotency-key").unwrap().ends_with("/call") && arrived.header("traceparent").is_some());
}

#[tokio::test]
async fn answers_and_failures_are_those_of_a_request() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    put(&world.operator(), "shop.read", &with(read(&upstream), json!({ "expect": [200, 404] }))).await.expect(201);
    upstream.reply("/things/gone", Reply::Json(404, json!({ "no": "such thing" })));
    upstream.reply("/things/broken", Reply::Json(500, json!({ "sorry": true })));
    upstream.reply("/things/text", Reply::Raw(200, vec![("content-type", "text/plain".to_owned())], "hello".into()));
    upstream.reply("/things/binary", Reply::Raw(200, vec![], vec![0, 255].into()));
    let output = async |id: &str| call(&world, "shop.read", json!({ "id": id })).await.wait_end().await;
    assert_eq!(output("gone").await["output"], json!({ "status": 404, "body": { "no": "such thing" } }));
    assert_eq!(output("text").await["output"], json!({ "status": 200, "body": "hello" }));
    assert_eq!(output("binary").await["output"], json!({ "status": 200, "body": "AP8=", "encoding": "base64" }));
    let failed = output("broken").await;
    assert_eq!((&failed["error"]["code"], &failed["error"]["detail"]["status"]), (&json!("http_status"), &json!(500)));
    put(&world.operator(), "shop.inside", &with(read(&upstream), json!({ "url": "http://10.0.0.1/{id}" })))
        .await
        .expect(201);
    let failed = call(&world, "shop.inside", json!({ "id": "x" })).await.wait_end().await;
    assert_eq!(failed["error"]["code"], "address_refused");
}

#[tokio::test]
async fn no_argument_leads_elsewhere() {
    let (world, upstream, evil) = (World::new().await, Upstream::start().await, Upstream::start().await);
    let declared = with(read(&upstream), json!({ "headers": { "x-id": "{header}" } }));
    let mut declared = declared;
    declared["arguments"]["properties"]["header"] = json!({ "type": "string" });
    put(&world.operator(), "shop.read", &declared).await.expect(201);
    for id in ["../admin", "..", ".", "", "a/../../admin", "..\\admin", "%2e%2e"] {
        let failed = call(&world, "shop.read", json!({ "id": id })).await.wait_end().await;
        assert_eq!(failed["error"]["code"], "invalid_arguments", "{id}");
    }
    let failed = call(&world, "shop.read", json!({ "id": "x", "header": "a\r\nHost: evil" })).await.wait_end().await;
    assert_eq!(failed["error"]["code"], "invalid_arguments");
    assert!(upstream.requests().is_empty());
    let host = evil.url("").trim_start_matches("http://").to_owned();
    for id in ["?admin=1", "#top", &format!("@{host}/"), &format!("//{host}/"), &evil.url("/x"), "a\r\nHost: evil"] {
        call(&world, "shop.read", json!({ "id": id })).await.completes().await;
        let arrived = upstream.requests().pop().unwrap();
        assert!(arrived.path.starts_with("/things/") && arrived.path.matches('/').count() == 2, "{}", arrived.path);
        assert_eq!(
            (arrived.query.as_deref(), arrived.header("host")),
            (None, Some(upstream.url("").trim_start_matches("http://")))
        );
    }
    assert!(evil.requests().is_empty());
}

#[tokio::test]
async fn a_sealed_key_is_sent_and_never_shown() {
    const SECRET: &str = "shop-key-0123456789";
    let (world, upstream, elsewhere) = (World::new().await, Upstream::start().await, Upstream::start().await);
    let admin = world.admin();
    let seal = admin.request(Method::PUT, "/llm/keys/shop").json(&json!({ "secret": SECRET }));
    seal.send().await.expect(201);
    let bearer = with(read(&upstream), json!({ "key": { "name": "shop" } }));
    let header = with(read(&upstream), json!({ "key": { "name": "shop", "header": "X-Api-Key" } }));
    // To send a key somewhere is to hand it out: who cannot seal keys cannot do that.
    let refused = put(&world.operator(), "shop.bearer", &bearer).await.problem(403, "forbidden");
    assert_eq!(refused["permission"], "keys:write");
    put(&admin, "shop.bearer", &bearer).await.expect(201);
    put(&admin, "shop.header", &header).await.expect(201);
    put(&admin, "shop.none", &with(read(&upstream), json!({ "key": { "name": "other" } }))).await.expect(201);
    let echo = || Reply::Json(200, json!({ "you sent": format!("Bearer {SECRET}"), SECRET: [SECRET] }));
    upstream.reply("/things/echo", echo());
    upstream.reply("/things/refused", Reply::Json(401, json!({ "bad key": SECRET })));
    let to = vec![("location", elsewhere.url("/")), ("x-echo", SECRET.to_owned())];
    upstream.reply("/things/away", Reply::Raw(302, to, "".into()));
    let mut shown = String::new();
    for tool in ["shop.bearer", "shop.header"] {
        for id in ["echo", "refused", "away"] {
            let run = call(&world, tool, json!({ "id": id })).await;
            shown += &run.wait_end().await.to_string();
            shown += &format!("{:?}{:?}", run.events().await, run.steps().await);
        }
        shown += &admin.get(&format!("/tools/http/{tool}")).await.text();
        shown += &admin.get(&format!("/tools/{tool}")).await.text();
    }
    assert!(!shown.contains(SECRET), "{shown}");
    assert!(shown.contains("[sealed key]"));
    let requests = upstream.requests();
    assert_eq!(requests[0].header("authorization"), Some(&*format!("Bearer {SECRET}")));
    assert_eq!((requests[3].header("x-api-key"), requests[3].header("authorization")), (Some(SECRET), None));
    assert_eq!(elsewhere.requests().len(), 2, "the redirects are followed, and the key is not carried on");
    assert!(elsewhere.requests().iter().all(|sent| !format!("{:?}", sent.headers).contains(SECRET)));
    let failed = call(&world, "shop.none", json!({ "id": "x" })).await.wait_end().await;
    assert_eq!(failed["error"]["code"], "unknown_key");
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_its_field() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let admin = world.admin();
    for (change, field) in [
        (json!({ "description": "" }), "description"),
        (json!({ "url": "https://{order}/x" }), "url"),
        (json!({ "url": "https://user:pw@a.example/" }), "url"),
        (json!({ "url": "https://a.example/{missing}" }), "url"),
        (json!({ "url": "https://a.example/{note}" }), "url"),
        (json!({ "url": "https://a.example/{order}/../{order}" }), "url"),
        (json!({ "arguments": { "type": "array" } }), "arguments"),
        (
            json!({ "arguments": { "type": "object", "properties": { "a": { "$ref": "https://x.example/y" } } } }),
            "arguments",
        ),
        (json!({ "query": ["missing"] }), "query"),
        (json!({ "query": ["shop"] }), "headers"),
        (json!({ "body": "order" }), "body"),
        (json!({ "method": "GET", "body": "note" }), "body"),
        (json!({ "headers": { "Authorization": "Bearer x" } }), "headers"),
        (json!({ "headers": { "Host": "x" } }), "headers"),
        (json!({ "headers": { "x": "a\r\nb" } }), "headers"),
        (json!({ "key": { "name": "No Name" } }), "key.name"),
        (json!({ "key": { "name": "shop", "header": "user-agent" } }), "key.header"),
        (json!({ "key": { "name": "shop", "header": "x-api" } }), "key.header"),
        (json!({ "cost": -1 }), "cost"),
        (json!({ "timeout": "2h" }), "timeout"),
        (json!({ "expect": [] }), "expect"),
        (json!({ "output": { "type": 7 } }), "output"),
        (json!({ "server": "https://a.example" }), "openapi"),
    ] {
        let problem =
            put(&admin, "shop.refund", &with(refund(&upstream), change.clone())).await.problem(422, "invalid-input");
        assert_eq!(problem["field"], field, "{change}: {problem}");
    }
    for name in
        ["http.request", "http.mine", "http", "llm.mine", "agent.x", "agent.turn", "mcp.x", "debug.x", "run.x", "Shop"]
    {
        let problem = put(&admin, name, &read(&upstream)).await.problem(422, "invalid-input");
        assert_eq!(problem["field"], "name", "{name}");
    }
    let missing = put(&admin, "shop.refund", &json!({ "method": "GET" })).await.problem(422, "invalid-input");
    assert_eq!(missing["field"], "description");
    put(&admin, "shop.refund", &with(read(&upstream), json!({ "colour": "red" }))).await.problem(422, "invalid-input");
}

#[tokio::test]
async fn a_tool_has_versions_and_belongs_to_its_tenant() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let operator = world.operator();
    put(&operator, "shop.read", &read(&upstream)).await.expect(201);
    assert_eq!(put(&operator, "shop.read", &read(&upstream)).await.expect(200)["version"], 1);
    let other = with(read(&upstream), json!({ "scope": ["things"] }));
    assert_eq!(put(&operator, "shop.read", &other).await.expect(201)["version"], 2);
    assert_eq!(operator.get("/tools/shop.read").await.expect(200)["version"], "2");
    let versions = world.viewer().get("/tools/http/shop.read/versions").await.expect(200);
    assert_eq!(versions["items"].as_array().unwrap().len(), 2);
    assert_eq!(world.viewer().get("/tools/http").await.expect(200)["items"][0]["version"], 2);
    put(&world.viewer(), "shop.read", &other).await.problem(403, "forbidden");
    // Nobody else has it.
    let stranger = world.stranger();
    stranger.get("/tools/http/shop.read").await.problem(404, "not-found");
    stranger.get("/tools/shop.read").await.problem(404, "not-found");
    test(&stranger, "shop.read", json!({ "id": "x" })).await.problem(404, "not-found");
    let plan = json!({ "plan": [{ "id": "call", "uses": "shop.read", "with": { "id": "x" } }] });
    stranger.post("/agent/plan", &plan).await.problem(422, "invalid-definition");
    // A run that needs it when it is gone fails.
    let planned = operator.post("/agent/plan", &plan).await.expect(202);
    delete(&operator, "shop.read").await.expect(204);
    delete(&operator, "shop.read").await.problem(404, "not-found");
    let run = operator.execute(json!({ "runId": planned["runId"] })).await;
    assert_eq!(run.wait_end().await["error"]["code"], "unknown_tool");
    assert!(upstream.requests().is_empty());
    operator.post("/agent/plan", &plan).await.problem(422, "invalid-definition");
}

#[tokio::test]
async fn consent_to_one_version_is_none_to_another() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let operator = world.operator();
    put(&operator, "shop.pay", &with(read(&upstream), json!({ "method": "POST" }))).await.expect(201);
    let plan = json!([{ "id": "call", "uses": "shop.pay", "with": { "id": "x" }, "approval": {} }]);
    let run = operator.start(plan).await;
    let first = run.wait_for("awaiting_approval").await.data["payload"].clone();
    put(&operator, "shop.pay", &with(read(&upstream), json!({ "method": "DELETE" }))).await.expect(201);
    let mut follow = run.follow_after(run.events().await.last().unwrap()["eventId"].as_str().unwrap()).await;
    world.approver().approve(first["approvalId"].as_str().unwrap()).await;
    let second = follow.until("awaiting_approval").await.data["payload"].clone();
    assert_ne!(first["digest"], second["digest"]);
    assert!(upstream.requests().is_empty(), "what was consented to is not what would be done");
    world.approver().approve(second["approvalId"].as_str().unwrap()).await;
    run.completes().await;
    assert_eq!(upstream.requests()[0].method, Method::DELETE);
}

/// A world with a model, and an agent that may use the shop.
async fn with_agent(provider: &Provider, approval: Value) -> World {
    let world = World::with(|settings| settings.llm.providers = provider.settings().collect()).await;
    let agent = json!({ "instructions": "Help.", "tools": ["shop.*"], "approval": approval });
    world.admin().request(Method::PUT, "/agents/support").json(&agent).send().await.expect(201);
    world
}

#[tokio::test]
async fn a_models_calls_are_held_by_its_agents_rules_then_the_tools_own_then_the_effect() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let rules = json!([{ "tools": ["shop.watched"], "terms": { "reason": "We look" } }]);
    let world = with_agent(&provider, rules).await;
    let operator = world.operator();
    let facts = json!({ "scope": ["things"], "cost": 2.5 });
    let free = with(facts.clone(), json!({ "method": "POST", "approval": { "hold": false } }));
    let terms = json!({ "reason": "It is dear", "expires": "4h" });
    for (name, more) in [
        ("shop.read", facts.clone()),
        ("shop.post", with(facts.clone(), json!({ "method": "POST" }))),
        ("shop.free", free),
        ("shop.asks", with(facts.clone(), json!({ "approval": { "terms": terms } }))),
        ("shop.watched", with(facts, json!({ "approval": { "hold": false } }))),
    ] {
        put(&operator, name, &with(read(&upstream), more)).await.expect(201);
    }
    let names = ["shop_read", "shop_post", "shop_free", "shop_asks", "shop_watched"];
    let calls = names.map(|name| (name.to_owned(), json!({ "id": name })));
    provider.script([Turn::Call(calls.to_vec()), Turn::say("Done.")]);
    let run = operator.execute(json!({ "agent": "support", "goal": "Try all" })).await;
    let mut follow = run.follow().await;
    let mut held = Vec::new();
    while held.len() < 3 {
        held.push(follow.until("awaiting_approval").await.data["payload"].clone());
    }
    held.sort_by_key(|asked| asked["action"].as_str().unwrap().to_owned());
    let asked: Vec<_> = held.iter().map(|asked| (asked["action"].clone(), asked["reason"].clone())).collect();
    let expected = [("shop.asks", json!("It is dear")), ("shop.post", Value::Null), ("shop.watched", json!("We look"))];
    assert_eq!(asked, expected.map(|(action, reason)| (json!(action), reason)));
    for asked in &held {
        assert_eq!((&asked["scope"], &asked["costEstimate"]), (&json!(["things"]), &json!(2.5)), "{asked}");
        world.approver().approve(asked["approvalId"].as_str().unwrap()).await;
    }
    let done = run.completes().await;
    assert_eq!(upstream.requests().len(), 5);
    assert!(done["cost"].as_f64().unwrap() >= 12.5, "each call costs what its tool does: {}", done["cost"]);
    let heard = provider.asked()[1].body.to_string();
    assert!(heard.contains("{\\\"status\\\":200,\\\"body\\\":{\\\"ok\\\":true}}"), "{heard}");
}

#[tokio::test]
async fn what_a_tool_costs_counts_before_it_is_called() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    put(&world.operator(), "shop.read", &with(read(&upstream), json!({ "cost": 3 }))).await.expect(201);
    let begin = async |budget: f64| {
        let plan = json!([{ "id": "call", "uses": "shop.read", "with": { "id": "x" } }]);
        world.operator().execute(json!({ "plan": plan, "budget": budget })).await
    };
    assert_eq!(begin(3.0).await.completes().await["cost"], 3.0);
    let held = begin(2.0).await.wait_for("awaiting_approval").await.data["payload"].clone();
    assert_eq!((&held["question"], &held["raise"]), (&json!("budget"), &json!(1.0)));
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn every_tool_says_what_it_does_and_how_the_gate_stands() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let rules = json!([{ "tools": ["shop.watched"] }, { "tools": ["shop.free"], "hold": false }]);
    let world = with_agent(&provider, rules).await;
    for (name, more) in [
        ("shop.read", json!({})),
        ("shop.free", json!({ "method": "POST" })),
        ("shop.watched", json!({ "approval": { "hold": false } })),
    ] {
        put(&world.operator(), name, &with(read(&upstream), more)).await.expect(201);
    }
    let verdicts = async |query: &str| {
        let page = world.viewer().get(&format!("/tools?limit=200{query}")).await.expect(200);
        let items = page["items"].as_array().unwrap().clone();
        move |name: &str| {
            let tool = items.iter().find(|tool| tool["name"] == name).unwrap_or_else(|| panic!("{name} is not there"));
            (
                tool["verdict"].as_str().unwrap().to_owned(),
                tool["reason"].as_str().unwrap().to_owned(),
                tool["effects"].clone(),
            )
        }
    };
    let any = verdicts("").await;
    for (name, verdict, effects) in [
        ("http.request", "depends", json!(["pure", "repeatable", "once"])),
        ("data.transform", "allow", json!(["pure"])),
        ("llm.generate", "allow", json!(["repeatable"])),
        ("shop.read", "allow", json!(["pure"])),
        ("shop.free", "hold", json!(["once"])),
        ("shop.watched", "allow", json!(["pure"])),
    ] {
        let (stands, _, known) = any(name);
        assert_eq!((stands.as_str(), known), (verdict, effects), "{name}");
    }
    let support = verdicts("&agent=support").await;
    for (name, verdict, reason) in [
        ("http.request", "forbid", "the agent was not given it"),
        ("shop.read", "allow", "it only reads or computes"),
        ("shop.free", "allow", "the agent's rule for `shop.free` lets it pass"),
        ("shop.watched", "hold", "the agent's rule for `shop.watched` holds it"),
    ] {
        let (stands, why, _) = support(name);
        assert_eq!((stands.as_str(), why.as_str()), (verdict, reason), "{name}");
    }
    let one = world.viewer().get("/tools/shop.watched?agent=support@1").await.expect(200);
    assert_eq!((&one["verdict"], &one["arguments"]["required"]), (&json!("hold"), &json!(["id"])));
    world.viewer().get("/tools/shop.read?agent=nobody").await.problem(404, "not-found");
    world.viewer().get("/tools/agent.turn").await.problem(404, "not-found");
    world.viewer().get("/tools/mcp%3Agithub%2Fissues").await.problem(404, "not-found");
}

#[tokio::test]
async fn anybody_who_runs_things_can_try_a_tool_through_the_same_gate() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let operator = world.operator();
    put(&operator, "shop.refund", &refund(&upstream)).await.expect(201);
    put(&operator, "shop.read", &read(&upstream)).await.expect(201);
    put(&operator, "shop.asks", &with(read(&upstream), json!({ "approval": {} }))).await.expect(201);
    let done = test(&operator, "shop.read", json!({ "id": "{{ 1 }}" })).await.expect(202);
    assert_eq!((&done["status"], &done["output"]["body"]), (&json!("completed"), &json!({ "ok": true })));
    assert_eq!(upstream.requests()[0].path, "/things/%7B%7B%201%20%7D%7D", "nothing in it is a template");
    for (tool, arguments) in [
        ("shop.refund", json!({ "order": "1", "notify": false, "amount": 1 })),
        ("shop.asks", json!({ "id": "x" })),
        ("http.request", json!({ "method": "POST", "url": upstream.url("/x") })),
    ] {
        let held = test(&operator, tool, arguments).await.expect(202);
        assert_eq!(held["status"], "awaiting_approval", "{tool}");
        let approval = held["pendingApprovals"][0].as_str().unwrap();
        assert_eq!(upstream.requests().len(), 1, "{tool}");
        operator.decide(approval, &json!({ "status": "approved" })).await.problem(403, "forbidden");
        world.approver().deny(approval, "not now").await;
    }
    let denied = test(&operator, "shop.asks", json!({ "id": "y" })).await.expect(202);
    world.approver().approve(denied["pendingApprovals"][0].as_str().unwrap()).await;
    operator.run(denied["runId"].as_str().unwrap()).completes().await;
    for (tool, arguments, field) in [
        ("shop.read", json!({ "id": 7 }), "arguments.id"),
        ("shop.read", json!({}), "arguments.id"),
        ("http.request", json!({ "url": "https://a.example", "headers": { "x": [] } }), "arguments.headers.x"),
    ] {
        let problem = test(&operator, tool, arguments.clone()).await.problem(422, "invalid-input");
        assert_eq!(problem["field"], field, "{tool} {arguments}");
    }
    test(&operator, "agent.turn", json!({})).await.problem(404, "not-found");
    test(&operator, "mcp%3Agithub%2Fissues", json!({})).await.problem(404, "not-found");
    test(&world.viewer(), "shop.read", json!({ "id": "x" })).await.problem(403, "forbidden");
    let once = || {
        operator.request(Method::POST, "/tools/shop.read/test").key("k").json(&json!({ "arguments": { "id": "z" } }))
    };
    let (first, again) = (once().send().await.expect(202), once().send().await.expect(202));
    assert_eq!(first["runId"], again["runId"]);
}
