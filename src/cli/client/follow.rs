//! One run's events, to the end, over as many connections as it takes. A task reads and reconnects; what
//! it learns comes through a bounded channel, so a slow terminal slows the reading and nothing piles up.

use std::time::Duration;

use eventsource_stream::{EventStreamError, Eventsource};
use futures_util::{Stream, StreamExt};
use reqwest::Response;
use tokio::{sync::mpsc, time::Instant};

use super::{
    api::{Api, causes},
    failure::{Failure, Result},
    timeline::{Record, sequence},
};
use crate::kernel::RunId;

/// The first delay's upper bound; it doubles with each failure.
const BACKOFF: Duration = Duration::from_millis(250);
/// It never grows past this.
const MOST_BACKOFF: Duration = Duration::from_secs(10);

/// How long the server may take to close a stream that has told all.
const FAREWELL: Duration = Duration::from_secs(2);

/// What following brings.
#[derive(Debug)]
pub(super) enum News {
    /// The next event; never one that was there already.
    Event(Box<Record>),
    /// Events after the first and before the second number are not to be had any more; `raw` is the
    /// server's word for it.
    Gap { after: u64, before: u64, raw: String },
    /// The connection is lost; the next attempt comes after `pause`.
    Lost { cause: String, pause: Duration },
    /// The connection is back.
    Back,
}

/// How to follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The last event already known, 0 for none.
    pub(super) after: u64,
    /// How long the server may be away before this gives up.
    pub(super) patience: Duration,
}

/// Follows `run`. The channel closes when the run is over and all of it was told.
pub(super) fn follow(api: Api, run: RunId, terms: Terms) -> mpsc::Receiver<Result<News>> {
    let (sender, receiver) = mpsc::channel(256);
    let follower = Follower { run: run.to_string(), last: terms.after, over: false, met: false, sender };
    tokio::spawn(follower.run_to_end(api, terms.patience));
    receiver
}

struct Follower {
    run: String,
    /// The last event passed on.
    last: u64,
    /// That event ends the run.
    over: bool,
    /// A connection was made once, so failures from now on are interruptions.
    met: bool,
    sender: mpsc::Sender<Result<News>>,
}

/// The watcher has gone; nothing is left to do.
struct Gone;

/// Why a connection ended.
enum Pause {
    /// There is nothing more to come.
    Done,
    /// Try again.
    Again(String),
    /// Trying again would not help.
    Never(Failure),
}

impl Follower {
    async fn run_to_end(mut self, mut api: Api, patience: Duration) {
        let mut failures = 0;
        let mut heard = Instant::now();
        loop {
            let before = self.last;
            let pause = match self.connect(&api, failures > 0).await {
                Ok(pause) => pause,
                Err(Gone) => return,
            };
            if self.last > before {
                failures = 0;
                heard = Instant::now();
            }
            let failure = match pause {
                Pause::Done => return,
                Pause::Never(failure) => failure,
                Pause::Again(cause) if heard.elapsed() > patience => Failure::Unreachable { url: api.base(), cause },
                Pause::Again(cause) => {
                    failures += 1;
                    if self.rest(cause, failures).await.is_err() {
                        return;
                    }
                    api = api.again();
                    continue;
                }
            };
            // Nobody listening is as good as heard.
            drop(self.sender.send(Err(failure)).await);
            return;
        }
    }

    async fn rest(&self, cause: String, failures: u32) -> Result<(), Gone> {
        let bound = BACKOFF.saturating_mul(2_u32.saturating_pow(failures - 1)).min(MOST_BACKOFF);
        let pause = bound.mul_f64(rand::random_range(0.5..=1.0));
        self.tell(News::Lost { cause, pause }).await?;
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.sender.closed() => Err(Gone),
        }
    }

    /// One connection, from its request to its end.
    async fn connect(&mut self, api: &Api, again: bool) -> Result<Pause, Gone> {
        let id = (self.last > 0).then(|| format!("evt_{}", self.last));
        let response = match api.stream(&["workflow", "runs", &self.run, "events"], id.as_deref()).await {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(Pause::Done),
            Err(failure) => return Ok(self.refused(failure)),
        };
        self.met = true;
        if again {
            self.tell(News::Back).await?;
        }
        self.read(response).await
    }

    /// Whether a connection that was not made is worth another attempt.
    fn refused(&self, failure: Failure) -> Pause {
        match failure {
            Failure::Unreachable { cause, .. } if self.met => Pause::Again(cause),
            Failure::Refused(problem) if self.met && (problem.status >= 500 || problem.status == 429) => {
                Pause::Again(problem.title)
            }
            Failure::Refused(problem) if problem.status == 429 => Pause::Again(problem.title),
            failure => Pause::Never(failure),
        }
    }

    async fn read(&mut self, response: Response) -> Result<Pause, Gone> {
        let mut events = response.bytes_stream().eventsource();
        while let Some(event) = self.next(&mut events).await {
            match event {
                Ok(event) if event.event == "gap" => self.gap(&event.id, event.data).await?,
                Ok(event) => match Record::parse(event.data) {
                    Ok(record) => self.pass_on(record).await?,
                    Err(cause) => return Ok(Pause::Never(Failure::Unreadable(cause))),
                },
                Err(EventStreamError::Transport(error)) => return Ok(self.broken(causes(&error))),
                Err(error) => return Ok(self.broken(error.to_string())),
            }
        }
        Ok(self.broken("the server closed the stream".to_owned()))
    }

    /// The next event; after the run's last one the server closes, and is not waited for when it does not.
    async fn next<S: Stream + Unpin>(&self, events: &mut S) -> Option<S::Item> {
        if self.over { tokio::time::timeout(FAREWELL, events.next()).await.ok().flatten() } else { events.next().await }
    }

    fn broken(&self, cause: String) -> Pause {
        if self.over { Pause::Done } else { Pause::Again(cause) }
    }

    async fn pass_on(&mut self, record: Record) -> Result<(), Gone> {
        if record.seq <= self.last {
            return Ok(());
        }
        // The server says so itself; this is for one that forgets to.
        self.missed(record.seq, String::new()).await?;
        self.last = record.seq;
        self.over = matches!(record.name.as_str(), "completed" | "failed" | "cancelled");
        self.tell(News::Event(Box::new(record))).await
    }

    /// The server says that it no longer has the events up to this one.
    async fn gap(&mut self, id: &str, raw: String) -> Result<(), Gone> {
        match sequence(id) {
            Some(lost) => self.missed(lost.saturating_add(1), raw).await,
            // The next event's number will tell.
            None => Ok(()),
        }
    }

    async fn missed(&mut self, next: u64, raw: String) -> Result<(), Gone> {
        if next > self.last + 1 {
            self.tell(News::Gap { after: self.last, before: next, raw }).await?;
            self.last = next - 1;
        }
        Ok(())
    }

    async fn tell(&self, news: News) -> Result<(), Gone> {
        self.sender.send(Ok(news)).await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use axum::{
        Router,
        body::Body,
        extract::State,
        http::{HeaderMap, StatusCode},
        response::{IntoResponse, Response as Reply},
        routing::get,
    };
    use futures_util::stream;
    use serde_json::json;

    use super::*;
    use crate::cli::client::connection::Target;

    const RUN: &str = "run_01k0000000e00000000000000a";

    fn frame(seq: u64, name: &str) -> String {
        let payload = if name == "cancelled" { json!({"by": "user_1"}) } else { json!({}) };
        let event = json!({"eventId": format!("evt_{seq}"), "runId": RUN, "tenantId": "tnt_01k0000000e00000000000000c",
            "ts": "2026-11-21T09:00:00.000Z", "step": name, "level": "info", "payload": payload});
        format!("id: evt_{seq}\nevent: {name}\ndata: {event}\n\n")
    }

    fn dies_after(text: String) -> Body {
        let killed = async {
            // The text goes out first.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("the process was killed"))
        };
        Body::from_stream(stream::iter([Ok(text)]).chain(stream::once(killed)))
    }

    /// A server that is killed in the middle of a frame, is away, and comes back repeating itself.
    async fn serve(State(calls): State<Arc<AtomicUsize>>, headers: HeaderMap) -> Reply {
        let last = headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
        match calls.fetch_add(1, Ordering::SeqCst) {
            0 => {
                assert_eq!(last, None);
                let third = frame(3, "executing");
                let half: String = third.chars().take(third.len() / 2).collect();
                dies_after(format!("retry: 500\n\n: hello\n\n{}{}{half}", frame(1, "idle"), frame(2, "planning")))
                    .into_response()
            }
            1 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            2 => {
                assert_eq!(last.as_deref(), Some("evt_2"));
                dies_after(frame(2, "planning") + &frame(3, "executing")).into_response()
            }
            _ => {
                assert_eq!(last.as_deref(), Some("evt_3"));
                format!("id: evt_5\nevent: gap\ndata: {{}}\n\n{}", frame(6, "cancelled")).into_response()
            }
        }
    }

    async fn told(status: Option<StatusCode>, patience: Duration) -> (Vec<Result<News>>, usize) {
        // Another test of this process may have installed it.
        drop(rustls::crypto::ring::default_provider().install_default());
        let calls = Arc::new(AtomicUsize::new(0));
        let path = "/workflow/runs/{id}/events";
        let router = match status {
            Some(status) => Router::new().route(path, get(move || async move { status })),
            None => Router::new().route(path, get(serve)).with_state(Arc::clone(&calls)),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::new(&format!("http://{}", listener.local_addr().unwrap()), "t").unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let terms = Terms { after: 0, patience };
        let mut news = follow(Api::new(target).unwrap(), RUN.parse().unwrap(), terms);
        let mut all = Vec::new();
        while let Some(one) = news.recv().await {
            all.push(one);
        }
        server.abort();
        (all, calls.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn every_event_comes_once_and_in_order_whatever_dies() {
        let (news, calls) = told(None, Duration::from_secs(60)).await;
        let shown: Vec<String> = news
            .iter()
            .map(|one| match one.as_ref().unwrap() {
                News::Event(record) => record.seq.to_string(),
                News::Gap { after, before, .. } => format!("gap {after}..{before}"),
                News::Lost { .. } => "lost".to_owned(),
                News::Back => "back".to_owned(),
            })
            .collect();
        assert_eq!(shown, ["1", "2", "lost", "lost", "back", "3", "lost", "back", "gap 3..6", "6"]);
        assert_eq!(calls, 4);
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_nothing_more_to_come_is_the_end() {
        let (news, _) = told(Some(StatusCode::NOT_FOUND), Duration::ZERO).await;
        assert!(matches!(news.as_slice(), [Err(Failure::Refused(problem))] if problem.status == 404));
        let (news, _) = told(Some(StatusCode::NO_CONTENT), Duration::ZERO).await;
        assert!(news.is_empty());
    }

    #[tokio::test]
    async fn patience_ends() {
        let (news, calls) = told(None, Duration::ZERO).await;
        assert!(matches!(news.last(), Some(Err(Failure::Unreachable { .. }))), "{news:?}");
        assert!(calls < 4);
    }
}
