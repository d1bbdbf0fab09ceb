//! Models as workflows use them: configurations, templates and keys over the wire, answers that stream, and everything
//! that goes wrong with providers.

use std::time::Duration;

use fermata::{app::Role, kernel::Span};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row;

use crate::world::{APIS, Answer, Client, KEY, Provider, Run, Turn, World};

/// A world with a provider for each protocol, where nothing is waited for before a repetition.
async fn world_with(provider: &Provider) -> World {
    World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
    })
    .await
}

async fn put(client: &Client, path: &str, body: Value) -> Answer {
    client.request(Method::PUT, path).json(&body).send().await
}

/// Puts a configuration named as its provider.
async fn configure(world: &World, provider: &str, more: Value) {
    let mut body =
        json!({ "provider": provider, "model": "m", "price": { "input": 1.0, "output": 2.0, "cached": 0.5 } });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = put(&world.admin(), &format!("/llm/configs/{provider}"), body).await;
    assert!([200, 201].contains(&answer.status), "{}", answer.text());
}

/// Begins a run of one question.
async fn ask(world: &World, with: Value) -> Run {
    let plan =
        json!({ "steps": [{ "id": "ask", "uses": "llm.generate", "with": with }], "output": "{{ steps.ask.output }}" });
    world.operator().start(plan).await
}

/// The payloads of all events of that name.
async fn payloads(run: &Run, name: &str) -> Vec<Value> {
    run.events().await.into_iter().filter(|event| event["step"] == name).map(|event| event["payload"].clone()).collect()
}

/// What a client has on its screen after all deltas: those of the last reply, which follow each other without a gap.
fn screen(deltas: &[Value]) -> String {
    let (mut text, mut reply) = (String::new(), 0);
    for delta in deltas {
        if delta["reply"] != reply || delta["offset"] == 0 {
            (text, reply) = (String::new(), delta["reply"].as_u64().unwrap());
        }
        assert_eq!(delta["offset"], text.len(), "{deltas:#?}");
        text.push_str(delta["text"].as_str().unwrap());
    }
    text
}

#[tokio::test]
async fn every_protocol_is_spoken_and_its_words_are_told() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (place, (name, _)) in APIS.into_iter().enumerate() {
        configure(&world, name, json!({ "temperature": 0.5, "maxTokens": 100 })).await;
        provider.script([Turn::say("It is in the post.")]);
        let run = ask(&world, json!({ "config": name, "system": "Be kind.", "prompt": "Where is order 1042?" })).await;
        let output = run.completes().await["output"].clone();
        assert_eq!(output["text"], "It is in the post.", "{name}");
        assert_eq!(output["usage"], json!({ "inputTokens": 10, "cachedTokens": 4, "outputTokens": 5 }), "{name}");
        assert_eq!(output["config"], format!("{name}@1"));
        assert_eq!(output["stop"], "done");
        assert_eq!(screen(&payloads(&run, "message.delta").await), "It is in the post.");
        let [message] = &payloads(&run, "message.completed").await[..] else { panic!("one message") };
        assert_eq!((&message["text"], &message["reply"]), (&json!("It is in the post."), &json!(1)));
        let cost = (6.0 + 4.0 * 0.5 + 5.0 * 2.0) / 1_000_000.0;
        assert!((run.get().await["cost"].as_f64().unwrap() - cost).abs() < 1e-12, "{name}");
        let asked = &provider.asked()[place];
        assert_eq!(asked.key(), Some(KEY), "{name}");
        let sent = asked.body.to_string();
        assert!(sent.contains("Be kind.") && sent.contains("Where is order 1042?"), "{sent}");
        let lengths = ["max_completion_tokens", "max_tokens", "max_output_tokens", "maxOutputTokens"];
        let is_bounded = lengths.iter().any(|length| sent.contains(&format!("\"{length}\":100")));
        assert!(sent.contains("\"temperature\":0.5") && is_bounded, "{sent}");
    }
}

#[tokio::test]
async fn whatever_passes_is_asked_again_and_the_words_before_do_not_count() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let mut asked = 0;
    for (name, _) in APIS {
        configure(&world, name, json!({})).await;
        for fault in Turn::passing() {
            provider.script([fault.clone(), Turn::say("All is well.")]);
            let run = ask(&world, json!({ "config": name, "prompt": "Well?" })).await;
            assert_eq!(run.completes().await["output"]["text"], "All is well.", "{name}, {fault:?}");
            assert_eq!(screen(&payloads(&run, "message.delta").await), "All is well.", "{name}, {fault:?}");
            let [told] = &payloads(&run, "tool.progress").await[..] else { panic!("{name}, {fault:?}: one trouble") };
            let kind = if matches!(fault, Turn::Empty) { "asked_again" } else { "retrying" };
            assert_eq!(told["data"]["model"], kind, "{name}, {fault:?}");
            assert!(!told.to_string().contains(KEY), "{told}");
            asked += 2;
            assert_eq!(provider.asked().len(), asked, "{name}, {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_asks_for_time_is_given_it() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (header, value) in [("retry-after", "30"), ("retry-after-ms", "30000")] {
        configure(&world, "fake-openai", json!({})).await;
        provider.script([Turn::Status(429, vec![(header, value)])]);
        let before = (world.now(), provider.asked().len());
        let run = ask(&world, json!({ "config": "fake-openai", "prompt": "Now?" })).await;
        let told = run.wait_for("tool.progress").await.data;
        let at: chrono::DateTime<chrono::Utc> = told["payload"]["data"]["at"].as_str().unwrap().parse().unwrap();
        assert!((at - before.0).num_seconds() >= 30, "{told}");
        assert_eq!(provider.asked().len(), before.1 + 1);
        world.advance(Duration::from_secs(31));
        run.completes().await;
    }
}

#[tokio::test]
async fn a_model_that_says_nothing_in_time_is_given_up() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (place, (name, _)) in APIS.into_iter().enumerate() {
        configure(&world, name, json!({ "timeout": "40s" })).await;
        provider.script([Turn::Hang]);
        let run = ask(&world, json!({ "config": name, "prompt": "Still there?" })).await;
        provider.asked_times(place * 2 + 1).await;
        world.advance(Duration::from_secs(41));
        assert_eq!(run.completes().await["output"]["text"], "Hello there.");
        let because = payloads(&run, "tool.progress").await[0]["data"]["because"].to_string();
        assert!(because.contains("within 40s"), "{because}");
    }
}

#[tokio::test]
async fn what_does_not_pass_fails_at_once_and_shows_no_key() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let mut asked = 0;
    for (name, _) in APIS {
        configure(&world, name, json!({})).await;
        for (status, code) in
            [(401, "model_key_refused"), (403, "model_key_refused"), (400, "model_refused"), (404, "model_refused")]
        {
            provider.script([Turn::Status(status, vec![])]);
            let run = ask(&world, json!({ "config": name, "prompt": "Please?" })).await;
            let failed = run.wait_end().await;
            assert_eq!(
                (&failed["status"], &failed["error"]["code"]),
                (&json!("failed"), &json!(code)),
                "{name} {status}"
            );
            let message = failed["error"]["message"].as_str().unwrap();
            assert!(message.contains(&status.to_string()) && message.contains("[the key]"), "{message}");
            assert!(!message.contains(KEY), "{message}");
            asked += 1;
            assert_eq!(provider.asked().len(), asked);
        }
    }
}

#[tokio::test]
async fn repetitions_end_and_then_the_next_configuration_is_asked() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    configure(&world, "fake-anthropic", json!({})).await;
    configure(&world, "fake-openai", json!({ "fallback": ["gone", "fake-anthropic"] })).await;
    provider.script(std::iter::repeat_n(Turn::Status(500, vec![]), 4));
    let run = ask(&world, json!({ "config": "fake-openai", "prompt": "Anybody?" })).await;
    let output = run.completes().await["output"].clone();
    assert_eq!((&output["provider"], &output["config"]), (&json!("fake-anthropic"), &json!("fake-anthropic@1")));
    let told: Vec<_> = payloads(&run, "tool.progress").await.iter().map(|told| told["data"]["model"].clone()).collect();
    assert_eq!(told, ["retrying", "retrying", "retrying", "fell_back"]);
    let paths: Vec<_> = provider.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths.iter().filter(|path| path.ends_with("/chat/completions")).count(), 4);
    assert_eq!(paths.last().unwrap(), "/v1/messages");
    // Without anybody to fall back on it fails, and may be tried again.
    // Of another model, whose circuit breaker has not counted those failures.
    configure(&world, "fake-openai", json!({ "model": "other", "fallback": [] })).await;
    provider.script(std::iter::repeat_n(Turn::Status(500, vec![]), 4));
    let failed = ask(&world, json!({ "config": "fake-openai", "prompt": "Anybody?" })).await.wait_end().await;
    assert_eq!((&failed["error"]["code"], &failed["error"]["retryable"]), (&json!("model_unavailable"), &json!(true)));
}

#[tokio::test]
async fn a_model_that_keeps_failing_is_left_alone_for_a_while() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.max_retries = 0;
        settings.circuit_breaker.failure_threshold = 2;
    })
    .await;
    configure(&world, "fake-openai", json!({})).await;
    let outcome = async || {
        let ended = ask(&world, json!({ "config": "fake-openai", "prompt": "Up?" })).await.wait_end().await;
        ended["error"]["code"].as_str().unwrap_or("answered").to_owned()
    };
    provider.script([Turn::Status(500, vec![]), Turn::Status(500, vec![])]);
    assert_eq!(outcome().await, "model_unavailable");
    assert_eq!(outcome().await, "model_unavailable");
    assert_eq!(outcome().await, "model_left_alone");
    assert_eq!(provider.asked().len(), 2);
    world.advance(Duration::from_secs(61));
    provider.script([Turn::Status(500, vec![])]);
    assert_eq!(outcome().await, "model_unavailable", "it is tried");
    assert_eq!(outcome().await, "model_left_alone", "and left alone again");
    world.advance(Duration::from_secs(61));
    for _ in 0..3 {
        assert_eq!(outcome().await, "answered");
    }
    assert_eq!(provider.asked().len(), 6);
}

#[tokio::test]
async fn an_answer_that_will_not_do_is_asked_for_again_with_the_reason() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let schema = json!({ "type": "object", "required": ["total"], "properties": { "total": { "type": "number" } } });
    let mut asked = 0;
    for (name, _) in APIS {
        configure(&world, name, json!({})).await;
        provider.script([
            Turn::say("It is 7."),
            Turn::say("{\"total\": \"7\"}"),
            Turn::say("```json\n{\"total\": 7}\n```"),
        ]);
        let run = ask(&world, json!({ "config": name, "prompt": "The sum?", "schema": schema })).await;
        let output = run.completes().await["output"].clone();
        assert_eq!(output["json"], json!({ "total": 7 }), "{name}");
        assert_eq!(output["usage"]["inputTokens"], 30, "what was in vain is counted");
        let native = ["response_format", "text", "output_config", "generationConfig"];
        let first = &provider.asked()[asked].body;
        assert!(native.iter().any(|field| first[field].to_string().contains("\"total\"")), "{first}");
        asked += 3;
        let last = provider.asked().last().unwrap().body.to_string();
        assert!(last.contains("It is 7.") && last.contains("cannot be used"), "{last}");
    }
    let expect = json!({ "expect": { "minLength": 8, "errorPhrases": ["As an AI"] } });
    configure(&world, "fake-openai", expect).await;
    provider.script([Turn::say("Hm."), Turn::say("as an ai, I cannot."), Turn::say("The third of May.")]);
    let run = ask(&world, json!({ "config": "fake-openai", "prompt": "When?" })).await;
    assert_eq!(run.completes().await["output"]["text"], "The third of May.");
    provider.script(std::iter::repeat_n(Turn::say("Hm."), 4));
    let failed = ask(&world, json!({ "config": "fake-openai", "prompt": "When?" })).await.wait_end().await;
    assert_eq!(failed["error"]["code"], "model_answer_invalid");
    // Cut off at the most tokens it is still an answer, and says so.
    provider.script([Turn::SayUntilFull(vec!["A long ".to_owned(), "story".to_owned()])]);
    let run = ask(&world, json!({ "config": "fake-openai", "prompt": "Tell" })).await;
    assert_eq!(run.completes().await["output"]["stop"], "length");
}

#[tokio::test]
async fn words_are_told_while_the_model_speaks_and_in_company() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    configure(&world, "fake-openai", json!({})).await;
    provider.script([Turn::SayHeld(vec!["First ".to_owned(), "second ".to_owned(), "third".to_owned()], 2)]);
    let run = ask(&world, json!({ "config": "fake-openai", "prompt": "Count" })).await;
    let mut follow = run.follow().await;
    let mut said = String::new();
    while said != "First second " {
        said += follow.until("message.delta").await.data["payload"]["text"].as_str().unwrap();
    }
    assert_eq!(run.get().await["status"], "executing");
    provider.release();
    run.completes().await;
    // Four thousand words in one go do not make four thousand events.
    let words: Vec<_> = (0..4000).map(|_| "word ".to_owned()).collect();
    provider.script([Turn::Say(words.clone())]);
    let run = ask(&world, json!({ "config": "fake-openai", "prompt": "Many" })).await;
    run.completes().await;
    let deltas = payloads(&run, "message.delta").await;
    assert_eq!(screen(&deltas), words.concat());
    assert!(deltas.len() < 400, "{} deltas", deltas.len());
}

#[tokio::test]
async fn a_worker_that_dies_in_the_middle_of_a_sentence_leaves_it_to_another() {
    let provider = Provider::start().await;
    let world = World::without_worker(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.worker.lease = Span::seconds(3);
    })
    .await;
    configure(&world, "fake-openai", json!({})).await;
    let first = world.mortal(Role::Worker).await;
    provider.script([Turn::SayHeld(vec!["To be ".to_owned(), "or not".to_owned()], 1), Turn::say("To be or not.")]);
    let run = ask(&world, json!({ "config": "fake-openai", "prompt": "Hamlet" })).await;
    run.wait_for("message.delta").await;
    first.kill();
    let second = world.server(Role::Worker).await;
    assert_eq!(run.completes().await["output"]["text"], "To be or not.");
    assert_eq!(screen(&payloads(&run, "message.delta").await), "To be or not.");
    assert_eq!(payloads(&run, "message.completed").await.len(), 1);
    let started = payloads(&run, "step.started").await;
    assert_eq!(started.len(), 2);
    assert_eq!(started[1]["repeated"], true);
    assert_eq!(provider.asked().len(), 2);
    second.stop().await;
}

#[tokio::test]
async fn configurations_and_templates_have_versions_and_count_at_once() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let (admin, viewer) = (world.admin(), world.viewer());
    let config = |model: &str| json!({ "provider": "fake-openai", "model": model });
    let first = put(&admin, "/llm/configs/mine", config("one")).await;
    assert_eq!(first.expect(201)["version"], 1);
    assert_eq!(first.header("location"), Some("/llm/configs/mine?version=1"));
    assert_eq!(put(&admin, "/llm/configs/mine", config("one")).await.expect(200)["version"], 1);
    assert_eq!(put(&admin, "/llm/configs/mine", config("two")).await.expect(201)["version"], 2);
    assert_eq!(viewer.get("/llm/configs/mine").await.expect(200)["body"]["model"], "two");
    assert_eq!(viewer.get("/llm/configs/mine?version=1").await.expect(200)["body"]["model"], "one");
    for (config, model) in [("mine", "two"), ("mine@1", "one"), ("default-smart", "big"), ("default-fast", "small")] {
        ask(&world, json!({ "config": config, "prompt": "Who?" })).await.completes().await;
        assert_eq!(provider.asked().last().unwrap().body["model"], model, "{config}");
    }
    let listed = viewer.get("/llm/configs").await.expect(200);
    let names: Vec<_> = listed["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect();
    let brought = ["default-smart", "default-fast", "default-embed", "default-speech", "default-transcription"];
    assert_eq!(names, [&["mine"], &brought[..]].concat());
    let versions = viewer.get("/llm/configs/mine/versions").await.expect(200);
    assert_eq!(
        versions["items"].as_array().unwrap().iter().map(|item| item["version"].clone()).collect::<Vec<_>>(),
        [2, 1]
    );

    let template = json!({ "content": "In {{ language }}: {{ prompt }}",
        "variables": { "prompt": {}, "language": { "default": "English" } } });
    put(&admin, "/llm/templates/say", template).await.expect(201);
    let given = json!({ "variables": { "prompt": "hello" } });
    let preview = viewer.post("/llm/templates/say/preview", &given).await.expect(200);
    assert_eq!(preview, json!({ "text": "In English: hello" }));
    let with = json!({ "config": "mine", "template": "say", "variables": { "language": "Danish" }, "prompt": "hello" });
    let output = ask(&world, with).await.completes().await["output"].clone();
    assert_eq!(output["template"], "say@1");
    assert!(provider.asked().last().unwrap().body.to_string().contains("In Danish: hello"));
    let brought = viewer.get("/llm/templates/default-assistant").await.expect(200);
    assert_eq!((&brought["version"], &brought["createdBy"]), (&json!(0), &json!("system")));

    // Deleted, it is out of use; its versions stay.
    admin.request(Method::DELETE, "/llm/configs/mine").send().await.expect(204);
    viewer.get("/llm/configs/mine").await.problem(404, "not-found");
    assert_eq!(viewer.get("/llm/configs/mine?version=2").await.expect(200)["body"]["model"], "two");
    admin.request(Method::DELETE, "/llm/configs/mine").send().await.problem(404, "not-found");
    let failed = ask(&world, json!({ "config": "mine", "prompt": "Who?" })).await.wait_end().await;
    assert_eq!(failed["error"]["code"], "unknown_model_config");
    assert_eq!(put(&admin, "/llm/configs/mine", config("two")).await.expect(201)["version"], 4);
    let mut session = world.superuser().await;
    let audit = sqlx::query("select action, target from audit_log where action like 'llm.%' order by audit_id");
    let audit: Vec<(String, String)> =
        audit.fetch_all(&mut session).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = ["config.put mine", "config.put mine", "template.put say", "config.delete mine", "config.put mine"];
    assert_eq!(audit.iter().map(|(action, target)| format!("{} {target}", &action[4..])).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn what_cannot_be_put_is_refused_by_its_field() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let admin = world.admin();
    for (path, body, field) in [
        ("/llm/configs/a", json!({ "provider": "nobody", "model": "m" }), "provider"),
        ("/llm/configs/a", json!({ "provider": "fake-openai", "model": "m", "temperature": 2.5 }), "temperature"),
        ("/llm/configs/a", json!({ "provider": "fake-openai" }), ""),
        ("/llm/configs/A", json!({ "provider": "fake-openai", "model": "m" }), "name"),
        ("/llm/templates/a", json!({ "content": "{{ who }}" }), "content"),
        ("/llm/keys/a", json!({ "secret": "with a space" }), "secret"),
    ] {
        let problem = put(&admin, path, body).await.problem(422, "invalid-input");
        assert_eq!(problem["field"], field, "{problem}");
    }
}

#[tokio::test]
async fn a_tenants_key_goes_to_its_endpoint_and_the_operators_nowhere_else() {
    let (provider, elsewhere) = (Provider::start().await, Provider::start().await);
    let world = world_with(&provider).await;
    let admin = world.admin();
    let secret = "sk-tenant-abcdefghij";
    assert_eq!(put(&admin, "/llm/keys/ours", json!({ "secret": secret })).await.expect(201)["name"], "ours");
    put(&admin, "/llm/keys/ours", json!({ "secret": secret })).await.expect(200);
    configure(&world, "fake-openai", json!({ "endpoint": elsewhere.url(), "key": "ours" })).await;
    ask(&world, json!({ "config": "fake-openai", "prompt": "Hi" })).await.completes().await;
    assert_eq!(elsewhere.asked()[0].key(), Some(secret));
    // A place that the tenant names never sees the operator's key.
    configure(&world, "fake-anthropic", json!({ "endpoint": elsewhere.url() })).await;
    ask(&world, json!({ "config": "fake-anthropic", "prompt": "Hi" })).await.completes().await;
    assert_ne!(elsewhere.asked()[1].key(), Some(KEY));
    assert_eq!(provider.asked().len(), 0);

    let listed = world.viewer().get("/llm/keys").await.expect(200);
    assert_eq!(listed["items"][0]["name"], "ours");
    let mut session = world.superuser().await;
    let rows = sqlx::query("select llm_keys::text, sealed from llm_keys").fetch_all(&mut session);
    for row in rows.await.unwrap() {
        let text = row.get::<String, _>(0) + &String::from_utf8_lossy(&row.get::<Vec<u8>, _>(1));
        assert!(!text.contains(secret) && !listed.to_string().contains(secret));
    }
    // Another tenant's row stays shut, even in its place.
    let theirs = "update llm_keys set tenant_id = $1";
    sqlx::query(theirs).bind(world.abroad().uuid()).execute(&mut session).await.unwrap();
    let failed = ask(&world, json!({ "config": "fake-openai", "prompt": "Hi" })).await.wait_end().await;
    assert_eq!(failed["error"]["code"], "model_misconfigured", "{failed}");
    sqlx::query("update llm_keys set tenant_id = $1, name = 'yours'")
        .bind(world.home().uuid())
        .execute(&mut session)
        .await
        .unwrap();
    configure(&world, "fake-openai", json!({ "endpoint": elsewhere.url(), "key": "yours" })).await;
    let failed = ask(&world, json!({ "config": "fake-openai", "prompt": "Hi" })).await.wait_end().await;
    assert_eq!(failed["error"]["code"], "internal", "sealed for another name");
    admin.request(Method::DELETE, "/llm/keys/yours").send().await.expect(204);
    admin.request(Method::DELETE, "/llm/keys/yours").send().await.problem(404, "not-found");
    assert_eq!(elsewhere.asked().len(), 2);
}

#[tokio::test]
async fn a_tenant_cannot_have_the_inside_asked_but_the_operator_can() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.tools.loopback = false;
    })
    .await;
    configure(&world, "fake-openai", json!({})).await;
    ask(&world, json!({ "config": "fake-openai", "prompt": "Hi" })).await.completes().await;
    for inside in [provider.url().to_owned(), provider.url().replace("127.0.0.1", "localhost")] {
        configure(&world, "fake-openai", json!({ "endpoint": inside })).await;
        let failed = ask(&world, json!({ "config": "fake-openai", "prompt": "Hi" })).await.wait_end().await;
        let message = failed["error"]["message"].as_str().unwrap();
        assert!(message.contains("is not on the public internet"), "{failed}");
    }
    assert_eq!(provider.asked().len(), 1);
}

#[tokio::test]
async fn without_a_vault_no_key_is_taken_and_without_a_key_there_is_no_model() {
    let world = World::with(|settings| {
        settings.vault.secret = None;
        settings.llm.providers.retain(|name, _| name == "openai");
    })
    .await;
    let refused = put(&world.admin(), "/llm/keys/ours", json!({ "secret": "sk-1" })).await.problem(409, "conflict");
    assert!(refused["detail"].as_str().unwrap().contains("vault.secret"), "{refused}");
    let failed = ask(&world, json!({ "prompt": "Hi" })).await.wait_end().await;
    assert_eq!(failed["error"]["code"], "unknown_model_config");
    assert_eq!(
        world.viewer().get("/llm/providers").await.expect(200)["items"],
        json!([{ "name": "openai", "ready": false }])
    );
    put(&world.admin(), "/llm/configs/mine", json!({ "provider": "openai", "model": "m" })).await.expect(201);
    let failed = ask(&world, json!({ "config": "mine", "prompt": "Hi" })).await.wait_end().await;
    assert!(failed["error"]["message"].as_str().unwrap().contains("there is no key for the provider"), "{failed}");
}

#[tokio::test]
async fn a_provider_that_needs_no_key_is_of_use_without_one() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        let fakes = provider.settings().filter(|(name, _)| name == "fake-openai");
        settings.llm.providers = fakes.map(|(_, fake)| ("ollama".to_owned(), fake)).collect();
        let ollama = settings.llm.providers.get_mut("ollama").unwrap();
        (ollama.key, ollama.keyless) = (None, true);
    })
    .await;
    let ready = json!([{ "name": "ollama", "ready": true }]);
    assert_eq!(world.viewer().get("/llm/providers").await.expect(200)["items"], ready);
    configure(&world, "ollama", json!({})).await;
    for config in ["default-smart", "ollama"] {
        let output = ask(&world, json!({ "config": config, "prompt": "Hi" })).await.completes().await["output"].clone();
        assert_eq!((&output["text"], &output["provider"]), (&json!("Hello there."), &json!("ollama")), "{config}");
    }
    let models: Vec<_> = provider.asked().iter().map(|asked| asked.body["model"].clone()).collect();
    assert_eq!(models, ["big", "m"]);
    assert!(provider.asked().iter().all(|asked| asked.key() == Some("none")), "nobody's key is shown");
}
