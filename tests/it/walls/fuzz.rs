//! Requests nobody thought of, made from the description: each gets an answer that the description promises, and
//! none gets a 5xx. What the description refuses is not taken.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt, stream::poll_fn};
use proptest::{
    strategy::{Strategy, Union, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::requests::Shot;
use crate::world::{Answer, Operation, World, campaign, faults};

/// Requests in flight.
const AT_ONCE: usize = 8;

/// The seed: that of `FERMATA_SEED`, to see the same requests again, or a new one.
fn seed() -> u64 {
    std::env::var("FERMATA_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap())
}

/// Something of each kind that a path can name.
async fn things(world: &World) -> Vec<String> {
    let steps = "[{ id: a, uses: debug.echo, approval: { selfApproval: true } }]";
    // The name that the description's examples have.
    world.owner().put_yaml("crm-sync", &format!("name: crm-sync\nsteps: {steps}")).await.expect(201);
    let mut things = vec!["crm-sync".to_owned()];
    for _ in 0..20 {
        let run = world.owner().execute(json!({ "workflow": "crm-sync" })).await;
        things.extend([run.hold().await, run.id]);
    }
    things
}

/// Whether the description refuses its body. A plan may be the list of steps alone.
fn is_wrong(shot: &Shot) -> bool {
    let schema = &shot.operation.described["requestBody"]["content"]["application/json"]["schema"];
    let lenient = |body: &Value| body["plan"].is_array();
    shot.json().is_some_and(|body| !schema.is_null() && !lenient(body) && !faults(schema, body).is_empty())
}

fn judge(shot: &Shot, answer: &Answer) {
    assert!(answer.status < 500, "{shot:?}: {}", answer.text());
    assert!(answer.status >= 400 || !is_wrong(shot), "{shot:?} was taken: {}", answer.text());
    assert!(answer.header("x-a").is_none(), "{shot:?}");
}

/// So many requests, always the same for a seed, as long as they are taken.
fn shots(things: Vec<String>, seed: u64, count: usize) -> mpsc::Receiver<Shot> {
    let (sender, receiver) = mpsc::channel(64);
    // Strategies stay in their thread.
    std::thread::spawn(move || {
        let shots = Union::new(Operation::all().iter().map(|operation| Shot::strategy(operation, &things)));
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), random);
        for _ in 0..count {
            if sender.blocking_send(shots.new_tree(&mut runner).unwrap().current()).is_err() {
                return;
            }
        }
    });
    receiver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_gets_what_the_description_does_not_promise() {
    let (count, seed) = (campaign::scale(200_000, 20_000), seed());
    println!("FERMATA_SEED={seed}");
    let world = World::new().await;
    let (caller, nobody) = (world.owner(), world.nobody());
    let mut shots = shots(things(&world).await, seed, count);
    let answers = poll_fn(|context| shots.poll_recv(context)).map(|shot| {
        let (shot, caller, nobody) = (Arc::new(shot), caller.clone(), nobody.clone());
        let sent = Arc::clone(&shot);
        let answer = tokio::spawn(async move {
            let answer = sent.send(&caller, &nobody).await;
            judge(&sent, &answer);
            answer.status
        });
        async move { answer.await.unwrap_or_else(|error| panic!("{error}: {shot:?}")) }
    });
    let mut answers = answers.buffer_unordered(AT_ONCE);
    let mut statuses = BTreeMap::<u16, usize>::new();
    while let Some(status) = answers.next().await {
        *statuses.entry(status).or_default() += 1;
    }
    println!("{count} requests by status: {statuses:?}");
    // They came to something: taken, not there, not valid, and in conflict.
    for status in [200, 201, 202, 400, 401, 404, 409, 422] {
        assert!(statuses.get(&status).is_some_and(|times| *times > count / 1_000), "{status}: {statuses:?}");
    }
    world.nobody().get("/health/ready").await.expect(200);
    world.owner().start(json!([{ "id": "a", "uses": "debug.echo" }])).await.completes().await;
}
