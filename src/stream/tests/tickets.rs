use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
    response::Response,
};
use chrono::TimeDelta;
use http_body_util::BodyExt;

use super::process::{Open, Process, World, problem};
use crate::{config::StreamSettings, kernel::TenantId};

async fn ticket(process: &Process, tenant: TenantId, path: &str) -> String {
    let token = process.token(tenant, Duration::from_secs(600));
    let request = Request::post(format!("{path}/ticket")).header(header::AUTHORIZATION, format!("Bearer {token}"));
    let response = process.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let url = value["url"].as_str().unwrap();
    url.strip_prefix("http://127.0.0.1:8080").unwrap().to_owned()
}

async fn browse(process: &Process, url: &str, headers: &[(&str, &str)]) -> Response {
    let request = headers.iter().fold(Request::get(url), |request, (name, value)| request.header(*name, *value));
    process.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_ticket_works_once_and_its_cookie_lets_the_browser_come_back() {
    let world = World::start("tickets").await;
    let tenant = world.tenant("one").await;
    let process = world.process(StreamSettings::default(), false);
    let run = world.run(tenant).await;
    world.write(tenant, run, &["idle"]).await;
    let path = format!("/workflow/runs/{run}/events");

    let url = ticket(&process, tenant, &path).await;
    let elsewhere = url.replace(&path, "/workflow/events");
    assert_eq!(problem(browse(&process, &elsewhere, &[]).await).await.0, 401);
    assert_eq!(problem(browse(&process, &url, &[("origin", "https://evil.example")]).await).await.0, 403);
    assert_eq!(problem(browse(&process, &url, &[("sec-fetch-site", "cross-site")]).await).await.0, 403);

    let response = browse(&process, &url, &[("origin", "https://console.example")]).await;
    assert_eq!(response.status(), StatusCode::OK);
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.contains(&format!("; Path={path}; Max-Age=")), "{cookie}");
    assert!(cookie.ends_with("; HttpOnly; SameSite=Strict"), "{cookie}");
    Open::new(response).events(1).await;

    assert_eq!(problem(browse(&process, &url, &[]).await).await.0, 401);
    let cookie = cookie.split(';').next().unwrap();
    for url in [url.as_str(), path.as_str()] {
        let back = browse(&process, url, &[("cookie", cookie), ("last-event-id", "evt_1")]).await;
        assert_eq!(back.status(), StatusCode::OK);
        let evil = browse(&process, url, &[("cookie", cookie), ("origin", "null")]).await;
        assert_eq!(evil.status(), StatusCode::FORBIDDEN);
    }
    let elsewhere = browse(&process, "/workflow/events", &[("cookie", cookie)]).await;
    assert_eq!(problem(elsewhere).await.0, 401);

    let late = ticket(&process, tenant, "/workflow/events").await;
    world.moved.send(TimeDelta::seconds(31)).unwrap();
    assert_eq!(problem(browse(&process, &late, &[]).await).await.0, 401);
    world.moved.send(TimeDelta::seconds(601)).unwrap();
    assert_eq!(problem(browse(&process, &url, &[("cookie", cookie)]).await).await.0, 401);
    world.stop(vec![process]).await;
}
