use std::{convert::Infallible, pin::Pin, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use chrono::TimeDelta;
use futures_util::stream;

use super::{
    filter::Filter,
    page::Page,
    ring::{Piece, Taken},
    seats::Seat,
    window::{Reach, STALLED, Window},
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
    fn read(
        &mut self,
        cursor: Self::Place,
        filter: &Filter,
        reach: &mut Reach,
    ) -> impl Future<Output = Result<Page<Self::Place>>> + Send;

    /// The subscriber has had everything up to the stream's event number `count`.
    fn reached(&self, count: u64);

    /// What is sent when there was nothing to send for a while.
    fn rest(&self, cursor: Self::Place, filter: &Filter) -> Bytes;
}

/// One open stream: a place, and what it takes to move on from there.
pub(super) struct Subscriber<S: Source> {
    source: S,
    cursor: S::Place,
    filter: Filter,
    /// The first thing sent.
    greeting: Option<Bytes>,
    pulse: Pulse,
    seat: Seat,
    window: Window,
    reach: Reach,
    /// Read from the table and not all sent.
    page: Option<Page<S::Place>>,
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
    /// At `cursor`; the greeting is sent first.
    pub fn new(source: S, cursor: S::Place, filter: Filter, greeting: Bytes, pulse: Pulse, seat: Seat) -> Self {
        let (greeting, window, reach) = (Some(greeting), Window::default(), Reach::default());
        Self { source, cursor, filter, greeting, pulse, seat, window, reach, page: None }
    }

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
            if !self.window.is_open() {
                self.stall().await;
                continue;
            }
            let piece = match self.source.take(self.cursor, &self.filter) {
                Taken::Over => return None,
                Taken::Piece(piece) => {
                    self.page = None;
                    Some(piece)
                }
                Taken::Current { upto, count } => {
                    (self.cursor, self.page) = (upto, None);
                    self.source.reached(count);
                    tokio::select! {
                        biased;
                        () = self.source.news() => {}
                        () = &mut self.pulse.alarm => if let Some(rest) = self.rest() { return Some(rest) },
                    }
                    None
                }
                Taken::Behind => {
                    let piece = self.page.as_mut().and_then(|page| page.piece(self.cursor));
                    if piece.is_none()
                        && let Some(rest) = self.read().await
                    {
                        return Some(rest);
                    }
                    piece
                }
            };
            if let Some(bytes) = piece.and_then(|piece| self.send(piece)) {
                return Some(bytes);
            }
        }
    }

    /// Moves on by a piece: what goes out.
    fn send(&mut self, piece: Piece<S::Place>) -> Option<Bytes> {
        self.cursor = piece.upto;
        self.source.reached(piece.count);
        if piece.bytes.is_empty() {
            return None;
        }
        self.pulse.sent();
        self.seat.sent(piece.frames);
        Some(self.window.lend(piece.bytes))
    }

    /// Waits for the next page of the table; what to send meanwhile.
    async fn read(&mut self) -> Option<Bytes> {
        let read = Box::pin(patient(&mut self.source, self.cursor, &self.filter, &mut self.reach));
        tokio::select! {
            biased;
            page = read => {
                self.page = page;
                None
            }
            () = &mut self.pulse.alarm => self.rest(),
        }
    }

    /// Waits for room in the connection. A page that nobody takes is given back: it can be read again.
    async fn stall(&mut self) {
        tokio::select! {
            biased;
            () = self.window.opens() => {}
            () = tokio::time::sleep(STALLED), if self.page.is_some() => {
                (self.page, self.reach) = (None, Reach::default());
            }
            // Behind what does not leave there is no point in saying that one is still there.
            () = &mut self.pulse.alarm => { self.pulse.quiet(); }
        }
    }

    fn rest(&mut self) -> Option<Bytes> {
        self.pulse.quiet().then(|| self.source.rest(self.cursor, &self.filter))
    }
}

/// A database that is away is waited for; the client keeps its connection.
async fn patient<S: Source>(
    source: &mut S,
    cursor: S::Place,
    filter: &Filter,
    reach: &mut Reach,
) -> Option<Page<S::Place>> {
    match source.read(cursor, filter, reach).await {
        Ok(page) => Some(page),
        Err(error) => {
            tracing::warn!(?error, "a subscriber's page could not be read");
            tokio::time::sleep(PATIENCE).await;
            None
        }
    }
}
