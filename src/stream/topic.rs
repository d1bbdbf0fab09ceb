use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::held;

/// How much waking one more subscriber may cost; with many, events are gathered for as long as all of
/// them together cost, so that one write carries several.
const PER_READER: Duration = Duration::from_micros(10);

/// The longest an event is gathered.
const GATHER: Duration = Duration::from_millis(20);

/// What this process knows of one stream, and those who follow it.
#[derive(Debug)]
pub(super) struct Topic<F> {
    feed: Mutex<F>,
    wake: watch::Sender<()>,
    pace: Mutex<Pace>,
    readers: Mutex<Readers>,
}

#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    due: bool,
}

#[derive(Debug, Default)]
struct Readers {
    next: u64,
    counts: HashMap<u64, Arc<AtomicU64>>,
}

/// One follower: hears of news, and says how far it is.
#[derive(Debug)]
pub(super) struct Reader {
    id: u64,
    news: watch::Receiver<()>,
    count: Arc<AtomicU64>,
}

impl Reader {
    /// Returns when something happened since the last return.
    pub async fn news(&mut self) {
        if self.news.changed().await.is_err() {
            // The topic outlives its readers; should it not, there is nothing to hear any more.
            std::future::pending::<()>().await;
        }
    }

    /// It has had everything up to the stream's event number `count`.
    pub fn reached(&self, count: u64) {
        self.count.store(count, Ordering::Relaxed);
    }
}

impl<F: Default> Default for Topic<F> {
    fn default() -> Self {
        Self { feed: Mutex::default(), wake: watch::Sender::new(()), pace: Mutex::default(), readers: Mutex::default() }
    }
}

impl<F> Topic<F> {
    /// Asks or tells the feed, briefly.
    pub fn with<T>(&self, act: impl FnOnce(&mut F) -> T) -> T {
        act(&mut held(&self.feed))
    }

    /// One more follower.
    pub fn join(&self) -> Reader {
        let mut readers = held(&self.readers);
        readers.next += 1;
        let (id, count) = (readers.next, Arc::<AtomicU64>::default());
        readers.counts.insert(id, count.clone());
        Reader { id, news: self.wake.subscribe(), count }
    }

    /// One fewer; whether it was the last.
    pub fn leave(&self, reader: &Reader) -> bool {
        let mut readers = held(&self.readers);
        readers.counts.remove(&reader.id);
        readers.counts.is_empty()
    }

    /// Whether anybody follows.
    pub fn is_followed(&self) -> bool {
        !held(&self.readers).counts.is_empty()
    }

    /// How many events the slowest follower has yet to get, when the stream has `count`.
    pub fn lag(&self, count: u64) -> u64 {
        let readers = held(&self.readers);
        readers.counts.values().map(|at| count.saturating_sub(at.load(Ordering::Relaxed))).max().unwrap_or(0)
    }

    /// Wakes everybody now.
    pub fn wake(&self) {
        self.wake.send_replace(());
    }
}

impl<F: Send + 'static> Topic<F> {
    /// Wakes everybody: at once when they are few or it has been quiet, else as soon as it pays.
    pub fn announce(self: &Arc<Self>) {
        let readers = self.wake.receiver_count();
        match held(&self.pace).next(Instant::now(), readers) {
            Wake::Now => self.wake(),
            Wake::Due => {}
            Wake::At(due) => {
                let topic = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(due).await;
                    held(&topic.pace).woken(Instant::now());
                    topic.wake();
                });
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Wake {
    Now,
    At(Instant),
    /// It is already arranged.
    Due,
}

impl Pace {
    fn next(&mut self, now: Instant, readers: usize) -> Wake {
        if self.due {
            return Wake::Due;
        }
        let gap = PER_READER.saturating_mul(u32::try_from(readers).unwrap_or(u32::MAX)).min(GATHER);
        match self.last.map(|last| last + gap) {
            // The timer counts in milliseconds.
            Some(due) if due > now && gap >= Duration::from_millis(1) => {
                self.due = true;
                Wake::At(due)
            }
            _ => {
                self.last = Some(now);
                Wake::Now
            }
        }
    }

    fn woken(&mut self, now: Instant) {
        (self.due, self.last) = (false, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_woken_at_once_after_quiet_and_then_together() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.next(now, 5000), Wake::Now);
        assert_eq!(pace.next(now, 5000), Wake::At(now + GATHER));
        assert_eq!(pace.next(now, 5000), Wake::Due);
        pace.woken(now + GATHER);
        assert_eq!(pace.next(now + GATHER, 100), Wake::At(now + GATHER + PER_READER * 100));
        pace.woken(now + GATHER);
        assert_eq!(pace.next(now + 2 * GATHER, 5000), Wake::Now);
    }

    #[test]
    fn a_few_are_woken_every_time() {
        let topic = Arc::<Topic<()>>::default();
        let mut one = topic.join();
        for _ in 0..3 {
            topic.announce();
            assert!(one.news.has_changed().expect("the topic lives"));
            one.news.mark_unchanged();
        }
    }

    #[test]
    fn the_slowest_counts() {
        let topic = Topic::<()>::default();
        let (one, two) = (topic.join(), topic.join());
        one.reached(7);
        two.reached(4);
        assert_eq!(topic.lag(10), 6);
        assert!(!topic.leave(&two));
        assert_eq!(topic.lag(10), 3);
        assert!(topic.leave(&one));
        assert_eq!(topic.lag(10), 0);
    }
}
