//! W3, the fan-out: one run's events to many subscribers.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use super::{
    course::{Course, Emission, Terms},
    figures::{Spread, Tally, Times},
    frames::Event,
    report::{self, Report},
    vitals::{self, Meter},
    wire::{Stream, Wire},
};
use crate::{
    cli::client::failure::{Failure, Result},
    kernel::{Clock, Timestamp},
};

/// Subscribers that connect at once.
const CONNECTING: usize = 64;

/// How much longer than it should the run may take to reach everybody.
const PATIENCE: Duration = Duration::from_secs(60);

/// `bench w3`
#[derive(Debug, Args)]
pub struct FanOut {
    /// Subscribers
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    clients: u16,
    /// Events a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    #[command(flatten)]
    terms: Terms,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    asked_per_second: f64,
    delivered_per_second: f64,
    /// From the time in the event to having it read.
    delay_ms: Spread,
    /// Over all subscribers.
    lost: u64,
    repeated: u64,
    memory: Option<Memory>,
}

/// What the server's process has, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    before: u64,
    /// With everybody connected.
    connected: u64,
    /// The most while events went out.
    peak: u64,
    per_subscriber_connected: f64,
    per_subscriber_peak: f64,
}

/// One connection and what came on it.
struct Subscriber {
    wire: Wire,
    stream: Stream,
    tally: Tally,
    delays: Times,
    delivered: u64,
    /// When the first and the last of what was emitted came.
    span: Option<(Instant, Instant)>,
}

impl Subscriber {
    /// Connects and reads what there is before the run begins.
    async fn connect(course: &Course, emission: &Emission) -> Result<Self> {
        let mut wire = Wire::new(&course.site);
        let opened = wire.open(&course.events(&emission.run_id, 0)).await?;
        let mut stream = opened.ok_or_else(|| Failure::Unreadable("a run without events".to_owned()))?;
        let mut tally = Tally::default();
        while tally.last < emission.planned {
            wire.read(&mut stream, |event| _ = tally.see(event.number)).await?;
        }
        Ok(Self { wire, stream, tally, delays: Times::default(), delivered: 0, span: None })
    }

    /// Reads to the end of the run.
    async fn listen(mut self) -> Result<Self> {
        let Self { wire, stream, tally, delays, delivered, span } = &mut self;
        loop {
            // One look at the clocks for all that came at once.
            let mut now = None;
            let more = wire.read(stream, |event| {
                let due = tally.see(event.number);
                if due && event.name == b"tool.progress" {
                    let (at, clock) = *now.get_or_insert_with(|| (Instant::now(), Clock::system().now()));
                    delays.add(delay(event, clock));
                    *delivered += 1;
                    span.get_or_insert((at, at)).1 = at;
                }
            });
            if !more.await? {
                return Ok(self);
            }
        }
    }
}

/// How long ago it was journaled, at most a day.
fn delay(event: Event<'_>, now: Timestamp) -> Duration {
    const DAY: i64 = 86_400_000;
    let begun = event.text("ts").and_then(of_day).unwrap_or_default();
    let late = (now.timestamp_millis() - begun).rem_euclid(DAY);
    // A clock that was set back in between must not look like a day.
    Duration::from_millis(if late > DAY / 2 { 0 } else { late.unsigned_abs() })
}

/// The milliseconds since midnight, of `2026-11-21T09:00:00.123Z`.
fn of_day(ts: &str) -> Option<i64> {
    let number = |from: usize, to: usize| ts.get(from..to)?.parse::<i64>().ok();
    Some(((number(11, 13)? * 60 + number(14, 16)?) * 60 + number(17, 19)?) * 1000 + number(20, 23)?)
}

impl FanOut {
    pub(super) async fn run(self) -> Result<()> {
        let course = self.terms.course().await?;
        vitals::allow_files(u64::from(self.clients) + 100)?;
        let count = u64::from(self.rate) * self.seconds;
        let emission = course.emission(json!({ "count": count, "perSecond": self.rate })).await?;
        let before = course.resident();
        let connecting = (0..self.clients).map(|_| Subscriber::connect(&course, &emission));
        let subscribers: Vec<_> = stream::iter(connecting).buffer_unordered(CONNECTING).try_collect().await?;
        let connected = course.resident();
        let mut crowd = JoinSet::new();
        subscribers.into_iter().for_each(|subscriber| drop(crowd.spawn(subscriber.listen())));
        let (peak, meter) = (course.watch_memory(), Meter::start(course.server));
        course.begin(&emission).await?;
        let all = timeout(Duration::from_secs(self.seconds) + PATIENCE, crowd.join_all());
        let late = |_| Failure::Unreadable("not everybody had the whole run in time".to_owned());
        let heard = all.await.map_err(late)?.into_iter().collect::<Result<Vec<_>>>()?;
        let cost = meter.read();
        let last = course.last_event(&emission).await?;
        let memory = Option::zip(before, connected).map(|(before, connected)| {
            let peak = peak.load(Ordering::Relaxed).max(connected);
            let each = |bytes: u64| (bytes.saturating_sub(before) as f64 / f64::from(self.clients)).round();
            let (per_subscriber_connected, per_subscriber_peak) = (each(connected), each(peak));
            Memory { before, connected, peak, per_subscriber_connected, per_subscriber_peak }
        });
        let figures = Figures {
            asked_per_second: f64::from(self.rate) * f64::from(self.clients),
            memory,
            ..figures(heard, last, f64::from(self.rate))
        };
        Report::new("w3", self.clients, self.seconds, figures, cost).print(self.terms.json)
    }
}

/// What all of them have, once they have everything.
fn figures(heard: Vec<Subscriber>, last: u64, rate: f64) -> Figures {
    let (mut delays, mut delivered, mut lost, mut repeated) = (Times::default(), 0, 0, 0);
    let first = heard.iter().filter_map(|subscriber| Some(subscriber.span?.0)).min();
    let end = heard.iter().filter_map(|subscriber| Some(subscriber.span?.1)).max();
    for mut subscriber in heard {
        subscriber.tally.finish(last);
        delivered += subscriber.delivered;
        lost += subscriber.tally.lost;
        repeated += subscriber.tally.repeated;
        delays.merge(subscriber.delays);
    }
    // The first event stands for the time before it as well.
    let took = Option::zip(first, end).map_or(0.0, |(first, end)| (end - first).as_secs_f64()) + 1.0 / rate;
    Figures {
        asked_per_second: 0.0,
        delivered_per_second: report::tenths(delivered as f64 / took),
        delay_ms: delays.spread(),
        lost,
        repeated,
        memory: None,
    }
}

impl report::Rows for Figures {
    fn rows(&self) -> Vec<report::Row> {
        let mut rows = vec![
            report::row("asked", report::rate(self.asked_per_second)),
            report::row("delivered", report::rate(self.delivered_per_second)),
            report::row("delay", report::spread(&self.delay_ms)),
            report::row("lost, repeated", format!("{}, {}", self.lost, self.repeated)),
        ];
        if let Some(memory) = &self.memory {
            let (connected, peak) = (memory.per_subscriber_connected / 1024.0, memory.per_subscriber_peak / 1024.0);
            let each = format!("{connected:.1} KiB connected, {peak:.1} KiB at most");
            rows.push(report::row("memory of a subscriber", each));
            rows.push(report::row("memory before", format!("{:.1} MiB", memory.before as f64 / 1_048_576.0)));
        }
        rows
    }

    fn rates(&self) -> Vec<(&'static str, f64)> {
        vec![("deliveredPerSecond", self.delivered_per_second)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_the_time_since_the_event_across_midnight() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let since = |ts: &str, now: &str| {
            let data = format!("{{\"eventId\":\"evt_1\",\"ts\":\"{ts}\"}}");
            delay(Event { number: 1, name: b"", data: data.as_bytes() }, at(now)).as_millis()
        };
        assert_eq!(since("2026-11-21T09:00:00.123Z", "2026-11-21T09:00:01.130Z"), 1007);
        assert_eq!(since("2026-11-21T23:59:59.990Z", "2026-11-22T00:00:00.010Z"), 20);
        assert_eq!(since("2026-11-21T09:00:00.123Z", "2026-11-21T09:00:00.120Z"), 0);
    }
}
