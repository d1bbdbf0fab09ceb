//! Jobs and background tasks: single questions to models, seen as those know them who come from a queue of jobs.

use std::time::Duration;

use fermata::auth::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{APIS, Client, KEY, Provider, Turn, World};

/// A world with a provider, where a call that failed is not made again but by its job.
async fn world_with(provider: &Provider) -> World {
    World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.max_retries = 0;
    })
    .await
}

async fn submit(client: &Client, body: Value) -> String {
    let taken = client.post("/v1/jobs", &body).await.expect(202);
    assert_eq!(taken["status"], "QUEUED");
    taken["job_id"].as_str().unwrap().to_owned()
}

async fn job(client: &Client, id: &str) -> Value {
    client.get(&format!("/v1/jobs/{id}")).await.expect(200)
}

/// The job once its run has ended.
async fn ended(client: &Client, id: &str) -> Value {
    client.run(id).wait_end().await;
    job(client, id).await
}

#[tokio::test]
async fn a_job_is_queued_processed_and_completed_and_streams_like_any_run() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let client = world.operator();
    provider.script([Turn::SayHeld(vec!["Code flows ".to_owned(), "like water".to_owned()], 1)]);
    let body = json!({ "prompt": "Write a haiku about {{ braces }}", "config_name": "default-smart",
        "template_name": "default-assistant" });
    let id = submit(&client, body).await;
    client.run(&id).wait_for("message.delta").await;
    let processing = job(&client, &id).await;
    assert_eq!((&processing["status"], &processing["retry_count"]), (&json!("PROCESSING"), &json!(0)));
    provider.release();
    let done = ended(&client, &id).await;
    assert_eq!((&done["status"], &done["result"]), (&json!("COMPLETED"), &json!("Code flows like water")));
    let asked = provider.asked()[0].body.to_string();
    assert!(asked.contains("Write a haiku about {{ braces }}") && asked.contains("helpful assistant"), "{asked}");
}

#[tokio::test]
async fn a_job_that_fails_is_tried_again_and_says_when() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let client = world.operator();
    provider.script([Turn::Status(503, vec![("retry-after", "60")])]);
    let id = submit(&client, json!({ "prompt": "Hello" })).await;
    client.run(&id).wait_for("step.retrying").await;
    let retrying = job(&client, &id).await;
    assert_eq!(retrying["status"], "RETRYING");
    assert!(retrying["next_retry_at"].is_string(), "{retrying}");
    world.advance(Duration::from_secs(61));
    let done = ended(&client, &id).await;
    assert_eq!((&done["status"], &done["retry_count"]), (&json!("COMPLETED"), &json!(1)));
    assert_eq!(done.get("next_retry_at"), None);
    provider.script([Turn::Status(503, vec![])]);
    let id = submit(&client, json!({ "prompt": "Hello", "max_retries": 0 })).await;
    let failed = ended(&client, &id).await;
    assert_eq!(failed["status"], "FAILED");
    assert!(failed["error"].as_str().unwrap().starts_with("model_unavailable: "), "{failed}");
}

#[tokio::test]
async fn jobs_are_listed_and_cancelled_and_other_runs_are_none() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let client = world.operator();
    provider.script([Turn::Hang]);
    let first = submit(&client, json!({ "prompt": "Wait" })).await;
    provider.asked_times(1).await;
    let second = submit(&client, json!({ "prompt": "Hello" })).await;
    ended(&client, &second).await;
    let plain = client.start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    client.get(&format!("/jobs/{}", plain.id)).await.problem(404, "not-found");
    client.post(&format!("/jobs/{}/cancel", plain.id), &json!({})).await.problem(404, "not-found");
    let page = client.get("/jobs?limit=1").await.expect(200);
    assert_eq!(page["items"][0]["job_id"], *second);
    let page = client.get(&format!("/jobs?limit=1&cursor={}", page["nextCursor"].as_str().unwrap())).await.expect(200);
    assert_eq!((&page["items"][0]["job_id"], page.get("nextCursor")), (&json!(first), None));
    let cancel = client.request(Method::POST, &format!("/jobs/{first}/cancel"));
    assert_eq!(cancel.send().await.expect(202)["job_id"], *first);
    let cancelled = ended(&client, &first).await;
    assert_eq!((&cancelled["status"], &cancelled["error"]), (&json!("CANCELLED"), &json!("cancelled")));
    let stranger = world.bearer(&world.grant(world.abroad(), "user_stranger", vec![Role::Operator], None));
    stranger.get(&format!("/jobs/{first}")).await.problem(404, "not-found");
    assert_eq!(stranger.get("/jobs").await.expect(200)["items"], json!([]));
    // Nobody makes a run look like a job.
    let forged = json!({ "plan": [{ "id": "a", "uses": "debug.echo" }], "metadata": { "fermata.task": "job" } });
    assert_eq!(client.post("/agent/plan", &forged).await.problem(422, "invalid-input")["field"], "metadata");
}

#[tokio::test]
async fn what_a_job_cannot_be_is_refused_by_its_field() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (body, slug, field) in [
        (json!({ "prompt": "" }), "invalid-input", "prompt"),
        (json!({ "prompt": "x", "max_retries": 21 }), "invalid-input", "max_retries"),
        (json!({ "prompt": "x", "config_name": "No Name" }), "invalid-input", "config_name"),
        (json!({ "prompt": "x", "config_name": "nobody" }), "no-planner", "config_name"),
    ] {
        assert_eq!(world.operator().post("/jobs", &body).await.problem(422, slug)["field"], field, "{body}");
    }
    let key = |body: Value| world.operator().request(Method::POST, "/jobs").json(&body).key("once");
    let first = key(json!({ "prompt": "x" })).send().await.expect(202);
    assert_eq!(key(json!({ "prompt": "x" })).send().await.expect(202), first);
}

#[tokio::test]
async fn background_tasks_are_pending_and_then_a_success_or_a_failure() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let client = world.operator();
    let task = async |id: &str| client.get(&format!("/background/tasks/{id}")).await.expect(200);
    let begin = async |path: &str, body: Value| {
        let taken = client.post(path, &body).await.expect(202);
        taken["task_id"].as_str().unwrap().to_owned()
    };
    provider.script([Turn::SayHeld(vec!["A ".to_owned(), "poem".to_owned()], 1)]);
    let id = begin("/background/generate_text", json!({ "prompt": "A poem" })).await;
    client.run(&id).wait_for("message.delta").await;
    assert_eq!(task(&id).await, json!({ "task_id": id, "status": "PENDING" }));
    provider.release();
    client.run(&id).completes().await;
    assert_eq!(task(&id).await, json!({ "task_id": id, "status": "SUCCESS", "result": "A poem" }));
    client.get(&format!("/jobs/{id}")).await.problem(404, "not-found");
    let image = json!({ "image": "iVBORw0KGgo=", "media_type": "image/png" });
    let id = begin("/background/describe_image", image).await;
    client.run(&id).completes().await;
    assert!(provider.asked()[1].body.to_string().contains("iVBORw0KGgo="), "the model sees it");
    provider.script([Turn::Status(401, vec![])]);
    let id = begin("/background/generate_text", json!({ "prompt": "A poem" })).await;
    client.run(&id).wait_end().await;
    let failed = task(&id).await;
    assert_eq!(failed["status"], "FAILURE");
    assert!(failed["error"].as_str().unwrap().starts_with("model_key_refused: "), "{failed}");
    let wrong = json!({ "image": "not base64!", "media_type": "image/png" });
    assert_eq!(client.post("/background/describe_image", &wrong).await.problem(422, "invalid-input")["field"], "image");
}

/// A world whose providers wait 40 s for an answer, and nothing before a call is made again.
async fn patient_world(provider: &Provider) -> World {
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
        settings.circuit_breaker.failure_threshold = 1000;
    })
    .await;
    for (name, _) in APIS {
        let body = json!({ "provider": name, "model": "m", "timeout": "40s" });
        let path = format!("/llm/configs/{name}");
        world.admin().request(Method::PUT, &path).json(&body).send().await.expect(201);
    }
    world
}

/// Everything that goes wrong and may pass, with what is told of it.
fn passing() -> [(Turn, &'static str); 9] {
    let words = || vec!["A half ".to_owned(), "sentence".to_owned()];
    [
        (Turn::Status(429, vec![("retry-after", "0")]), "model_rate_limited"),
        (Turn::Status(500, vec![]), "model_unavailable"),
        (Turn::Status(503, vec![("retry-after", "0")]), "model_unavailable"),
        (Turn::Cut(words()), "model_unavailable"),
        (Turn::Garbled(words()), "model_broke_off"),
        (Turn::WrongJson, "model_broke_off"),
        (Turn::Empty, "model_answer_invalid"),
        (Turn::ErrorInside(words()), "model_unavailable"),
        (Turn::Hang, "model_timeout"),
    ]
}

/// Lets the time-out of each of so many calls pass.
async fn time_out(world: &World, provider: &Provider, before: usize, calls: usize) {
    for call in 1..=calls {
        provider.asked_times(before + call).await;
        world.advance(Duration::from_secs(41));
    }
}

/// What was told of troubles on the way.
async fn troubles(client: &Client, id: &str) -> Vec<Value> {
    let told = client.run(id).events().await.into_iter().filter(|event| event["step"] == "tool.progress");
    told.map(|event| event["payload"]["data"].clone()).collect()
}

#[tokio::test]
async fn whatever_passes_at_a_provider_does_not_touch_the_job() {
    let provider = Provider::start().await;
    let world = patient_world(&provider).await;
    let client = world.operator();
    for (name, _) in APIS {
        for (fault, _) in passing() {
            let before = provider.asked().len();
            provider.script([fault.clone(), Turn::say("All is well.")]);
            let id = submit(&client, json!({ "prompt": "Well?", "config_name": name, "max_retries": 0 })).await;
            if matches!(fault, Turn::Hang) {
                time_out(&world, &provider, before, 1).await;
            }
            let done = ended(&client, &id).await;
            assert_eq!(
                (&done["status"], &done["result"]),
                (&json!("COMPLETED"), &json!("All is well.")),
                "{name}, {fault:?}: {done}"
            );
            assert_eq!(done["retry_count"], 0, "the call is made again, and not the job");
            let [told] = &troubles(&client, &id).await[..] else { panic!("{name}, {fault:?}: one trouble") };
            let kind = if matches!(fault, Turn::Empty) { "asked_again" } else { "retrying" };
            assert_eq!(told["model"], kind, "{name}, {fault:?}");
            assert!(!told["because"].as_str().unwrap().is_empty() && !told.to_string().contains(KEY), "{told}");
            assert_eq!(provider.asked().len(), before + 2, "{name}, {fault:?}");
        }
    }
}

#[tokio::test]
async fn what_never_passes_ends_the_job_with_a_clear_error() {
    let provider = Provider::start().await;
    let world = patient_world(&provider).await;
    let client = world.operator();
    let refusals =
        [(401, "model_key_refused"), (403, "model_key_refused"), (400, "model_refused"), (404, "model_refused")];
    for (name, _) in APIS {
        for (status, code) in refusals {
            let before = provider.asked().len();
            provider.script([Turn::Status(status, vec![])]);
            let id = submit(&client, json!({ "prompt": "Well?", "config_name": name })).await;
            let failed = ended(&client, &id).await;
            assert_eq!(failed["status"], "FAILED", "{name}, {status}");
            let error = failed["error"].as_str().unwrap();
            assert!(error.starts_with(&format!("{code}: ")) && !error.contains(KEY), "{name}, {status}: {error}");
            assert_eq!(provider.asked().len(), before + 1, "asking again would not help");
        }
        for (fault, code) in passing() {
            let before = provider.asked().len();
            provider.script(std::iter::repeat_n(fault.clone(), 4));
            let id = submit(&client, json!({ "prompt": "Well?", "config_name": name, "max_retries": 0 })).await;
            if matches!(fault, Turn::Hang) {
                time_out(&world, &provider, before, 4).await;
            }
            let failed = ended(&client, &id).await;
            assert_eq!(failed["status"], "FAILED", "{name}, {fault:?}");
            let error = failed["error"].as_str().unwrap();
            assert!(error.starts_with(&format!("{code}: ")), "{name}, {fault:?}: {error}");
            assert!(error.contains(name) && !error.contains(KEY), "{name}, {fault:?}: {error}");
            assert_eq!(troubles(&client, &id).await.len(), 3, "{name}, {fault:?}: each repetition is told");
            assert_eq!(provider.asked().len(), before + 4, "{name}, {fault:?}");
        }
    }
}
