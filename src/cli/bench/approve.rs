//! W1, the approve-run: how soon a caller hears of a run, and of the decision it waited for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    course::{Client, Course, Length, Taken, Terms},
    figures::{Spread, Times, Window},
    limits::Compare,
    report::{self, Report},
    wire::{Stream, Wire},
};
use crate::cli::client::failure::{Failure, Result};

/// The longest a run may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// `bench w1`
#[derive(Debug, Args)]
pub struct Approve {
    /// Clients, each with one run at a time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    #[command(flatten)]
    length: Length,
    #[command(flatten)]
    compare: Compare,
    #[command(flatten)]
    terms: Terms,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    runs_per_second: f64,
    /// From sending the request that starts a run to its first event on its stream.
    create_to_first_event_ms: Spread,
    /// From sending the decision to the next event on the open stream.
    approve_to_next_event_ms: Spread,
    run_ms: Spread,
    errors: u64,
}

/// What one run took.
struct Trip {
    whole: Taken,
    created: Duration,
    approved: Duration,
}

/// Starts a run, follows it, and decides when it asks.
struct Caller {
    course: Arc<Course>,
    start: Arc<[u8]>,
    calls: Wire,
    events: Wire,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    run_id: String,
}

/// What a stream has told since somebody last asked.
#[derive(Default)]
struct News {
    events: u32,
    /// The request that answers the hold.
    decision: Option<Vec<u8>>,
    /// The name of the last event.
    end: Option<String>,
}

impl Client<Trip> for Caller {
    async fn piece(&mut self) -> Result<Trip> {
        let late = |_| Failure::Unreadable(format!("a run did not end within {} s", PATIENCE.as_secs()));
        let trip = tokio::time::timeout(PATIENCE, self.trip()).await.map_err(late).flatten();
        // What is left of a stream that was given up is not to be taken for the next one.
        trip.inspect_err(|_| self.events.cut())
    }
}

impl Caller {
    async fn trip(&mut self) -> Result<Trip> {
        let from = Instant::now();
        let answer = self.calls.call(&self.start).await?;
        let run: Run = serde_json::from_slice(&answer).map_err(|e| Failure::Unreadable(e.to_string()))?;
        let opened = self.events.open(&self.course.events(&run.run_id, 0)).await?;
        let mut stream = opened.ok_or_else(|| Failure::Unreadable("a run without events".to_owned()))?;
        let mut news = self.next(&mut stream).await?;
        let created = from.elapsed();
        let decision = loop {
            match news.decision.take() {
                Some(decision) => break decision,
                None => news = self.next(&mut stream).await?,
            }
        };
        let sent = Instant::now();
        let mut approved = Duration::ZERO;
        let Self { calls, events, course, .. } = self;
        let told = async {
            let news = next(events, &mut stream, course).await?;
            approved = sent.elapsed();
            Ok(news)
        };
        (_, news) = tokio::try_join!(calls.call(&decision), told)?;
        while news.end.is_none() {
            news = self.next(&mut stream).await?;
        }
        let whole = Taken { from, to: Instant::now() };
        while self.events.read(&mut stream, |_| ()).await? {}
        match news.end.as_deref() {
            Some("completed") => Ok(Trip { whole, created, approved }),
            end => Err(Failure::Unreadable(format!("a run ended as {end:?}"))),
        }
    }

    async fn next(&mut self, stream: &mut Stream) -> Result<News> {
        next(&mut self.events, stream, &self.course).await
    }
}

/// Reads on until there is an event.
async fn next(wire: &mut Wire, stream: &mut Stream, course: &Course) -> Result<News> {
    let mut news = News::default();
    while news.events == 0 {
        let more = wire.read(stream, |event| {
            news.events += 1;
            if event.ends_run() {
                news.end = Some(String::from_utf8_lossy(event.name).into_owned());
            }
            if let (b"awaiting_approval", Some(id)) = (event.name, event.text("approvalId")) {
                let body = json!({ "status": "approved", "digest": event.text("digest") }).to_string();
                news.decision = Some(course.decision(&format!("POST /approvals/{id}/decision"), body.as_bytes()));
            }
        });
        if !more.await? && news.end.is_none() {
            return Err(Failure::Unreadable("a stream ended before its run".to_owned()));
        }
    }
    Ok(news)
}

impl Approve {
    pub(super) async fn run(self) -> Result<()> {
        let course = Arc::new(self.terms.course().await?);
        let body = course.define("fermata-bench-w1", &steps()).await?;
        let start: Arc<[u8]> = course.request("POST /agent/execute", "", &body).into();
        let caller = |_| Caller {
            course: Arc::clone(&course),
            start: Arc::clone(&start),
            calls: Wire::new(&course.site),
            events: Wire::new(&course.site),
        };
        let probe = self.compare.begin(&self.terms).await?;
        let Length { seconds, warm_up } = self.length;
        let window = Window::after(Duration::from_secs(warm_up), Duration::from_secs(seconds));
        let outcome = course.keep_up(window, (0..self.clients).map(caller).collect()).await;
        let standard = probe.finish().await?;
        let outcome = outcome?;
        let runs: f64 = outcome.done.iter().map(|trip| window.share(trip.whole.from, trip.whole.to)).sum();
        let spread = |time: fn(&Trip) -> Duration| {
            let mut times = Times::default();
            outcome.done.iter().filter(|trip| window.has(trip.whole.from)).for_each(|trip| times.add(time(trip)));
            times.spread()
        };
        let figures = Figures {
            runs_per_second: report::tenths(runs / window.seconds()),
            create_to_first_event_ms: spread(|trip| trip.created),
            approve_to_next_event_ms: spread(|trip| trip.approved),
            run_ms: spread(|trip| trip.whole.to - trip.whole.from),
            errors: outcome.errors,
        };
        Report::new("w1", self.clients, seconds, figures, outcome.cost).beside(standard).print(self.terms.json)
    }
}

/// The second step is held. Whoever has one token for both may decide on their own run.
fn steps() -> Value {
    json!([
        { "id": "prepare", "uses": "debug.echo", "with": { "value": { "contacts": 3 } } },
        { "id": "act", "needs": ["prepare"], "uses": "debug.echo",
          "with": { "value": "{{ steps.prepare.output.contacts }}" },
          "approval": { "reason": "Measured by the bench", "selfApproval": true } },
        { "id": "report", "needs": ["act"], "uses": "debug.echo", "with": { "value": "{{ steps.act.output }}" } },
    ])
}

impl report::Rows for Figures {
    fn rows(&self) -> Vec<report::Row> {
        vec![
            report::row("runs", report::rate(self.runs_per_second)),
            report::row("create to first event", report::spread(&self.create_to_first_event_ms)),
            report::row("approve to next event", report::spread(&self.approve_to_next_event_ms)),
            report::row("one run", report::spread(&self.run_ms)),
            report::row("errors", self.errors.to_string()),
        ]
    }

    fn rates(&self) -> Vec<(&'static str, f64)> {
        vec![("runsPerSecond", self.runs_per_second)]
    }

    fn times(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("createToFirstEventMsP50", self.create_to_first_event_ms.p50),
            ("approveToNextEventMsP50", self.approve_to_next_event_ms.p50),
            ("runMsP50", self.run_ms.p50),
        ]
    }
}
