//! Whose tokens count, and for how long.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use fermata::{auth::Role, kernel::Span};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::world::{SECRET, World};

fn claims(world: &World) -> Value {
    let now = world.now().timestamp();
    json!({
        "iss": "fermata", "aud": "fermata", "sub": "user_1", "tid": world.home(), "roles": ["viewer"],
        "iat": now, "nbf": now, "exp": now + 600, "jti": "tok_1",
    })
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

fn sign(header: &Header, claims: &Value, secret: &str) -> String {
    jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn header() -> Header {
    Header { kid: Some("main".to_owned()), ..Header::new(Algorithm::HS256) }
}

#[tokio::test]
async fn only_a_good_token_counts() {
    let world = World::new().await;
    let status = async |token: &str| {
        let answer = world.nobody().with_token(token).get("/workflow/runs").await;
        if answer.status == 401 {
            answer.problem(401, "unauthenticated");
            assert!(answer.header("www-authenticate").unwrap().contains("invalid_token"));
        }
        answer.status
    };
    let good = sign(&header(), &claims(&world), SECRET);
    assert_eq!(status(&good).await, 200);
    let now = world.now().timestamp();
    for (claim, value) in [
        ("exp", json!(now - 31)),
        ("exp", json!(null)),
        ("exp", json!("never")),
        ("exp", json!(-1)),
        ("nbf", json!(now + 60)),
        ("iat", json!(now + 60)),
        ("iss", json!("another")),
        ("aud", json!("another")),
        ("aud", json!(["another", "yet another"])),
        ("aud", json!(null)),
        ("sub", json!(null)),
        ("sub", json!("")),
        ("sub", json!("system")),
        ("sub", json!("a\r\nb")),
        ("tid", json!(null)),
        ("tid", json!("run_01kahx3c5qf8k9z4v7t2m6w8np")),
        ("jti", json!(null)),
        ("roles", json!("owner")),
        ("roles", json!(["emperor"])),
    ] {
        let token = sign(&header(), &with(claims(&world), claim, value.clone()), SECRET);
        assert_eq!(status(&token).await, 401, "{claim} = {value}");
    }
    // Thirty seconds of skew are forgiven.
    assert_eq!(status(&sign(&header(), &with(claims(&world), "exp", json!(now - 20)), SECRET)).await, 200);
    assert_eq!(status(&sign(&header(), &with(claims(&world), "aud", json!(["x", "fermata"])), SECRET)).await, 200);
}

#[tokio::test]
async fn no_header_talks_the_server_into_another_key_or_algorithm() {
    let world = World::new().await;
    let claims = claims(&world);
    let mut forged = vec![
        sign(&header(), &claims, "a guess at the secret, which is wrong"),
        sign(&Header::new(Algorithm::HS256), &claims, SECRET),
        sign(&Header { kid: Some("other".to_owned()), ..header() }, &claims, SECRET),
        sign(&Header { kid: Some("../../dev/null".to_owned()), ..header() }, &claims, SECRET),
        sign(&Header { kid: Some("main' or '1'='1".to_owned()), ..header() }, &claims, SECRET),
        sign(&Header { alg: Algorithm::HS512, ..header() }, &claims, SECRET),
        sign(&Header { typ: Some("refresh+jwt".to_owned()), ..header() }, &claims, SECRET),
    ];
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let good = sign(&header(), &claims, SECRET);
    let parts: Vec<_> = good.split('.').collect();
    for alg in ["none", "None", "NONE", "", "RS256", "HS384"] {
        let head = part(&json!({ "alg": alg, "typ": "JWT", "kid": "main" }));
        forged.push(format!("{head}.{}.", parts[1]));
        forged.push(format!("{head}.{}.{}", parts[1], parts[2]));
    }
    let owner = part(&with(claims.clone(), "roles", json!(["owner"])));
    forged.push(format!("{}.{owner}.{}", parts[0], parts[2]));
    forged.push(format!("{}.{}.", parts[0], parts[1]));
    forged.push(format!("{}.{}", parts[0], parts[1]));
    forged.push(format!("{good}.{}", parts[2]));
    for (member, value) in
        [("crit", json!(["exp"])), ("jku", json!("http://127.0.0.1/keys")), ("jwk", json!({ "kty": "oct", "k": "AA" }))]
    {
        let mut head = json!({ "alg": "HS256", "typ": "JWT", "kid": "main" });
        head[member] = value;
        forged.push(format!("{}.{}.{}", part(&head), parts[1], parts[2]));
    }
    for token in forged {
        world.nobody().with_token(&token).get("/workflow/runs").await.problem(401, "unauthenticated");
    }
}

#[tokio::test]
async fn a_token_is_good_until_it_expires() {
    let world = World::new().await;
    let mut grant = world.grant(world.home(), "user_brief", vec![Role::Operator], None);
    grant.ttl = Span::seconds(60);
    let brief = world.bearer(&grant);
    let run = brief.start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    run.hold().await;
    let mut follow = run.follow().await;
    follow.until("awaiting_approval").await;
    world.advance(Duration::from_secs(100));
    // The stream ends with the token; the run goes on for those who may see it.
    assert_eq!(follow.next().await, None);
    brief.get(&run.path("")).await.problem(401, "unauthenticated");
    assert_eq!(world.viewer().run(&run.id).get().await["status"], "awaiting_approval");
}

#[tokio::test]
async fn scopes_narrow_and_services_have_nothing_else() {
    let world = World::new().await;
    let reader = world.service("runs:read");
    reader.get("/workflow/runs").await.expect(200);
    assert_eq!(reader.get("/approvals").await.problem(403, "forbidden")["permission"], "approvals:read");
    let narrowed = world.bearer(&world.grant(world.home(), "user_n", vec![Role::Owner], Some("approvals:*")));
    narrowed.get("/approvals").await.expect(200);
    narrowed.get("/workflow/runs").await.problem(403, "forbidden");
    let nothing = world.bearer(&world.grant(world.home(), "svc", vec![Role::Service], None));
    nothing.get("/workflow/runs").await.problem(403, "forbidden");
}
