//! Holds: nothing acts before somebody with the right has said so, and then exactly that acts.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use fermata::auth::Role;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::world::{Client, Reply, Run, Upstream, World};

const HOUR: Duration = Duration::from_secs(3600);

/// A held POST to `/act`, with these terms and whatever else the step says.
async fn held(world: &World, upstream: &Upstream, approval: Value, more: Value) -> Run {
    let call = json!({ "method": "POST", "url": upstream.url("/act"), "json": { "amount": 10 } });
    let mut step = json!({ "id": "act", "uses": "http.request", "with": call, "approval": approval });
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.operator().start(json!([step, { "id": "after", "needs": ["act"], "uses": "debug.echo" }])).await
}

async fn approval(caller: &Client, id: &str) -> Value {
    caller.get(&format!("/approvals/{id}")).await.expect(200)
}

/// Another person who may decide.
fn somebody(world: &World, subject: &str) -> Client {
    world.bearer(&world.grant(world.home(), subject, vec![Role::Approver], None))
}

fn named(names: &[String], name: &str) -> usize {
    names.iter().filter(|other| *other == name).count()
}

#[tokio::test]
async fn the_question_is_asked_word_for_word() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let terms = json!({ "reason": "Writes to the CRM", "scope": ["contacts", "deals"], "requires": ["write:crm"],
                        "cost": 124, "expires": "4h" });
    let run = held(&world, &upstream, terms, json!({})).await;
    let event = run.wait_for("awaiting_approval").await.data;
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let expected = ["attempt", "eventId", "level", "payload", "runId", "step", "stepId", "tenantId", "ts"];
    assert_eq!(fields(&event), expected.map(str::to_owned).into());
    assert_eq!((&event["stepId"], &event["attempt"], &event["runId"]), (&json!("act"), &json!(1), &json!(run.id)));
    let payload = &event["payload"];
    assert_eq!(payload["action"], "http.request");
    assert_eq!(
        payload["arguments"],
        json!({ "method": "POST", "url": upstream.url("/act"), "json": { "amount": 10 } })
    );
    assert_eq!((&payload["costEstimate"], &payload["reason"]), (&json!(124.0), &json!("Writes to the CRM")));
    assert_eq!((&payload["scope"], &payload["requires"]), (&json!(["contacts", "deals"]), &json!(["write:crm"])));
    let digest = payload["digest"].as_str().unwrap();
    assert!(digest.len() == 71 && digest.starts_with("sha256:"), "{digest}");
    let time = |value: &Value| chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
    assert_eq!((time(&payload["expiresAt"]) - time(&event["ts"])).num_hours(), 4);

    let inbox = world.approver().get(&format!("/approvals?status=pending&runId={}", run.id)).await.expect(200);
    let row = &inbox["items"][0];
    for field in
        ["approvalId", "action", "arguments", "digest", "costEstimate", "reason", "scope", "requires", "expiresAt"]
    {
        assert_eq!(row[field], payload[field], "{field}");
    }
    assert_eq!((&row["askedBy"], &row["status"]), (&json!("user_operator"), &json!("pending")));
    let shown = run.get().await;
    assert_eq!(
        (&shown["status"], &shown["pendingApprovals"][0]),
        (&json!("awaiting_approval"), &payload["approvalId"])
    );
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn what_is_approved_acts_once_and_what_is_denied_never() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let run = held(&world, &upstream, json!({}), json!({})).await;
    world.approver().approve(&run.hold().await).await;
    run.completes().await;
    assert_eq!(upstream.requests_to("/act").len(), 1);

    let run = held(&world, &upstream, json!({}), json!({})).await;
    world.approver().deny(&run.hold().await, "not today").await;
    let failed = run.wait_end().await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("denied")));
    let denied = run.wait_for("denied").await.data;
    assert_eq!(
        (&denied["payload"]["by"], &denied["payload"]["reason"]),
        (&json!("user_approver"), &json!("not today"))
    );

    let run = held(&world, &upstream, json!({}), json!({ "onDenied": "skip" })).await;
    world.approver().deny(&run.hold().await, "not today").await;
    run.completes().await;
    assert_eq!(
        (&run.step("act").await["status"], &run.step("after").await["status"]),
        (&json!("skipped"), &json!("skipped"))
    );
    assert_eq!(upstream.requests_to("/act").len(), 1, "nothing that was denied has acted");
}

#[tokio::test]
async fn of_a_hundred_decisions_at_once_one_counts() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let other = world.server(fermata::app::Role::Api).await;
    let run = held(&world, &upstream, json!({}), json!({ "onDenied": "skip" })).await;
    let id = run.hold().await;
    let answers = join_all((0..100).map(|n| {
        let subject = format!("user_{n}");
        let client = somebody(&world, &subject);
        let client = if n % 3 == 0 { client.at(&other.url) } else { client };
        let (id, status) = (id.clone(), if n % 2 == 0 { "approved" } else { "denied" });
        async move { (subject, status, client.decide(&id, &json!({ "status": status })).await) }
    }))
    .await;
    run.completes().await;
    let names = run.event_names().await;
    assert_eq!(named(&names, "approved") + named(&names, "denied"), 1);
    let settled = approval(&world.viewer(), &id).await;
    let (outcome, by) = (settled["status"].as_str().unwrap(), &settled["decidedBy"]);
    for (subject, status, answer) in &answers {
        if *status == outcome {
            assert_eq!(answer.expect(200)["decidedBy"], *by, "{subject}");
        } else {
            let problem = answer.problem(409, "already-decided");
            assert_eq!((&problem["status"], &problem["decidedBy"]), (&json!(409), by), "{problem}");
        }
    }
    assert!(answers.iter().any(|(subject, status, _)| *by == subject.as_str() && *status == outcome));
    assert_eq!(settled["decisions"].as_array().unwrap().len(), 1);
    assert_eq!(upstream.requests_to("/act").len(), usize::from(outcome == "approved"));
    other.stop().await;
}

#[tokio::test]
async fn the_same_again_is_no_harm_and_the_contrary_is_told_who_decided() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let run = held(&world, &upstream, json!({}), json!({})).await;
    let id = run.hold().await;
    world.approver().approve(&id).await;
    run.completes().await;
    // After the end of the run too.
    assert_eq!(world.approver().approve(&id).await["status"], "approved");
    let answer = world.admin().decide(&id, &json!({ "status": "denied" })).await;
    let problem = answer.problem(409, "already-decided");
    assert_eq!(problem["decidedBy"], "user_approver");
    assert!(problem["detail"].as_str().unwrap().contains("approved by user_approver"), "{problem}");
    assert_eq!(named(&run.event_names().await, "approved"), 1);
}

#[tokio::test]
async fn whoever_started_the_run_does_not_decide_on_it() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let creator = world.owner();
    let step = |terms: Value| json!([{ "id": "act", "uses": "http.request", "with": { "url": upstream.url("/act") }, "approval": terms }]);
    let run = creator.start(step(json!({}))).await;
    let id = run.hold().await;
    creator.decide(&id, &json!({ "status": "approved" })).await.problem(403, "forbidden");
    let body = json!({ "runId": run.id, "stepId": "act", "approval": { "status": "approved" } });
    creator.post("/agent/approve", &body).await.problem(403, "forbidden");
    // Nor does a subject that the caller only claims.
    let claim =
        json!({ "runId": run.id, "stepId": "act", "approval": { "status": "approved", "actor": "user_owner" } });
    world.approver().post("/agent/approve", &claim).await.problem(403, "forbidden");
    assert_eq!(upstream.requests().len(), 0);
    world.approver().post("/agent/approve", &body).await.expect(200);
    run.completes().await;

    let run = creator.start(step(json!({ "selfApproval": true }))).await;
    creator.approve(&run.hold().await).await;
    run.completes().await;
}

#[tokio::test]
async fn who_may_not_decide_is_refused_and_nothing_happens() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let run = held(&world, &upstream, json!({}), json!({})).await;
    let id = run.hold().await;
    let yes = json!({ "status": "approved" });
    world.viewer().decide(&id, &yes).await.problem(403, "forbidden");
    world.nobody().decide(&id, &yes).await.problem(401, "unauthenticated");
    world.stranger().decide(&id, &yes).await.problem(404, "not-found");
    assert_eq!(approval(&world.viewer(), &id).await["status"], "pending");
    assert_eq!(named(&run.event_names().await, "approved"), 0);
}

#[tokio::test]
async fn an_answer_to_another_call_than_the_held_one_is_stale() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let run = held(&world, &upstream, json!({}), json!({})).await;
    let id = run.hold().await;
    let seen = approval(&world.approver(), &id).await["digest"].clone();
    let other = format!("sha256:{}", "0".repeat(64));
    let stale = world.approver().decide(&id, &json!({ "status": "approved", "digest": other })).await;
    assert_eq!(stale.problem(409, "stale-digest")["digest"], seen);
    assert_eq!(approval(&world.viewer(), &id).await["status"], "pending");
    world.approver().decide(&id, &json!({ "status": "approved", "digest": seen })).await.expect(200);
    run.completes().await;
}

#[tokio::test]
async fn what_the_approver_sets_is_what_acts() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let run = held(&world, &upstream, json!({}), json!({})).await;
    let id = run.hold().await;
    let asked = approval(&world.approver(), &id).await;
    // The tool has a say: `verb` is none of its arguments.
    let wrong = json!({ "status": "approved", "arguments": { "verb": "POST" } });
    world.approver().decide(&id, &wrong).await.problem(422, "invalid-input");
    let arguments =
        json!({ "method": "POST", "url": upstream.url("/act"), "json": { "amount": 1.50, "ü": [null, -0.1] } });
    let decided = json!({ "status": "approved", "arguments": arguments, "digest": asked["digest"] });
    world.approver().decide(&id, &decided).await.expect(200);
    run.completes().await;
    let requests = upstream.requests_to("/act");
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].json(), arguments["json"]);
    assert_eq!(run.step("act").await["arguments"], arguments);
    let approved = run.wait_for("approved").await.data;
    assert_eq!(approved["payload"]["arguments"], arguments);
    assert_ne!(approved["payload"]["digest"], asked["digest"]);
    // To the held call nobody has consented.
    let plain = json!({ "status": "approved" });
    world.approver().decide(&id, &plain).await.problem(409, "already-decided");
}

#[tokio::test]
async fn silence_is_a_no_and_a_late_yes_changes_nothing() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let run = held(&world, &upstream, json!({ "expires": "4h" }), json!({})).await;
    let id = run.hold().await;
    world.advance(4 * HOUR);
    let failed = run.wait_end().await;
    assert_eq!(failed["error"]["code"], "expired");
    assert_eq!(approval(&world.viewer(), &id).await["status"], "expired");
    let late = world.approver().decide(&id, &json!({ "status": "approved" })).await;
    assert_eq!(late.problem(409, "already-decided")["decidedBy"], Value::Null);
    assert_eq!(upstream.requests().len(), 0);
    // A retry asks again.
    run.retry().await.expect(202);
    let again = run.follow_after(failed["lastEventId"].as_str().unwrap()).await.until("awaiting_approval").await.data;
    assert_ne!(again["payload"]["approvalId"], id.as_str());
    world.approver().approve(again["payload"]["approvalId"].as_str().unwrap()).await;
    run.completes().await;
}

#[tokio::test]
async fn a_timer_that_fires_after_the_decision_does_nothing() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.hold("/act");
    let run = held(&world, &upstream, json!({ "expires": "1h" }), json!({ "timeout": "1d" })).await;
    let id = run.hold().await;
    world.approver().approve(&id).await;
    upstream.arrived("/act", 1).await;
    world.advance(2 * HOUR);
    // Another run's timer fires, so this one would have had its chance.
    let other = held(&world, &Upstream::start().await, json!({ "expires": "1h" }), json!({})).await;
    other.hold().await;
    world.advance(2 * HOUR);
    assert_eq!(other.wait_end().await["error"]["code"], "expired");
    upstream.release("/act");
    run.wait_end().await;
    assert_eq!(approval(&world.viewer(), &id).await["status"], "approved");
    assert_eq!(named(&run.event_names().await, "approval.expired"), 0);
}

#[tokio::test]
async fn two_branches_hold_while_a_third_goes_on() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    upstream.hold("/third");
    let held = |id: &str| json!({ "id": id, "uses": "debug.echo", "with": { "value": id }, "approval": {} });
    let third = json!({ "id": "third", "uses": "http.request", "with": { "url": upstream.url("/third") } });
    let join = json!({ "id": "join", "needs": ["one", "two", "third"], "uses": "debug.echo" });
    let run = world.operator().start(json!([held("one"), held("two"), third, join])).await;
    let mut ids = HashMap::new();
    let mut follow = run.follow().await;
    while ids.len() < 2 {
        let event = follow.until("awaiting_approval").await.data;
        ids.insert(
            event["stepId"].as_str().unwrap().to_owned(),
            event["payload"]["approvalId"].as_str().unwrap().to_owned(),
        );
    }
    upstream.arrived("/third", 1).await;
    // The third branch proceeds.
    let shown = run.get().await;
    assert_eq!((&shown["status"], shown["pendingApprovals"].as_array().unwrap().len()), (&json!("executing"), 2));
    upstream.release("/third");
    follow.until("step.completed").await;
    assert_eq!(run.get().await["status"], "awaiting_approval");
    world.approver().approve(&ids["one"]).await;
    follow.until("step.completed").await;
    assert_eq!(run.get().await["status"], "awaiting_approval");
    assert_eq!(run.get().await["pendingApprovals"], json!([ids["two"]]));
    world.approver().approve(&ids["two"]).await;
    run.completes().await;
}

#[tokio::test]
async fn each_item_asks_for_itself() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    for item in 0..3 {
        upstream.reply(&format!("/{item}"), Reply::Json(200, json!(item)));
    }
    let with = json!({ "url": format!("{}/{{{{ index }}}}", upstream.url("")) });
    let run = world
        .operator()
        .start(json!({
            "steps": [{ "id": "all", "uses": "http.request", "with": with, "forEach": ["a", "b", "c"],
                        "approval": {}, "onDenied": "skip" }],
            "output": "{{ steps.all.output }}",
        }))
        .await;
    let mut follow = run.follow().await;
    for _ in 0..3 {
        let asked = follow.until("awaiting_approval").await.data;
        let id = asked["payload"]["approvalId"].as_str().unwrap().to_owned();
        if asked["stepId"] == "all[1]" {
            world.approver().deny(&id, "not this one").await;
        } else {
            world.approver().approve(&id).await;
        }
    }
    let output = run.completes().await["output"].clone();
    assert_eq!((&output[0]["body"], &output[1], &output[2]["body"]), (&json!(0), &Value::Null, &json!(2)));
    assert_eq!(upstream.requests_to("/1").len(), 0);
}

#[tokio::test]
async fn decisions_on_one_run_do_not_push_each_other_out() {
    let world = World::new().await;
    let items = (0..10).collect::<Vec<_>>();
    let step = json!({ "id": "all", "uses": "debug.echo", "with": { "value": "{{ item }}" }, "forEach": items, "approval": {} });
    let run = world.operator().start(json!([step])).await;
    let mut follow = run.follow().await;
    let mut ids = Vec::new();
    for _ in &items {
        let asked = follow.until("awaiting_approval").await.data;
        ids.push(asked["payload"]["approvalId"].as_str().unwrap().to_owned());
    }
    // Each reads the run before the others have moved it.
    let answers = join_all(ids.iter().enumerate().map(|(n, id)| {
        let approver = somebody(&world, &format!("user_{n}"));
        async move { approver.decide(id, &json!({ "status": "approved" })).await }
    }))
    .await;
    for (n, answer) in answers.iter().enumerate() {
        let settled = answer.expect(200);
        assert_eq!((&settled["status"], &settled["decidedBy"]), (&json!("approved"), &json!(format!("user_{n}"))));
        assert_eq!(settled, approval(&world.viewer(), &ids[n]).await, "the answer is what is kept");
    }
    run.completes().await;
    assert_eq!(named(&run.event_names().await, "approved"), items.len());
}

#[tokio::test]
async fn a_decision_counts_from_the_instant_the_hold_commits() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    // Decided by whoever hears of it first, many times over, while the worker is still on its way out.
    let runs = join_all((0..20).map(|_| held(&world, &upstream, json!({}), json!({})))).await;
    let approver = world.approver();
    join_all(runs.iter().map(|run| {
        let approver = approver.clone();
        async move { approver.approve(&run.hold().await).await }
    }))
    .await;
    join_all(runs.iter().map(Run::completes)).await;
    assert_eq!(upstream.requests_to("/act").len(), 20);
}

#[tokio::test]
async fn the_end_of_a_run_is_the_end_of_its_questions() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let run = held(&world, &upstream, json!({}), json!({})).await;
    let id = run.hold().await;
    run.cancel().await.expect(202);
    assert_eq!(run.wait_end().await["pendingApprovals"], json!([]));
    assert_eq!(run.step("act").await["status"], "pending");
    assert_eq!(approval(&world.viewer(), &id).await["status"], "cancelled");
    let late = world.approver().decide(&id, &json!({ "status": "approved" })).await;
    late.problem(409, "already-decided");
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn a_call_past_the_budget_waits_for_more_and_money_is_no_consent() {
    let world = World::new().await;
    let step = |id: &str, cost: f64| json!({ "id": id, "uses": "debug.echo", "approval": { "cost": cost, "selfApproval": true } });
    let body = json!({ "plan": [step("a", 60.0), step("b", 60.0)], "budget": 100 });
    let run = world.owner().execute(body).await;
    let mut follow = run.follow().await;
    let mut asked = Vec::new();
    while asked.len() < 2 {
        asked.push(follow.until("awaiting_approval").await.data["payload"].clone());
    }
    assert!(asked.iter().all(|asked| asked["question"] == "consent"), "{asked:?}");
    for asked in &asked {
        world.owner().approve(asked["approvalId"].as_str().unwrap()).await;
    }
    let more = follow.until("awaiting_approval").await.data["payload"].clone();
    assert_eq!((&more["question"], &more["raise"]), (&json!("budget"), &json!(20.0)));
    // Consent to a call was the creator's to give here; money is not.
    let id = more["approvalId"].as_str().unwrap();
    world.owner().decide(id, &json!({ "status": "approved" })).await.problem(403, "forbidden");
    world.approver().approve(id).await;
    assert_eq!(run.completes().await["cost"], 120.0);
}

#[tokio::test]
async fn only_whom_the_step_names_decides_at_every_door() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let member = |subject: &str, role, group: &str| {
        let grant = world.grant(world.home(), subject, vec![role], None);
        world.bearer(&fermata::auth::Grant { groups: vec![group.to_owned()], ..grant })
    };
    let finance = member("user_money", Role::Approver, "finance");
    for (approvers, who) in [
        (json!(["finance"]), &finance),
        (json!(["user_7", "user_approver"]), &world.approver()),
        (json!(["admin"]), &world.admin()),
    ] {
        let run = held(&world, &upstream, json!({ "approvers": approvers, "selfApproval": true }), json!({})).await;
        let asked = run.wait_for("awaiting_approval").await.data["payload"].clone();
        assert_eq!(asked["approvers"], approvers);
        let id = asked["approvalId"].as_str().unwrap();
        assert_eq!(approval(&world.viewer(), id).await["approvers"], approvers);
        // A group that is called as a role is not that role, and the owner is not exempt.
        let others = [world.owner(), somebody(&world, "user_other"), member("user_sly", Role::Approver, "admin")];
        for other in others {
            for status in ["approved", "denied"] {
                let problem = other.decide(id, &json!({ "status": status })).await.problem(403, "forbidden");
                let name = approvers.as_array().unwrap().last().unwrap().as_str().unwrap();
                assert!(problem["detail"].as_str().unwrap().contains(name), "{problem}");
                let body = json!({ "runId": run.id, "stepId": "act", "approval": { "status": status } });
                other.post("/agent/approve", &body).await.problem(403, "forbidden");
            }
        }
        let body = json!({ "runId": run.id, "stepId": "act", "approval": { "status": "approved" } });
        who.post("/agent/approve", &body).await.expect(200);
        run.completes().await;
    }
    assert_eq!(upstream.requests().len(), 3);
}
