//! What is made of what was measured. Pure.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Times that were measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<u32>);

/// What many times come to, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Times {
    pub(super) fn add(&mut self, time: Duration) {
        self.0.push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// By nearest rank; all zero when nothing was measured.
    pub(super) fn spread(mut self) -> Spread {
        self.0.sort_unstable();
        let rank = |percent: usize| {
            let place = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
            self.0.get(place).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
        };
        Spread { p50: rank(50), p95: rank(95), p99: rank(99), max: rank(100) }
    }
}

/// The part of a measurement that counts, after it has warmed up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) begin: Instant,
    pub(super) end: Instant,
}

impl Window {
    pub(super) fn after(warm_up: Duration, length: Duration) -> Self {
        let begin = Instant::now() + warm_up;
        Self { begin, end: begin + length }
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    pub(super) fn has(&self, moment: Instant) -> bool {
        (self.begin..self.end).contains(&moment)
    }

    pub(super) fn seconds(&self) -> f64 {
        (self.end - self.begin).as_secs_f64()
    }

    /// How much of the time between the two lies inside. What takes long counts by its share, so that the
    /// edges of the window favour nobody.
    pub(super) fn share(&self, from: Instant, to: Instant) -> f64 {
        let inside = to.min(self.end).saturating_duration_since(from.max(self.begin));
        match to.saturating_duration_since(from) {
            Duration::ZERO => f64::from(u8::from(self.has(to))),
            whole => inside.as_secs_f64() / whole.as_secs_f64(),
        }
    }
}

/// Whether one reader has seen every event once and in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// The last event seen.
    pub(super) last: u64,
    pub(super) lost: u64,
    pub(super) repeated: u64,
}

impl Tally {
    /// True when it is the one that was due.
    pub(super) fn see(&mut self, number: u64) -> bool {
        if number <= self.last {
            self.repeated += 1;
            return false;
        }
        let skipped = number - self.last - 1;
        self.lost += skipped;
        self.last = number;
        skipped == 0
    }

    /// The reader will see no more; `last` is the run's last event.
    pub(super) fn finish(&mut self, last: u64) {
        self.lost += last.saturating_sub(self.last);
        self.last = self.last.max(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut times = Times::default();
        (1..=200).rev().for_each(|ms| times.add(Duration::from_millis(ms)));
        assert_eq!(times.spread(), Spread { p50: 100.0, p95: 190.0, p99: 198.0, max: 200.0 });
        let mut one = Times::default();
        one.add(Duration::from_micros(1500));
        assert_eq!(one.spread(), Spread { p50: 1.5, p95: 1.5, p99: 1.5, max: 1.5 });
        assert_eq!(Times::default().spread(), Spread::default());
    }

    #[test]
    fn what_lies_across_an_edge_counts_by_its_share() {
        let window = Window::after(Duration::from_secs(10), Duration::from_secs(10));
        let at = |seconds: i32| match u64::try_from(seconds) {
            Ok(later) => window.begin + Duration::from_secs(later),
            Err(_) => window.begin - Duration::from_secs(seconds.unsigned_abs().into()),
        };
        let share = |from, to| window.share(at(from), at(to));
        assert_eq!([share(2, 4), share(-1, 3), share(8, 12), share(-5, 0), share(10, 11)], [1.0, 0.75, 0.5, 0.0, 0.0]);
        assert_eq!((share(3, 3), share(10, 10)), (1.0, 0.0));
        assert!(!window.is_over() && window.has(at(0)) && !window.has(at(10)));
    }

    #[test]
    fn what_is_lost_and_what_comes_again_is_told_apart() {
        let mut tally = Tally::default();
        assert!(tally.see(1) && tally.see(2));
        assert!(!tally.see(5) && !tally.see(4) && !tally.see(5) && tally.see(6));
        tally.finish(8);
        assert_eq!(tally, Tally { last: 8, lost: 4, repeated: 2 });
    }
}
