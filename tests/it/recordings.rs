//! Recordings that are written down by address: they reach the provider whole, or the step says why not.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Provider, Reply, Run, SOUND, Turn, Upstream, World};

/// More than a call's arguments take.
const LONG: usize = 300_000;

fn sound(media_type: &str, bytes: impl Into<Bytes>) -> Reply {
    Reply::Raw(200, vec![("content-type", media_type.to_owned())], bytes.into())
}

async fn world_with(provider: &Provider, change: impl FnOnce(&mut fermata::config::Settings)) -> World {
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
        change(settings);
    })
    .await;
    let config = json!({ "provider": "fake-openai", "model": "m" });
    world.admin().request(Method::PUT, "/llm/configs/ear").json(&config).send().await.expect(201);
    world
}

async fn write_down(world: &World, url: &str) -> Run {
    let with = json!({ "config": "ear", "audioUrl": url, "mediaType": "audio/ogg" });
    let plan = json!({ "steps": [{ "id": "hear", "uses": "speech.transcribe", "with": with }],
        "output": "{{ steps.hear.output.text }}" });
    world.operator().start(plan).await
}

/// Why the recording at this address is not written down, and whether trying again may help.
async fn refusal(world: &World, url: &str) -> (String, bool) {
    let error = write_down(world, url).await.wait_end().await["error"].clone();
    (error["code"].as_str().unwrap_or_default().to_owned(), error["retryable"] == true)
}

#[tokio::test]
async fn a_recording_is_fetched_where_it_is_and_written_down_whole() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider, |_| ()).await;
    upstream.reply("/note", sound("audio/ogg; codecs=opus", [SOUND, &[b'~'; LONG]].concat()));
    upstream.reply("/moved", Reply::Raw(302, vec![("location", "/note".to_owned())], Bytes::new()));
    // Asked again it is not fetched again.
    provider.script([Turn::Status(503, vec![("retry-after", "0")])]);
    let run = write_down(&world, &upstream.url("/moved")).await;
    assert_eq!(run.completes().await["output"], "Hello there.");
    assert_eq!(upstream.requests_to("/note").len(), 1);
    let asked = provider.asked();
    assert_eq!(asked.len(), 2);
    for asked in asked {
        let form = asked.body["form"].as_str().unwrap();
        assert!(form.contains("filename=\"audio.ogg\"") && form.contains("Content-Type: audio/ogg"), "its type");
        assert_eq!(form.matches('~').count(), LONG);
    }
    // What is journaled is where it was.
    let events = json!(run.events().await).to_string();
    assert!(events.contains(&upstream.url("/moved")) && !events.contains("~~~"));
}

#[tokio::test]
async fn a_recording_that_is_not_to_be_had_fails_the_step_and_nobody_is_asked() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider, |settings| settings.llm.audio_bytes = 1000).await;
    for (path, reply, code, passes) in [
        ("/gone", Reply::Json(404, json!({})), "audio_unreachable", false),
        ("/busy", Reply::Json(503, json!({})), "audio_unreachable", true),
        ("/page", sound("text/html", "<html>"), "audio_invalid", false),
        ("/other", sound("audio/wav", SOUND), "audio_invalid", false),
        ("/empty", sound("audio/ogg", Bytes::new()), "audio_invalid", false),
        ("/large", sound("audio/ogg", vec![0; 1001]), "audio_too_large", false),
    ] {
        upstream.reply(path, reply);
        assert_eq!(refusal(&world, &upstream.url(path)).await, (code.to_owned(), passes), "{path}");
    }
    upstream.reply("/slow", Reply::Hang);
    let run = write_down(&world, &upstream.url("/slow")).await;
    upstream.arrived("/slow", 1).await;
    world.advance(Duration::from_secs(31));
    let error = run.wait_end().await["error"].clone();
    assert_eq!((&error["code"], &error["retryable"]), (&json!("audio_unreachable"), &json!(true)));
    let shut = world_with(&provider, |settings| settings.tools.loopback = false).await;
    for inside in [upstream.url("/note"), "http://169.254.169.254/latest".to_owned()] {
        assert_eq!(refusal(&shut, &inside).await, ("address_refused".to_owned(), false), "{inside}");
    }
    assert!(provider.asked().is_empty() && upstream.requests_to("/note").is_empty());
}

#[tokio::test]
async fn a_recording_is_written_down_in_the_background_by_address_and_the_forecast_names_that() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider, |_| ()).await;
    upstream.reply("/note", sound("audio/ogg", SOUND));
    let client = world.operator();
    let body = json!({ "audio_url": upstream.url("/note"), "media_type": "audio/ogg", "language": "id" });
    let taken = client.post("/background/transcribe_speech", &body).await.expect(202);
    let id = taken["task_id"].as_str().unwrap();
    client.run(id).completes().await;
    let task = client.get(&format!("/background/tasks/{id}")).await.expect(200);
    assert_eq!((&task["status"], &task["result"]), (&json!("SUCCESS"), &json!("Hello there.")));
    for (body, field) in [
        (json!({ "media_type": "audio/ogg" }), "audio"),
        (json!({ "media_type": "audio/ogg", "audio": "SUQz", "audio_url": "https://a.example/b.ogg" }), "audio_url"),
        (json!({ "media_type": "audio/ogg", "audio_url": "ftp://a.example/b.ogg" }), "audio_url"),
        (json!({ "media_type": "image/png", "audio_url": "https://a.example/b.png" }), "media_type"),
    ] {
        let refused = client.post("/background/transcribe_speech", &body).await.problem(422, "invalid-input");
        assert_eq!(refused["field"], field, "{body}");
    }
    let both = json!({ "audio": "SUQz", "audioUrl": upstream.url("/note"), "mediaType": "audio/ogg" });
    let plan =
        |with: Value| json!({ "plan": { "steps": [{ "id": "hear", "uses": "speech.transcribe", "with": with }] } });
    client.post("/agent/plan", &plan(both)).await.problem(422, "invalid-definition");
    let one = json!({ "audioUrl": upstream.url("/note"), "mediaType": "audio/ogg" });
    let run = client.post("/agent/plan", &plan(one)).await.expect(202);
    let ready = client.run(run["runId"].as_str().unwrap()).wait_for("plan.ready").await.data;
    assert_eq!(ready["payload"]["forecast"][0]["touches"], format!("GET {}", upstream.url("/note")));
}
