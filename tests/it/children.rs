//! Runs that start runs.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    agents::agent,
    world::{Provider, Turn, Upstream, World},
};

/// A definition of these steps, put by somebody who may.
async fn put(world: &World, name: &str, definition: Value) {
    let mut whole = json!({ "name": name });
    whole.as_object_mut().unwrap().extend(definition.as_object().unwrap().clone());
    let request = world.operator().request(Method::PUT, &format!("/workflow/definitions/{name}"));
    let answer = request.json(&whole).send().await;
    assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
}

fn start(workflow: &str) -> Value {
    json!([{ "id": "child", "uses": "run.start", "with": { "workflow": workflow, "input": { "n": 20 } } }])
}

#[tokio::test]
async fn a_child_has_its_own_stream_and_gives_its_output_to_its_parent() {
    let world = World::new().await;
    put(
        &world,
        "double",
        json!({
            "steps": [{ "id": "twice", "uses": "data.transform", "with": { "value": "{{ input.n * 2 }}" } }],
            "output": "{{ steps.twice.output }}",
        }),
    )
    .await;
    let mut steps = start("double");
    steps[0]["with"]["budget"] = json!(7.5);
    let plan = json!({ "steps": steps, "output": "{{ steps.child.output.output + 2 }}" });
    let parent = world.operator().start(plan).await;
    assert_eq!(parent.completes().await["output"], 42);
    let child = parent.child(&world.viewer(), "child").await;
    let run = child.get().await;
    assert_eq!(run["parent"], json!({ "runId": parent.id, "stepId": "child" }));
    assert_eq!((&run["workflow"], &run["createdBy"]), (&json!("double@1"), &json!("user_operator")));
    assert_eq!(run["budget"], 7.5);
    let own = child.follow().await.rest().await;
    assert!(own.iter().all(|event| event.data["runId"] == child.id.as_str()));
    assert_eq!(own.last().unwrap().name, "completed");
}

#[tokio::test]
async fn a_child_that_fails_fails_the_step_that_started_it() {
    let world = World::new().await;
    put(
        &world,
        "bad",
        json!({
            "steps": [{ "id": "no", "uses": "debug.fail", "with": { "times": 1, "retryable": false } }],
        }),
    )
    .await;
    let parent = world.operator().start(start("bad")).await;
    let failed = parent.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("child_not_completed")));
    let first = parent.child(&world.viewer(), "child").await;
    assert_eq!(failed["error"]["detail"]["runId"], first.id.as_str());
    // A retry starts another child.
    parent.retry().await.expect(202);
    parent.follow_after(failed["lastEventId"].as_str().unwrap()).await.until("failed").await;
    let waits = parent.events().await.into_iter().filter(|event| event["step"] == "step.waiting");
    let children: Vec<_> = waits.map(|event| event["payload"]["childRunId"].clone()).collect();
    assert_eq!(children.len(), 2);
    assert_ne!(children[0], children[1]);
}

#[tokio::test]
async fn cancelling_a_parent_cancels_its_children_and_theirs() {
    let world = World::new().await;
    put(&world, "nap", json!({ "steps": [{ "id": "nap", "uses": "time.wait", "with": { "for": "9days" } }] })).await;
    put(
        &world,
        "middle",
        json!({
            "steps": [
                { "id": "child", "uses": "run.start", "with": { "workflow": "nap" } },
                { "id": "held", "uses": "debug.echo", "approval": {} },
            ],
        }),
    )
    .await;
    let parent = world.operator().start(start("middle")).await;
    let middle = parent.child(&world.viewer(), "child").await;
    let nap = middle.child(&world.viewer(), "child").await;
    nap.wait_for("step.waiting").await;
    let approval = middle.hold().await;
    parent.cancel().await.expect(202);
    for run in [&parent, &middle, &nap] {
        assert_eq!(run.wait_end().await["status"], "cancelled");
    }
    // The outcome of the child came before the end of its parent.
    let names = parent.event_names().await;
    assert_eq!(names[names.len() - 3..], ["run.cancelling", "step.failed", "cancelled"]);
    assert_eq!(world.viewer().get(&format!("/approvals/{approval}")).await.expect(200)["status"], "cancelled");
}

#[tokio::test]
async fn a_failing_parent_takes_its_children_along() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    put(&world, "nap", json!({ "steps": [{ "id": "nap", "uses": "time.wait", "with": { "for": "9days" } }] })).await;
    upstream.hold("/bad");
    upstream.fail("/bad", 1, 400);
    let parent = world
        .operator()
        .start(json!([
            { "id": "child", "uses": "run.start", "with": { "workflow": "nap" } },
            { "id": "bad", "uses": "http.request", "with": { "url": upstream.url("/bad") } },
        ]))
        .await;
    let nap = parent.child(&world.viewer(), "child").await;
    nap.wait_for("step.waiting").await;
    upstream.release("/bad");
    let failed = parent.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["stepId"]), (&json!("failed"), &json!("bad")));
    assert_eq!(nap.wait_end().await["status"], "cancelled");
}

#[tokio::test]
async fn a_parent_waits_for_days_and_hears_of_the_end_wherever_it_comes_from() {
    let world = World::new().await;
    put(&world, "nap", json!({ "steps": [{ "id": "nap", "uses": "time.wait", "with": { "for": "9days" } }] })).await;
    let parent = world.operator().start(start("nap")).await;
    parent.child(&world.viewer(), "child").await.wait_for("step.waiting").await;
    world.advance(Duration::from_secs(10 * 24 * 3600));
    parent.completes().await;
}

#[tokio::test]
async fn a_child_nobody_waits_for_outlives_its_parent() {
    let world = World::new().await;
    put(&world, "nap", json!({ "steps": [{ "id": "nap", "uses": "time.wait", "with": { "for": "9days" } }] })).await;
    let steps = json!([{ "id": "child", "uses": "run.start", "with": { "workflow": "nap", "wait": false } }]);
    let parent = world.operator().start(steps).await;
    parent.completes().await;
    let child = parent.step("child").await["output"]["runId"].as_str().unwrap().to_owned();
    let child = world.operator().run(&child);
    child.wait_for("step.waiting").await;
    assert_eq!(child.get().await["status"], "executing");
}

#[tokio::test]
async fn a_run_does_not_start_itself_without_end() {
    let world = World::new().await;
    put(
        &world,
        "mirror",
        json!({ "steps": [{ "id": "again", "uses": "run.start", "with": { "workflow": "mirror" } }] }),
    )
    .await;
    let parent = world.operator().start(start("mirror")).await;
    let failed = parent.wait_end().await;
    assert_eq!(failed["error"]["code"], "child_not_completed");
    let page = world.viewer().get("/workflow/runs?limit=200").await.expect(200);
    assert!((2..40).contains(&page["items"].as_array().unwrap().len()));
}

#[tokio::test]
async fn a_run_that_a_model_wants_to_start_is_held_since_its_steps_are_not() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = World::with(|settings| settings.llm.providers = provider.settings().collect()).await;
    let post = json!({ "method": "POST", "url": upstream.url("/pay"), "json": {} });
    put(&world, "pay", json!({ "steps": [{ "id": "pay", "uses": "http.request", "with": post }] })).await;
    agent(&world, "clerk", "fake-openai", json!({ "tools": ["run.*"] })).await;
    provider.script([Turn::call("run_start", json!({ "workflow": "pay" })), Turn::say("Paid.")]);
    let run = world.owner().execute(json!({ "agent": "clerk", "goal": "Pay" })).await;
    let held = run.hold().await;
    assert!(upstream.requests_to("/pay").is_empty());
    world.approver().approve(&held).await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/pay").len(), 1);
}
