//! Jobs and background tasks: single questions to models, seen as those know them who come from a queue of jobs.

use std::time::Duration;

use bytes::Bytes;
use fermata::auth::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Client, Provider, Reply, Turn, Upstream, World};

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
    let body = json!({ "prompt": "Write a haiku about {{ braces }}", "template_name": "default-assistant" });
    let id = submit(&client, body).await;
    client.run(&id).wait_for("message.delta").await;
    let processing = job(&client, &id).await;
    assert_eq!((&processing["status"], &processing["retry_count"]), (&json!("PROCESSING"), &json!(0)));
    provider.release();
    let done = ended(&client, &id).await;
    assert_eq!((&done["status"], &done["result"]), (&json!("COMPLETED"), &json!("Code flows like water")));
    let asked = provider.asked()[0].body.to_string();
    assert!(asked.contains("Write a haiku about {{ braces }}") && asked.contains("helpful assistant"), "{asked}");
    let run = client.run(&id).get().await;
    let input = json!({ "prompt": "Write a haiku about {{ braces }}", "template_name": "default-assistant",
        "config_name": "default-smart" });
    assert_eq!((&run["workflow"], &run["input"]), (&json!("job@0"), &input));
}

#[tokio::test]
async fn a_job_that_nobody_is_at_is_queued() {
    let provider = Provider::start().await;
    let world = World::without_worker(|settings| settings.llm.providers = provider.settings().collect()).await;
    let id = submit(&world.operator(), json!({ "prompt": "Write" })).await;
    assert_eq!(job(&world.operator(), &id).await["status"], "QUEUED");
}

#[tokio::test]
async fn a_template_without_a_place_for_the_prompt_says_who_the_model_is_to_be() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let template = json!({ "content": "You answer for {{ shop }}.", "variables": { "shop": { "default": "Hem" } } });
    world.admin().request(Method::PUT, "/llm/templates/main-agent").json(&template).send().await.expect(201);
    let body = json!({ "prompt": "Where is order 1042?", "template_name": "main-agent" });
    let job = world.operator().post("/jobs", &body).await.expect(202);
    let run = world.operator().run(job["job_id"].as_str().unwrap());
    assert_eq!(run.completes().await["plan"]["models"]["templates"], json!({ "main-agent": "main-agent@1" }));
    let asked = &provider.asked()[0].body;
    assert!(asked["system"].to_string().contains("You answer for Hem."), "{asked}");
    let said = asked["messages"].to_string();
    assert!(said.contains("Where is order 1042?") && !said.contains("Hem"), "{asked}");
}

#[tokio::test]
async fn what_a_caller_writes_is_no_template() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let template = json!({ "content": "{{ prompt }} | {{ facts }}", "variables": { "prompt": {}, "facts": {} } });
    world.admin().request(Method::PUT, "/llm/templates/facts").json(&template).send().await.expect(201);
    let words = "{{ 7*7 }} {% for x in input %}{{ run.id";
    let body = json!({ "prompt": words, "template_name": "facts", "variables": { "facts": words } });
    for body in [body, json!({ "prompt": words })] {
        let id = submit(&world.operator(), body).await;
        assert_eq!(ended(&world.operator(), &id).await["status"], "COMPLETED");
    }
    let asked = provider.asked();
    assert_eq!(asked.len(), 2);
    for (asked, said) in asked.iter().zip([format!("{words} | {words}"), words.to_owned()]) {
        assert!(asked.body.to_string().contains(&format!("\"{said}\"")), "{}", asked.body);
    }
}

#[tokio::test]
async fn what_jobs_are_runs_of_can_be_read_and_put_as_any_definition() {
    let world = World::new().await;
    let viewer = world.viewer();
    let listed = async |name: &str| {
        let page = viewer.get("/workflow/definitions").await.expect(200);
        let named = page["items"].as_array().unwrap().iter().filter(|it| it["name"] == name);
        named.map(|it| it["version"].clone()).collect::<Vec<_>>()
    };
    for name in ["job", "generate_text", "describe_image", "synthesize_speech", "transcribe_speech"] {
        assert_eq!(listed(name).await, [0], "{name}");
        let brought = viewer.get(&format!("/workflow/definitions/{name}")).await.expect(200);
        assert_eq!((&brought["version"], &brought["definition"]["name"]), (&json!(0), &json!(name)));
        // It passes the checks that every definition passes.
        let source = brought["source"].as_str().unwrap();
        assert_eq!(world.operator().put_yaml(name, source).await.expect(201)["version"], 1);
        assert_eq!(listed(name).await, [1], "{name}");
    }
}

/// Two questions: the first is not asked twice, the second as the request says.
const TWICE: &str = "\
name: job
input: { type: object, required: [prompt, template_name] }
steps:
  - id: say
    uses: llm.generate
    retry: { attempts: 1 }
    with: { config: '{{ input.config_name }}', template: '{{ input.template_name }}', prompt: '{{ input.prompt }}' }
  - { id: judge, needs: [say], uses: llm.generate, with: { prompt: 'Is it good? {{ steps.say.output.text }}' } }
output: { said: '{{ steps.say.output.text }}', judged: '{{ steps.judge.output.text }}' }
";

#[tokio::test]
async fn a_workflow_that_is_put_over_jobs_carries_them_out() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let client = world.operator();
    client.put_yaml("job", TWICE).await.expect(201);
    provider.script([Turn::say("A poem."), Turn::Status(503, vec![("retry-after", "60")]), Turn::say("It is.")]);
    let body = json!({ "prompt": "Write", "template_name": "default-assistant", "max_retries": 2 });
    let id = submit(&client, body.clone()).await;
    client.run(&id).wait_for("step.retrying").await;
    let retrying = job(&client, &id).await;
    assert_eq!((&retrying["status"], retrying.get("result")), (&json!("RETRYING"), None));
    assert!(retrying["next_retry_at"].is_string(), "{retrying}");
    world.advance(Duration::from_secs(61));
    let done = ended(&client, &id).await;
    assert_eq!((&done["status"], &done["retry_count"]), (&json!("COMPLETED"), &json!(1)));
    let result: Value = serde_json::from_str(done["result"].as_str().unwrap()).unwrap();
    assert_eq!(result, json!({ "said": "A poem.", "judged": "It is." }));
    let listed = client.get("/jobs").await.expect(200);
    assert_eq!(listed["items"][0], done);
    let run = client.run(&id).get().await;
    let attempts = |step: usize| &run["plan"]["steps"][step]["retry"]["attempts"];
    assert_eq!(run["input"].get("max_retries"), None);
    assert_eq!((&run["workflow"], attempts(0), attempts(1)), (&json!("job@1"), &json!(1), &json!(3)));
    // What says itself how it is tried again is not tried as the request says.
    provider.script([Turn::Status(503, vec![])]);
    let id = submit(&client, body).await;
    assert_eq!(ended(&client, &id).await["status"], "FAILED");
    // It asks for more than a job has to have.
    let refused = client.post("/jobs", &json!({ "prompt": "Write" })).await.problem(422, "invalid-input");
    assert_eq!(refused["field"], "template_name");
    assert!(refused["detail"].as_str().unwrap().contains("workflow `job` does not take it"), "{refused}");
}

#[tokio::test]
async fn a_task_has_the_output_of_its_run_or_else_what_its_step_gave() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let client = world.operator();
    let ask = "{ id: ask, uses: data.transform, with: { value: { text: '{{ input.prompt }}!' } } }";
    for (output, result) in [
        ("", "Hello!"),
        ("output: '{{ steps.ask.output.text }}?'", "Hello!?"),
        ("output: { said: '{{ steps.ask.output.text }}' }", r#"{"said":"Hello!"}"#),
        ("output: false", "false"),
    ] {
        client.put_yaml("generate_text", &format!("name: generate_text\nsteps: [{ask}]\n{output}")).await.expect(201);
        let taken = client.post("/background/generate_text", &json!({ "prompt": "Hello" })).await.expect(202);
        let id = taken["task_id"].as_str().unwrap();
        client.run(id).completes().await;
        let task = client.get(&format!("/background/tasks/{id}")).await.expect(200);
        assert_eq!(task, json!({ "task_id": id, "status": "SUCCESS", "result": result }), "{output}");
    }
    assert!(provider.asked().is_empty());
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
    let page = client.get(&format!("/jobs?limit=1&cursor={}", page["next_cursor"].as_str().unwrap())).await.expect(200);
    assert_eq!((&page["items"][0]["job_id"], page.get("next_cursor")), (&json!(first), None));
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
        (json!({ "prompt": "x", "template_name": "No Name" }), "invalid-input", "template_name"),
        (json!({ "prompt": "x", "template_name": "nothing" }), "invalid-input", "template_name"),
        (json!({ "prompt": "x", "variables": { "a": 1 } }), "invalid-input", "variables"),
        (
            json!({ "prompt": "x", "template_name": "default-assistant", "variables": { "a": 1 } }),
            "invalid-input",
            "variables",
        ),
    ] {
        let problem = world.operator().post("/jobs", &body).await.problem(422, slug);
        assert_eq!(problem["field"], field, "{body}");
        assert!(slug != "no-planner" || problem["detail"].as_str().unwrap().contains("set a key"), "{problem}");
    }
    // What a call does not take is refused here and not when it is made.
    let template = json!({ "content": "{{ prompt }} {{ facts }}", "variables": { "prompt": {}, "facts": {} } });
    world.admin().request(Method::PUT, "/llm/templates/facts").json(&template).send().await.expect(201);
    let large = json!({ "prompt": "x", "template_name": "facts", "variables": { "facts": "x".repeat(300_000) } });
    assert_eq!(world.operator().post("/jobs", &large).await.problem(422, "invalid-input")["field"], "variables");
    let large = json!({ "image": "A".repeat(400_000), "media_type": "image/png" });
    let refused = world.operator().post("/background/describe_image", &large).await;
    assert_eq!(refused.problem(422, "invalid-input")["field"], "image");
    for (body, field) in [
        (json!({ "media_type": "image/png" }), "image"),
        (
            json!({ "media_type": "image/png", "image": "iVBORw0KGgo=", "image_url": "https://a.example/b.png" }),
            "image_url",
        ),
        (json!({ "media_type": "image/png", "image_url": "ftp://a.example/b.png" }), "image_url"),
        (json!({ "media_type": "image/png", "image_url": "https://" }), "image_url"),
        (json!({ "media_type": "audio/mpeg", "image_url": "https://a.example/b.png" }), "media_type"),
    ] {
        let refused = world.operator().post("/background/describe_image", &body).await.problem(422, "invalid-input");
        assert_eq!(refused["field"], field, "{body}");
    }
    let key = |body: Value| world.operator().request(Method::POST, "/jobs").json(&body).key("once");
    let first = key(json!({ "prompt": "x" })).send().await.expect(202);
    assert_eq!(key(json!({ "prompt": "x" })).send().await.expect(202), first);
}

#[tokio::test]
async fn a_configuration_has_to_be_there_only_where_the_workflow_asks_it() {
    let world = World::new().await;
    let client = world.operator();
    let (job, text) = (json!({ "prompt": "Hello" }), json!({ "prompt": "Hello", "config_name": "nobody" }));
    let refuses = async |path: &str, body: &Value| {
        assert_eq!(client.post(path, body).await.problem(422, "no-planner")["field"], "config_name");
    };
    refuses("/jobs", &job).await;
    refuses("/background/generate_text", &text).await;
    let own = |name: &str, uses: &str, with: &str| {
        format!("name: {name}\nsteps: [{{ id: say, uses: {uses}, with: {{ {with} }} }}]\noutput: said\n")
    };
    client.put_yaml("job", &own("job", "data.transform", "value: 1")).await.expect(201);
    let id = submit(&client, job).await;
    assert_eq!(ended(&client, &id).await["result"], "said");
    client.put_yaml("generate_text", &own("generate_text", "data.transform", "value: 1")).await.expect(201);
    client.post("/background/generate_text", &text).await.expect(202);
    let asks = own("generate_text", "llm.generate", "prompt: x, config: '{{ input.config_name }}'");
    client.put_yaml("generate_text", &asks).await.expect(201);
    refuses("/background/generate_text", &text).await;
}

#[tokio::test]
async fn a_job_that_waits_for_a_decision_says_so() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let client = world.operator();
    world.admin().request(Method::PUT, "/usage/budget").json(&json!({ "tokens": 1 })).send().await.expect(200);
    let id = submit(&client, json!({ "prompt": "Hello" })).await;
    let approval = client.run(&id).hold().await;
    let held = job(&client, &id).await;
    assert_eq!((&held["status"], &held["waiting_for"]), (&json!("PROCESSING"), &json!("approval")));
    let task = client.post("/background/generate_text", &json!({ "prompt": "Hello" })).await.expect(202);
    let task = task["task_id"].as_str().unwrap();
    client.run(task).hold().await;
    let held = client.get(&format!("/background/tasks/{task}")).await.expect(200);
    assert_eq!(held, json!({ "task_id": task, "status": "PENDING", "waiting_for": "approval" }));
    world.approver().approve(&approval).await;
    let done = ended(&client, &id).await;
    assert_eq!((&done["status"], done.get("waiting_for")), (&json!("COMPLETED"), None));
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
    let seeing = json!({ "provider": "fake-openai", "model": "big" });
    world.admin().request(Method::PUT, "/llm/configs/seeing").json(&seeing).send().await.expect(201);
    let upstream = Upstream::start().await;
    let png = vec![("content-type", "image/png".to_owned())];
    upstream.reply("/b.png", Reply::Raw(200, png, Bytes::from_static(b"parcel")));
    let image = json!({ "image_url": upstream.url("/b.png"), "media_type": "image/png", "prompt": "A parcel?",
        "config_name": "seeing" });
    let id = begin("/background/describe_image", image).await;
    client.run(&id).completes().await;
    let asked = &provider.asked()[2];
    assert_eq!(asked.images(), [("image/png".to_owned(), "cGFyY2Vs".to_owned())]);
    assert!(asked.body.to_string().contains("A parcel?"), "{}", asked.body);
    provider.script([Turn::Status(401, vec![])]);
    let id = begin("/background/generate_text", json!({ "prompt": "A poem" })).await;
    client.run(&id).wait_end().await;
    let failed = task(&id).await;
    assert_eq!(failed["status"], "FAILURE");
    assert!(failed["error"].as_str().unwrap().starts_with("model_key_refused: "), "{failed}");
    let wrong = json!({ "image": "not base64!", "media_type": "image/png" });
    assert_eq!(client.post("/background/describe_image", &wrong).await.problem(422, "invalid-input")["field"], "image");
}
