//! What goes over the wire, word for word, but for ids and times. After a wanted change:
//! `INSTA_UPDATE=always cargo test --test it wire`, and read the difference.

use std::collections::BTreeMap;

use fermata::kernel::Problem;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Answer, Redactor, World};

const DEFINITION: &str = r#"
name: crm-sync
input: { type: object, required: [account], properties: { account: { type: string } } }
steps:
  - id: fetch
    uses: debug.echo
    with: { value: { contacts: [Ada, Grace], of: "{{ input.account }}" } }
  - id: sync
    name: Write to the CRM
    needs: [fetch]
    uses: debug.echo
    with: { value: { changed: "{{ steps.fetch.output.contacts | length }}" } }
    approval: { reason: "Writes to the CRM", scope: [contacts], requires: ["write:crm"], cost: 124, expires: 4h }
  - id: notify
    needs: [sync]
    if: "{{ steps.sync.output.changed > 5 }}"
    uses: debug.echo
output: "{{ steps.sync.output }}"
"#;

/// Problems that take a fault, a race, much patience or another version to meet; other tests have them.
const NOT_HERE: [&str; 5] = ["idempotency-in-flight", "internal", "request-timeout", "unavailable", "unreadable-run"];

fn shown(redactor: &mut Redactor, value: &Value) -> String {
    serde_json::to_string_pretty(&redactor.json(value)).unwrap()
}

#[tokio::test]
async fn a_run_that_asks() {
    let world = World::new().await;
    let mut redactor = Redactor::default();
    let mut show = |name: &str, value: &Value| insta::assert_snapshot!(name, shown(&mut redactor, value));
    show("definition", &world.operator().put_yaml("crm-sync", DEFINITION).await.expect(201));
    let body = json!({
        "goal": "Keep the CRM fresh", "workflow": "crm-sync", "input": { "account": "acme" }, "budget": 500,
        "metadata": { "ticket": 7 },
    });
    let planned = world.operator().post("/agent/plan", &body).await.expect(202);
    show("run_planned", &planned);
    let run = world.operator().execute(json!({ "runId": planned["runId"] })).await;
    let approval = run.hold().await;
    show("run_awaiting_approval", &run.get().await);
    show("approval_pending", &world.viewer().get(&format!("/approvals/{approval}")).await.expect(200));
    let digest = world.viewer().get(&format!("/approvals/{approval}")).await.json()["digest"].clone();
    let decision = json!({ "status": "approved", "reason": "go on", "digest": digest });
    show("approval_approved", &world.approver().decide(&approval, &decision).await.expect(200));
    show("run_completed", &run.completes().await);
    show("runs", &world.viewer().get("/workflow/runs").await.expect(200));
    show("steps", &json!(run.steps().await));
    show("events", &json!(run.events().await));
    show("inbox", &world.viewer().get("/approvals").await.expect(200));
    show("definitions", &world.viewer().get("/workflow/definitions").await.expect(200));
    let stream =
        world.viewer().request(Method::GET, &run.path("/events")).header("last-event-id", "evt_8").send().await;
    stream.expect(200);
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.header("cache-control"), Some("no-cache, no-transform"));
    assert_eq!(stream.header("x-accel-buffering"), Some("no"));
    insta::assert_snapshot!("stream", durations_hidden(&redactor.text(&stream.text())));
}

/// In the text of a stream a duration is a bare number.
fn durations_hidden(text: &str) -> String {
    let mut parts = text.split("\"durationMs\":");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("\"durationMs\":[ms]");
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out
}

#[tokio::test]
async fn a_run_that_fails_and_one_that_is_refused() {
    let world = World::new().await;
    let mut redactor = Redactor::default();
    let plan = json!([{ "id": "a", "uses": "debug.fail", "with": { "times": 9, "retryable": true },
        "retry": { "attempts": 2, "backoff": "1ms" } }]);
    let run = world.operator().start(plan).await;
    let failed = run.wait_end().await;
    insta::assert_snapshot!("failed_run", shown(&mut redactor, &failed));
    insta::assert_snapshot!("failed_events", shown(&mut redactor, &json!(run.events().await)));

    let run = world.operator().start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    world.approver().deny(&run.hold().await, "not today").await;
    run.wait_end().await;
    insta::assert_snapshot!("denied_events", shown(&mut redactor, &json!(run.events().await)));
}

#[tokio::test]
async fn every_problem() {
    let world = World::with(|settings| {
        settings.streams.per_token = 1;
        settings.worker.live_runs_per_tenant = 2;
    })
    .await;
    let (operator, approver) = (world.operator(), world.approver());
    let plan = json!({ "plan": [{ "id": "a", "uses": "debug.echo", "approval": {} }] });
    let run = operator.execute(plan.clone()).await;
    let approval = run.hold().await;
    let mut met = BTreeMap::new();
    let mut meet = |answer: Answer| {
        let problem = answer.json();
        let slug = problem["type"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
        assert!(!slug.is_empty(), "{}: {}", answer.to, answer.text());
        met.insert(slug, problem);
    };
    let keyed = async |body: &Value| operator.request(Method::POST, "/agent/plan").json(body).key("k").send().await;
    let get = |path: &str| operator.request(Method::GET, path);

    meet(operator.request(Method::POST, "/agent/plan").json(&json!(1)).body("{\"goal\": }").send().await);
    meet(operator.get("/workflow/runs?cursor=lie").await);
    meet(world.nobody().get("/workflow/runs").await);
    meet(world.viewer().post("/agent/plan", &plan).await);
    meet(operator.get("/workflow/runs/run_01kahx3c5qf8k9z4v7t2m6w8np").await);
    meet(operator.request(Method::PATCH, "/workflow/runs").unchecked().send().await);
    meet(get(&run.path("/events")).header("accept", "text/html").send().await);
    meet(run.retry().await);
    meet(
        approver
            .decide(&approval, &json!({ "status": "approved", "digest": format!("sha256:{}", "0".repeat(64)) }))
            .await,
    );
    meet(get(&run.path("/events")).header("last-event-id", "evt_99").send().await);
    meet(operator.request(Method::POST, "/agent/plan").json(&json!(1)).body(vec![b' '; 2 << 20]).send().await);
    meet(operator.request(Method::POST, "/agent/plan").header("content-type", "text/plain").body("x").send().await);
    meet(operator.post("/agent/plan", &json!({ "plan": [], "surprise": 1 })).await);
    meet(operator.put_yaml("bad", "name: bad\nsteps:\n  - id: a\n    uses: no.tool\n").await);
    meet(operator.post("/agent/plan", &json!({ "goal": "world peace" })).await);
    let stream = run.follow().await;
    meet(get(&run.path("/events")).header("accept", "text/event-stream").send().await);
    drop(stream);
    let planned = keyed(&plan).await.expect(202);
    meet(keyed(&json!({ "plan": [{ "id": "b", "uses": "debug.echo" }] })).await);
    operator.execute(plan.clone()).await;
    meet(operator.post("/agent/execute", &plan).await);
    // What was planned before begins no sooner.
    meet(operator.post("/agent/execute", &json!({ "runId": planned["runId"] })).await);
    approver.approve(&approval).await;
    meet(approver.decide(&approval, &json!({ "status": "denied" })).await);

    let all = Problem::ALL.iter().map(|problem| problem.slug()).filter(|slug| !NOT_HERE.contains(slug));
    let missing: Vec<_> = all.filter(|slug| !met.contains_key(*slug)).collect();
    assert!(missing.is_empty(), "not met: {missing:?}");
    insta::assert_snapshot!("problems", shown(&mut Redactor::default(), &json!(met)));
}
