//! Lists, page by page.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::world::{Client, World};

/// All items, and how many pages they came on.
async fn walk(client: &Client, path: &str, limit: usize) -> (Vec<Value>, usize) {
    let (mut items, mut pages) = (Vec::new(), 0);
    let separator = if path.contains('?') { '&' } else { '?' };
    let mut query = format!("{separator}limit={limit}");
    loop {
        let page = client.get(&format!("{path}{query}")).await.expect(200);
        pages += 1;
        let on_page = page["items"].as_array().unwrap();
        assert!(on_page.len() <= limit);
        items.extend(on_page.iter().cloned());
        match page["nextCursor"].as_str() {
            Some(cursor) => query = format!("{separator}limit={limit}&cursor={cursor}"),
            None => return (items, pages),
        }
    }
}

fn texts<'a>(items: &'a [Value], field: &str) -> Vec<&'a str> {
    items.iter().map(|item| item[field].as_str().unwrap()).collect()
}

#[tokio::test]
async fn runs_are_walked_newest_first_with_none_lost_or_seen_twice() {
    let world = World::new().await;
    let client = world.operator();
    world.stranger().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(client.start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await.id);
    }
    made.reverse();
    for (limit, count) in [(1, 7), (2, 4), (3, 3), (7, 1), (200, 1)] {
        let (items, pages) = walk(&client, "/workflow/runs", limit).await;
        assert_eq!(pages, count, "{limit} a page");
        assert_eq!(HashSet::<&str>::from_iter(texts(&items, "runId")), made.iter().map(String::as_str).collect());
    }
    // A run made meanwhile is not on later pages.
    let first = client.get("/workflow/runs?limit=3").await.expect(200);
    client.start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    let cursor = first["nextCursor"].as_str().unwrap();
    let (rest, _) = walk(&client, &format!("/workflow/runs?cursor={cursor}"), 200).await;
    assert_eq!(rest.len(), 4);
}

#[tokio::test]
async fn runs_and_approvals_are_filtered() {
    let world = World::new().await;
    let client = world.operator();
    client.put_yaml("w", "name: w\nsteps: [{ id: a, uses: debug.echo }]").await.expect(201);
    let of_workflow = client.execute(json!({ "workflow": "w" })).await;
    of_workflow.completes().await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let run = client.start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
        held.push((run.hold().await, run));
    }
    let (waiting, _) = walk(&client, "/workflow/runs?status=awaiting_approval", 2).await;
    assert_eq!(waiting.len(), 3);
    let (named, _) = walk(&client, "/workflow/runs?workflow=w", 2).await;
    assert_eq!(texts(&named, "runId"), [of_workflow.id.as_str()]);
    client.put_yaml("w", "name: w\nsteps: [{ id: b, uses: debug.echo }]").await.expect(201);
    let of_next = client.execute(json!({ "workflow": "w" })).await;
    for (workflow, runs) in [("w", vec![&of_next, &of_workflow]), ("w@1", vec![&of_workflow]), ("w@2", vec![&of_next])]
    {
        let (named, _) = walk(&client, &format!("/workflow/runs?workflow={workflow}"), 1).await;
        assert_eq!(texts(&named, "runId"), runs.iter().map(|run| run.id.as_str()).collect::<Vec<_>>(), "{workflow}");
    }
    assert_eq!(client.get("/workflow/runs?workflow=w@3").await.expect(200)["items"], json!([]));
    for malformed in ["W", "w@", "w@0", "w@x", "w@1@2"] {
        let answer = client.get(&format!("/workflow/runs?workflow={malformed}")).await;
        let problem = answer.problem(400, "malformed-request");
        assert_eq!(problem["field"], "workflow");
        assert!(problem["detail"].as_str().unwrap().contains("`crm-sync@3`"), "{problem}");
    }

    let (approval, run) = &held[1];
    let (of_run, _) = walk(&client, &format!("/approvals?runId={}", run.id), 2).await;
    assert_eq!(texts(&of_run, "approvalId"), [approval.as_str()]);
    world.approver().approve(approval).await;
    let (pending, _) = walk(&client, "/approvals?status=pending", 1).await;
    assert_eq!(pending.len(), 2);
    let (approved, _) = walk(&client, "/approvals?status=approved", 1).await;
    assert_eq!(texts(&approved, "approvalId"), [approval.as_str()]);
}

#[tokio::test]
async fn events_are_paged_in_order() {
    let world = World::new().await;
    let run = world
        .operator()
        .start(json!([{ "id": "a", "uses": "debug.emit", "with": { "count": 20, "perSecond": 1000 } }]))
        .await;
    run.completes().await;
    let events = run.events().await;
    let ids: Vec<_> = (1..=events.len()).map(|seq| format!("evt_{seq}")).collect();
    assert_eq!(texts(&events, "eventId"), ids);
    assert!(events.len() >= 20);
}
