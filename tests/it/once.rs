//! What happens once however often it is asked for, and callers who would rather wait.

use std::collections::HashSet;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Answer, Client, Provider, Upstream, World};

fn body() -> Value {
    json!({ "plan": [{ "id": "a", "uses": "debug.echo", "approval": {} }] })
}

async fn execute(client: &Client, key: &str, body: &Value) -> Answer {
    client.request(Method::POST, "/agent/execute").json(body).key(key).send().await
}

async fn runs(client: &Client) -> usize {
    client.get("/workflow/runs").await.expect(200)["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn the_same_key_has_the_same_answer() {
    let world = World::new().await;
    let client = world.operator();
    let first = execute(&client, "k", &body()).await;
    first.expect(202);
    assert_eq!(first.header("idempotency-replayed"), None);
    let again = execute(&client, "k", &body()).await;
    again.expect(202);
    assert_eq!((again.header("idempotency-replayed"), &again.body), (Some("true"), &first.body));
    // Under either path.
    let versioned = client.request(Method::POST, "/v1/agent/execute").json(&body()).key("k").send().await;
    assert_eq!(versioned.body, first.body);
    assert_eq!(runs(&client).await, 1);

    let other = json!({ "plan": [{ "id": "b", "uses": "debug.echo" }] });
    execute(&client, "k", &other).await.problem(422, "idempotency-mismatch");
    // Nobody else's key is in the way: not another person's, not another tenant's, not another route's.
    execute(&world.admin(), "k", &body()).await.problem(422, "idempotency-mismatch");
    execute(&world.stranger(), "k", &body()).await.expect(202);
    client.request(Method::POST, "/agent/plan").json(&body()).key("k").send().await.expect(202);
    assert_eq!(runs(&client).await, 2);
}

#[tokio::test]
async fn twenty_at_once_make_one_run() {
    let world = World::new().await;
    let client = world.operator();
    let answers = join_all((0..20).map(|_| async { execute(&client, "k", &body()).await })).await;
    let (made, told): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 202);
    assert!(!made.is_empty());
    assert_eq!(made.iter().map(|answer| &answer.body).collect::<HashSet<_>>().len(), 1);
    for answer in told {
        answer.problem(409, "idempotency-in-flight");
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(runs(&client).await, 1);
}

#[tokio::test]
async fn nothing_is_kept_of_what_failed_and_a_key_is_forgotten_after_a_day() {
    let world = World::new().await;
    let client = world.operator();
    let wrong = json!({ "workflow": "unheard-of" });
    execute(&client, "k", &wrong).await.problem(404, "not-found");
    let first = execute(&client, "k", &body()).await.expect(202);
    world.advance(std::time::Duration::from_secs(25 * 3600));
    let later = execute(&client, "k", &body()).await;
    assert_ne!(later.expect(202)["runId"], first["runId"]);
}

#[tokio::test]
async fn a_decision_and_a_cancel_happen_once_too() {
    let world = World::new().await;
    let run = world.operator().execute(body()).await;
    let approval = run.hold().await;
    let decide = async || {
        let path = format!("/approvals/{approval}/decision");
        let request = world.approver().request(Method::POST, &path).json(&json!({ "status": "approved" }));
        request.key("d").send().await
    };
    let first = decide().await;
    first.expect(200);
    assert_eq!(decide().await.body, first.body);
    run.completes().await;
    let names = run.event_names().await;
    assert_eq!(names.iter().filter(|name| *name == "approved").count(), 1, "{names:?}");

    let run = world.operator().execute(body()).await;
    let cancel = async || world.operator().request(Method::POST, &run.path("/cancel")).key("c").send().await;
    let first = cancel().await;
    first.expect(202);
    assert_eq!(cancel().await.body, first.body);
    assert_eq!(run.wait_end().await["status"], "cancelled");
}

#[tokio::test]
async fn a_repeated_request_has_its_answer_also_when_what_it_names_is_gone() {
    let provider = Provider::start().await;
    let world = World::with(|settings| settings.llm.providers = provider.settings().collect()).await;
    let server = Upstream::start().await;
    let tool = json!({ "description": "Looks", "method": "GET", "url": server.url("/look"), "effect": "pure" });
    let config = json!({ "provider": "fake-openai", "model": "m" });
    let agent = json!({ "instructions": "Help.", "config": "mine" });
    for (path, body) in [("/tools/http/shop.look", &tool), ("/llm/configs/mine", &config), ("/agents/mine", &agent)] {
        world.admin().request(Method::PUT, path).json(body).send().await.expect(201);
    }
    let begun = json!({ "agent": "mine", "goal": "Talk" });
    let requests = [
        ("/tools/shop.look/test", json!({})),
        ("/jobs", json!({ "prompt": "x", "config_name": "mine" })),
        ("/agent/execute", begun.clone()),
    ];
    let send = async |(path, body): &(&str, Value), key: &str| {
        world.operator().request(Method::POST, path).json(body).key(key).send().await
    };
    let mut first = vec![];
    for request in &requests {
        let answer = send(request, "k").await;
        answer.expect(202);
        first.push(answer.body.clone());
    }
    for path in ["/tools/http/shop.look", "/agents/mine", "/llm/configs/mine"] {
        world.admin().request(Method::DELETE, path).send().await.expect(204);
    }
    for (request, first) in requests.iter().zip(first) {
        let again = send(request, "k").await;
        assert_eq!((again.status, again.header("idempotency-replayed"), &again.body), (202, Some("true"), &first));
        assert!(send(request, "new").await.status >= 400, "{request:?}");
    }
    let other = json!({ "prompt": "y", "config_name": "mine" });
    send(&("/jobs", other), "k").await.problem(422, "idempotency-mismatch");
}

#[tokio::test]
async fn who_prefers_to_wait_gets_news() {
    let world = World::new().await;
    let client = world.operator();
    let wait = async |path: &str, body: Value, wait: &str| {
        client.request(Method::POST, path).json(&body).header("prefer", wait).send().await
    };
    let quick = json!({ "plan": [{ "id": "a", "uses": "debug.echo", "with": { "value": 7 } }] });
    let done = wait("/agent/execute", quick, "wait=30").await;
    assert_eq!(done.expect(202)["status"], "completed");
    assert_eq!(done.header("preference-applied"), Some("wait=30"));
    let held = wait("/agent/execute", body(), "wait=30").await.expect(202);
    assert_eq!(held["status"], "awaiting_approval");
    assert_eq!(held["pendingApprovals"].as_array().unwrap().len(), 1);

    // One that takes longer is shown as it stands.
    let upstream = Upstream::start().await;
    upstream.hold("/slow");
    let slow = json!({ "plan": [{ "id": "a", "uses": "http.request", "with": { "url": upstream.url("/slow") } }] });
    let answer = wait("/agent/execute", slow, "wait=1").await;
    assert_eq!(answer.expect(202)["status"], "executing");
    upstream.release("/slow");
    // No preference at all is no wait.
    let planned = client.post("/agent/plan", &body()).await;
    assert_eq!(planned.header("preference-applied"), None);
    assert_eq!(planned.expect(202)["status"], "planning");
}
