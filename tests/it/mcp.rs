//! Tools of MCP servers, in both revisions of the protocol: registered, pinned, called, and never believed.

use std::time::Duration;

use fermata::app::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Answer, Client, Mcp, Provider, REVISIONS, Revision, Run, Turn, World};

pub async fn put(client: &Client, name: &str, body: &Value) -> Answer {
    client.request(Method::PUT, &format!("/tools/mcp/{name}")).json(body).send().await
}

/// A server that is registered as `fake`.
pub async fn registered(world: &World, revision: Revision, more: Value) -> Mcp {
    let server = Mcp::start(revision).await;
    let mut body = json!({ "url": server.url() });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    put(&world.operator(), "fake", &body).await.expect(201);
    server
}

pub fn step(tool: &str, more: Value) -> Value {
    let mut step = json!({ "id": "call", "uses": format!("mcp:fake/{tool}"), "with": { "text": "hello" } });
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    step
}

pub async fn run(world: &World, tool: &str, more: Value) -> Run {
    world.operator().start(json!([step(tool, more)])).await
}

/// The failure of a run.
pub async fn failure(run: &Run) -> Value {
    let run = run.wait_end().await;
    assert_eq!(run["status"], "failed", "{run:#}");
    run["error"].clone()
}

/// The hold that follows the first so many.
pub async fn hold_after(run: &Run, seen: usize) -> Value {
    let mut follow = run.follow().await;
    let mut event = follow.until("awaiting_approval").await;
    for _ in 0..seen {
        event = follow.until("awaiting_approval").await;
    }
    event.data["payload"].clone()
}

#[tokio::test]
async fn a_server_is_asked_for_its_tools_and_each_is_pinned() {
    let world = World::new().await;
    for revision in REVISIONS {
        let server = Mcp::start(revision).await;
        let name = format!("fake-{}", revision.name());
        let body = json!({ "url": server.url(), "tools": ["ec*", "ask"], "effects": { "echo": "pure" } });
        let put_once = put(&world.operator(), &name, &body).await;
        let view = put_once.expect(201);
        assert_eq!((&view["version"], &view["body"]["protocol"]), (&json!(1), &json!(revision.name())));
        assert_eq!(view["body"]["implementation"], "fake 1");
        let tools: Vec<_> = view["body"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].clone()).collect();
        assert_eq!(tools, ["ask", "echo"], "those that are allowed, of all pages");
        assert!(view["body"]["tools"][0]["digest"].as_str().unwrap().starts_with("sha256:"));
        put(&world.operator(), &name, &body).await.expect(200);
        let listed = world.viewer().get("/tools?limit=200").await.expect(200);
        let find = |tool: &str| listed["items"].as_array().unwrap().iter().find(|it| it["name"] == tool).cloned();
        let echo = find(&format!("mcp:{name}/echo")).unwrap();
        assert!(echo["description"].as_str().unwrap().contains(&format!("`{name}`, which says of it: Does echo.")));
        assert_eq!(echo["arguments"]["properties"]["text"]["type"], "string");
        assert_eq!(find(&format!("mcp:{name}/fail")), None, "what was not allowed is no tool");
        let ended = if revision == Revision::Older { "DELETE" } else { "server/discover" };
        server.hears(ended, 1).await;
        world.operator().request(Method::DELETE, &format!("/tools/mcp/{name}")).send().await.expect(204);
        world.viewer().get(&format!("/tools/mcp/{name}")).await.expect(404);
        world.viewer().get(&format!("/tools/mcp/{name}?version=1")).await.expect(200);
    }
    let entries = world.admin().get("/tools/mcp").await.expect(200);
    assert_eq!(entries["items"], json!([]));
}

#[tokio::test]
async fn what_cannot_be_registered_is_not_kept() {
    let world = World::with(|settings| settings.tools.loopback = true).await;
    let server = Mcp::start(Revision::Newer).await;
    for (body, field) in [
        (json!({ "url": "http://10.0.0.1/mcp" }), "url"),
        (json!({ "url": "http://169.254.169.254/" }), "url"),
        (json!({ "url": "ftp://x.example/" }), "url"),
        (json!({ "command": "sh" }), "command"),
        (json!({ "url": server.url(), "tools": ["nothing"] }), "tools"),
        (json!({ "url": server.url(), "key": { "name": "missing" } }), "key"),
        (json!({ "url": server.url(), "headers": { "authorization": "Bearer x" } }), "headers"),
    ] {
        let problem = put(&world.admin(), "fake", &body).await.problem(422, "invalid-input");
        assert_eq!(problem["field"], field, "{body} {problem}");
    }
    server.change("echo", "inputSchema", json!({ "$ref": "https://elsewhere.example/" }));
    let problem = put(&world.operator(), "fake", &json!({ "url": server.url() })).await.problem(422, "invalid-input");
    assert!(problem["detail"].as_str().unwrap().contains("`echo`"), "{problem}");
    let pattern = json!({ "type": "object", "properties": { "text": { "pattern": "^(?=a)b" } } });
    server.change("echo", "inputSchema", pattern);
    let problem = put(&world.operator(), "fake", &json!({ "url": server.url() })).await.problem(422, "invalid-input");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("`echo`") && detail.contains("/properties/text/pattern"),
        "which tool, and where: {detail}"
    );
    server.go_down();
    put(&world.operator(), "fake", &json!({ "url": server.url() })).await.problem(422, "invalid-input");
    put(&world.viewer(), "fake", &json!({ "url": server.url() })).await.problem(403, "forbidden");
    world.viewer().get("/tools/mcp/fake").await.expect(404);
}

#[tokio::test]
async fn a_server_that_does_not_come_to_an_end_of_its_list_is_not_kept() {
    let world = World::new().await;
    for revision in REVISIONS {
        let server = Mcp::start(revision).await;
        let body = json!({ "url": server.url(), "tools": ["echo"] });
        for n in 0..15 {
            server.list(&format!("long_{n}"), &"x".repeat(300_000));
        }
        let problem = put(&world.operator(), "fake", &body).await.problem(422, "invalid-input");
        assert!(problem["detail"].as_str().unwrap().contains("4 MiB"), "{problem}");
        server.mute();
        let heard = server.heard("tools/list").len();
        let client = world.operator();
        let late = async {
            server.hears("tools/list", heard + 1).await;
            world.advance(Duration::from_secs(21));
        };
        let (answer, ()) = tokio::join!(put(&client, "fake", &body), late);
        let problem = answer.problem(422, "invalid-input");
        assert!(problem["detail"].as_str().unwrap().contains("takes too long"), "{problem}");
        world.viewer().get("/tools/mcp/fake").await.expect(404);
    }
}

#[tokio::test]
async fn a_server_is_asked_for_its_tools_by_no_more_at_once_than_call_it() {
    let world = World::new().await;
    let server = registered(&world, Revision::Newer, json!({ "effects": { "*": "repeatable" } })).await;
    for _ in 0..8 {
        run(&world, "hang", json!({ "timeout": "1h" })).await;
    }
    server.hears("tools/call", 8).await;
    let listed = server.heard("tools/list").len();
    let (client, body) = (world.operator(), json!({ "url": server.url() }));
    let mut asking = std::pin::pin!(put(&client, "fake", &body));
    let answer = loop {
        tokio::select! {
            answer = &mut asking => break answer,
            _ = client.get("/tools/mcp/fake") => world.advance(Duration::from_secs(5)),
        }
    };
    answer.problem(503, "unavailable");
    assert_eq!(server.heard("tools/list").len(), listed);
}

#[tokio::test]
async fn an_address_that_is_not_public_is_refused_at_every_call() {
    let world = World::with(|settings| settings.tools.loopback = false).await;
    let server = Mcp::start(Revision::Newer).await;
    let problem = put(&world.operator(), "fake", &json!({ "url": server.url() })).await.problem(422, "invalid-input");
    assert!(problem["detail"].as_str().unwrap().contains("not on the public internet"), "{problem}");
    let by_name = server.url().replace("127.0.0.1", "localhost");
    let problem = put(&world.operator(), "fake", &json!({ "url": by_name })).await.problem(422, "invalid-input");
    assert!(problem["detail"].as_str().unwrap().contains("not on the public internet"), "{problem}");
    assert!(server.heard("server/discover").is_empty());
}

#[tokio::test]
async fn a_call_gives_what_the_server_says_and_no_more_than_there_is_room_for() {
    let world = World::new().await;
    for revision in REVISIONS {
        let server = registered(&world, revision, json!({ "effects": { "*": "pure" } })).await;
        let one = run(&world, "echo", json!({})).await;
        one.completes().await;
        assert_eq!(one.step("call").await["output"], json!({ "text": "hello" }));
        let listed = server.heard("tools/list").len();
        let two = run(&world, "echo", json!({})).await;
        two.completes().await;
        assert_eq!(server.heard("tools/list").len(), listed, "the session is used again, and its list is known");
        let big = run(&world, "big", json!({})).await;
        big.completes().await;
        let output = big.step("call").await["output"].clone();
        assert_eq!(output["truncated"], true);
        assert_eq!(output["parts"][0], json!({ "type": "image", "mimeType": "image/png", "omittedBytes": 500_000 }));
        assert!(output["text"].as_str().unwrap().len() > 900_000 && output.to_string().len() <= 1024 * 1024);
        let told = run(&world, "progress", json!({})).await;
        let progress = told.wait_for("tool.progress").await.data["payload"].clone();
        server.release();
        assert_eq!(progress, json!({ "message": "a quarter", "fraction": 0.25 }));
        told.completes().await;
        let failed = failure(&run(&world, "fail", json!({})).await).await;
        assert_eq!((&failed["code"], &failed["retryable"]), (&json!("mcp_error"), &json!(false)));
        assert!(failed["message"].as_str().unwrap().contains("there is no such order"), "{failed}");
        let refused = failure(&run(&world, "refuse", json!({})).await).await;
        assert_eq!((&refused["code"], &refused["detail"]["code"]), (&json!("mcp_error"), &json!(-32602)));
        let wrong = json!({ "plan": { "steps": [step("echo", json!({ "with": { "text": 1 } }))] } });
        world.operator().post("/agent/execute", &wrong).await.problem(422, "invalid-definition");
        world.operator().request(Method::DELETE, "/tools/mcp/fake").send().await.expect(204);
    }
}

#[tokio::test]
async fn what_a_server_asks_for_is_a_form_that_somebody_fills_in() {
    for revision in REVISIONS {
        let world = World::new().await;
        let server = registered(&world, revision, json!({})).await;
        let run = run(&world, "ask", json!({})).await;
        let asked = hold_after(&run, 0).await;
        assert_eq!((&asked["question"], &asked["selfApproval"]), (&json!("input"), &json!(true)), "{asked:#}");
        assert_eq!(asked["form"]["message"], "Whose order?");
        assert_eq!(asked["form"]["schema"]["required"], json!(["name"]));
        let id = asked["approvalId"].as_str().unwrap();
        let shown = world.approver().get(&format!("/approvals/{id}")).await.expect(200);
        assert_eq!((&shown["form"], &shown["arguments"]), (&asked["form"], &json!({ "text": "hello" })));
        assert_eq!(run.get().await["status"], "awaiting_approval");

        let fill = |input: Value| json!({ "status": "approved", "digest": asked["digest"], "arguments": input });
        let problem = world.approver().decide(id, &fill(json!({ "name": 7 }))).await.problem(422, "invalid-input");
        assert_eq!((&problem["field"], &problem["path"]), (&json!("arguments"), &json!("/name")), "{problem}");
        world.approver().decide(id, &json!({ "status": "approved" })).await.problem(422, "invalid-input");
        world.approver().decide(id, &fill(json!({ "name": "Ada" }))).await.expect(200);
        world.approver().decide(id, &fill(json!({ "name": "Ada" }))).await.expect(200);
        world.approver().decide(id, &fill(json!({ "name": "Bob" }))).await.problem(409, "already-decided");
        run.completes().await;
        let text = run.step("call").await["output"]["text"].clone();
        assert!(text.as_str().unwrap().contains(r#""name":"Ada""#), "{text}");
        let events = run.events().await;
        let names: Vec<_> = events.iter().map(|event| event["step"].as_str().unwrap()).collect();
        let call = ["step.started", "awaiting_approval", "approved", "step.started", "step.completed", "completed"];
        assert_eq!(names[names.len() - call.len()..], call);
        let last = events.iter().rfind(|event| event["step"] == "step.started").unwrap();
        assert_eq!((&last["payload"]["repeated"], &last["attempt"]), (&json!(true), &json!(1)));
        let approved = events.iter().find(|event| event["step"] == "approved").unwrap();
        assert_eq!(approved["payload"]["input"], json!({ "name": "Ada" }));
        assert_eq!(server.calls("ask").len(), 2);
    }
}

#[tokio::test]
async fn a_call_that_waits_for_a_form_takes_no_time_of_its_tenants_day_meanwhile() {
    let world = World::new().await;
    world.admin().request(Method::PUT, "/usage/budget").json(&json!({ "wallTime": "1h" })).send().await.expect(200);
    let _server = registered(&world, Revision::Newer, json!({})).await;
    let run = run(&world, "ask", json!({})).await;
    let asked = hold_after(&run, 0).await;
    world.advance(Duration::from_secs(7200));
    let standing = world.viewer().get("/usage/budget").await.expect(200);
    assert_eq!(standing["reserved"]["wallTime"], 0.0);
    let fill = json!({ "status": "approved", "digest": asked["digest"], "arguments": { "name": "Ada" } });
    world.approver().decide(asked["approvalId"].as_str().unwrap(), &fill).await.expect(200);
    run.completes().await;
    let standing = world.viewer().get("/usage/budget").await.expect(200);
    let spent = standing["spent"]["wallTime"].as_f64().unwrap();
    assert!(spent > 0.0 && spent < 60.0, "{standing}");
}

#[tokio::test]
async fn a_form_outlives_the_worker_and_a_second_one_follows_it() {
    for revision in REVISIONS {
        let world = World::without_worker(|_| ()).await;
        let worker = world.mortal(Role::Worker).await;
        let server = registered(&world, revision, json!({})).await;
        let run = run(&world, "ask_twice", json!({})).await;
        let first = hold_after(&run, 0).await;
        worker.kill();
        // Whoever started the run may fill it in: it is no consent.
        let both = world.grant(
            world.home(),
            "user_operator",
            vec![fermata::auth::Role::Operator, fermata::auth::Role::Approver],
            None,
        );
        let fill = |input: Value| json!({ "status": "approved", "arguments": input });
        let decide = async |asked: &Value, input: Value| {
            world.bearer(&both).decide(asked["approvalId"].as_str().unwrap(), &fill(input)).await.expect(200)
        };
        decide(&first, json!({ "name": "Ada" })).await;
        let _worker = world.mortal(Role::Worker).await;
        let second = hold_after(&run, 1).await;
        assert_eq!(second["form"]["message"], "Which?");
        decide(&second, json!({ "number": "1042" })).await;
        run.completes().await;
        let text = run.step("call").await["output"]["text"].clone();
        assert!(text.as_str().unwrap().contains("1042"), "{text}");
        let calls = server.calls("ask_twice");
        assert_eq!(calls.len(), 3);
        if revision == Revision::Newer {
            let states: Vec<_> = calls.iter().map(|params| params["requestState"].clone()).collect();
            assert_eq!(states, [Value::Null, json!("1"), json!("2")], "it goes on where the server stopped");
        }
    }
}

#[tokio::test]
async fn a_form_can_be_a_link_and_can_be_refused() {
    for revision in REVISIONS {
        let world = World::new().await;
        let server = registered(&world, revision, json!({})).await;
        let link = run(&world, "link", json!({})).await;
        let asked = hold_after(&link, 0).await;
        let message = asked["form"]["message"].as_str().unwrap();
        assert!(message.contains("Sign in") && message.contains("https://login.example/"), "{message}");
        world.approver().approve(asked["approvalId"].as_str().unwrap()).await;
        link.completes().await;
        assert_eq!(link.step("call").await["output"]["text"], r#"given {"action":"accept"}"#);

        let skip = run(&world, "ask", json!({ "onDenied": "skip" })).await;
        world.approver().deny(&skip.hold().await, "not mine to say").await;
        skip.completes().await;
        assert_eq!(skip.step("call").await["status"], "skipped");
        assert_eq!(server.calls("ask").len(), 1, "it is not called again");
    }
}

#[tokio::test]
async fn a_form_that_nobody_could_fill_in_is_refused_and_holds_nothing() {
    let nested = json!({ "type": "object", "properties": { "who": { "type": "object", "properties": {} } } });
    let choice = json!({ "type": "object", "properties": { "who": { "type": "string", "oneOf": [] } } });
    let missing = json!({ "type": "object", "properties": {}, "required": ["who"] });
    // What the database cannot keep.
    let nul = json!({ "type": "object", "properties": { "who": { "type": "string", "title": "\0" } } });
    let refused =
        [(&nested, "`who`"), (&choice, "/properties/who/oneOf"), (&missing, "requires `who`"), (&nul, "a NUL")];
    let world = World::new().await;
    for revision in REVISIONS {
        // A call that may not be repeated: where it is not clear that nothing was done, a person would be asked.
        let server = registered(&world, revision, json!({ "effects": { "*": "once" } })).await;
        for (schema, why) in refused {
            let run = run(&world, "ask_wrong", json!({ "with": { "text": schema.to_string() } })).await;
            let failed = failure(&run).await;
            let message = failed["message"].as_str().unwrap();
            assert!(message.contains("a form that nobody can fill in") && message.contains(why), "{message}");
            match revision {
                Revision::Newer => assert_eq!(failed["code"], "mcp_unsupported"),
                // It is told at once, and what it says then is what the call came to.
                Revision::Older => assert!(failed["code"] == "mcp_error" && message.contains("-32602"), "{failed}"),
            }
            let events = run.events().await;
            assert!(events.iter().all(|event| event["step"] != "awaiting_approval"), "{events:#?}");
        }
        assert_eq!(server.calls("ask_wrong").len(), refused.len());
        world.operator().request(Method::DELETE, "/tools/mcp/fake").send().await.expect(204);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_a_question_only_where_it_matters() {
    for revision in REVISIONS {
        let world = World::new().await;
        let effects = json!({ "effects": { "cut": "once", "echo": "pure" } });
        let server = registered(&world, revision, effects).await;
        let once = run(&world, "cut", json!({})).await;
        let asked = hold_after(&once, 0).await;
        assert_eq!(asked["question"], "repeat", "{asked:#}");
        world.approver().deny(asked["approvalId"].as_str().unwrap(), "it arrived").await;
        once.completes().await;
        assert_eq!(server.calls("cut").len(), 1);
        put(&world.operator(), "fake", &json!({ "url": server.url(), "effects": { "*": "repeatable" } }))
            .await
            .expect(201);
        let again = run(&world, "cut", json!({ "retry": { "attempts": 2, "backoff": "1ms" } })).await;
        let failed = failure(&again).await;
        assert_eq!((&failed["code"], &failed["retryable"]), (&json!("mcp_broken"), &json!(true)), "{failed}");
        assert_eq!(server.calls("cut").len(), 3);
        server.go_down();
        let down = run(&world, "echo", json!({})).await;
        let failed = failure(&down).await;
        assert_eq!((&failed["code"], &failed["retryable"]), (&json!("mcp_http_status"), &json!(true)), "{failed}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_told_and_left() {
    for revision in REVISIONS {
        let world = World::new().await;
        let server = registered(&world, revision, json!({ "effects": { "*": "repeatable" }, "timeout": "5s" })).await;
        let late = run(&world, "hang", json!({})).await;
        server.hears("tools/call", 1).await;
        world.advance(Duration::from_secs(6));
        assert_eq!(failure(&late).await["code"], "timeout");
        let cancelled = run(&world, "hang", json!({ "timeout": "1h" })).await;
        server.hears("tools/call", 2).await;
        cancelled.cancel().await.expect(202);
        cancelled.wait_end().await;
        if revision == Revision::Older {
            server.hears("notifications/cancelled", 2).await;
        }
    }
}

#[tokio::test]
async fn a_tenants_servers_are_its_own() {
    let world = World::new().await;
    let server = registered(&world, Revision::Newer, json!({ "effects": { "*": "pure" } })).await;
    world.stranger().get("/tools/mcp/fake").await.expect(404);
    let listed = world.stranger().get("/tools?limit=200").await.text();
    assert!(!listed.contains("mcp:fake"));
    let refused =
        world.stranger().post("/agent/execute", &json!({ "plan": { "steps": [step("echo", json!({}))] } })).await;
    refused.problem(422, "invalid-definition");
    assert!(server.calls("echo").is_empty());
}

#[tokio::test]
async fn an_agent_is_held_before_it_acts_and_asked_for_what_a_server_wants() {
    let (provider, world) = {
        let provider = Provider::start().await;
        let world = World::with(|settings| settings.llm.providers = provider.settings().collect()).await;
        (provider, world)
    };
    let _server = registered(&world, Revision::Newer, json!({ "effects": { "echo": "pure" } })).await;
    for (path, body) in [
        ("/llm/configs/main", json!({ "provider": "fake-openai", "model": "m" })),
        ("/agents/main", json!({ "instructions": "Help.", "config": "main", "tools": ["mcp:fake/*"] })),
    ] {
        world.admin().request(Method::PUT, path).json(&body).send().await.expect(201);
    }
    let call = |tool: &str| (tool.to_owned(), json!({ "text": "hi" }));
    provider.script([Turn::Call(vec![call("mcp_fake_echo"), call("mcp_fake_ask")]), Turn::say("done")]);
    let run = world.owner().execute(json!({ "agent": "main", "goal": "g" })).await;
    let consent = hold_after(&run, 0).await;
    assert_eq!((&consent["question"], &consent["action"]), (&json!("consent"), &json!("mcp:fake/ask")));
    world.approver().approve(consent["approvalId"].as_str().unwrap()).await;
    let form = hold_after(&run, 1).await;
    assert_eq!(form["question"], "input");
    world.approver().deny(form["approvalId"].as_str().unwrap(), "ask somebody else").await;
    run.completes().await;
    let asked = provider.asked();
    let first = asked[0].body.to_string();
    assert!(first.contains("Of the MCP server `fake`, which says of it"), "{first}");
    let heard = asked[1].body.to_string();
    assert!(heard.contains("ask somebody else"), "{heard}");
}
