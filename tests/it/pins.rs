//! A run stays with the versions of models and templates that it was opened with.

use fermata::{app::Role, config::Settings};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Asked, Provider, Run, Turn, World};

async fn world_with(provider: &Provider) -> World {
    World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.max_retries = 0;
        settings.circuit_breaker.failure_threshold = 100;
    })
    .await
}

async fn put(world: &World, path: &str, body: Value) {
    world.admin().request(Method::PUT, path).json(&body).send().await.expect(201);
}

async fn config(world: &World, name: &str, model: &str, fallback: &[&str]) {
    let body = json!({ "provider": "fake-openai", "model": model, "fallback": fallback });
    put(world, &format!("/llm/configs/{name}"), body).await;
}

async fn template(world: &World, words: &str) {
    let body = json!({ "content": format!("{words} {{{{ prompt }}}}"), "variables": { "prompt": {} } });
    put(world, "/llm/templates/say", body).await;
}

/// Begins a run that is held before this step.
async fn held(world: &World, step: Value) -> (Run, String) {
    let mut step = step;
    step["id"] = json!("ask");
    step["needs"] = json!(["first"]);
    let first = json!({ "id": "first", "uses": "debug.echo", "approval": { "selfApproval": true } });
    let plan = json!({ "steps": [first, step], "output": "{{ steps.ask.output }}" });
    let run = world.owner().start(plan).await;
    let approval = run.hold().await;
    (run, approval)
}

fn models(asked: &[Asked]) -> Vec<&str> {
    asked.iter().map(|asked| asked.body["model"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_step_asks_what_its_names_meant_when_the_run_was_opened() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    config(&world, "mine", "one", &["other", "gone", "default-fast"]).await;
    config(&world, "other", "two", &[]).await;
    template(&world, "Say").await;
    let with = json!({ "config": "mine", "template": "say", "prompt": "hello" });
    let (run, approval) = held(&world, json!({ "uses": "llm.generate", "with": with })).await;
    let pinned = json!({ "configs": { "mine": ["mine@1", "other@1", "default-fast@0=fake-anthropic/small"] }, "templates": { "say": "say@1" } });
    assert_eq!(run.get().await["plan"]["models"], pinned);
    // Everything changes, and comes over what the server brings along.
    config(&world, "mine", "new", &[]).await;
    config(&world, "other", "new", &[]).await;
    config(&world, "default-fast", "new", &[]).await;
    template(&world, "Sing").await;
    world.admin().request(Method::DELETE, "/llm/configs/other").send().await.expect(204);
    provider.script([Turn::Status(500, vec![]), Turn::Status(500, vec![])]);
    world.owner().approve(&approval).await;
    let output = run.completes().await["output"].clone();
    assert_eq!((&output["config"], &output["template"]), (&json!("default-fast@0"), &json!("say@1")));
    assert_eq!(models(&provider.asked()), ["one", "two", "small"]);
    assert!(provider.asked()[2].body.to_string().contains("Say hello"));
    // A run that begins now asks what there is now.
    let with = json!({ "config": "mine", "template": "say", "prompt": "hello" });
    let (run, approval) = held(&world, json!({ "uses": "llm.generate", "with": with })).await;
    world.owner().approve(&approval).await;
    assert_eq!(run.completes().await["output"]["config"], "mine@2");
    assert!(provider.asked()[3].body.to_string().contains("Sing hello"));
}

#[tokio::test]
async fn what_is_not_active_is_not_asked() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.max_retries = 0;
    })
    .await;
    let off = json!({ "provider": "fake-openai", "model": "off", "active": false });
    put(&world, "/llm/configs/off", off.clone()).await;
    let ask = async |config: &str| {
        let with = json!({ "config": config, "prompt": "hello" });
        world.owner().start(json!([{ "id": "ask", "uses": "llm.generate", "with": with }])).await
    };
    assert_eq!(ask("off").await.wait_end().await["error"]["code"], "model_misconfigured");
    config(&world, "mine", "one", &["off", "default-fast"]).await;
    provider.script([Turn::Status(500, vec![])]);
    ask("mine").await.completes().await;
    assert_eq!(models(&provider.asked()), ["one", "small"]);
    put(&world, "/llm/configs/default-smart", off).await;
    world.owner().post("/agent/plan", &json!({ "goal": "Talk" })).await.problem(422, "no-planner");
}

#[tokio::test]
async fn what_the_server_brings_along_stays_the_model_that_it_was() {
    let provider = Provider::start().await;
    let world = World::without_worker(|settings| settings.llm.providers = provider.settings().collect()).await;
    let held_for = json!([{ "tools": ["data.transform"] }]);
    let agent = json!({ "instructions": "Help.", "tools": ["data.transform"], "approval": held_for });
    put(&world, "/agents/plain", agent).await;
    let worker = world.server(Role::Worker).await;
    provider.script([Turn::call("data_transform", json!({ "value": 1 }))]);
    let talk = world.owner().execute(json!({ "agent": "plain", "goal": "Talk" })).await;
    let consent = talk.hold().await;
    let with = json!({ "config": "default-fast", "prompt": "hello" });
    let (run, approval) = held(&world, json!({ "uses": "llm.generate", "with": with })).await;
    worker.stop().await;
    // The server is started again by an operator who has found better models, of another provider.
    let better = |settings: &mut Settings| {
        let named = settings.llm.providers.iter_mut();
        for (name, provider) in named {
            let speaks = |_: &String| name == "fake-openai";
            provider.smart = Some("better".to_owned()).filter(speaks);
            provider.fast = Some("faster".to_owned()).filter(speaks);
        }
    };
    let _worker = world.server_with(Role::Worker, better).await;
    world.approver().approve(&consent).await;
    talk.completes().await;
    world.owner().approve(&approval).await;
    assert_eq!(run.completes().await["output"]["provider"], "fake-anthropic");
    assert_eq!(models(&provider.asked()), ["big", "big", "small"]);
}

#[tokio::test]
async fn what_is_not_there_or_not_known_yet_is_left_to_the_step() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let step = |with: Value| json!({ "uses": "llm.generate", "with": with });
    let (run, approval) = held(&world, step(json!({ "config": "later", "template": "say", "prompt": "hello" }))).await;
    assert_eq!(run.get().await["plan"].get("models"), None);
    config(&world, "later", "one", &[]).await;
    template(&world, "Say").await;
    world.owner().approve(&approval).await;
    assert_eq!(run.completes().await["output"]["config"], "later@1");
    let (run, approval) = held(&world, step(json!({ "config": "nobody", "prompt": "hello" }))).await;
    world.owner().approve(&approval).await;
    assert_eq!(run.wait_end().await["error"]["code"], "unknown_model_config");
    // An expression of more than the input is read when the step begins.
    let with =
        json!({ "config": "{{ 'later' if steps.first.status == 'completed' else 'nobody' }}", "prompt": "hello" });
    let (run, approval) = held(&world, step(with)).await;
    assert_eq!(run.get().await["plan"].get("models"), None);
    config(&world, "later", "two", &[]).await;
    world.owner().approve(&approval).await;
    assert_eq!(run.completes().await["output"]["config"], "later@2");
    // Who asks nobody has nothing pinned.
    let (run, _) = held(&world, json!({ "uses": "data.transform", "with": { "value": 1 } })).await;
    assert_eq!(run.get().await["plan"].get("models"), None);
}

#[tokio::test]
async fn a_name_that_the_input_gives_is_known_when_the_run_is_opened() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    config(&world, "mine", "one", &[]).await;
    config(&world, "other", "two", &[]).await;
    template(&world, "Say").await;
    let greet = "name: greet\n\
                 steps:\n\
                 - { id: first, uses: debug.echo, approval: { selfApproval: true } }\n\
                 - id: ask\n  \
                   needs: [first]\n  \
                   uses: llm.generate\n  \
                   with: { config: '{{ input.config }}', template: '{{ input.how | default(\"say\") }}', prompt: hello }\n\
                 output: '{{ steps.ask.output }}'";
    world.operator().put_yaml("greet", greet).await.expect(201);
    let run = world.owner().execute(json!({ "workflow": "greet", "input": { "config": "mine" } })).await;
    let approval = run.hold().await;
    let pinned = |configs: Value| json!({ "configs": configs, "templates": { "say": "say@1" } });
    assert_eq!(run.get().await["plan"]["models"], pinned(json!({ "mine": ["mine@1"] })));
    config(&world, "mine", "new", &[]).await;
    template(&world, "Sing").await;
    world.owner().approve(&approval).await;
    let output = run.completes().await["output"].clone();
    assert_eq!((&output["config"], &output["template"]), (&json!("mine@1"), &json!("say@1")));
    // A fork with another input settles the name that this gives, and keeps what was settled.
    let edit = json!({ "stepId": "first", "edit": { "input": { "config": "other" } } });
    let fork = world.owner().post(&run.path("/fork"), &edit).await.expect(202);
    let fork = world.owner().run(fork["runId"].as_str().unwrap());
    let approval = fork.hold().await;
    assert_eq!(fork.get().await["plan"]["models"], pinned(json!({ "mine": ["mine@1"], "other": ["other@1"] })));
    config(&world, "other", "new", &[]).await;
    world.owner().approve(&approval).await;
    let output = fork.completes().await["output"].clone();
    assert_eq!((&output["config"], &output["template"]), (&json!("other@1"), &json!("say@1")));
    assert_eq!(models(&provider.asked()), ["one", "two"]);
}

#[tokio::test]
async fn vectors_and_speech_are_pinned_as_words_are_and_the_usual_ones_too() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (tool, with, config, model) in [
        ("llm.embed", json!({ "text": "hello" }), "default-embed", "vectors"),
        ("speech.synthesize", json!({ "text": "hello" }), "default-speech", "voice"),
    ] {
        let (run, approval) = held(&world, json!({ "uses": tool, "with": with })).await;
        self::config(&world, config, "new", &[]).await;
        world.owner().approve(&approval).await;
        assert_eq!(run.completes().await["output"]["config"], format!("{config}@0"));
        let asked = provider.asked().last().unwrap().body.to_string();
        assert!(asked.contains(model), "{asked}");
    }
}

#[tokio::test]
async fn a_workflow_and_a_child_of_its_own_are_pinned_each_when_it_is_opened() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    config(&world, "mine", "one", &[]).await;
    let child = "name: child\nsteps: [{ id: ask, uses: llm.generate, with: { config: mine, prompt: hello } }]\n\
                 output: '{{ steps.ask.output.config }}'";
    world.operator().put_yaml("child", child).await.expect(201);
    let (run, approval) = held(&world, json!({ "uses": "run.start", "with": { "workflow": "child" } })).await;
    config(&world, "mine", "two", &[]).await;
    world.owner().approve(&approval).await;
    assert_eq!(run.completes().await["output"]["output"], "mine@2");
}

#[tokio::test]
async fn an_agent_falls_back_on_what_there_was_when_its_run_began() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    config(&world, "mine", "one", &["other"]).await;
    config(&world, "other", "two", &[]).await;
    let agent = json!({ "instructions": "Help.", "config": "mine", "tools": ["data.transform"],
        "approval": [{ "tools": ["*"], "terms": { "selfApproval": true } }] });
    put(&world, "/agents/helper", agent).await;
    provider.script([Turn::call("data_transform", json!({ "value": 1 }))]);
    let run = world.owner().execute(json!({ "agent": "helper", "goal": "Compute" })).await;
    let approval = run.hold().await;
    config(&world, "mine", "new", &[]).await;
    config(&world, "other", "new", &[]).await;
    provider.script([Turn::Status(500, vec![]), Turn::say("Done.")]);
    world.owner().approve(&approval).await;
    assert_eq!(run.completes().await["output"], "Done.");
    assert_eq!(models(&provider.asked()), ["one", "one", "two"]);
    assert_eq!(run.get().await["plan"]["agent"]["fallback"], json!(["other@1"]));
}

#[tokio::test]
async fn a_job_that_is_tried_again_asks_what_it_was_submitted_with() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    config(&world, "mine", "one", &[]).await;
    provider.script([Turn::Status(503, vec![("retry-after", "60")])]);
    template(&world, "Say").await;
    let body = json!({ "prompt": "Hello", "config_name": "mine", "template_name": "say" });
    let taken = world.operator().post("/jobs", &body).await.expect(202);
    let run = world.operator().run(taken["job_id"].as_str().unwrap());
    run.wait_for("step.retrying").await;
    config(&world, "mine", "two", &[]).await;
    template(&world, "Sing").await;
    world.advance(std::time::Duration::from_secs(61));
    run.completes().await;
    assert_eq!(models(&provider.asked()), ["one", "one"]);
    assert!(provider.asked()[1].body.to_string().contains("Say Hello"));
}

#[tokio::test]
async fn a_plan_that_a_model_draws_up_or_a_person_changes_is_pinned_when_it_stands() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    config(&world, "mine", "one", &[]).await;
    let step = json!({ "id": "ask", "uses": "llm.generate", "with": { "config": "mine", "prompt": "hello" } });
    provider.script([Turn::call("plan", json!({ "steps": [step], "output": "{{ steps.ask.output.config }}" }))]);
    let client = world.operator();
    let taken = client.post("/agent/plan", &json!({ "goal": "Greet" })).await.expect(202);
    let run = client.run(taken["runId"].as_str().unwrap());
    let ready = run.wait_for("plan.ready").await.data["payload"]["plan"].clone();
    assert_eq!(ready["models"], json!({ "configs": { "mine": ["mine@1"] } }));
    config(&world, "mine", "two", &[]).await;
    let edited = json!({ "plan": { "steps": [step], "output": "{{ steps.ask.output.config }}" } });
    let edited = client.request(Method::PATCH, &run.path("")).json(&edited).send().await.expect(200);
    assert_eq!(edited["plan"]["models"], json!({ "configs": { "mine": ["mine@2"] } }));
    config(&world, "mine", "three", &[]).await;
    client.post("/agent/execute", &json!({ "runId": run.id })).await.expect(202);
    assert_eq!(run.completes().await["output"], "mine@2");
}
