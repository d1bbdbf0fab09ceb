//! Readers that take one byte a second, while others follow as they should.

use std::time::Duration;

use fermata::{
    auth::Role,
    kernel::{Clock, Timestamp},
};
use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::{scale, site::Site, spread};
use crate::world::{Client, Run, within};

const FOLLOWERS: usize = 20;

/// Events a second for those who follow: as many as this side can read and check in a debug build.
const PACE: usize = 50;

/// What all the stalled readers together may cost the server.
const MEMORY: usize = 64 << 20;

/// A stream whose reader takes a byte a second, with no more room in its socket than there has to be.
async fn stall(dev: &str, token: &str, path: &str) -> TcpStream {
    let address = dev.strip_prefix("http://").unwrap().parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nAccept: text/event-stream\r\n\r\n",
        address
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 15];
    within("a stream", stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    stream
}

async fn a_byte_a_second(mut stream: TcpStream) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    while stream.read_u8().await.is_ok() {
        second.tick().await;
    }
}

/// Those who have to do with the source.
struct People {
    operator: Client,
    approver: Client,
    viewer: Client,
}

impl People {
    /// A run of events at a steady pace, which begins when it is approved.
    async fn source(&self, events: usize, per_second: usize) -> Run {
        let emit = json!({ "count": events, "perSecond": per_second, "bytes": 500 });
        let steps = json!([{ "id": "go", "uses": "debug.echo", "approval": {} },
            { "id": "emit", "needs": ["go"], "uses": "debug.emit", "with": emit }]);
        let run = self.operator.start(steps).await;
        run.hold().await;
        run
    }

    /// How late the events of a new run come to those who follow it, in order of lateness.
    async fn measure(&self, events: usize) -> Vec<Duration> {
        let run = self.source(events, PACE).await;
        let followers = (0..FOLLOWERS).map(|_| tokio::spawn(delays(self.viewer.run(&run.id))));
        let followers: Vec<_> = followers.collect();
        self.approver.approve(&run.hold().await).await;
        let mut all: Vec<Duration> = join_all(followers).await.into_iter().flat_map(Result::unwrap).collect();
        all.sort_unstable();
        all
    }
}

/// How late each event came to a follower.
async fn delays(run: Run) -> Vec<Duration> {
    let mut follow = run.follow().await;
    let (now, mut delays) = (Clock::system(), Vec::new());
    while let Some(event) = follow.next().await {
        if event.name == "tool.progress" {
            let told: Timestamp = event.data["ts"].as_str().unwrap().parse().unwrap();
            delays.push((now.now() - told).to_std().unwrap_or_default());
        }
    }
    delays
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_cost_little_and_hold_up_nobody() {
    let (readers, events, measured) = scale((1_000, 10_000, 1_000), (100, 1_000, 100));
    let site = Site::new().await;
    let mut server = site.server("all");
    server.start().await;
    let url = server.url();
    let client = |role| site.client(&url, site.tenants[0], &[role]);
    let people =
        People { operator: client(Role::Operator), approver: client(Role::Approver), viewer: client(Role::Viewer) };
    // Once for the memory that the work itself takes, once to measure.
    people.measure(measured).await;
    let without = people.measure(measured).await;
    let before = server.memory();

    // Half of them take from a run as it goes on, half everything from the start, until their sockets are full.
    let run = people.source(events, 500).await;
    let mut stalled = JoinSet::new();
    for number in 0..readers {
        let path = if number % 2 == 0 { run.path("/events") } else { "/workflow/events?from=start".to_owned() };
        stalled.spawn(a_byte_a_second(stall(&url, people.viewer.token(), &path).await));
    }
    people.approver.approve(&run.hold().await).await;
    run.completes().await;
    let with = people.measure(measured).await;
    let more = server.memory().saturating_sub(before) << 10;
    assert!(stalled.try_join_next().is_none(), "a stalled reader was dropped");
    stalled.shutdown().await;
    // Once for those who leave, once to measure what the machine does by now.
    people.measure(measured).await;
    let after = people.measure(measured).await;

    let p99 = |delays: &[Duration]| delays[delays.len() * 99 / 100];
    let (usual, beside) = (p99(&without).max(p99(&after)), p99(&with));
    println!(
        "{readers} stalled readers: {} KiB more, {} bytes each; events reach {FOLLOWERS} others in {} without, {} with, \
         {} without again",
        more >> 10,
        more / readers,
        spread(without),
        spread(with),
        spread(after),
    );
    assert!(more <= MEMORY, "{more} bytes more for {readers} stalled readers");
    // In the usual size only the order of magnitude: a hundredth of so few events is a hiccup of the machine.
    let most = scale(usual * 6 / 5, usual * 10 + Duration::from_millis(500));
    assert!(beside <= most, "p99 {usual:?} without them, {beside:?} with");
    server.stop().await;
}
