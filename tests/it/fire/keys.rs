//! Idempotency keys: many callers of one key, and a server that dies between commit and reply.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use fermata::auth::Role;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    patient::Patient,
    scale,
    site::{Server, Site},
};
use crate::world::Client;

/// One caller's answer.
async fn start(caller: &Patient, key: &str) -> Vec<u8> {
    let body = json!({ "plan": [{ "id": "a", "uses": "debug.echo" }], "goal": key });
    let post = |client: &Client| client.request(Method::POST, "/agent/execute").json(&body).key(key);
    let answer = caller.ask(post).await;
    answer.expect(202);
    answer.body.to_vec()
}

/// What the crash point after the commit of a keyed request is called.
async fn after_commit(site: &Site, server: &mut Server, caller: &Patient) -> String {
    let list = site.file("points");
    assert!(server.start_with(Some(&format!("list:{}", list.display()))).await);
    start(caller, "to-learn-the-name").await;
    server.stop().await;
    let points = std::fs::read_to_string(list).unwrap();
    let after = |line: &&str| line.contains("src/http/once.rs") && line.ends_with("after");
    points.lines().find(after).unwrap().to_owned()
}

#[tokio::test]
#[cfg_attr(not(debug_assertions), ignore = "a release build has no crash points")]
async fn one_key_is_one_object_though_the_server_dies_before_it_answers() {
    const CALLERS: usize = 8;
    let (keys, most_kills) = scale((1000, 200), (40, 6));
    let site = Site::new().await;
    let mut server = site.server("api");
    let [home, abroad] =
        site.tenants.map(|tenant| Patient::new(&site.client("", tenant, &[Role::Operator]), &[&server]));
    let point = after_commit(&site, &mut server, &home).await;
    let room = Arc::new(Semaphore::new(6));
    let mut asked = JoinSet::new();
    for number in 0..keys {
        let (caller, room) = (home.clone(), Arc::clone(&room));
        asked.spawn(async move {
            let _place = room.acquire_owned().await.unwrap();
            let key = format!("key-{number}");
            let answers = join_all((0..CALLERS).map(|_| start(&caller, &key))).await;
            (key, answers)
        });
    }
    let (mut kills, mut objects) = (0, HashMap::new());
    let mut life = server.start_with(Some(&format!("{point}#{}", rand::random_range(1..8)))).await;
    while objects.len() < keys {
        assert!(life);
        tokio::select! {
            Some(answered) = asked.join_next() => {
                let (key, answers) = answered.unwrap();
                assert!(answers.iter().all(|answer| *answer == answers[0]), "{key}: the replies differ");
                objects.insert(key, answers[0].clone());
            }
            _ = server.ended() => {
                kills += 1;
                let order = (kills < most_kills).then(|| format!("{point}#{}", rand::random_range(1..8)));
                life = server.start_with(order.as_deref()).await;
            }
        }
    }
    assert!(kills * 2 > most_kills, "{kills} kills");
    let mut database = site.superuser().await;
    let query = "select goal, count(*) from runs where tenant_id = $1 and goal like 'key-%' group by goal";
    let rows = sqlx::query_as(query).bind(site.tenants[0].uuid()).fetch_all(&mut database).await.unwrap();
    let rows: HashMap<String, i64> = rows.into_iter().collect();
    assert_eq!((rows.len(), rows.values().max()), (keys, Some(&1)), "one object for each key");
    // The same keys mean something else to another tenant.
    let mut ids: HashSet<_> = objects.values().cloned().collect();
    for key in objects.keys() {
        assert!(ids.insert(start(&abroad, key).await), "{key} is known to a stranger");
    }
    println!(
        "keys: {keys} keys, {CALLERS} callers each, {kills} kills between commit and reply: one object, one reply each"
    );
}
