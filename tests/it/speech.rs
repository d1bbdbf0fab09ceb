//! What models give besides words: vectors of texts, speech and transcripts, and everything that goes wrong with them.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use fermata::app::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{KEY, Provider, Run, SOUND, Turn, World};

/// What is asked for in one piece, of each provider that gives it: the tool, the provider and the arguments.
fn asked() -> [(&'static str, &'static str, Value); 7] {
    let texts = json!({ "texts": ["a letter", "a parcel", "a boat"] });
    let recording = json!({ "audio": BASE64_STANDARD.encode(SOUND), "mediaType": "audio/mpeg", "language": "en" });
    [
        ("llm.embed", "fake-openai", texts.clone()),
        ("llm.embed", "fake-responses", texts.clone()),
        ("llm.embed", "fake-gemini", texts),
        ("speech.synthesize", "fake-openai", json!({ "text": "It is in the post." })),
        ("speech.synthesize", "fake-responses", json!({ "text": "It is in the post." })),
        ("speech.transcribe", "fake-openai", recording.clone()),
        ("speech.transcribe", "fake-responses", recording),
    ]
}

async fn world_with(provider: &Provider) -> World {
    World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
    })
    .await
}

/// Puts a configuration named as its provider.
async fn configure(world: &World, provider: &str, more: Value) {
    let mut body = json!({ "provider": provider, "model": "m", "price": { "input": 1.0, "output": 2.0 } });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = world.admin().request(Method::PUT, &format!("/llm/configs/{provider}")).json(&body).send().await;
    assert!([200, 201].contains(&answer.status), "{}", answer.text());
}

/// Begins a run of one step.
async fn run(world: &World, tool: &str, config: &str, with: &Value) -> Run {
    let mut with = with.clone();
    with["config"] = json!(config);
    let plan = json!({ "steps": [{ "id": "ask", "uses": tool, "with": with }], "output": "{{ steps.ask.output }}" });
    world.operator().start(plan).await
}

/// What was told of troubles on the way.
async fn troubles(run: &Run) -> Vec<Value> {
    let told = run.events().await.into_iter().filter(|event| event["step"] == "tool.progress");
    told.map(|event| event["payload"]["data"].clone()).collect()
}

/// Whether the output is what the fake provider gives.
fn assert_given(tool: &str, output: &Value) {
    match tool {
        "llm.embed" => {
            assert_eq!(output["embeddings"], json!([[0.1, 0.0, -0.25], [0.1, 1.0, -0.25], [0.1, 2.0, -0.25]]))
        }
        "speech.synthesize" => {
            assert_eq!(BASE64_STANDARD.decode(output["audio"].as_str().unwrap()).unwrap(), SOUND);
            assert_eq!(output["mediaType"], "audio/mpeg");
        }
        _ => assert_eq!(output["text"], "Hello there."),
    }
}

#[tokio::test]
async fn texts_become_vectors_words_become_speech_and_speech_becomes_words() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (place, (tool, name, with)) in asked().into_iter().enumerate() {
        configure(&world, name, json!({})).await;
        let run = run(&world, tool, name, &with).await;
        let done = run.completes().await;
        let output = &done["output"];
        assert_given(tool, output);
        assert_eq!(
            (&output["config"], &output["provider"], &output["model"]),
            (&json!(format!("{name}@1")), &json!(name), &json!("m"))
        );
        // Of speech, the text is counted: a token for four bytes.
        let (read, said) = match tool {
            "speech.synthesize" => (5, 0),
            "speech.transcribe" => (10, 2),
            _ => (10, 0),
        };
        let usage = json!({ "inputTokens": read, "cachedTokens": 0, "outputTokens": said });
        assert_eq!(output["usage"], usage, "{tool} of {name}");
        let cost = f64::from(read + 2 * said) / 1_000_000.0;
        assert!((done["cost"].as_f64().unwrap() - cost).abs() < 1e-12, "{tool} of {name}: {done}");
        // Told as it is of words: so it is in the books.
        let told = run.wait_for("message.completed").await.data["payload"].clone();
        assert_eq!(
            (&told["inputTokens"], &told["outputTokens"], &told["reply"]),
            (&json!(read), &json!(said), &json!(1))
        );
        assert_eq!(told.get("text").is_some(), tool == "speech.transcribe", "{told}");
        let asked = &provider.asked()[place];
        assert_eq!(asked.key(), Some(KEY), "{tool} of {name}");
        let sent = asked.body["form"].as_str().map_or_else(|| asked.body.to_string(), str::to_owned);
        let words: &[&str] = match tool {
            "llm.embed" => &["a letter", "a boat"],
            "speech.synthesize" => {
                &["It is in the post.", "\"voice\":\"alloy\"", "\"response_format\":\"mp3\"", "\"model\":\"m\""]
            }
            _ => &["ID3 a sound", "filename=\"audio.mp3\"", "Content-Type: audio/mpeg", "name=\"language\"\r\n\r\nen"],
        };
        assert!(words.iter().all(|word| sent.contains(word)), "{sent}");
    }
}

#[tokio::test]
async fn many_texts_are_asked_in_as_many_calls_as_the_provider_wants() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let texts: Vec<_> = (0..256).map(|n| format!("text {n}")).collect();
    for (name, calls) in [("fake-openai", 1), ("fake-gemini", 3)] {
        let before = provider.asked().len();
        configure(&world, name, json!({})).await;
        let with = json!({ "texts": texts, "dimensions": 3 });
        let output = run(&world, "llm.embed", name, &with).await.completes().await["output"].clone();
        assert_eq!(output["embeddings"].as_array().unwrap().len(), 256);
        assert_eq!(output["usage"]["inputTokens"], calls * 10, "{name}");
        let asked = provider.asked();
        assert_eq!(asked.len() - before, calls, "{name}");
        assert!(asked[before].body.to_string().contains(":3"), "the dimensions are asked for");
    }
    let too_many = json!({ "plan": [{ "id": "ask", "uses": "llm.embed", "with": { "texts": vec!["x"; 257] } }] });
    let refused = world.operator().post("/agent/execute", &too_many).await.problem(422, "invalid-definition");
    assert!(refused["detail"].as_str().unwrap().contains("at most 256 items"), "{refused}");
}

#[tokio::test]
async fn the_defaults_are_those_of_the_first_provider_that_has_them() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (config, tool, with, model) in [
        ("default-embed", "llm.embed", json!({ "text": "a letter" }), "vectors"),
        ("default-speech", "speech.synthesize", json!({ "text": "Hi" }), "voice"),
        ("default-transcription", "speech.transcribe", json!({ "audio": "SUQz", "mediaType": "audio/mpeg" }), "ear"),
    ] {
        let plan =
            json!({ "steps": [{ "id": "ask", "uses": tool, "with": with }], "output": "{{ steps.ask.output }}" });
        let output = world.operator().start(plan).await.completes().await["output"].clone();
        assert_eq!((&output["config"], &output["model"]), (&json!(format!("{config}@0")), &json!(model)));
    }
}

#[tokio::test]
async fn whatever_passes_is_asked_again() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let mut before = 0;
    for (tool, name, with) in asked() {
        configure(&world, name, json!({})).await;
        for fault in [
            Turn::Status(429, vec![("retry-after", "0")]),
            Turn::Status(500, vec![]),
            Turn::Cut(vec![]),
            Turn::Garbled(vec![]),
            Turn::WrongJson,
            Turn::Empty,
        ] {
            if tool == "speech.transcribe" && matches!(fault, Turn::Empty) {
                // Nobody may have said anything.
                continue;
            }
            provider.script([fault.clone()]);
            let run = run(&world, tool, name, &with).await;
            assert_given(tool, &run.completes().await["output"]);
            let [told] = &troubles(&run).await[..] else { panic!("{tool} of {name}, {fault:?}: one trouble") };
            assert_eq!(told["model"], "retrying", "{tool} of {name}, {fault:?}");
            assert!(!told.to_string().contains(KEY), "{told}");
            before += 2;
            assert_eq!(provider.asked().len(), before, "{tool} of {name}, {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_provider_is_given_the_time_it_asks_for_and_no_more_than_is_its_due() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    for (tool, name, with) in asked() {
        configure(&world, name, json!({ "timeout": "40s" })).await;
        let before = provider.asked().len();
        provider.script([Turn::Status(429, vec![("retry-after", "30")]), Turn::Hang]);
        let run = run(&world, tool, name, &with).await;
        run.wait_for("tool.progress").await;
        assert_eq!(provider.asked().len(), before + 1);
        world.advance(Duration::from_secs(31));
        provider.asked_times(before + 2).await;
        world.advance(Duration::from_secs(41));
        assert_given(tool, &run.completes().await["output"]);
        let told = troubles(&run).await;
        assert!(told[0]["because"].as_str().unwrap().contains("429"), "{tool} of {name}: {told:?}");
        assert!(told[1]["because"].as_str().unwrap().contains("within 40s"), "{tool} of {name}: {told:?}");
    }
}

#[tokio::test]
async fn what_never_passes_fails_with_a_clear_error_or_is_asked_of_another() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
        settings.circuit_breaker.failure_threshold = 1000;
    })
    .await;
    configure(&world, "fake-responses", json!({})).await;
    for (tool, name, with) in asked() {
        if name == "fake-responses" {
            continue;
        }
        for (fault, times, code) in [
            (Turn::Status(401, vec![]), 1, "model_key_refused"),
            (Turn::Status(400, vec![]), 1, "model_refused"),
            (Turn::Status(503, vec![]), 4, "model_unavailable"),
        ] {
            configure(&world, name, json!({ "fallback": [] })).await;
            provider.script(std::iter::repeat_n(fault.clone(), times));
            let failed = run(&world, tool, name, &with).await.wait_end().await;
            assert_eq!(failed["error"]["code"], code, "{tool} of {name}: {failed}");
            let message = failed["error"]["message"].as_str().unwrap();
            assert!(message.contains("[the key]") && !message.contains(KEY), "{message}");
            configure(&world, name, json!({ "fallback": ["fake-responses"] })).await;
            provider.script(std::iter::repeat_n(fault, times));
            let run = run(&world, tool, name, &with).await;
            let output = run.completes().await["output"].clone();
            assert_given(tool, &output);
            assert_eq!(output["config"], "fake-responses@1");
            assert_eq!(troubles(&run).await.last().unwrap()["model"], "fell_back");
        }
    }
    // Where the protocol knows nothing of it, nobody is asked.
    let before = provider.asked().len();
    for (tool, name) in
        [("llm.embed", "fake-anthropic"), ("speech.synthesize", "fake-gemini"), ("speech.transcribe", "fake-gemini")]
    {
        let (.., with) = asked().into_iter().find(|(asked, ..)| *asked == tool).unwrap();
        configure(&world, name, json!({ "fallback": [] })).await;
        let failed = run(&world, tool, name, &with).await.wait_end().await;
        assert_eq!(failed["error"]["code"], "model_misconfigured", "{tool} of {name}");
    }
    assert_eq!(provider.asked().len(), before);
}

#[tokio::test]
async fn sounds_and_vectors_have_to_fit_and_the_error_says_how_much_does() {
    let provider = Provider::start().await;
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.limits.output = 4096;
        settings.limits.arguments = 8192;
        settings.limits.input = 1500;
    })
    .await;
    configure(&world, "fake-openai", json!({})).await;
    let failure = async |tool: &str, with: Value| {
        let failed = run(&world, tool, "fake-openai", &with).await.wait_end().await;
        let text = |field: &str| failed["error"][field].as_str().unwrap_or_default().to_owned();
        (text("code"), text("message"))
    };
    // What fits: 4,096 bytes but for 1,024, and three bytes for four letters.
    let most = (4096 - 1024) / 4 * 3;
    provider.script([Turn::Sound(vec![7; most])]);
    run(&world, "speech.synthesize", "fake-openai", &json!({ "text": "Hi" })).await.completes().await;
    provider.script([Turn::Sound(vec![7; most + 1])]);
    let (code, message) = failure("speech.synthesize", json!({ "text": "Hi" })).await;
    assert!(code == "model_answer_too_large" && message.contains(&most.to_string()), "{code}: {message}");
    let (code, message) = failure("llm.embed", json!({ "texts": vec!["x"; 256], "dimensions": 3 })).await;
    assert!(
        code == "output_too_large" && message.contains("4096") && message.contains("dimensions"),
        "{code}: {message}"
    );
    let asked = provider.asked().len();
    let audio = BASE64_STANDARD.encode(vec![7; 8192]);
    let (code, message) = failure("speech.transcribe", json!({ "audio": audio, "mediaType": "audio/wav" })).await;
    assert!(code == "arguments_too_large" && message.contains("8192"), "{code}: {message}");
    let (code, message) =
        failure("speech.transcribe", json!({ "audio": "not base64", "mediaType": "audio/wav" })).await;
    assert!(code == "invalid_arguments" && message.contains("base64"), "{code}: {message}");
    assert_eq!(provider.asked().len(), asked, "nobody is asked in vain");
    let operator = world.operator();
    let body = json!({ "audio": audio, "media_type": "audio/wav" });
    let refused = operator.post("/background/transcribe_speech", &body).await.problem(422, "invalid-input");
    assert_eq!(refused["field"], "audio");
    assert!(refused["detail"].as_str().unwrap().contains("7168"), "{refused}");
    // What a run's input may have bounds a task too.
    let body = json!({ "text": "x".repeat(2000) });
    let refused = operator.post("/background/synthesize_speech", &body).await.problem(422, "invalid-input");
    assert_eq!(refused["field"], "text");
    assert!(refused["detail"].as_str().unwrap().contains("1500"), "{refused}");
}

#[tokio::test]
async fn a_tenant_cannot_have_the_inside_asked_nor_learn_the_operators_key() {
    let (provider, elsewhere) = (Provider::start().await, Provider::start().await);
    let settings = |loopback: bool| {
        let providers = provider.settings().collect();
        move |settings: &mut fermata::config::Settings| {
            settings.llm.providers = providers;
            settings.tools.loopback = loopback;
        }
    };
    let (open, shut) = (World::with(settings(true)).await, World::with(settings(false)).await);
    for (tool, name, with) in asked() {
        configure(&open, name, json!({ "endpoint": elsewhere.url() })).await;
        run(&open, tool, name, &with).await.completes().await;
        for inside in [elsewhere.url().to_owned(), elsewhere.url().replace("127.0.0.1", "localhost")] {
            configure(&shut, name, json!({ "endpoint": inside })).await;
            let failed = run(&shut, tool, name, &with).await.wait_end().await;
            let message = failed["error"]["message"].as_str().unwrap();
            assert!(message.contains("is not on the public internet"), "{tool} of {name}: {failed}");
        }
    }
    assert_eq!(elsewhere.asked().len(), asked().len());
    assert!(elsewhere.asked().iter().all(|asked| asked.key() != Some(KEY)));
    assert!(provider.asked().is_empty());
}

#[tokio::test]
async fn a_worker_that_dies_over_a_sound_leaves_it_to_another() {
    let provider = Provider::start().await;
    let world = World::without_worker(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.worker.lease = fermata::kernel::Span::seconds(3);
    })
    .await;
    configure(&world, "fake-openai", json!({})).await;
    let first = world.mortal(Role::Worker).await;
    provider.script([Turn::Hang]);
    let run = run(&world, "speech.synthesize", "fake-openai", &json!({ "text": "Hi" })).await;
    provider.asked_times(1).await;
    first.kill();
    let second = world.server(Role::Worker).await;
    assert_given("speech.synthesize", &run.completes().await["output"]);
    assert_eq!(provider.asked().len(), 2, "what was not heard is asked for again, without asking anybody");
    second.stop().await;
}

#[tokio::test]
async fn speech_is_made_and_written_down_in_the_background() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    let client = world.operator();
    let done = async |path: &str, body: Value| {
        let taken = client.post(path, &body).await.expect(202);
        let id = taken["task_id"].as_str().unwrap().to_owned();
        client.run(&id).wait_end().await;
        let mut task = client.get(&format!("/background/tasks/{id}")).await.expect(200);
        assert_eq!(task.as_object_mut().unwrap().remove("task_id"), Some(json!(id)));
        task
    };
    let body = json!({ "text": "It is in the {{ post }}.", "voice": "nova", "format": "opus" });
    let task = done("/background/synthesize_speech", body).await;
    let sound = BASE64_STANDARD.encode(SOUND);
    assert_eq!(task, json!({ "status": "SUCCESS", "result": sound, "media_type": "audio/mpeg" }));
    let sent = provider.asked()[0].body.clone();
    assert_eq!(
        sent,
        json!({ "model": "voice", "input": "It is in the {{ post }}.", "voice": "nova", "response_format": "opus" })
    );
    let body = json!({ "audio": sound, "media_type": "audio/mpeg", "language": "id" });
    let task = done("/background/transcribe_speech", body.clone()).await;
    assert_eq!(task, json!({ "status": "SUCCESS", "result": "Hello there." }));
    provider.script([Turn::Status(401, vec![])]);
    let task = done("/background/transcribe_speech", body).await;
    assert_eq!(task["status"], "FAILURE");
    assert!(task["error"].as_str().unwrap().starts_with("model_key_refused: "), "{task}");
    for (path, body, slug, field) in [
        ("synthesize_speech", json!({ "text": "" }), "invalid-input", "text"),
        ("synthesize_speech", json!({ "text": "x", "voice": "" }), "invalid-input", "voice"),
        ("synthesize_speech", json!({ "text": "x", "config_name": "nobody" }), "no-planner", "config_name"),
        ("transcribe_speech", json!({ "audio": "!", "media_type": "audio/mpeg" }), "invalid-input", "audio"),
        ("transcribe_speech", json!({ "audio": "SUQz", "media_type": "image/png" }), "invalid-input", "media_type"),
        (
            "transcribe_speech",
            json!({ "audio": "SUQz", "media_type": "audio/mpeg", "language": "Indonesian" }),
            "invalid-input",
            "language",
        ),
    ] {
        let problem = client.post(&format!("/background/{path}"), &body).await.problem(422, slug);
        assert_eq!(problem["field"], field, "{body}");
    }
}

#[tokio::test]
async fn a_budget_counts_vectors_and_speech_before_they_are_asked_for() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    configure(&world, "fake-openai", json!({ "price": { "input": 100.0 } })).await;
    for (tool, with) in [
        ("llm.embed", json!({ "config": "fake-openai", "text": "x".repeat(4000) })),
        ("speech.synthesize", json!({ "config": "fake-openai", "text": "x".repeat(4000) })),
    ] {
        let before = provider.asked().len();
        // A thousand tokens at 100 a million cost 0.1.
        let body = json!({ "plan": [{ "id": "ask", "uses": tool, "with": with }], "budget": 0.09 });
        let run = world.operator().execute(body).await;
        let held = run.wait_for("awaiting_approval").await.data["payload"].clone();
        assert_eq!((&held["question"], &held["action"]), (&json!("budget"), &json!(tool)), "{held}");
        assert_eq!(provider.asked().len(), before, "nobody is asked before");
    }
}

#[tokio::test]
async fn how_long_a_recording_is_counts_once_it_is_here_and_is_given_back() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    configure(&world, "fake-openai", json!({ "price": null })).await;
    let caps = json!({ "tokens": 1_000_000 });
    world.admin().request(Method::PUT, "/usage/budget").json(&caps).send().await.expect(200);
    let audio = BASE64_STANDARD.encode("x".repeat(4000));
    let with = json!({ "config": "fake-openai", "audio": audio, "mediaType": "audio/mpeg" });
    run(&world, "speech.transcribe", "fake-openai", &with).await.completes().await;
    let day = world.viewer().get("/usage/budget").await.expect(200);
    assert_eq!(day["reserved"]["tokens"], 0, "{day}");
    // Four bytes may be a token asked, and one said.
    let plan = json!([{ "id": "ask", "uses": "speech.transcribe", "with": with }]);
    let held = world.operator().execute(json!({ "plan": plan, "budget": { "tokens": 2000 } })).await;
    let asked = held.wait_for("awaiting_approval").await.data["payload"].clone();
    assert_eq!(
        (&asked["raises"], &asked["raise"], provider.asked().len()),
        (&json!("tokens"), &json!(2.0), 1),
        "{asked}"
    );
}
