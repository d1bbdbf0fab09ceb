//! The key's spelling and print, and the promise itself on a real server.

use std::sync::atomic::{AtomicU32, Ordering};

use axum::http::Request;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;
use crate::{
    audit,
    auth::{Claims, Permissions, Role, Verifier},
    config::{AuthSettings, HttpSettings},
    db::{
        Database,
        cluster::{Cluster, DataDir, Durability},
        migrate,
    },
    http::{Front, permit::RunsWrite},
    kernel::{Clock, TenantId, TokenId},
};

async fn once(target: &str, key: &str) -> Result<Once> {
    let request = Request::post(target).header("idempotency-key", key).body(()).expect("request");
    Once::from_request_parts(&mut request.into_parts().0, &()).await
}

#[tokio::test]
async fn a_key_is_short_visible_text() {
    for bad in ["", "a b", "\u{e9}", &"k".repeat(256)] {
        let error = once("/x", bad).await.expect_err(bad);
        assert_eq!(error.problem(), Problem::Malformed);
    }
    assert_eq!(once("/x", "k-1").await.expect("key").key.as_deref(), Some("k-1"));
}

#[tokio::test]
async fn another_person_target_or_body_is_another_request() {
    let first = once("/v1/x/1", "k").await.expect("once");
    let print = first.fingerprint("ada");
    assert_eq!(once("/x/1", "k").await.expect("once").fingerprint("ada"), print, "the same under /v1");
    assert_ne!(first.fingerprint("bob"), print);
    assert_ne!(once("/x/2", "k").await.expect("once").fingerprint("ada"), print);
    first.arrival.body_hash.set([1; 32]).expect("first body");
    assert_ne!(first.fingerprint("ada"), print);
}

async fn context(cluster: &Cluster, clock: &Clock) -> Ctx<RunsWrite> {
    let patience = std::time::Duration::from_secs(5);
    let database = Database::connect(cluster.app_options(), 4, patience).await.expect("database");
    let tenant_id = TenantId::new(clock.now());
    let mut tx = database.tenant(tenant_id).await.expect("transaction");
    sqlx::query("insert into tenants (tenant_id, name, created_at) values ($1, 'once', $2)")
        .bind(tenant_id.uuid())
        .bind(clock.now())
        .execute(tx.conn())
        .await
        .expect("tenant");
    tx.commit().await.expect("commit");
    let auth = AuthSettings { secret: Some("k7Qm1Zp0xV9sLr4TgYb2Nc8WdHf6JuEa".into()), ..AuthSettings::default() };
    let verifier = Verifier::new(&auth).expect("verifier");
    let front = Front::new(verifier, database, clock.clone(), HttpSettings::default(), Default::default());
    let claims = Claims {
        tenant_id,
        subject: "ada".parse().expect("subject"),
        token_id: TokenId::new(clock.now()).to_string(),
        roles: vec![Role::Operator],
        groups: vec![],
        permissions: Permissions::of(&[Role::Operator], None),
        issued_at: clock.now(),
        expires_at: clock.now() + TimeDelta::days(7),
    };
    let arrival = Arrival::read(&axum::http::HeaderMap::new(), clock, &crate::telemetry::Traces::default());
    Ctx::from_claims(&front, claims, arrival).expect("context")
}

/// What each call does: one audit entry, and its number as the answer.
async fn deed(ctx: &Ctx<RunsWrite>, tx: &mut TenantTx, count: &AtomicU32) -> Result<Reply> {
    audit::deed(tx, ctx, "test.deed", "it", json!({})).await?;
    let number = count.fetch_add(1, Ordering::SeqCst) + 1;
    Reply::json(StatusCode::ACCEPTED, &json!({ "number": number }))
}

async fn deeds(ctx: &Ctx<RunsWrite>) -> i64 {
    let mut tx = ctx.begin().await.expect("transaction");
    sqlx::query_scalar("select count(*) from audit_log").fetch_one(tx.conn()).await.expect("count")
}

async fn told(response: Response) -> (u16, bool, Value) {
    let (parts, body) = response.into_parts();
    let body = http_body_util::BodyExt::collect(body).await.expect("body").to_bytes();
    let replayed = parts.headers.contains_key("idempotency-replayed");
    (parts.status.as_u16(), replayed, serde_json::from_slice(&body).expect("json"))
}

async fn problem(outcome: Result<Response>) -> Problem {
    outcome.expect_err("refused").problem()
}

#[tokio::test]
async fn a_key_makes_its_effect_happen_once() {
    let path = std::env::temp_dir().join(format!("fermata-once-{}", std::process::id()));
    let (clock, hands) = Clock::adjustable();
    let cluster =
        Cluster::start(DataDir::claim(&path, &clock).expect("folder"), Durability::None).await.expect("server");
    migrate(cluster.admin_options()).await.expect("schema");
    let ctx = context(&cluster, &clock).await;
    let count = AtomicU32::new(0);
    let go = async |target: &str, key: &str| {
        once(target, key).await?.run(&ctx, async |tx| deed(&ctx, tx, &count).await).await
    };

    assert_eq!(told(go("/x", "a").await.expect("first")).await, (202, false, json!({"number": 1})));
    assert_eq!(told(go("/v1/x", "a").await.expect("again")).await, (202, true, json!({"number": 1})));
    assert_eq!(problem(go("/x?other", "a").await).await, Problem::IdempotencyMismatch, "another request with the key");
    assert_eq!(deeds(&ctx).await, 1);

    let failing = once("/x", "b").await.expect("once");
    let outcome = failing.run(&ctx, async |tx| {
        deed(&ctx, tx, &count).await?;
        Err(Error::conflict("no"))
    });
    assert_eq!(problem(outcome.await).await, Problem::Conflict);
    assert_eq!(deeds(&ctx).await, 1, "a failure keeps nothing");
    assert!(!told(go("/x", "b").await.expect("anew")).await.1);

    let (entered, leave) = (Notify::new(), Notify::new());
    let slow = once("/x", "c").await.expect("once").run(&ctx, async |tx| {
        entered.notify_one();
        leave.notified().await;
        deed(&ctx, tx, &count).await
    });
    let meanwhile = async {
        entered.notified().await;
        let outcome = go("/x", "c").await;
        leave.notify_one();
        problem(outcome).await
    };
    let (slow, meanwhile) = tokio::join!(slow, meanwhile);
    assert_eq!((told(slow.expect("slow")).await.1, meanwhile), (false, Problem::IdempotencyInFlight));

    hands.send(TimeDelta::hours(25)).expect("a day later");
    assert!(!told(go("/x", "a").await.expect("forgotten")).await.1);
    assert_eq!(deeds(&ctx).await, 4);

    cluster.stop().await.expect("stopped");
    std::fs::remove_dir_all(&path).expect("removed");
}
