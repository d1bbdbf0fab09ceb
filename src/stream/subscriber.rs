use std::{convert::Infallible, pin::Pin, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use chrono::TimeDelta;
use futures_util::stream;

use super::{
    filter::Filter,
    ring::{Piece, Taken},
    seats::Seat,
};
use crate::kernel::{Clock, Result, Timestamp};

/// How long a subscriber waits when the table cannot be read.
const PATIENCE: Duration = Duration::from_millis(500);

/// A stream somebody follows.
pub(super) trait Source: Send + Sync + 'static {
    /// A position in it.
    type Place: Copy + Ord + Send + Sync;

    /// What memory has after `cursor`.
    fn take(&self, cursor: Self::Place, filter: &Filter) -> Taken<Self::Place>;

    /// Returns when `take` may have something new.
    fn news(&mut self) -> impl Future<Output = ()> + Send;

    /// What the table has after `cursor`, when memory has it no more.
    fn read(&mut self, cursor: Self::Place, filter: &Filter)
    -> impl Future<Output = Result<Piece<Self::Place>>> + Send;

    /// The subscriber has had everything up to the stream's event number `count`.
    fn reached(&self, count: u64);

    /// What is sent when there was nothing to send for a while.
    fn rest(&self, cursor: Self::Place, filter: &Filter) -> Bytes;
}

/// One open stream: a place, and what it takes to move on from there.
pub(super) struct Subscriber<S: Source> {
    pub source: S,
    pub cursor: S::Place,
    pub filter: Filter,
    /// The first thing sent.
    pub greeting: Option<Bytes>,
    pub pulse: Pulse,
    pub seat: Seat,
}

/// When to say that one is still there, and when to leave.
pub(super) struct Pulse {
    clock: Clock,
    keep_alive: TimeDelta,
    expires_at: Timestamp,
    sent_at: Timestamp,
    alarm: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl Pulse {
    pub fn new(clock: Clock, keep_alive: Duration, expires_at: Timestamp) -> Self {
        let keep_alive = TimeDelta::from_std(keep_alive).unwrap_or(TimeDelta::MAX);
        let sent_at = clock.now();
        let mut pulse = Self { clock, keep_alive, expires_at, sent_at, alarm: Box::pin(async {}) };
        pulse.set();
        pulse
    }

    fn set(&mut self) {
        let quiet = self.sent_at.checked_add_signed(self.keep_alive).unwrap_or(self.expires_at);
        let (clock, next) = (self.clock.clone(), quiet.min(self.expires_at));
        self.alarm = Box::pin(async move { clock.sleep_until(next).await });
    }

    fn sent(&mut self) {
        self.sent_at = self.clock.now();
    }

    fn expired(&self) -> bool {
        self.clock.now() >= self.expires_at
    }

    /// After the alarm: whether it has been quiet for so long that something should be said.
    fn quiet(&mut self) -> bool {
        let quiet = self.clock.now() - self.sent_at >= self.keep_alive;
        if quiet {
            self.sent();
        }
        // It was set for the last thing sent when it was set; that may have been long ago.
        self.set();
        quiet
    }
}

impl<S: Source> Subscriber<S> {
    /// The response's body.
    pub fn body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut subscriber| async move {
            subscriber.next().await.map(|bytes| (Ok::<_, Infallible>(bytes), subscriber))
        }))
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        loop {
            if self.pulse.expired() {
                return None;
            }
            let piece = match self.source.take(self.cursor, &self.filter) {
                Taken::Over => return None,
                Taken::Piece(piece) => piece,
                Taken::Current { upto, count } => {
                    self.cursor = upto;
                    self.source.reached(count);
                    tokio::select! {
                        biased;
                        () = self.source.news() => {}
                        () = &mut self.pulse.alarm => if let Some(rest) = self.rest() { return Some(rest) },
                    }
                    continue;
                }
                Taken::Behind => {
                    let read = Box::pin(patient(&mut self.source, self.cursor, &self.filter));
                    tokio::select! {
                        biased;
                        read = read => match read { Some(piece) => piece, None => continue },
                        () = &mut self.pulse.alarm => match self.rest() {
                            Some(rest) => return Some(rest),
                            None => continue,
                        },
                    }
                }
            };
            self.cursor = piece.upto;
            self.source.reached(piece.count);
            if !piece.bytes.is_empty() {
                self.pulse.sent();
                self.seat.sent(piece.frames);
                return Some(piece.bytes);
            }
        }
    }

    fn rest(&mut self) -> Option<Bytes> {
        self.pulse.quiet().then(|| self.source.rest(self.cursor, &self.filter))
    }
}

/// A database that is away is waited for; the client keeps its connection.
async fn patient<S: Source>(source: &mut S, cursor: S::Place, filter: &Filter) -> Option<Piece<S::Place>> {
    match source.read(cursor, filter).await {
        Ok(piece) => Some(piece),
        Err(error) => {
            tracing::warn!(?error, "a subscriber's page could not be read");
            tokio::time::sleep(PATIENCE).await;
            None
        }
    }
}
