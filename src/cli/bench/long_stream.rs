//! W4, the long stream: a run that tells much, readers that are cut off, and everything once more.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use super::{
    course::{Course, Emission, Terms},
    figures::Tally,
    report::{self, Report},
    vitals::Meter,
    wire::Wire,
};
use crate::cli::client::failure::{Failure, Result};

/// The longest a reader may take to see the end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs that are read for the first time after their end, at least.
const FRESH: u16 = 8;

/// `bench w4`
#[derive(Debug, Args)]
pub struct LongStream {
    /// Readers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// Events the run tells, as fast as it can
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    events: u64,
    /// Times each reader is cut off on the way
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=1000))]
    cuts: u64,
    /// How long the stream is read again and again in the end
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    #[command(flatten)]
    terms: Terms,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    events: u64,
    /// By the reader that took longest, from the begin of the run, with all its cuts.
    live_per_second: f64,
    /// By all readers together, of runs that nobody has read before: from the table.
    replayed_per_second: f64,
    /// The same of one run again and again: from what the server keeps in memory of it.
    reread_per_second: f64,
    cuts: u64,
    lost: u64,
    repeated: u64,
}

/// Reads a run from its first event to its last, over as many connections as it takes.
struct Reader {
    course: Course,
    run_id: String,
    wire: Wire,
    tally: Tally,
    /// Where it will be cut off, the last first.
    cuts: Vec<u64>,
}

impl Reader {
    fn new(course: &Course, emission: &Emission) -> Self {
        let (course, run_id) = (course.clone(), emission.run_id.clone());
        Self { wire: Wire::new(&course.site), course, run_id, tally: Tally::default(), cuts: Vec::new() }
    }

    /// To be cut off so often before that event, anywhere.
    fn cut(mut self, times: u64, before: u64) -> Self {
        self.cuts = (0..times).map(|_| rand::random_range(1..before)).collect();
        self.cuts.sort_unstable_by(|a, b| b.cmp(a));
        self.cuts.dedup();
        self
    }

    /// Returns when the last event came, and how often it was cut off.
    async fn read(&mut self) -> Result<(Instant, u64)> {
        let (mut end, mut times) = (None, 0);
        while end.is_none() {
            let request = self.course.events(&self.run_id, self.tally.last);
            let Some(mut stream) = self.wire.open(&request).await? else { break };
            let mut cut = false;
            while !cut {
                let Self { wire, tally, cuts, .. } = self;
                let more = wire.read(&mut stream, |event| {
                    // What came after the cut was never read.
                    if cut {
                        return;
                    }
                    tally.see(event.number);
                    if event.ends_run() {
                        end = Some(Instant::now());
                    }
                    if cuts.last().is_some_and(|at| *at <= event.number) {
                        cuts.retain(|at| *at > event.number);
                        cut = true;
                    }
                });
                if !more.await? {
                    break;
                }
            }
            if cut {
                self.wire.cut();
                times += 1;
            }
        }
        Ok((end.unwrap_or_else(Instant::now), times))
    }

    /// Reads the whole of it until the time is over; returns how many events that were.
    async fn repeat(mut self, until: Instant, last: u64) -> Result<(u64, Tally)> {
        let (mut read, mut all) = (0, Tally::default());
        while Instant::now() < until {
            self.tally = Tally::default();
            self.read().await?;
            read += self.tally.last;
            self.tally.finish(last);
            all.lost += self.tally.lost;
            all.repeated += self.tally.repeated;
        }
        Ok((read, all))
    }
}

impl Figures {
    fn count(&mut self, tally: &Tally) {
        self.lost += tally.lost;
        self.repeated += tally.repeated;
    }
}

impl LongStream {
    pub(super) async fn run(self) -> Result<()> {
        let course = self.terms.course().await?;
        let emission = course.emission(json!({ "count": self.events })).await?;
        let meter = Meter::start(course.server);
        let mut figures = self.live(&course, &emission).await?;
        let last = course.last_event(&emission).await?;
        self.replay(&course, &mut figures).await?;
        self.reread(&course, &emission, last, &mut figures).await?;
        Report::new("w4", self.clients, self.seconds, figures, meter.read()).print(self.terms.json)
    }

    /// The run goes on while it is read.
    async fn live(&self, course: &Course, emission: &Emission) -> Result<Figures> {
        let mut readers = JoinSet::new();
        for _ in 0..self.clients {
            let mut reader = Reader::new(course, emission).cut(self.cuts, self.events);
            readers.spawn(async move { reader.read().await.map(|(end, times)| (end, times, reader.tally)) });
        }
        let begun = Instant::now();
        course.begin(emission).await?;
        let read = all(readers).await?;
        let last = course.last_event(emission).await?;
        let mut figures = Figures { events: last, ..Figures::default() };
        let end = read.iter().map(|(end, ..)| *end).max().unwrap_or(begun);
        figures.live_per_second = report::tenths(last as f64 / (end - begun).as_secs_f64());
        for (_, times, mut tally) in read {
            tally.finish(last);
            figures.cuts += times;
            figures.count(&tally);
        }
        Ok(figures)
    }

    /// Runs end unseen, and each is then read once, by one of the readers: nothing of them is in memory.
    async fn replay(&self, course: &Course, figures: &mut Figures) -> Result<()> {
        let mut shares = vec![Vec::new(); self.clients.into()];
        for turn in 0..FRESH.max(self.clients) {
            let emission = course.emission(json!({ "count": self.events })).await?;
            let last = course.complete(&emission).await?;
            shares
                .get_mut(usize::from(turn % self.clients))
                .into_iter()
                .for_each(|share| share.push((emission.clone(), last)));
        }
        let begun = Instant::now();
        let mut readers = JoinSet::new();
        for share in shares {
            let course = course.clone();
            readers.spawn(async move {
                let (mut read, mut tallies) = (0, Vec::new());
                for (emission, last) in share {
                    let mut reader = Reader::new(&course, &emission);
                    reader.read().await?;
                    read += reader.tally.last;
                    reader.tally.finish(last);
                    tallies.push(reader.tally);
                }
                Ok((read, tallies))
            });
        }
        let read = all(readers).await?;
        let events: u64 = read.iter().map(|(events, _)| events).sum();
        figures.replayed_per_second = report::tenths(events as f64 / begun.elapsed().as_secs_f64());
        read.iter().flat_map(|(_, tallies)| tallies).for_each(|tally| figures.count(tally));
        Ok(())
    }

    /// One run again and again.
    async fn reread(&self, course: &Course, emission: &Emission, last: u64, figures: &mut Figures) -> Result<()> {
        let begun = Instant::now();
        let until = begun + Duration::from_secs(self.seconds);
        let mut readers = JoinSet::new();
        (0..self.clients).for_each(|_| drop(readers.spawn(Reader::new(course, emission).repeat(until, last))));
        let read = all(readers).await?;
        let events: u64 = read.iter().map(|(events, _)| events).sum();
        figures.reread_per_second = report::tenths(events as f64 / begun.elapsed().as_secs_f64());
        read.iter().for_each(|(_, tally)| figures.count(tally));
        Ok(())
    }
}

async fn all<T: 'static>(readers: JoinSet<Result<T>>) -> Result<Vec<T>> {
    let late = |_| Failure::Unreadable("not every reader saw the end in time".to_owned());
    timeout(PATIENCE, readers.join_all()).await.map_err(late)?.into_iter().collect()
}

impl report::Rows for Figures {
    fn rows(&self) -> Vec<report::Row> {
        vec![
            report::row("events", self.events.to_string()),
            report::row("live", report::rate(self.live_per_second)),
            report::row("replay, from the table", report::rate(self.replayed_per_second)),
            report::row("once more, from memory", report::rate(self.reread_per_second)),
            report::row("cuts", self.cuts.to_string()),
            report::row("lost, repeated", format!("{}, {}", self.lost, self.repeated)),
        ]
    }

    fn rates(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("livePerSecond", self.live_per_second),
            ("replayedPerSecond", self.replayed_per_second),
            ("rereadPerSecond", self.reread_per_second),
        ]
    }
}
