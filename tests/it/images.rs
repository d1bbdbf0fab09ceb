//! Images that a model is shown: by their bytes or by address, they reach every provider, or the step says why not.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{APIS, Provider, Reply, Run, Turn, Upstream, World};

/// The beginning of a picture, which is no text.
const PIXELS: &[u8] = b"\x89PNG\r\n\x1a\n\x00\xff\xfe";

fn picture(media_type: &str, bytes: impl Into<Bytes>) -> Reply {
    Reply::Raw(200, vec![("content-type", media_type.to_owned())], bytes.into())
}

fn moved(to: &str) -> Reply {
    Reply::Raw(302, vec![("location", to.to_owned())], Bytes::new())
}

/// A world with a configuration for each protocol, named as its provider.
async fn world_with(provider: &Provider, image_bytes: usize) -> World {
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.image_bytes = image_bytes;
    })
    .await;
    for (name, _) in APIS {
        let config = json!({ "provider": name, "model": "m" });
        world.admin().request(Method::PUT, &format!("/llm/configs/{name}")).json(&config).send().await.expect(201);
    }
    world
}

async fn show(world: &World, config: &str, images: Value) -> Run {
    let with = json!({ "config": config, "prompt": "What is it?", "images": images });
    world.operator().start(json!({ "steps": [{ "id": "look", "uses": "llm.generate", "with": with }] })).await
}

/// Why the images at these addresses are not shown, and whether trying again may help.
async fn refusal(world: &World, urls: &[String]) -> (String, bool) {
    let images: Vec<_> = urls.iter().map(|url| json!({ "mediaType": "image/png", "url": url })).collect();
    let error = show(world, "fake-anthropic", json!(images)).await.wait_end().await["error"].clone();
    (error["code"].as_str().unwrap_or_default().to_owned(), error["retryable"] == true)
}

#[tokio::test]
async fn an_image_reaches_every_provider_by_its_bytes_and_by_address() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider, 1000).await;
    upstream.reply("/cat", picture("image/png", PIXELS));
    upstream.reply("/dog", picture("image/jpeg; charset=binary", &b"\xff\xd8\xff"[..]));
    upstream.reply("/moved", moved("/dog"));
    let cat = BASE64_STANDARD.encode(PIXELS);
    for (place, (name, _)) in APIS.into_iter().enumerate() {
        let images = json!([
            { "mediaType": "image/gif", "data": "R0lGODlh" },
            { "mediaType": "image/png", "url": upstream.url("/cat") },
            { "mediaType": "image/jpeg", "url": upstream.url("/moved") },
        ]);
        let run = show(&world, name, images).await;
        run.completes().await;
        let shown = [("image/gif", "R0lGODlh"), ("image/png", &*cat), ("image/jpeg", "/9j/")];
        let shown = shown.map(|(media_type, data)| (media_type.to_owned(), data.to_owned()));
        assert_eq!(provider.asked()[place].images(), shown, "{name}: {}", provider.asked()[place].body);
        // What is journaled is where it was.
        let events = json!(run.events().await).to_string();
        assert!(events.contains(&upstream.url("/cat")) && !events.contains(&cat), "{name}: {events}");
    }
    // A question that is asked again is not fetched again.
    let before = upstream.requests_to("/cat").len();
    assert_eq!(before, APIS.len());
    provider.script([Turn::Empty, Turn::say("A cat.")]);
    let again = json!([{ "mediaType": "image/png", "url": upstream.url("/cat") }]);
    show(&world, "fake-openai", again).await.completes().await;
    assert_eq!(upstream.requests_to("/cat").len(), before + 1);
    assert_eq!(provider.asked().last().unwrap().images().len(), 1, "the image is shown again");
}

#[tokio::test]
async fn an_image_that_is_not_to_be_had_fails_the_step_and_nobody_is_asked() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider, 1000).await;
    for (path, reply, code, passes) in [
        ("/gone", Reply::Json(404, json!({})), "image_unreachable", false),
        ("/busy", Reply::Json(503, json!({})), "image_unreachable", true),
        ("/nowhere", Reply::Raw(302, vec![], Bytes::new()), "image_unreachable", false),
        ("/round", moved("/round"), "image_unreachable", false),
        ("/page", picture("text/html", "<html>"), "image_invalid", false),
        ("/other", picture("image/webp", PIXELS), "image_invalid", false),
        ("/bare", Reply::Raw(200, vec![], Bytes::from_static(PIXELS)), "image_invalid", false),
        ("/empty", picture("image/png", Bytes::new()), "image_invalid", false),
        ("/large", picture("image/png", vec![0; 1001]), "image_too_large", false),
        ("/away", moved("http://user:secret@a.example/"), "url_refused", false),
    ] {
        upstream.reply(path, reply);
        assert_eq!(refusal(&world, &[upstream.url(path)]).await, (code.to_owned(), passes), "{path}");
    }
    assert_eq!(upstream.requests_to("/round").len(), 6);
    // All of them share the room.
    upstream.reply("/half", picture("image/png", vec![0; 600]));
    let both = [upstream.url("/half"), upstream.url("/half")];
    assert_eq!(refusal(&world, &both[..1]).await.0, "", "one has room");
    assert_eq!(refusal(&world, &both).await, ("image_too_large".to_owned(), false));
    assert_eq!(provider.asked().len(), 1);
}

#[tokio::test]
async fn an_image_is_not_waited_for_without_end() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider, 1000).await;
    upstream.reply("/slow", Reply::Hang);
    let images = json!([{ "mediaType": "image/png", "url": upstream.url("/slow") }]);
    let run = show(&world, "fake-openai", images).await;
    upstream.arrived("/slow", 1).await;
    world.advance(Duration::from_secs(31));
    let error = run.wait_end().await["error"].clone();
    assert_eq!((&error["code"], &error["retryable"]), (&json!("image_unreachable"), &json!(true)));
}

#[tokio::test]
async fn an_image_cannot_be_fetched_from_the_inside() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.tools.loopback = false;
    })
    .await;
    let config = json!({ "provider": "fake-anthropic", "model": "m" });
    world.admin().request(Method::PUT, "/llm/configs/fake-anthropic").json(&config).send().await.expect(201);
    let inside = upstream.url("/cat");
    for url in [inside.clone(), inside.replace("127.0.0.1", "localhost"), "http://169.254.169.254/latest".to_owned()] {
        assert_eq!(refusal(&world, std::slice::from_ref(&url)).await, ("address_refused".to_owned(), false), "{url}");
    }
    assert!(upstream.requests().is_empty() && provider.asked().is_empty());
}

#[tokio::test]
async fn a_forecast_names_whom_images_are_fetched_from() {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let world = world_with(&provider, 1000).await;
    let with = json!({ "config": "fake-openai", "prompt": "What is it?",
        "images": [{ "mediaType": "image/gif", "data": "R0lGODlh" }, { "mediaType": "image/png", "url": upstream.url("/cat") }] });
    let plan = json!({ "plan": { "steps": [{ "id": "look", "uses": "llm.generate", "with": with }] } });
    let run = world.operator().post("/agent/plan", &plan).await.expect(202);
    let run = world.operator().run(run["runId"].as_str().unwrap());
    let ready = run.wait_for("plan.ready").await.data;
    assert_eq!(ready["payload"]["forecast"][0]["touches"], format!("GET {}", upstream.url("/cat")));
}
