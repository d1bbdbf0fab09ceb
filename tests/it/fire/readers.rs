//! Readers whose connections are cut at any byte, while many write and the server is killed.

use std::{collections::HashMap, time::Duration};

use fermata::{auth::Role, kernel::RunId};
use futures_util::{StreamExt, future::join_all};
use reqwest::Method;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{patient::Patient, scale, site::Site};
use crate::world::Client;

/// All that a reader saw, in its order, without keeping it.
#[derive(Clone, Default)]
struct Seen {
    digest: Sha256,
    events: usize,
    bytes: usize,
    cuts: usize,
}

impl Seen {
    fn take(&mut self, data: &str) {
        self.digest.update(data);
        self.digest.update("\n");
        self.events += 1;
        self.bytes += data.len();
    }

    fn end(self) -> (usize, String) {
        let digest = self.digest.finalize();
        (self.events, digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// How often a reader breaks off, and after how many bytes at most.
#[derive(Clone, Copy)]
struct Cuts {
    times: usize,
    within: usize,
}

/// Reads `path` and breaks off at any byte, so many times, until all of `total` events have come: known at last.
async fn read(reader: Patient, path: String, cuts: Cuts, mut total: watch::Receiver<Option<usize>>) -> Seen {
    let (mut seen, mut last) = (Seen::default(), None::<String>);
    loop {
        let mut request = reader.client().await.request(Method::GET, &path);
        if let Some(last) = &last {
            request = request.header("last-event-id", last);
        }
        let Some(response) = request.reach_bytes().await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let (mut bytes, mut text) = (response.bytes_stream(), Vec::new());
        let mut left = if seen.cuts < cuts.times { rand::random_range(1..cuts.within) } else { usize::MAX };
        while left > 0 {
            if total.borrow_and_update().is_some_and(|total| total == seen.events) {
                return seen;
            }
            let chunk = tokio::select! {
                chunk = bytes.next() => chunk,
                _ = total.changed() => continue,
            };
            let Some(Ok(chunk)) = chunk else { break };
            let chunk = &chunk[..chunk.len().min(left)];
            left -= chunk.len();
            text.extend_from_slice(chunk);
            while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
                let frame: Vec<u8> = text.drain(..end + 2).collect();
                take(std::str::from_utf8(&frame).unwrap(), &mut seen, &mut last);
            }
        }
        seen.cuts += usize::from(left == 0);
    }
}

fn take(frame: &str, seen: &mut Seen, last: &mut Option<String>) {
    for line in frame.lines() {
        match line.split_once(": ") {
            Some(("id", id)) => *last = Some(id.to_owned()),
            Some(("data", data)) => seen.take(data),
            _ => {}
        }
    }
}

/// Begins runs that report, one after the other, with pauses.
async fn write(writer: Patient, runs: usize, events: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..runs {
        let per_second = rand::random_range(200..2000);
        let emit = json!({ "count": events, "perSecond": per_second, "bytes": 40 });
        let body = json!({ "plan": [{ "id": "emit", "uses": "debug.emit", "with": emit }] });
        let key = format!("{:032x}", rand::random::<u128>());
        let post = |client: &Client| client.request(Method::POST, "/agent/execute").json(&body).key(&key);
        let run = writer.ask(post).await.expect(202)["runId"].as_str().unwrap().to_owned();
        let path = format!("/workflow/runs/{run}/events");
        writer.follow(&path, None, |event| event.name == "completed").await;
        ids.push(run);
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..200))).await;
    }
    ids
}

#[tokio::test]
async fn readers_cut_at_any_byte_see_what_the_table_has() {
    let (readers, cuts, writers, runs, events, kills) = scale((200, 50, 50, 100, 200, 100), (20, 8, 8, 2, 150, 3));
    let site = Site::new().await;
    let mut server = site.server("all");
    server.set("FERMATA_WORKER_STEPS_PER_TENANT", "64");
    server.start().await;
    let caller = |role| Patient::new(&site.client("", site.tenants[0], &[role]), &[&server]);
    let (viewer, operator) = (caller(Role::Viewer), caller(Role::Operator));
    let (total, known) = watch::channel(None);
    let tenant = (0..readers / 2).map(|_| {
        let path = "/workflow/events?from=start".to_owned();
        tokio::spawn(read(viewer.clone(), path, Cuts { times: cuts, within: 40_000 }, known.clone()))
    });
    let tenant: Vec<_> = tenant.collect();
    let writing = (0..writers).map(|_| tokio::spawn(write(operator.clone(), runs, events)));
    let mut writing = tokio::spawn(join_all(writing.collect::<Vec<_>>()));
    let mut killed = 0;
    let ids = loop {
        tokio::select! {
            ids = &mut writing => break ids.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(rand::random_range(300..1500))), if killed < kills => {
                server.kill().await;
                server.start().await;
                killed += 1;
            }
        }
    };
    let ids: Vec<String> = ids.into_iter().flat_map(Result::unwrap).collect();
    // A run's stream ends with the run, so its readers come to the whole of it, from its beginning.
    let mut database = site.superuser().await;
    let rows: Vec<(uuid::Uuid, String)> =
        sqlx::query_as("select run_id, data::text from run_events where tenant_id = $1 order by xact, run_id, seq")
            .bind(site.tenants[0].uuid())
            .fetch_all(&mut database)
            .await
            .unwrap();
    let (mut whole, mut of_run) = (Seen::default(), HashMap::<uuid::Uuid, Seen>::new());
    for (run, data) in &rows {
        whole.take(data);
        of_run.entry(*run).or_default().take(data);
    }
    total.send_replace(Some(rows.len()));
    let (whole, mut cut) = (whole.end(), 0);
    for seen in join_all(tenant).await {
        let seen = seen.unwrap();
        cut += seen.cuts;
        assert_eq!(seen.end(), whole, "the tenant's stream is not the table");
    }
    let of_runs = (0..readers / 2).map(|number| {
        let id = &ids[number % ids.len()];
        let table = of_run[&id.parse::<RunId>().unwrap().uuid()].clone();
        let (viewer, path) = (viewer.clone(), format!("/workflow/runs/{id}/events"));
        // So short that all of them find a place in the run.
        let cuts = Cuts { times: cuts, within: table.bytes / cuts + 2 };
        async move {
            let (_known, total) = watch::channel(Some(table.events));
            (tokio::spawn(read(viewer, path, cuts, total)).await.unwrap(), table)
        }
    });
    for (seen, table) in join_all(of_runs).await {
        cut += seen.cuts;
        assert_eq!(seen.end(), table.end(), "the run's stream is not the table");
    }
    assert!(cut >= readers * cuts * 9 / 10, "there were only {cut} cuts");
    println!("readers: {readers} readers, {cut} cuts, {killed} kills, {} events: all as in the table", rows.len());
}
