//! Tokens that nobody uses any more: given back to the provider that gave them, and only those.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    connections::{authorize, call, connect, connected, finish, put, shown, status},
    world::{CLIENT, Mcp, Oauth, Revision, World},
};

/// An authorization server that takes tokens back, and what it was given of them, in order.
async fn taking_back() -> Oauth {
    let oauth = Oauth::start().await;
    oauth.claim("revocation_endpoint", json!(format!("{}/revoke", oauth.issuer())));
    oauth
}

async fn given_back(oauth: &Oauth, count: usize) -> Vec<String> {
    oauth.gets_back(count).await.iter().map(|given| given["token"].clone()).collect()
}

#[tokio::test]
async fn tokens_are_given_back_when_a_connection_is_deleted() {
    let delete =
        async |world: &World| world.operator().request(Method::DELETE, "/integrations/ours").send().await.expect(204);
    // By a client that has a secret, and by one that has registered itself.
    for secret in [Some(CLIENT.1), None] {
        let (world, oauth) = (World::new().await, taking_back().await);
        let server = Mcp::guarded(Revision::Newer, &oauth).await;
        let mut body = json!({ "url": server.url() });
        if let Some(secret) = secret {
            body["client"] = json!({ "id": CLIENT.0, "issuer": oauth.issuer(), "secret": secret });
        }
        put(&world.operator(), "/integrations/ours", &body).await.expect(201);
        connect(&world, &oauth).await;
        delete(&world).await;
        let given = oauth.gets_back(2).await;
        let told: Vec<_> = given.iter().map(|it| (it["token"].as_str(), it["token_type_hint"].as_str())).collect();
        assert_eq!(told, [("refresh-1", "refresh_token"), ("access-1", "access_token")]);
        assert_eq!(given[0].get("secret").map(String::as_str), secret);
        assert!(!oauth.is_good("access-1"));
    }
    // A provider that is away, or cannot be trusted with it, keeps nobody from deleting.
    for endpoint in ["/revoke", "ftp://elsewhere.example/"] {
        let (world, oauth) = (World::new().await, Oauth::start().await);
        let here = endpoint.starts_with('/');
        let place = if here { format!("{}{endpoint}", oauth.issuer()) } else { endpoint.to_owned() };
        oauth.claim("revocation_endpoint", json!(place));
        connected(&world, Revision::Newer, &oauth).await;
        oauth.be_down(true);
        delete(&world).await;
        world.viewer().get("/integrations/ours").await.problem(404, "not-found");
        if here {
            assert_eq!(oauth.gets_back(1).await.len(), 1, "it is not asked again and again");
        }
    }
}

#[tokio::test]
async fn tokens_are_given_back_when_a_connection_is_put_for_something_else() {
    let (world, oauth) = (World::new().await, taking_back().await);
    let put_ours = async |body: Value| put(&world.operator(), "/integrations/ours", &body).await.expect(200);
    let server = connected(&world, Revision::Newer, &oauth).await;
    put_ours(json!({ "url": server.url(), "scopes": ["a"] })).await;
    assert_eq!(status(&world).await, "connected", "it is for the same");
    let other = Mcp::guarded(Revision::Newer, &oauth).await;
    put_ours(json!({ "url": other.url() })).await;
    assert_eq!(status(&world).await, "pending");
    assert_eq!(given_back(&oauth, 2).await, ["refresh-1", "access-1"]);
    connect(&world, &oauth).await;
    let client = json!({ "id": CLIENT.0, "issuer": oauth.issuer(), "secret": CLIENT.1 });
    put_ours(json!({ "url": other.url(), "client": client })).await;
    let given = oauth.gets_back(4).await;
    assert_eq!((&given[2]["token"][..], &given[3]["token"][..]), ("refresh-2", "access-2"));
    assert_eq!((&given[3]["client_id"][..], given[3].get("secret")), ("client-2", None), "by whom it was given to");
}

#[tokio::test]
async fn tokens_are_given_back_when_somebody_connects_anew_and_the_new_ones_stay() {
    let (world, oauth) = (World::new().await, taking_back().await);
    let server = connected(&world, Revision::Newer, &oauth).await;
    connect(&world, &oauth).await;
    assert_eq!(given_back(&oauth, 2).await, ["refresh-1", "access-1"]);
    call(&world.operator()).await.completes().await;
    assert_eq!(shown(&server), ["Bearer access-2"]);
    // To the same client the same person may have granted all that at once: then nothing is taken back.
    let client = json!({ "id": CLIENT.0, "issuer": oauth.issuer(), "secret": CLIENT.1 });
    put(&world.operator(), "/integrations/ours", &json!({ "url": server.url(), "client": client })).await.expect(200);
    assert_eq!(given_back(&oauth, 4).await[2..], ["refresh-2", "access-2"]);
    connect(&world, &oauth).await;
    connect(&world, &oauth).await;
    let begun = authorize(&world.admin()).await.expect(200);
    finish(&world.admin(), &oauth.consent(begun["url"].as_str().unwrap())).await.expect(200);
    assert_eq!(given_back(&oauth, 6).await[4..], ["refresh-4", "access-4"], "and not the third");
    assert!(oauth.is_good("access-5"));
}

#[tokio::test]
async fn tokens_that_come_when_nobody_wants_them_any_more_are_given_back() {
    let (world, oauth) = (World::new().await, taking_back().await);
    let _server = connected(&world, Revision::Newer, &oauth).await;
    world.advance(Duration::from_secs(3600));
    oauth.hang(true);
    let run = call(&world.operator()).await;
    oauth.hears("refresh_token", 1).await;
    world.operator().request(Method::DELETE, "/integrations/ours").send().await.expect(204);
    assert_eq!(given_back(&oauth, 2).await, ["refresh-1", "access-1"]);
    oauth.hang(false);
    assert_eq!(given_back(&oauth, 4).await[2..], ["refresh-2", "access-2"]);
    assert_eq!(run.wait_end().await["error"]["code"], "connection_required");
}
