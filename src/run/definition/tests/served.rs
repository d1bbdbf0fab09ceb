//! The routes, over a real database.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::tools;
use crate::{
    auth::{Grant, Minter, Role, Verifier},
    config::{AuthSettings, HttpSettings},
    db::fixture::Fixture,
    http::Front,
    kernel::{Reference, Span, TenantId},
    run::{definition::routes, store::ground},
    tool::Toolbox,
};

struct World {
    fixture: Fixture,
    router: Router,
    minter: Minter,
}

impl World {
    async fn start() -> Self {
        let fixture = Fixture::start("definitions").await;
        let auth = AuthSettings { secret: Some("k7Qm1Zp0xV9sLr4TgYb2Nc8WdHf6JuEa".into()), ..AuthSettings::default() };
        let (verifier, minter) = (Verifier::new(&auth).unwrap(), Minter::new(&auth).unwrap());
        let (database, clock) = (fixture.database.clone(), fixture.clock.clone());
        let front = Front::new(verifier, database, clock, HttpSettings::default(), CancellationToken::new());
        let (router, _) = routes(front, Toolbox::new(tools().clone(), vec![])).split_for_parts();
        Self { fixture, router, minter }
    }

    async fn send(
        &self,
        tenant: TenantId,
        role: Role,
        request: axum::http::request::Builder,
        body: &str,
    ) -> (u16, Value) {
        let ttl = Span(Duration::from_secs(600));
        let grant = Grant {
            tenant_id: tenant,
            subject: "user_1".parse().unwrap(),
            roles: vec![role],
            groups: vec![],
            scope: None,
            ttl,
        };
        let (token, _) = self.minter.mint(&grant, self.fixture.clock.now()).unwrap();
        let request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose_secret()));
        let response = self.router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn put(&self, tenant: TenantId, name: &str, source: &str) -> (u16, Value) {
        let request = Request::put(format!("/workflow/definitions/{name}"));
        let request = request.header(header::CONTENT_TYPE, "application/yaml; charset=utf-8");
        self.send(tenant, Role::Operator, request, source).await
    }

    async fn get(&self, tenant: TenantId, path: &str) -> (u16, Value) {
        self.send(tenant, Role::Viewer, Request::get(format!("/workflow/definitions{path}")), "").await
    }
}

fn source(name: &str, value: usize) -> String {
    format!("name: {name}\nsteps: [{{ id: a, uses: debug.echo, with: {{ value: {value} }} }}]\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_kept_counted_and_walled_in() {
    let world = World::start().await;
    let (ours, theirs) = (world.fixture.tenant("ours").await, world.fixture.tenant("theirs").await);

    a_put_makes_the_next_version(&world, ours).await;
    what_is_wrong_changes_nothing(&world, ours).await;
    puts_at_once_do_not_collide(&world, ours).await;
    lists_go_on_where_they_stopped(&world, ours).await;

    for path in ["/hello", "/hello?version=1", "/hello/versions"] {
        assert_eq!(world.get(theirs, path).await.0, 404, "{path}");
    }
    let theirs_listed = world.get(theirs, "").await.1["items"].clone();
    let brought = theirs_listed.as_array().unwrap();
    assert!(brought.iter().all(|one| one["version"] == 0), "{theirs_listed}");
    assert_eq!((&brought[0]["name"], brought.len()), (&"conversation".into(), 6));
    assert_eq!(world.put(theirs, "hello", &source("hello", 1)).await.1["version"], 1);
    world.fixture.stop().await;
}

async fn a_put_makes_the_next_version(world: &World, tenant: TenantId) {
    let (status, first) = world.put(tenant, "hello", &source("hello", 1)).await;
    assert_eq!((status, &first["version"]), (201, &Value::from(1)), "{first}");
    let (status, again) = world.put(tenant, "hello", &source("hello", 1)).await;
    assert_eq!((status, &again), (200, &first));
    let (status, second) = world.put(tenant, "hello", &source("hello", 2)).await;
    assert_eq!((status, &second["version"]), (201, &Value::from(2)));
    let (status, third) = world.put(tenant, "hello", &source("hello", 1)).await;
    assert_eq!((status, &third["version"]), (201, &Value::from(3)), "only the newest counts as the same");

    assert_eq!(world.get(tenant, "/hello").await, (200, third));
    assert_eq!(world.get(tenant, "/hello?version=1").await, (200, first.clone()));
    assert_eq!(first["source"], source("hello", 1));
    assert_eq!((&first["mediaType"], &first["createdBy"]), (&Value::from("application/yaml"), &Value::from("user_1")));

    let mut tx = world.fixture.database.tenant(tenant).await.unwrap();
    let newest = ground(&mut tx, tenant, 9, Some(&"hello".parse().unwrap())).await.unwrap().definition;
    assert_eq!(newest.map(|(_, workflow)| workflow), Some(("hello".to_owned(), 3)));
    let second = ground(&mut tx, tenant, 9, Some(&"hello@2".parse().unwrap())).await.unwrap().definition.unwrap();
    assert_eq!(second.0.steps[0].with["value"], 2);
    for unknown in ["hello@9", "nobody"] {
        let found = ground(&mut tx, tenant, 9, Some(&unknown.parse().unwrap())).await.unwrap().definition;
        assert!(found.is_none(), "{unknown:?}");
    }
    for unnameable in ["hello@x", "hello@", "@1", "hello\0", "hello@99999999999"] {
        assert!(unnameable.parse::<Reference>().is_err(), "{unnameable:?}");
    }
    let audited: Vec<(String, String, i32)> = sqlx::query_as(
        "select actor, target, (detail ->> 'version')::integer from audit_log where action = 'workflow.put' order by 3",
    )
    .fetch_all(tx.conn())
    .await
    .unwrap();
    assert_eq!(audited, [1, 2, 3].map(|version| ("user_1".to_owned(), "hello".to_owned(), version)));
}

async fn what_is_wrong_changes_nothing(world: &World, tenant: TenantId) {
    let (status, problem) = world.put(tenant, "other", &source("hello", 5)).await;
    assert_eq!((status, &problem["errors"][0]["path"]), (422, &Value::from("name")), "{problem}");
    let put = || Request::put("/workflow/definitions/hello");
    let json = || put().header(header::CONTENT_TYPE, "application/json");
    assert_eq!(world.send(tenant, Role::Operator, put(), "x").await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(world.send(tenant, Role::Operator, json(), "{").await.0, 422);
    assert_eq!(world.send(tenant, Role::Viewer, json(), "{}").await.0, 403);
    for path in ["/nobody", "/nobody/versions", "/he%00llo", "/he%00llo/versions", "/hello?version=0"] {
        assert_eq!(world.get(tenant, path).await.0, 404, "{path}");
    }
    assert_eq!(world.get(tenant, "/hello?version=x").await.0, 400);
    assert_eq!(world.get(tenant, "/hello").await.1["version"], 3);
}

async fn puts_at_once_do_not_collide(world: &World, tenant: TenantId) {
    let sources = (0..24).map(|n| source("busy", n)).collect::<Vec<_>>();
    let puts = join_all(sources.iter().map(|source| world.put(tenant, "busy", source))).await;
    let mut versions =
        puts.iter().map(|(status, body)| (*status, body["version"].as_i64().unwrap())).collect::<Vec<_>>();
    versions.sort_unstable();
    assert_eq!(versions, (1..=24).map(|version| (201, version)).collect::<Vec<_>>());
}

async fn lists_go_on_where_they_stopped(world: &World, tenant: TenantId) {
    for name in ["c", "b", "a"] {
        assert_eq!(world.put(tenant, name, &source(name, 0)).await.0, 201);
    }
    let names = |page: &Value| {
        page["items"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = world.get(tenant, &format!("?limit=2{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        assert!(page["items"].as_array().unwrap().len() <= 2, "{page}");
        seen.extend(names(&page));
        // A new version of what was seen does not show it again.
        world.put(tenant, "a", &source("a", seen.len())).await;
        let Some(next) = page["nextCursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let brought = ["conversation", "job", "generate_text", "describe_image", "synthesize_speech", "transcribe_speech"];
    assert_eq!(seen, [&["a", "b", "c", "busy", "hello"], &brought[..]].concat());

    let (_, first) = world.get(tenant, "/hello/versions?limit=2").await;
    let next = first["nextCursor"].as_str().unwrap();
    let (_, second) = world.get(tenant, &format!("/hello/versions?limit=2&cursor={next}")).await;
    let items = [&first, &second].into_iter().flat_map(|page| page["items"].as_array().unwrap());
    assert_eq!(items.map(|item| item["version"].as_i64().unwrap()).collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!(second["nextCursor"], Value::Null);
}
