use super::{
    filter::Filter,
    frame::{Batch, Writer},
    ring::{Ring, Taken},
};
use crate::journal::{Frame, event_id};

/// What this process knows of the end of one run's stream. Pure: what happens to it is told to it.
#[derive(Debug, Default)]
pub(super) struct RunFeed {
    /// None until the run's head is known.
    ring: Option<Ring<u64>>,
    /// The event at the head ends the run.
    ended: bool,
    /// The table may have more than the ring.
    stale: bool,
    /// Somebody is reading it.
    reading: bool,
}

/// What follows from news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing new.
    None,
    /// Subscribers have something to take.
    Frames,
    /// The table has to be read.
    Read,
}

impl RunFeed {
    /// This process committed `frames`, the last of which may end the run.
    pub fn committed(&mut self, frames: &[Frame], ended: bool, cap: usize) -> News {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return News::None };
        let ring = self.ring.get_or_insert_with(|| Ring::new(first.seq - 1, first.seq - 1));
        let head = ring.head();
        if first.seq > head + 1 {
            // Somebody else wrote in between, or a commit before this one has not been told yet.
            self.stale = true;
            return News::Read;
        }
        if last.seq <= head {
            return News::None;
        }
        ring.push(encode(frames.iter().filter(|frame| frame.seq > head)).entries(), cap);
        self.ended = ended;
        News::Frames
    }

    /// The run's row says so.
    pub fn seen(&mut self, last_seq: u64, ended: bool) -> News {
        match &self.ring {
            None => {
                self.ring = Some(Ring::new(last_seq, last_seq));
                self.ended = ended;
            }
            Some(ring) if last_seq > ring.head() => self.stale = true,
            Some(_) => {}
        }
        if self.stale { News::Read } else { News::None }
    }

    /// Another process committed something.
    pub fn signalled(&mut self) -> News {
        self.stale = true;
        self.due()
    }

    /// What is to be done for somebody who begins to follow.
    pub fn due(&self) -> News {
        if self.stale && self.ring.is_some() { News::Read } else { News::None }
    }

    /// The ring has every event of the run that is known.
    pub fn is_whole(&self) -> bool {
        !self.stale && self.ring.as_ref().is_none_or(|ring| ring.base() == 0)
    }

    /// The run has no row any more: nothing will come but what is known.
    pub fn dropped(&mut self) -> News {
        let known = self.ended && !self.stale;
        (self.ended, self.stale) = (true, false);
        if known { News::None } else { News::Frames }
    }

    /// Begins a read of the table: the place to read after. None when there is nothing to read for, or
    /// somebody is at it.
    pub fn begin(&mut self) -> Option<u64> {
        let head = self.ring.as_ref()?.head();
        if self.reading || !self.stale {
            return None;
        }
        (self.stale, self.reading) = (false, true);
        Some(head)
    }

    /// Ends it with what the table had; `more` when that was not all.
    pub fn end(&mut self, rows: &Batch<u64>, ended: bool, more: bool, cap: usize) -> News {
        self.reading = false;
        self.stale |= more;
        if let (Some(ring), Some(first), Some(last)) = (&mut self.ring, rows.first(), rows.last()) {
            if first > ring.head() + 1 {
                // What lies between is no longer retained: who needs it is told so by its own reading.
                *ring = Ring::new(first - 1, first - 1);
            }
            let head = ring.head();
            if last > head {
                ring.push(rows.entries().filter(|entry| entry.at > head), cap);
                self.ended = ended;
            }
        }
        if self.stale { News::Read } else { News::Frames }
    }

    /// The table could not be read; it is still to be.
    pub fn abandon(&mut self) {
        (self.stale, self.reading) = (true, false);
    }

    /// What a subscriber at `cursor` gets.
    pub fn take(&mut self, cursor: u64) -> Taken<u64> {
        let Some(ring) = &mut self.ring else { return Taken::Current { upto: cursor, count: cursor } };
        let last = self.ended && !self.stale && !self.reading && ring.head() == cursor;
        if last { Taken::Over } else { ring.take(cursor, &Filter::all()) }
    }

    /// The first and the last event the ring speaks for are those after `.0` and at `.1`.
    pub fn span(&self) -> Option<(u64, u64)> {
        self.ring.as_ref().map(|ring| (ring.base(), ring.head()))
    }
}

/// Committed events, as they go over the wire.
pub(super) fn encode<'a>(frames: impl Iterator<Item = &'a Frame> + Clone) -> Batch<u64> {
    let json = frames.clone().map(|frame| frame.data.len()).sum();
    let mut writer = Writer::for_about(frames.clone().count(), json);
    for frame in frames {
        writer.event(frame.seq, event_id(frame.seq), frame.name, &frame.data);
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn frames(seqs: std::ops::RangeInclusive<u64>) -> Vec<Frame> {
        seqs.map(|seq| Frame { seq, name: "tool.progress", data: Bytes::from(format!("{{\"n\":{seq}}}")) }).collect()
    }

    fn rows(after: u64, upto: u64) -> Batch<u64> {
        encode(frames(after + 1..=upto).iter())
    }

    /// As it goes over the wire.
    fn sse(rows: &Batch<u64>) -> Vec<u8> {
        rows.entries().flat_map(|entry| entry.sse.to_vec()).collect()
    }

    /// The whole system in small: a table, a feed that hears of it late or not at all, subscribers.
    #[derive(Default)]
    struct World {
        table: u64,
        feed: RunFeed,
        untold: Vec<(u64, u64)>,
        readers: Vec<(u64, u64, Vec<u8>)>,
        cap: usize,
    }

    #[derive(Clone, Debug)]
    enum Act {
        CommitHere(u64),
        CommitElsewhere(u64),
        Tell(usize),
        Signal,
        Poll,
        BeginRead,
        FailRead,
        EndRead(u64),
        Subscribe(u64),
        Take(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (1..4_u64).prop_map(Act::CommitHere),
            (1..4_u64).prop_map(Act::CommitElsewhere),
            (0..3_usize).prop_map(Act::Tell),
            (0..3_usize).prop_map(Act::Tell),
            Just(Act::Signal),
            Just(Act::Poll),
            Just(Act::BeginRead),
            Just(Act::FailRead),
            (1..5_u64).prop_map(Act::EndRead),
            (0..9_u64).prop_map(Act::Subscribe),
            (0..4_usize).prop_map(Act::Take),
            (0..4_usize).prop_map(Act::Take),
        ]
    }

    impl World {
        fn run(&mut self, acts: &[Act]) {
            let mut read: Option<(u64, u64)> = None;
            for act in acts {
                match act {
                    Act::CommitHere(n) => {
                        self.untold.push((self.table + 1, self.table + n));
                        self.table += n;
                    }
                    Act::CommitElsewhere(n) => self.table += n,
                    // Not always the oldest: what follows a commit may be told late.
                    Act::Tell(at) if *at < self.untold.len() => {
                        let (first, last) = self.untold.remove(*at);
                        self.feed.committed(&frames(first..=last), false, self.cap);
                    }
                    Act::Signal => drop(self.feed.signalled()),
                    Act::Poll => drop(self.feed.seen(self.table, false)),
                    // The rows are read now and handed over later.
                    Act::BeginRead => read = self.feed.begin().map(|after| (after, self.table)).or(read),
                    Act::FailRead if read.take().is_some() => self.feed.abandon(),
                    Act::EndRead(limit) => {
                        if let Some((after, table)) = read.take() {
                            let upto = table.min(after + limit);
                            self.feed.end(&rows(after, upto), false, upto < table, self.cap);
                        }
                    }
                    Act::Subscribe(back) => {
                        // Subscribe first, look at the row second, replay third.
                        self.feed.seen(self.table, false);
                        let start = self.table.saturating_sub(*back);
                        self.readers.push((start, start, Vec::new()));
                    }
                    Act::Take(at) if *at < self.readers.len() => self.take(*at),
                    Act::Tell(_) | Act::FailRead | Act::Take(_) => {}
                }
            }
            if read.is_some() {
                self.feed.abandon();
            }
        }

        fn take(&mut self, at: usize) {
            let (_, cursor, got) = &mut self.readers[at];
            match self.feed.take(*cursor) {
                Taken::Piece(piece) => {
                    got.extend_from_slice(&piece.bytes);
                    *cursor = piece.upto;
                }
                Taken::Behind => {
                    let upto = self.table.min(*cursor + 3);
                    got.extend(sse(&rows(*cursor, upto)));
                    *cursor = upto;
                }
                Taken::Current { .. } => {}
                Taken::Over => panic!("the run has not ended"),
            }
        }

        /// The safety net: a poll, reads until nothing is left, every reader to its end.
        fn settle(&mut self) {
            for (first, last) in std::mem::take(&mut self.untold) {
                self.feed.committed(&frames(first..=last), false, self.cap);
            }
            self.feed.seen(self.table, false);
            while let Some(after) = self.feed.begin() {
                let upto = self.table.min(after + 2);
                self.feed.end(&rows(after, upto), false, upto < self.table, self.cap);
            }
            for at in 0..self.readers.len() {
                while self.readers[at].1 < self.table {
                    let before = self.readers[at].1;
                    self.take(at);
                    assert!(self.readers[at].1 > before, "a reader is stuck at {before} of {}", self.table);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_reader_gets_the_rows_of_the_table_once_and_in_order(
            acts in proptest::collection::vec(act(), 0..60),
            cap in prop_oneof![Just(0_usize), Just(200), Just(usize::MAX)],
        ) {
            let mut world = World { cap, ..World::default() };
            world.run(&acts);
            world.settle();
            for (start, _, got) in &world.readers {
                prop_assert_eq!(got, &sse(&rows(*start, world.table)));
            }
        }
    }

    #[test]
    fn a_subscriber_leaves_at_the_end_but_not_while_more_may_come() {
        let mut feed = RunFeed::default();
        feed.seen(4, false);
        feed.committed(&frames(5..=5), true, usize::MAX);
        assert!(matches!(feed.take(4), Taken::Piece(_)));
        assert!(matches!(feed.take(5), Taken::Over));
        // A retry in another process.
        assert_eq!(feed.signalled(), News::Read);
        assert!(matches!(feed.take(5), Taken::Current { .. }));
        assert_eq!(feed.begin(), Some(5));
        assert!(matches!(feed.take(5), Taken::Current { .. }));
        feed.end(&rows(5, 6), false, false, usize::MAX);
        assert!(matches!(feed.take(6), Taken::Current { upto: 6, .. }));
    }

    #[test]
    fn rows_that_are_no_longer_retained_leave_a_hole_that_is_not_papered_over() {
        let mut feed = RunFeed::default();
        feed.seen(2, false);
        feed.signalled();
        assert_eq!(feed.begin(), Some(2));
        feed.end(&rows(6, 8), false, false, usize::MAX);
        assert!(matches!(feed.take(2), Taken::Behind));
        assert!(matches!(feed.take(6), Taken::Piece(_)));
    }

    #[test]
    fn a_run_without_a_row_is_over_once_all_that_is_known_was_said() {
        let mut feed = RunFeed::default();
        feed.seen(4, false);
        feed.signalled();
        assert_eq!((feed.dropped(), feed.dropped()), (News::Frames, News::None));
        assert!(matches!(feed.take(2), Taken::Behind));
        assert!(matches!(feed.take(4), Taken::Over));
    }

    #[test]
    fn one_reader_of_the_table_at_a_time() {
        let mut feed = RunFeed::default();
        assert_eq!(feed.signalled(), News::None);
        assert_eq!(feed.begin(), None);
        assert_eq!(feed.seen(3, false), News::Read);
        assert_eq!(feed.begin(), Some(3));
        feed.signalled();
        assert_eq!(feed.begin(), None);
        feed.abandon();
        assert_eq!(feed.begin(), Some(3));
    }
}
