//! Forks: the same past, and another future.

use std::time::Duration;

use fermata::kernel::Span;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row;

use crate::world::{Answer, Client, Provider, Reply, Run, Turn, Upstream, World, within};

async fn try_fork(client: &Client, run: &Run, body: Value) -> Answer {
    client.post(&run.path("/fork"), &body).await
}

async fn fork(client: &Client, run: &Run, body: Value) -> Run {
    let forked = try_fork(client, run, body).await.expect(202);
    assert_ne!(forked["runId"], json!(run.id));
    client.run(forked["runId"].as_str().unwrap())
}

fn post(upstream: &Upstream, path: &str) -> Value {
    json!({ "method": "POST", "url": upstream.url(path), "json": {} })
}

/// The steps whose outcomes are taken over.
async fn carried(run: &Run) -> Vec<String> {
    let steps = run.steps().await.into_iter().filter(|step| step["carried"] == true);
    steps.map(|step| step["stepId"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_fork_has_the_past_and_makes_the_rest_its_own() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.reply("/a", Reply::Json(200, json!({ "n": 41 })));
    let plan = json!({
        "steps": [
            { "id": "b", "needs": ["a"], "uses": "http.request", "with": post(&upstream, "/b") },
            { "id": "a", "uses": "http.request", "with": post(&upstream, "/a"),
              "approval": { "cost": 2, "selfApproval": true } },
            { "id": "never", "if": "false", "uses": "debug.echo" },
            { "id": "broken", "uses": "debug.fail", "with": { "times": 1 }, "onError": "continue" },
        ],
        "output": "{{ steps.a.output.body.n + input.more }}",
    });
    let owner = world.owner();
    let body = json!({ "plan": plan, "input": { "more": 1 }, "goal": "Add", "budget": 9, "metadata": { "mine": 1 } });
    let source = owner.execute(body).await;
    owner.approve(&source.hold().await).await;
    assert_eq!(source.completes().await["output"], 42);

    let operator = world.operator();
    let run = fork(&operator, &source, json!({ "stepId": "b", "edit": { "input": { "more": 2 } } })).await;
    let done = run.completes().await;
    assert_eq!(done["output"], 43);
    let before = source.events().await.iter().position(|event| event["stepId"] == "b").unwrap();
    let from = json!({ "runId": source.id, "eventId": format!("evt_{before}"), "stepId": "b", "edited": ["input"] });
    assert_eq!(done["forkedFrom"], from);
    assert_eq!(done["metadata"], json!({ "mine": 1, "fermata.forkedFrom": from }));
    assert_eq!((&done["goal"], &done["budget"], &done["cost"]), (&json!("Add"), &json!(9.0), &json!(0.0)));
    assert_eq!(done["createdBy"], "user_operator");
    assert_eq!(carried(&run).await, ["a", "never", "broken"]);
    assert_eq!((upstream.requests_to("/a").len(), upstream.requests_to("/b").len()), (1, 2));
    let keys = upstream.requests_to("/b");
    assert_ne!(keys[0].header("idempotency-key"), keys[1].header("idempotency-key"));

    let events = run.events().await;
    assert_eq!(events[0]["payload"]["forkedFrom"], from);
    let names: Vec<_> = events.iter().take(4).map(|event| event["step"].as_str().unwrap()).collect();
    assert_eq!(names, ["idle", "planning", "plan.ready", "executing"]);
    let a = events.iter().find(|event| event["stepId"] == "a").unwrap();
    assert_eq!((&a["step"], &a["payload"]["carried"]), (&json!("step.completed"), &json!(true)));
    assert_eq!(a["payload"].get("cost"), None);
    assert_eq!(source.get().await["lastEventId"], format!("evt_{}", source.events().await.len()), "it is as it was");

    let audit = sqlx::query("select action, detail::text from audit_log where target = $1").bind(&run.id);
    let row = audit.fetch_one(&mut world.superuser().await).await.unwrap();
    assert_eq!(row.get::<&str, _>(0), "run.fork");
    assert_eq!(serde_json::from_str::<Value>(row.get(1)).unwrap(), from);

    // At its very end there is nothing left to do.
    let last = source.get().await["lastEventId"].clone();
    let again = fork(&operator, &source, json!({ "eventId": last })).await;
    assert_eq!(again.completes().await["output"], 42);
    assert_eq!(upstream.requests().len(), 3);
    // A fork of a fork names the last one.
    let third = fork(&operator, &run, json!({ "eventId": "evt_4" })).await;
    assert_eq!(third.get().await["forkedFrom"]["runId"], json!(run.id));
    assert!(carried(&third).await.is_empty());
}

#[tokio::test]
async fn what_is_held_or_under_way_begins_anew_under_its_own_approval() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.hold("/slow");
    let plan = json!([
        { "id": "held", "uses": "http.request", "with": post(&upstream, "/held"), "approval": {} },
        { "id": "slow", "uses": "http.request", "with": post(&upstream, "/slow") },
    ]);
    let source = world.operator().start(plan).await;
    let (first, _) = (source.hold().await, upstream.arrived("/slow", 1).await);
    let last = source.get().await["lastEventId"].clone();
    let run = fork(&world.operator(), &source, json!({ "eventId": last })).await;
    let second = run.hold().await;
    assert_ne!(first, second);
    upstream.arrived("/slow", 2).await;
    world.approver().deny(&first, "not this one").await;
    world.approver().approve(&second).await;
    upstream.release("/slow");
    assert_eq!(run.completes().await["status"], "completed");
    assert_eq!(source.wait_end().await["status"], "failed");
    assert_eq!(upstream.requests_to("/held").len(), 1);
    // Consent that was given and not used is given to the other run, and not to this one.
    let approved = source.events().await.iter().position(|event| event["step"] == "denied").unwrap();
    let third = fork(&world.operator(), &source, json!({ "eventId": format!("evt_{}", approved + 1) })).await;
    third.hold().await;
    third.cancel().await.expect(202);
}

#[tokio::test]
async fn a_list_that_was_not_through_begins_anew_as_a_whole_and_large_outputs_come_along() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.reply("/large", Reply::Json(200, json!("x".repeat(300_000))));
    upstream.hold("/item/2");
    let get = |path: &str| json!({ "url": upstream.url(path) });
    let plan = json!({
        "steps": [
            { "id": "large", "uses": "http.request", "with": get("/large") },
            { "id": "whole", "uses": "debug.echo", "forEach": [1, 2], "with": { "value": "{{ item }}" } },
            { "id": "each", "needs": ["large", "whole"], "uses": "http.request", "forEach": [1, 2],
              "with": { "url": upstream.url("/item/{{ item }}") } },
        ],
        "output": "{{ steps.large.output.body | length + steps.whole.output | length + steps.each.output | length }}",
    });
    let source = world.operator().start(plan).await;
    source.wait_for_step("step.completed", "each[0]").await;
    let last = source.events().await.iter().rposition(|event| event["step"] == "step.completed").unwrap() + 1;
    let run = fork(&world.operator(), &source, json!({ "eventId": format!("evt_{last}") })).await;
    upstream.arrived("/item/2", 2).await;
    upstream.release("/item/2");
    assert_eq!(run.completes().await["output"], 300_004);
    assert_eq!(carried(&run).await, ["large", "whole"]);
    assert_eq!((upstream.requests_to("/large").len(), upstream.requests_to("/item/1").len()), (1, 2));
    let large = run.wait_for_step("step.completed", "large").await.data["payload"].clone();
    assert!(large["outputBytes"].as_u64().unwrap() > 300_000 && large["carried"] == true, "{large}");
    assert_eq!(run.step("large").await["output"], source.step("large").await["output"]);
    source.completes().await;
}

#[tokio::test]
async fn the_future_may_have_another_plan_and_a_step_another_output() {
    let world = World::new().await;
    let operator = world.operator();
    let definition = "
name: sums
input: { type: object, required: [n], properties: { n: { type: integer } } }
steps:
  - { id: first, uses: data.transform, with: { value: '{{ input.n }}' } }
  - { id: second, needs: [first], uses: data.transform, with: { value: '{{ steps.first.output + 1 }}' } }
  - { id: third, needs: [second], uses: data.transform, with: { value: '{{ steps.second.output + 1 }}' } }
output: '{{ steps.third.output }}'
";
    operator.put_yaml("sums", definition).await.expect(201);
    let source = operator.execute(json!({ "workflow": "sums", "input": { "n": 1 } })).await;
    let whole = source.completes().await;
    assert_eq!(whole["output"], 3);

    let run = fork(&operator, &source, json!({ "stepId": "second", "edit": { "output": 10 } })).await;
    let done = run.completes().await;
    assert_eq!((&done["output"], &done["workflow"]), (&json!(11), &json!("sums@1")));
    assert_eq!(carried(&run).await, ["first", "second"]);
    assert_eq!(done["forkedFrom"]["edited"], json!(["output"]));
    // `null` is an output.
    let null = fork(&operator, &source, json!({ "stepId": "third", "edit": { "output": null } })).await;
    assert_eq!(null.completes().await["output"], Value::Null);

    let mut plan = whole["plan"].clone();
    plan["steps"][2]["with"]["value"] = json!("{{ steps.second.output * 100 }}");
    plan["steps"].as_array_mut().unwrap().push(json!({ "id": "fourth", "uses": "debug.echo" }));
    let run = fork(&operator, &source, json!({ "stepId": "third", "edit": { "plan": plan } })).await;
    assert_eq!(run.completes().await["output"], 200);
    assert_eq!(carried(&run).await, ["first", "second"]);
    plan["steps"][0]["with"]["value"] = json!(7);
    let changed = json!({ "stepId": "third", "edit": { "plan": plan } });
    let problem = try_fork(&operator, &source, changed.clone()).await.problem(422, "invalid-input");
    assert_eq!(problem["field"], "edit.plan");
    assert!(problem["detail"].as_str().unwrap().contains("`first`"), "{problem}");
    // Where it has not ended it may be another.
    let early = fork(&operator, &source, json!({ "stepId": "first", "edit": { "plan": plan } })).await;
    assert_eq!(early.completes().await["output"], 800);
    let wrong = json!({ "stepId": "third", "edit": { "plan": [{ "id": "first", "uses": "no.tool" }] } });
    try_fork(&operator, &source, wrong).await.problem(422, "invalid-definition");
    let input = json!({ "stepId": "first", "edit": { "input": { "n": "one" } } });
    assert_eq!(try_fork(&operator, &source, input).await.problem(422, "invalid-input")["field"], "input.n");
}

#[tokio::test]
async fn what_is_wrong_with_a_fork_is_named() {
    let world = World::with(|settings| {
        settings.worker.live_runs_per_tenant = 2;
        settings.limits.output = 100 << 10;
    })
    .await;
    let operator = world.operator();
    let plan = json!([{ "id": "a", "uses": "debug.echo" },
        { "id": "b", "needs": ["a"], "uses": "debug.echo", "approval": {} },
        { "id": "c", "needs": ["b"], "uses": "debug.echo" }]);
    let source = operator.start(plan).await;
    source.hold().await;
    for (body, field) in [
        (json!({}), "stepId"),
        (json!({ "stepId": "a", "eventId": "evt_2" }), "eventId"),
        (json!({ "stepId": "nothing" }), "stepId"),
        (json!({ "stepId": "c" }), "stepId"),
        (json!({ "stepId": "a[0]" }), "stepId"),
        (json!({ "eventId": "7" }), "eventId"),
        (json!({ "eventId": "evt_0" }), "eventId"),
        (json!({ "eventId": "evt_2" }), "eventId"),
        (json!({ "eventId": "evt_99" }), "eventId"),
        (json!({ "eventId": "evt_5", "edit": { "output": 1 } }), "edit.output"),
        (json!({ "stepId": "a", "edit": { "output": "x".repeat(200 << 10) } }), "edit.output"),
        (json!({ "stepId": "a", "edit": { "goal": "" } }), "edit.goal"),
        (json!({ "stepId": "a", "edit": { "input": "x".repeat(600 << 10) } }), "edit.input"),
        (json!({ "stepId": "a", "edit": { "steps": [] } }), "edit.steps"),
    ] {
        let answer = try_fork(&operator, &source, body.clone()).await;
        let problem = answer.problem(422, "invalid-input");
        assert_eq!(problem["field"], field, "{}", problem["detail"]);
    }
    let body = json!({ "stepId": "a" });
    try_fork(&world.stranger(), &source, body.clone()).await.problem(404, "not-found");
    let nobody = operator.run("run_01kahx3c5qf8k9z4v7t2m6w8np");
    try_fork(&operator, &nobody, body.clone()).await.problem(404, "not-found");
    try_fork(&world.viewer(), &source, body.clone()).await.problem(403, "forbidden");

    let once =
        async |body: &Value| operator.request(Method::POST, &source.path("/fork")).json(body).key("k").send().await;
    let first = once(&body).await;
    first.expect(202);
    assert_eq!(once(&body).await.body, first.body);
    once(&json!({ "eventId": "evt_4" })).await.problem(422, "idempotency-mismatch");
    // Two live runs are all there may be.
    try_fork(&operator, &source, body.clone()).await.problem(429, "too-many-runs");
    operator.run(first.json()["runId"].as_str().unwrap()).cancel().await.expect(202);
    let request = operator.request(Method::POST, &source.path("/fork")).json(&json!({ "stepId": "a" }));
    let waited = request.header("prefer", "wait=30").send().await;
    assert_eq!(waited.expect(202)["status"], "awaiting_approval");
}

#[tokio::test]
async fn an_agents_run_forks_in_the_middle_of_a_conversation() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = World::with(|settings| settings.llm.providers = provider.settings().collect()).await;
    let admin = world.admin();
    let config = json!({ "provider": "fake-anthropic", "model": "m", "price": { "input": 100.0, "output": 100.0 } });
    let agent = json!({ "instructions": "Help with {{ goal }}.", "config": "c", "tools": ["http.request"] });
    admin.request(Method::PUT, "/llm/configs/c").json(&config).send().await.expect(201);
    admin.request(Method::PUT, "/agents/support").json(&agent).send().await.expect(201);
    let call = |path: &str| ("http_request".to_owned(), post(&upstream, path));
    provider.script([
        Turn::Call(vec![call("/refund"), call("/gift"), call("/late")]),
        Turn::call("http_request", json!({ "url": upstream.url("/order") })),
        Turn::say("All is done."),
    ]);
    let source = world.owner().execute(json!({ "agent": "support", "goal": "order 1042" })).await;
    let mut follow = source.follow().await;
    for _ in 0..3 {
        let held = follow.until("awaiting_approval").await.data["payload"].clone();
        let id = held["approvalId"].as_str().unwrap();
        if held["arguments"]["url"] == upstream.url("/refund") {
            world.approver().approve(id).await;
        } else if held["arguments"]["url"] == upstream.url("/gift") {
            world.approver().deny(id, "not twice in a year").await;
        } else {
            world.approver().decide(id, &json!({ "status": "denied" })).await.expect(200);
        }
    }
    assert_eq!(source.completes().await["output"], "All is done.");

    // The model is asked for the third turn once more, in the same words, and answers otherwise.
    provider.script([Turn::say("All is well.")]);
    let run = fork(&world.operator(), &source, json!({ "stepId": "turn-3" })).await;
    let done = run.completes().await;
    assert_eq!(done["output"], "All is well.");
    assert_eq!(carried(&run).await.len(), 6);
    let grown = run.event_names().await.into_iter().filter(|name| name == "plan.extended").count();
    assert_eq!((grown, &done["plan"]), (2, &source.get().await["plan"]));
    let asked = provider.asked();
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[2].body, asked[3].body);
    assert!(asked[3].body.to_string().contains("A person denied the call: not twice in a year"));
    assert!(done["cost"].as_f64().unwrap() < source.get().await["cost"].as_f64().unwrap());
    assert_eq!(upstream.requests_to("/refund").len(), 1);

    // A call is taken to have given something else, another goal is told, and the model never knows.
    admin.request(Method::DELETE, "/agents/support").send().await.expect(204);
    provider.script([Turn::say("It is lost.")]);
    let edit = json!({ "output": { "status": 404 }, "goal": "order 7" });
    let other = fork(&world.operator(), &source, json!({ "stepId": "call-2-1", "edit": edit })).await;
    assert_eq!(other.completes().await["output"], "It is lost.");
    let heard = provider.asked()[4].body.to_string();
    assert!(heard.contains("Help with order 7.") && !heard.contains("1042"), "{heard}");
    assert!(heard.contains("{\\\"status\\\":404}"), "{heard}");
    assert_eq!(upstream.requests_to("/order").len(), 1);

    for (edit, field) in [
        (json!({ "output": { "text": "Hello" } }), "edit.output"),
        (json!({ "plan": [{ "id": "a", "uses": "debug.echo" }] }), "edit.plan"),
    ] {
        let answer = try_fork(&world.operator(), &source, json!({ "stepId": "turn-2", "edit": edit })).await;
        assert_eq!(answer.problem(422, "invalid-input")["field"], field);
    }
}

#[tokio::test]
async fn a_run_that_was_dropped_cannot_be_forked_and_a_fork_outlives_its_source() {
    let world = World::with(|settings| settings.retention.runs = Some(Span::seconds(3600))).await;
    let source = world
        .operator()
        .start(json!([{ "id": "a", "uses": "debug.echo" },
        { "id": "b", "needs": ["a"], "uses": "debug.echo", "approval": {} }]))
        .await;
    let run = fork(&world.operator(), &source, json!({ "eventId": "evt_4" })).await;
    run.hold().await;
    source.cancel().await.expect(202);
    world.advance(Duration::from_secs(7200));
    let is_gone = async || world.operator().get(&source.path("")).await.status == 404;
    // A sweep that was under way at that moment counts from before it: the next comes later.
    let swept = async {
        while !is_gone().await {
            world.advance(Duration::from_secs(600));
        }
    };
    within("the end of the source", swept).await;
    try_fork(&world.operator(), &source, json!({ "eventId": "evt_4" })).await.problem(404, "not-found");
    world.approver().approve(&run.hold().await).await;
    run.completes().await;
}
