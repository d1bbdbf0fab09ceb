//! Budgets of tenants' days: what would go past one waits for more, and runs that go side by side never exceed one together,
//! whoever dies.

use std::time::Duration;

use fermata::{
    app::Role,
    kernel::{RunId, Timestamp},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    budgets::{approve, chain, is_near, lack, talk, talker, twenty, world_with},
    world::{Provider, Run, Turn, World},
};

async fn without_worker(provider: &Provider) -> World {
    World::without_worker(|settings| settings.llm.providers = provider.settings().collect()).await
}

async fn cap_day(world: &World, budget: &Value) -> Value {
    world.admin().request(Method::PUT, "/usage/budget").json(budget).send().await.expect(200)
}

async fn day(world: &World) -> Value {
    world.viewer().get("/usage/budget").await.expect(200)
}

#[tokio::test]
async fn runs_side_by_side_never_exceed_their_tenants_day_together() {
    let provider = Provider::start().await;
    let world = without_worker(&provider).await;
    talker(&world).await;
    cap_day(&world, &json!({ "cost": 6.5 })).await;
    provider.script(std::iter::repeat_n(Turn::SayHeld(twenty(), 2), 10));
    let _workers = [world.mortal(Role::Worker).await, world.mortal(Role::Worker).await];
    let mut runs = Vec::new();
    for _ in 0..10 {
        runs.push(talk(&world, Value::Null).await);
    }
    let mut questions = world.approver().follow_tenant("?from=start&types=awaiting_approval").await;
    let mut asked = Vec::new();
    while asked.len() < 7 {
        asked.push(questions.next().await.unwrap().data);
    }
    assert_eq!(provider.asked_times(3).await.len(), 3, "three have room");
    let today = world.now().date_naive().to_string();
    for event in &asked {
        let payload = &event["payload"];
        assert_eq!(
            (&payload["question"], &payload["raises"], &payload["day"]),
            (&json!("budget"), &json!("cost"), &json!(today))
        );
        is_near(&payload["raise"], 1.5);
        assert!(payload["reason"].as_str().unwrap().contains("tenant"), "{payload}");
    }
    is_near(&day(&world).await["reserved"]["cost"], 6.0);
    provider.release();
    let waits: Vec<_> = asked.iter().map(|event| event["runId"].clone()).collect();
    for run in runs.iter().filter(|run| !waits.contains(&json!(run.id))) {
        is_near(&run.completes().await["cost"], 2.0);
    }
    let standing = day(&world).await;
    is_near(&standing["spent"]["cost"], 6.0);
    assert_eq!((&standing["reserved"]["cost"], provider.asked().len()), (&json!(0.0), 3));

    // One is refused; each of the others has what it lacks, and is asked again where another took that.
    let denied = asked.pop().unwrap();
    world.approver().deny(denied["payload"]["approvalId"].as_str().unwrap(), "tomorrow").await;
    let failed = world.viewer().run(denied["runId"].as_str().unwrap()).wait_end().await;
    assert_eq!(failed["error"]["message"], "the tenant's budget was not raised");
    for event in &asked {
        approve(&world, &event["payload"]).await;
    }
    for event in &asked {
        let run = world.viewer().run(event["runId"].as_str().unwrap());
        let mut follow = run.follow_after(event["eventId"].as_str().unwrap()).await;
        while let Some(next) = follow.next().await {
            if next.name == "awaiting_approval" {
                approve(&world, &next.data["payload"]).await;
            }
        }
        is_near(&run.completes().await["cost"], 2.0);
    }
    let standing = day(&world).await;
    is_near(&standing["spent"]["cost"], 18.0);
    assert_eq!(standing["reserved"], json!({ "cost": 0.0, "tokens": 0, "toolCalls": 0, "wallTime": 0.0 }));
    let allowed = 6.5 + standing["raised"]["cost"].as_f64().unwrap();
    assert!(allowed >= 18.0 - 1e-6, "{standing}");
    // What people allowed bounds what the provider was asked for.
    assert_eq!(provider.asked().len(), 9);
}

#[tokio::test]
async fn runs_side_by_side_never_exceed_their_day_together_though_each_byte_is_a_token() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    provider.dense();
    cap_day(&world, &json!({ "tokens": 20_000 })).await;
    provider.answering(|_| Turn::SayHeld(twenty(), 2));
    let goal = "7 ".repeat(2000);
    let mut runs = Vec::new();
    for _ in 0..6 {
        runs.push(world.owner().execute(json!({ "agent": "talker", "goal": goal })).await);
    }
    // Each is some six thousand tokens: three have room, and each of the others asks for more.
    let mut questions = world.approver().follow_tenant("?from=start&types=awaiting_approval").await;
    let mut waits = Vec::new();
    for _ in 0..3 {
        let asked = questions.next().await.unwrap().data;
        let payload = &asked["payload"];
        assert_eq!((&payload["question"], &payload["raises"]), (&json!("budget"), &json!("tokens")));
        waits.push(asked["runId"].clone());
    }
    provider.asked_times(3).await;
    provider.release();
    for run in runs.iter().filter(|run| !waits.contains(&json!(run.id))) {
        run.completes().await;
    }
    let standing = day(&world).await;
    let spent = standing["spent"]["tokens"].as_u64().unwrap();
    assert!((12_000..=20_000).contains(&spent), "{standing}");
    assert_eq!(standing["reserved"]["tokens"], 0);
}

#[tokio::test]
async fn calls_of_tools_and_tokens_of_a_day_are_capped_too_and_tomorrow_is_another_day() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    cap_day(&world, &json!({ "toolCalls": 3 })).await;
    let run = world.operator().start(chain(4)).await;
    let asked = lack(&run).await;
    assert_eq!((&asked["raises"], &asked["raise"]), (&json!("toolCalls"), &json!(1.0)));
    assert_eq!(day(&world).await["spent"]["toolCalls"], 3);
    approve(&world, &asked).await;
    run.completes().await;
    let standing = day(&world).await;
    assert_eq!((&standing["spent"]["toolCalls"], &standing["raised"]["toolCalls"]), (&json!(4), &json!(1)));

    cap_day(&world, &json!({ "tokens": 10 })).await;
    let run = talk(&world, Value::Null).await;
    assert_eq!(lack(&run).await["raises"], "tokens");
    run.cancel().await.expect(202);
    // Lifted, it bounds nothing; tomorrow's begins anew.
    assert_eq!(cap_day(&world, &json!({})).await["budget"], json!({}));
    talk(&world, Value::Null).await.completes().await;
    cap_day(&world, &json!({ "cost": 2.0, "toolCalls": 3 })).await;
    world.advance(Duration::from_secs(24 * 3600));
    world.operator().start(chain(3)).await.completes().await;
    talk(&world, Value::Null).await.completes().await;
    assert_eq!(day(&world).await["spent"]["toolCalls"], 3);
}

#[tokio::test]
async fn a_question_about_a_day_stands_until_that_ends_and_then_its_run_goes_on() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    cap_day(&world, &json!({ "cost": 1.0, "toolCalls": 1 })).await;
    let run = world.operator().start(chain(2)).await;
    let body = json!({ "agent": "talker", "goal": "Talk" });
    let planned = world.operator().post("/agent/plan", &body).await.expect(202);
    let planned = world.operator().run(planned["runId"].as_str().unwrap());
    let questions = [lack(&run).await, lack(&planned).await];
    let tomorrow = world.now().date_naive().succ_opt().unwrap();
    for asked in &questions {
        assert_eq!(asked["expiresAt"], format!("{tomorrow}T00:00:00.000Z"));
    }
    // What is decided for the day after counts from its beginning.
    cap_day(&world, &json!({ "cost": 10.0, "toolCalls": 1 })).await;
    provider.script([Turn::call(
        "plan",
        json!({ "steps": [{ "id": "a", "uses": "data.transform", "with": { "value": 1 } }] }),
    )]);
    world.advance(Duration::from_secs(24 * 3600));
    run.completes().await;
    planned.wait_for("plan.ready").await;
    for asked in &questions {
        let path = format!("/approvals/{}", asked["approvalId"].as_str().unwrap());
        assert_eq!(world.approver().get(&path).await.expect(200)["status"], "cancelled");
    }
    assert_eq!(day(&world).await["spent"]["toolCalls"], 1);
}

#[tokio::test]
async fn time_of_a_day_is_that_of_its_calls_and_waiting_for_a_person_does_not_count() {
    let world = World::new().await;
    cap_day(&world, &json!({ "wallTime": "1m" })).await;
    let plan = json!([
        { "id": "ask", "uses": "debug.echo", "approval": { "selfApproval": true } },
        { "id": "nap", "needs": ["ask"], "uses": "time.wait", "with": { "for": "2m" } },
        { "id": "end", "needs": ["nap"], "uses": "debug.echo" },
    ]);
    let run = world.owner().execute(json!({ "plan": plan })).await;
    let held = run.hold().await;
    world.advance(Duration::from_secs(3600));
    world.owner().approve(&held).await;
    run.wait_for_step("step.waiting", "nap").await;
    world.advance(Duration::from_secs(50));
    let out = day(&world).await["reserved"]["wallTime"].as_f64().unwrap();
    assert!((50.0..70.0).contains(&out), "{out}: a call that is out counts as it goes");
    world.advance(Duration::from_secs(70));
    let asked = run.wait_for_step("awaiting_approval", "end").await.data["payload"].clone();
    assert_eq!((&asked["question"], &asked["raises"]), (&json!("budget"), &json!("wallTime")));
    assert_eq!(asked["day"], world.now().date_naive().to_string());
    // A minute too much has gone, and there is to be another; the machine took some time of its own.
    assert!((120.0..150.0).contains(&asked["raise"].as_f64().unwrap()), "{asked}");
    assert!(asked["reason"].as_str().unwrap().starts_with("The tenant has used up its budget of time"), "{asked}");
    // Another run has no time either, and begins when there is some again.
    let other = world.operator().start(chain(1)).await;
    assert_eq!(lack(&other).await["raises"], "wallTime");
    approve(&world, &asked).await;
    run.completes().await;
    let standing = day(&world).await;
    let spent = standing["spent"]["wallTime"].as_f64().unwrap();
    assert!((120.0..150.0).contains(&spent), "{standing}");
    assert_eq!((&standing["raised"]["wallTime"], &standing["reserved"]["wallTime"]), (&asked["raise"], &json!(0.0)));
    let asked = lack(&other).await;
    approve(&world, &asked).await;
    other.completes().await;
}

#[tokio::test]
async fn what_was_spent_before_a_day_had_its_budget_counts() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    provider.script([Turn::Say(twenty())]);
    talk(&world, Value::Null).await.completes().await;
    is_near(&cap_day(&world, &json!({ "cost": 3.0 })).await["spent"]["cost"], 2.0);
    let run = talk(&world, Value::Null).await;
    is_near(&lack(&run).await["raise"], 1.0);
}

#[tokio::test]
async fn a_death_in_the_middle_of_a_call_neither_leaks_nor_doubles_its_reservation() {
    let provider = Provider::start().await;
    let world = without_worker(&provider).await;
    talker(&world).await;
    cap_day(&world, &json!({ "cost": 3.0 })).await;
    provider.script([Turn::SayHeld(twenty(), 2), Turn::Say(twenty()), Turn::Say(twenty())]);
    let worker = world.mortal(Role::Worker).await;
    let run = talk(&world, Value::Null).await;
    provider.asked_times(1).await;
    worker.kill();
    is_near(&day(&world).await["reserved"]["cost"], 2.0);
    let _worker = world.mortal(Role::Worker).await;
    let done = run.completes().await;
    let standing = day(&world).await;
    assert_eq!((&standing["spent"]["cost"], &standing["reserved"]["cost"]), (&done["cost"], &json!(0.0)));
    let started = run.events().await.into_iter().filter(|event| event["step"] == "step.started");
    let repeated: Vec<_> = started.map(|event| event["payload"]["repeated"].clone()).collect();
    assert_eq!(repeated, [Value::Null, json!(true)]);
}

/// What a process leaves that dies when it has reserved and not begun.
async fn leave(world: &World, run: &Run, at: Timestamp) {
    let id: RunId = run.id.parse().unwrap();
    sqlx::query(
        "insert into usage_reservations (tenant_id, run_id, step_id, attempt, day, cost, tokens, tool_calls)
         values ($1, $2, 'turn-1', 1, $3, 2.0, 0, 0)",
    )
    .bind(world.home().uuid())
    .bind(id.uuid())
    .bind(at.date_naive())
    .execute(&mut world.superuser().await)
    .await
    .unwrap();
}

#[tokio::test]
async fn what_was_reserved_before_a_death_is_used_by_the_same_call_or_given_up_with_its_run() {
    let provider = Provider::start().await;
    let world = without_worker(&provider).await;
    talker(&world).await;
    cap_day(&world, &json!({ "cost": 3.0 })).await;
    let (run, other) = (talk(&world, Value::Null).await, talk(&world, Value::Null).await);
    leave(&world, &run, world.now()).await;
    leave(&world, &other, world.now()).await;
    // It ends without ever having begun, and nobody hears of what was reserved for it.
    other.cancel().await.expect(202);
    let _worker = world.mortal(Role::Worker).await;
    run.completes().await;
    assert_eq!(day(&world).await["reserved"]["cost"], 0.0);
}

/// What models told that they took, of the run.
async fn messages(run: &Run) -> Vec<Value> {
    let events = run.events().await.into_iter().filter(|event| event["step"] == "message.completed");
    events.map(|event| event["payload"].clone()).collect()
}

#[tokio::test]
async fn what_a_call_took_before_it_was_called_off_is_in_the_books() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    cap_day(&world, &json!({ "cost": 100.0 })).await;
    // In the middle of a sentence the run is cancelled.
    provider.script([Turn::SayHeld(twenty(), 10)]);
    let run = talk(&world, Value::Null).await;
    hears(&run, &twenty()[..10].concat()).await;
    run.cancel().await.expect(202);
    let ended = run.wait_end().await;
    assert_eq!(ended["status"], "cancelled");
    let [told] = &messages(&run).await[..] else { panic!("what was taken is told once") };
    // Thirty bytes of words.
    assert_eq!(
        (&told["outputTokens"], &told["text"], &told["provider"]),
        (&json!(8), &Value::Null, &json!("fake-openai"))
    );
    assert!(told["inputTokens"].as_u64().unwrap() > 0, "{told}");
    is_near(&ended["cost"], 0.8);
    let of_run = world.viewer().get(&format!("/usage?groupBy=step&runId={}", run.id)).await.expect(200);
    assert_eq!((&of_run["items"][0]["stepId"], &of_run["items"][0]["outputTokens"]), (&json!("turn-1"), &json!(8)));
    let standing = day(&world).await;
    is_near(&standing["spent"]["cost"], 0.8);
    assert_eq!(standing["reserved"]["cost"], 0.0);

    // The time of a step is up.
    provider.script([Turn::SayHeld(twenty(), 10)]);
    let with = json!({ "config": "talker", "prompt": "Talk" });
    let run =
        world.operator().start(json!([{ "id": "ask", "uses": "llm.generate", "with": with, "timeout": "5s" }])).await;
    hears(&run, &twenty()[..10].concat()).await;
    world.advance(Duration::from_secs(6));
    assert_eq!(run.wait_end().await["error"]["code"], "timeout");
    assert_eq!(messages(&run).await[0]["outputTokens"], 8);

    // An answer broke off, and nobody waits for another.
    provider.script([Turn::Cut(twenty()), Turn::Status(429, vec![("retry-after", "30")])]);
    let run = talk(&world, Value::Null).await;
    let mut follow = run.follow().await;
    while !follow.until("tool.progress").await.data.to_string().contains("429") {}
    run.cancel().await.expect(202);
    let ended = run.wait_end().await;
    assert_eq!((&ended["status"], messages(&run).await.len()), (&json!("cancelled"), 1));
    assert!(ended["cost"].as_f64().unwrap() > 0.0, "{ended}");
}

#[tokio::test]
async fn what_a_plan_took_before_it_was_called_off_is_in_the_books() {
    let provider = Provider::start().await;
    let world = world_with(&provider).await;
    talker(&world).await;
    cap_day(&world, &json!({ "cost": 100.0 })).await;
    provider.script([Turn::SayHeld(twenty(), 10)]);
    let body = json!({ "agent": "talker", "goal": "Talk" });
    let planned = world.owner().post("/agent/plan", &body).await.expect(202);
    let run = world.owner().run(planned["runId"].as_str().unwrap());
    hears(&run, &twenty()[..10].concat()).await;
    run.cancel().await.expect(202);
    let ended = run.wait_end().await;
    assert_eq!(ended["status"], "cancelled");
    let [told] = &messages(&run).await[..] else { panic!("what was taken is told once") };
    assert_eq!((&told["outputTokens"], &told["text"]), (&json!(8), &Value::Null));
    is_near(&ended["cost"], 0.8);
    let standing = day(&world).await;
    is_near(&standing["spent"]["cost"], 0.8);
    assert_eq!(standing["reserved"]["cost"], 0.0);
}

#[tokio::test]
async fn what_a_call_took_in_a_process_that_could_not_wait_for_it_is_in_the_books() {
    let provider = Provider::start().await;
    let world = World::without_worker(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.http.drain_grace = "100ms".parse().unwrap();
    })
    .await;
    talker(&world).await;
    cap_day(&world, &json!({ "cost": 100.0 })).await;
    let worker = world.server(Role::Worker).await;
    provider.script([Turn::SayHeld(twenty(), 10), Turn::say("Done.")]);
    let run = talk(&world, Value::Null).await;
    hears(&run, &twenty()[..10].concat()).await;
    worker.stop().await;
    let [told] = &messages(&run).await[..] else { panic!("what was taken is told once") };
    assert_eq!((&told["outputTokens"], &told["text"]), (&json!(8), &Value::Null));
    is_near(&run.get().await["cost"], 0.8);
    assert_eq!(run.get().await["status"], "executing");
    // The next one asks anew.
    let _worker = world.mortal(Role::Worker).await;
    let ended = run.completes().await;
    assert_eq!((ended["output"].clone(), provider.asked().len()), (json!("Done."), 2));
    let last = messages(&run).await.pop().unwrap();
    is_near(&ended["cost"], 0.8 + last["cost"].as_f64().unwrap());
    is_near(&day(&world).await["spent"]["cost"], ended["cost"].as_f64().unwrap());
}

/// Waits until so much was said.
async fn hears(run: &Run, words: &str) {
    let (mut follow, mut said) = (run.follow().await, String::new());
    while said != words {
        said += follow.until("message.delta").await.data["payload"]["text"].as_str().unwrap();
    }
}
