//! Connections: granted by a person to whoever began, sealed, renewed once for all, used for one URL and no other.

use std::time::Duration;

use fermata::app::Role;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row;

use crate::world::{Answer, CLIENT, Client, Mcp, Oauth, REVISIONS, Revision, Run, World};

/// Where people are sent back in these tests.
const BACK: &str = "http://127.0.0.1:4711/callback";

pub async fn put(client: &Client, path: &str, body: &Value) -> Answer {
    client.request(Method::PUT, path).json(body).send().await
}

pub async fn authorize(client: &Client) -> Answer {
    client.post("/integrations/ours/oauth/authorize", &json!({ "redirectUrl": BACK })).await
}

pub async fn finish(client: &Client, answer: &Value) -> Answer {
    client.post("/integrations/ours/oauth/callback", answer).await
}

/// Lets a person consent to what the operator begins.
pub async fn connect(world: &World, oauth: &Oauth) -> Value {
    let begun = authorize(&world.operator()).await.expect(200);
    finish(&world.operator(), &oauth.consent(begun["url"].as_str().unwrap())).await.expect(200)
}

/// A server that wants to be shown tokens, connected as `ours` and registered as `fake`.
pub async fn connected(world: &World, revision: Revision, oauth: &Oauth) -> Mcp {
    let server = Mcp::guarded(revision, oauth).await;
    put(&world.operator(), "/integrations/ours", &json!({ "url": server.url() })).await.expect(201);
    connect(world, oauth).await;
    register(world, &server).await.expect(201);
    server
}

fn body(server: &Mcp) -> Value {
    json!({ "url": server.url(), "connection": "ours", "effects": { "*": "pure" } })
}

async fn register(world: &World, server: &Mcp) -> Answer {
    put(&world.operator(), "/tools/mcp/fake", &body(server)).await
}

pub async fn call(client: &Client) -> Run {
    let retry = json!({ "attempts": 9, "backoff": "50ms", "maxBackoff": "200ms" });
    let step = json!({ "id": "call", "uses": "mcp:fake/echo", "with": { "text": "hello" }, "retry": retry });
    client.start(json!([step])).await
}

pub async fn status(world: &World) -> Value {
    world.viewer().get("/integrations/ours").await.expect(200)["status"].clone()
}

/// The tokens that calls were made with, in order.
pub fn shown(server: &Mcp) -> Vec<String> {
    let token = |headers: &reqwest::header::HeaderMap| headers["authorization"].to_str().unwrap().to_owned();
    server.heard("tools/call").iter().map(|heard| token(&heard.headers)).collect()
}

#[tokio::test]
async fn a_person_connects_a_server_and_its_tools_are_called_in_their_name() {
    for revision in REVISIONS {
        let (world, oauth) = (World::new().await, Oauth::start().await);
        let server = Mcp::guarded(revision, &oauth).await;
        let problem = register(&world, &server).await.problem(422, "invalid-input");
        assert_eq!(problem["field"], "connection", "{problem}");
        let body = json!({ "url": server.url() });
        let pending = put(&world.operator(), "/integrations/ours", &body).await.expect(201);
        assert_eq!((&pending["status"], &pending["url"]), (&json!("pending"), &json!(server.url())));
        put(&world.operator(), "/integrations/ours", &body).await.expect(200);
        let problem = register(&world, &server).await.problem(422, "invalid-input");
        assert_eq!(problem["field"], "connection");
        assert!(problem["detail"].as_str().unwrap().contains("/integrations/ours/oauth/authorize"), "{problem}");

        let begun = authorize(&world.operator()).await.expect(200);
        let url: reqwest::Url = begun["url"].as_str().unwrap().parse().unwrap();
        let asked: std::collections::HashMap<_, _> = url.query_pairs().into_owned().collect();
        assert_eq!((&asked["resource"][..], &asked["redirect_uri"][..]), (server.url(), BACK));
        assert_eq!((&asked["scope"][..], &asked["client_id"][..]), ("tools", "client-1"), "what the resource needs");
        let client = &oauth.registered()[0];
        assert_eq!((&client["client_name"], &client["application_type"]), (&json!("Fermata"), &json!("native")));
        let answer = finish(&world.operator(), &oauth.consent(url.as_str())).await;
        let connection = answer.expect(200);
        assert_eq!(connection["status"], "connected");
        let grant = &connection["grant"];
        assert_eq!((&grant["issuer"], &grant["scopes"]), (&json!(oauth.issuer()), &json!(["tools"])));
        assert_eq!(grant["connectedBy"], "user_operator");

        register(&world, &server).await.expect(201);
        call(&world.operator()).await.completes().await;
        assert_eq!(shown(&server), ["Bearer access-1"]);
        let listed = world.viewer().get("/integrations").await;
        assert_eq!(listed.expect(200)["items"], json!([connection]));
        for answer in [&answer, &listed, &world.viewer().get("/tools/mcp/fake").await] {
            assert!(!answer.text().contains("access-1") && !answer.text().contains("refresh-1"), "{}", answer.text());
        }
        let mut session = world.superuser().await;
        let kept = sqlx::query("select encode(grant_sealed, 'escape') from connections");
        let kept: String = kept.fetch_one(&mut session).await.unwrap().get(0);
        assert!(!kept.contains("access-1") && !kept.contains("refresh-1"), "sealed");
        let audit =
            sqlx::query("select action, actor from audit_log where action like 'connection.%' order by audit_id");
        let audit: Vec<(String, String)> =
            audit.fetch_all(&mut session).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        let by = |action: &str| (format!("connection.{action}"), "user_operator".to_owned());
        assert_eq!(audit, [by("put"), by("authorize"), by("connect")]);

        world.operator().request(Method::DELETE, "/integrations/ours").send().await.expect(204);
        world.viewer().get("/integrations/ours").await.problem(404, "not-found");
        world.operator().request(Method::DELETE, "/integrations/ours").send().await.problem(404, "not-found");
    }
}

#[tokio::test]
async fn an_answer_is_good_once_for_whoever_began_and_in_time() {
    let (world, oauth) = (World::new().await, Oauth::start().await);
    let server = Mcp::guarded(Revision::Newer, &oauth).await;
    put(&world.operator(), "/integrations/ours", &json!({ "url": server.url() })).await.expect(201);
    let field = async |client: &Client, answer: &Value| {
        finish(client, answer).await.problem(422, "invalid-input")["field"].clone()
    };
    let begin = async || {
        let begun = authorize(&world.operator()).await.expect(200);
        oauth.consent(begun["url"].as_str().unwrap())
    };
    let with = |answer: &Value, name: &str, value: &str| {
        let mut other = answer.clone();
        other[name] = json!(value);
        other
    };
    let answer = begin().await;
    assert_eq!(field(&world.admin(), &answer).await, "state", "somebody else began");
    finish(&world.stranger(), &answer).await.problem(404, "not-found");
    assert_eq!(field(&world.operator(), &with(&answer, "state", "made up")).await, "state");
    assert_eq!(oauth.asked("authorization_code"), [], "none of them brought anything to the provider");
    finish(&world.operator(), &answer).await.expect(200);
    assert_eq!(field(&world.operator(), &answer).await, "state", "it is used");

    let late = begin().await;
    world.advance(Duration::from_secs(601));
    assert_eq!(field(&world.operator(), &late).await, "state");
    let superseded = begin().await;
    let newer = begin().await;
    assert_eq!(field(&world.operator(), &superseded).await, "state");
    assert_eq!(field(&world.operator(), &with(&newer, "iss", "https://elsewhere.example")).await, "code", "RFC 9207");
    let anonymous = begin().await;
    let mut without = anonymous.clone();
    without.as_object_mut().unwrap().remove("iss");
    assert_eq!(field(&world.operator(), &without).await, "code", "the provider says that it always says who it is");
    let forged = begin().await;
    assert_eq!(field(&world.operator(), &with(&forged, "code", "made up")).await, "code");
    assert_eq!(status(&world).await, "connected", "what is there stays as it is");

    let elsewhere = begin().await;
    let other = Mcp::guarded(Revision::Newer, &oauth).await;
    put(&world.operator(), "/integrations/ours", &json!({ "url": other.url() })).await.expect(200);
    assert_eq!(status(&world).await, "pending", "it was granted for something else");
    assert_eq!(field(&world.operator(), &elsewhere).await, "state", "and so was what was begun");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_is_over_and_once_for_all() {
    for revision in REVISIONS {
        let (world, oauth) = (World::new().await, Oauth::start().await);
        let server = connected(&world, revision, &oauth).await;
        let second = world.server(Role::All).await;
        // Each registration opens a session of its own, at both servers at once.
        let all = async || {
            let places = [world.url(), &second.url].into_iter().cycle().take(12);
            let registrations = places.map(|place| {
                let operator = world.operator().at(place);
                let body = body(&server);
                async move { put(&operator, "/tools/mcp/fake", &body).await.expect(200) }
            });
            futures_util::future::join_all(registrations).await;
        };
        all().await;
        assert_eq!(oauth.asked("refresh_token"), []);
        world.advance(Duration::from_secs(3550));
        all().await;
        let asked = oauth.asked("refresh_token");
        let [asked] = &asked[..] else { panic!("renewed once: {asked:#?}") };
        assert_eq!((&asked["refresh_token"][..], &asked["resource"][..]), ("refresh-1", server.url()));
        call(&world.operator()).await.completes().await;
        assert_eq!(shown(&server), ["Bearer access-2"]);
        world.advance(Duration::from_secs(7200));
        assert_eq!(status(&world).await, "connected", "nobody needs it");
        second.stop().await;
    }
}

#[tokio::test]
async fn a_token_that_was_taken_back_is_replaced_and_a_grant_that_was_breaks_the_connection() {
    for revision in REVISIONS {
        let (world, oauth) = (World::new().await, Oauth::start().await);
        let server = connected(&world, revision, &oauth).await;
        call(&world.operator()).await.completes().await;
        oauth.revoke();
        call(&world.operator()).await.completes().await;
        assert_eq!(shown(&server), ["Bearer access-1", "Bearer access-2"], "nothing was called with the old one");

        oauth.revoke_all();
        let failed = call(&world.operator()).await.wait_end().await;
        assert_eq!(failed["error"]["code"], "connection_required", "{failed:#}");
        let message = failed["error"]["message"].as_str().unwrap();
        assert!(message.contains("/integrations/ours/oauth/authorize"), "{message}");
        assert_eq!(status(&world).await, "broken");
        let (asked, failed) = (oauth.asked("refresh_token").len(), call(&world.operator()).await);
        assert_eq!(failed.wait_end().await["error"]["code"], "connection_required");
        assert_eq!(oauth.asked("refresh_token").len(), asked, "nobody asks again in vain");
        let mut session = world.superuser().await;
        let audit = sqlx::query("select actor from audit_log where action = 'connection.break'");
        let audit: Vec<String> = audit.fetch_all(&mut session).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(audit, ["system"]);

        connect(&world, &oauth).await;
        call(&world.operator()).await.completes().await;
        assert_eq!(status(&world).await, "connected");
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_renewed_is_good_as_long_as_it_is() {
    let (world, oauth) = (World::new().await, Oauth::start().await);
    oauth.keep_to_yourself();
    let server = connected(&world, Revision::Newer, &oauth).await;
    world.advance(Duration::from_secs(3000));
    call(&world.operator()).await.completes().await;
    world.advance(Duration::from_secs(600));
    let problem = register(&world, &server).await.problem(422, "invalid-input");
    assert_eq!(problem["field"], "connection", "{problem}");
    assert_eq!(status(&world).await, "broken");
    // Where the provider does not say how long it is good, it is until it is refused.
    oauth.give_life(None);
    connect(&world, &oauth).await;
    world.advance(Duration::from_secs(10 * 365 * 24 * 3600));
    register(&world, &server).await.expect(200);
    oauth.revoke_all();
    assert_eq!(register(&world, &server).await.problem(422, "invalid-input")["field"], "connection");
    assert_eq!(register(&world, &server).await.problem(422, "invalid-input")["field"], "connection");
    assert_eq!(status(&world).await, "broken");
}

#[tokio::test]
async fn whoever_died_while_renewing_does_not_keep_the_others_from_it() {
    let (world, oauth) = (World::new().await, Oauth::start().await);
    let server = connected(&world, Revision::Newer, &oauth).await;
    world.advance(Duration::from_secs(3600));
    let mut session = world.superuser().await;
    let claim = sqlx::query("update connections set renewed_until = $1").bind(world.now() + Duration::from_secs(35));
    claim.execute(&mut session).await.unwrap();
    let run = call(&world.operator()).await;
    run.wait_for("step.started").await;
    let early = tokio::time::timeout(Duration::from_millis(500), oauth.hears("refresh_token", 1)).await;
    assert!(early.is_err(), "another is at it");
    world.advance(Duration::from_secs(36));
    run.completes().await;
    assert_eq!(shown(&server), ["Bearer access-2"]);
}

#[tokio::test]
async fn a_provider_that_is_away_is_waited_for() {
    let (world, oauth) = (World::new().await, Oauth::start().await);
    let server = connected(&world, Revision::Newer, &oauth).await;
    world.advance(Duration::from_secs(3600));
    oauth.be_down(true);
    let run = call(&world.operator()).await;
    let tried = run.wait_for("step.retrying").await.data["payload"].clone();
    assert_eq!(tried["error"]["code"], "unavailable", "{tried}");
    assert_eq!(status(&world).await, "connected", "it may pass");
    oauth.be_down(false);
    run.completes().await;
    assert_eq!(shown(&server), ["Bearer access-2"]);
}

#[tokio::test]
async fn people_and_secrets_go_where_they_belong_and_nowhere_else() {
    let world =
        World::with(|settings| settings.oauth.redirects = vec!["https://console.example/back".to_owned()]).await;
    let (oauth, other) = (Oauth::start().await, Oauth::start().await);
    let (operator, server) = (world.operator(), Mcp::guarded(Revision::Newer, &oauth).await);
    put(&operator, "/integrations/ours", &json!({ "url": server.url() })).await.expect(201);
    for (back, listed) in [("https://console.example/back", true), ("https://evil.example/back", false)] {
        let answer = operator.post("/integrations/ours/oauth/authorize", &json!({ "redirectUrl": back })).await;
        if listed {
            assert!(
                answer.expect(200)["url"]
                    .as_str()
                    .unwrap()
                    .contains("redirect_uri=https%3A%2F%2Fconsole.example%2Fback")
            );
            assert_eq!(oauth.registered()[0]["application_type"], "web");
        } else {
            assert_eq!(answer.problem(422, "invalid-input")["field"], "redirectUrl");
        }
    }
    for (member, value) in [
        ("authorization_endpoint", json!("javascript:alert(1)//")),
        ("token_endpoint", json!("ftp://elsewhere.example/")),
        ("code_challenge_methods_supported", json!(["plain"])),
        ("issuer", json!(other.issuer())),
    ] {
        let lying = Oauth::start().await;
        lying.claim(member, value);
        let server = Mcp::guarded(Revision::Newer, &lying).await;
        put(&operator, "/integrations/ours", &json!({ "url": server.url() })).await.expect(200);
        assert_eq!(authorize(&operator).await.problem(422, "invalid-input")["field"], "url", "{member}");
    }
    let open = Mcp::start(Revision::Newer).await;
    for url in [open.url(), "http://10.0.0.1/mcp", "http://127.0.0.1:9/mcp"] {
        put(&operator, "/integrations/ours", &json!({ "url": url })).await.expect(200);
        assert_eq!(authorize(&operator).await.problem(422, "invalid-input")["field"], "url", "{url}");
    }

    // A client's secret is for the server that it is registered with, whomever the resource names.
    let client = |issuer: &str, secret: Value| {
        json!({ "url": server.url(), "scopes": ["a", "b"],
            "client": { "id": CLIENT.0, "issuer": issuer, "secret": secret } })
    };
    put(&operator, "/integrations/ours", &client(other.issuer(), json!(CLIENT.1))).await.expect(200);
    assert_eq!(authorize(&operator).await.problem(422, "invalid-input")["field"], "url");
    assert_eq!(other.asked("authorization_code"), []);
}

#[tokio::test]
async fn a_client_that_was_registered_beforehand_is_who_asks() {
    let (world, oauth) = (World::new().await, Oauth::start().await);
    let (operator, server) = (world.operator(), Mcp::guarded(Revision::Newer, &oauth).await);
    let client = |secret: Option<&str>| {
        let client = json!({ "id": CLIENT.0, "issuer": oauth.issuer(), "secret": secret });
        json!({ "url": server.url(), "scopes": ["a", "b"], "client": client })
    };
    let put_client = put(&operator, "/integrations/ours", &client(Some(CLIENT.1))).await;
    assert!(!put_client.text().contains(CLIENT.1), "{}", put_client.text());
    put_client.expect(201);
    // Left out it stays.
    put(&operator, "/integrations/ours", &client(None)).await.expect(200);
    let begun = authorize(&operator).await.expect(200);
    assert!(begun["url"].as_str().unwrap().contains("scope=a+b"), "{begun}");
    finish(&operator, &oauth.consent(begun["url"].as_str().unwrap())).await.expect(200);
    assert_eq!(oauth.registered(), Vec::<Value>::new());
    register(&world, &server).await.expect(201);
    world.advance(Duration::from_secs(3600));
    call(&operator).await.completes().await;
    assert_eq!(shown(&server), ["Bearer access-2"], "it renews as well");
    // With the secret that was put last: as long as that one is wrong, nothing is renewed, and nothing is lost.
    put(&operator, "/integrations/ours", &client(Some("another-secret"))).await.expect(200);
    oauth.revoke();
    let run = call(&operator).await;
    run.wait_for("step.retrying").await;
    assert_eq!(status(&world).await, "connected");
    put(&operator, "/integrations/ours", &client(Some(CLIENT.1))).await.expect(200);
    run.completes().await;
    // What is granted is for one URL.
    let body = json!({ "url": Mcp::guarded(Revision::Newer, &oauth).await.url(), "connection": "ours" });
    let problem = put(&operator, "/tools/mcp/other", &body).await.problem(422, "invalid-input");
    assert_eq!(problem["field"], "connection", "{problem}");
    // Without a vault there is nothing to seal with.
    let bare = World::with(|settings| settings.vault.secret = None).await;
    put(&bare.operator(), "/integrations/ours", &client(Some(CLIENT.1))).await.problem(409, "conflict");
}

#[tokio::test]
async fn a_session_that_is_open_ends_with_its_connection_and_with_the_person_it_was_for() {
    for revision in REVISIONS {
        let (world, oauth) = (World::new().await, Oauth::start().await);
        let server = connected(&world, revision, &oauth).await;
        call(&world.operator()).await.completes().await;
        let begun = authorize(&world.admin()).await.expect(200);
        let theirs = finish(&world.admin(), &oauth.consent(begun["url"].as_str().unwrap())).await.expect(200);
        assert_eq!(theirs["grant"]["connectedBy"], "user_admin");
        call(&world.operator()).await.completes().await;
        assert_eq!(shown(&server), ["Bearer access-1", "Bearer access-2"], "in the name of whoever is connected now");
        world.operator().request(Method::DELETE, "/integrations/ours").send().await.expect(204);
        let failed = call(&world.operator()).await.wait_end().await;
        assert_eq!(failed["error"]["code"], "connection_required", "{failed:#}");
        assert_eq!(shown(&server).len(), 2);
    }
}

#[tokio::test]
async fn a_token_that_a_server_says_back_is_told_to_nobody() {
    for revision in REVISIONS {
        let (world, oauth) = (World::new().await, Oauth::start().await);
        let _server = connected(&world, revision, &oauth).await;
        let step = json!({ "id": "call", "uses": "mcp:fake/leak", "with": { "text": "say" } });
        let run = world.operator().start(json!([step])).await;
        run.completes().await;
        assert_eq!(run.step("call").await["output"]["text"], "you are Bearer [sealed key]");
        let events = Value::from(run.events().await).to_string();
        assert!(!events.contains("access-1"), "{events}");
    }
}

#[tokio::test]
async fn the_secret_of_a_client_stays_whatever_it_is_to_be_let_into() {
    let (world, oauth) = (World::new().await, Oauth::start().await);
    let operator = world.operator();
    let client = |url: &str, id: &str, secret: Value| json!({ "url": url, "client": { "id": id, "issuer": oauth.issuer(), "secret": secret } });
    let (first, second) = (Mcp::guarded(Revision::Newer, &oauth).await, Mcp::guarded(Revision::Newer, &oauth).await);
    put(&operator, "/integrations/ours", &client(first.url(), CLIENT.0, json!(CLIENT.1))).await.expect(201);
    put(&operator, "/integrations/ours", &client(second.url(), CLIENT.0, Value::Null)).await.expect(200);
    connect(&world, &oauth).await;
    assert_eq!(oauth.asked("authorization_code")[0]["secret"], CLIENT.1);
    // But it is that client's and nobody else's.
    put(&operator, "/integrations/ours", &client(second.url(), "another", Value::Null)).await.expect(200);
    put(&operator, "/integrations/ours", &client(second.url(), CLIENT.0, Value::Null)).await.expect(200);
    let begun = authorize(&operator).await.expect(200);
    finish(&operator, &oauth.consent(begun["url"].as_str().unwrap())).await.problem(422, "invalid-input");
    assert_eq!(oauth.asked("authorization_code")[1].get("secret"), None);
}

#[tokio::test]
async fn a_token_that_is_lost_in_a_crash_breaks_the_connection_and_somebody_is_told_to_connect_it() {
    let (world, oauth) = (World::without_worker(|_| ()).await, Oauth::start().await);
    let worker = world.mortal(Role::Worker).await;
    let _server = connected(&world, Revision::Newer, &oauth).await;
    world.advance(Duration::from_secs(3600));
    oauth.hang(true);
    let run = call(&world.operator()).await;
    oauth.hears("refresh_token", 1).await;
    worker.kill();
    oauth.hang(false);
    world.advance(Duration::from_secs(36));
    let _worker = world.mortal(Role::Worker).await;
    let failed = run.wait_end().await;
    assert_eq!(failed["error"]["code"], "connection_required", "{failed:#}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("/integrations/ours/oauth/authorize"), "{failed:#}");
    let asked: Vec<_> = oauth.asked("refresh_token").iter().map(|asked| asked["refresh_token"].clone()).collect();
    assert_eq!(asked, ["refresh-1", "refresh-1"], "the one that we have is tried once");
    assert_eq!(status(&world).await, "broken");
    let audit = sqlx::query("select detail::text from audit_log where action = 'connection.break'");
    let audit: Vec<String> =
        audit.fetch_all(&mut world.superuser().await).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(audit.len() == 1 && !audit[0].contains("refresh-"), "{audit:?}");
    connect(&world, &oauth).await;
    call(&world.operator()).await.completes().await;
}
