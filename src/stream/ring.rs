use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::{
    filter::Filter,
    frame::{Entry, append},
    window::PIECE,
};

/// The recent end of a stream: every event after `base`, up to `head`, encoded, in order.
#[derive(Debug)]
pub(super) struct Ring<P> {
    base: P,
    head: P,
    entries: VecDeque<Entry<P>>,
    bytes: usize,
    /// How many events the stream had up to `head`; for a run that is the head itself.
    count: u64,
    shared: Option<Shared<P>>,
}

/// The piece built last: subscribers at the same place share its memory.
#[derive(Debug)]
struct Shared<P> {
    first: P,
    head: P,
    mask: u64,
    piece: Piece<P>,
}

/// What goes to a subscriber at once.
#[derive(Clone, Debug)]
pub(super) struct Piece<P> {
    /// Whole events; empty when the filter let none through.
    pub bytes: Bytes,
    /// How many.
    pub frames: usize,
    /// The subscriber's new place.
    pub upto: P,
    /// How many events the stream had up to there.
    pub count: u64,
}

/// The answer to a subscriber.
#[derive(Debug)]
pub(super) enum Taken<P> {
    /// The place is older than what is held: the table has it.
    Behind,
    /// Nothing is newer than the place.
    Current {
        /// As good a place as any between the cursor and the next event.
        upto: P,
        /// How many events the stream had up to there.
        count: u64,
    },
    /// The next events.
    Piece(Piece<P>),
    /// There is nothing more to come. No ring says so; those who know the stream do.
    Over,
}

impl<P: Copy + Ord> Ring<P> {
    /// Empty, at `head`, the place of the stream's event number `count`.
    pub fn new(head: P, count: u64) -> Self {
        Self { base: head, head, entries: VecDeque::new(), bytes: 0, count, shared: None }
    }

    /// The place of the newest event known.
    pub fn head(&self) -> P {
        self.head
    }

    /// The place after which it has everything.
    pub fn base(&self) -> P {
        self.base
    }

    /// How many events the stream had up to the head.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds the next events; the caller knows that nothing is missing between the head and the first.
    pub fn push(&mut self, entries: impl Iterator<Item = Entry<P>>, cap: usize) {
        for entry in entries {
            debug_assert!(self.head < entry.at, "events are pushed in order");
            self.head = entry.at;
            self.bytes += entry.sse.len();
            self.count += 1;
            self.entries.push_back(entry);
        }
        while self.bytes > cap {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.base = oldest.at;
            self.bytes -= oldest.sse.len();
        }
    }

    /// Moves the head over a stretch without events.
    pub fn advance(&mut self, head: P) {
        self.head = self.head.max(head);
    }

    /// The events after `cursor`, as many as make a piece.
    pub fn take(&mut self, cursor: P, filter: &Filter) -> Taken<P> {
        if cursor < self.base {
            return Taken::Behind;
        }
        let start = self.entries.partition_point(|entry| entry.at <= cursor);
        let Some(first) = self.entries.get(start).map(|entry| entry.at) else {
            return Taken::Current { upto: self.head.max(cursor), count: self.count };
        };
        match &self.shared {
            Some(shared) if (shared.first, shared.head, shared.mask) == (first, self.head, filter.mask()) => {
                Taken::Piece(shared.piece.clone())
            }
            _ => {
                let piece = self.piece(start, filter);
                self.shared = Some(Shared { first, head: self.head, mask: filter.mask(), piece: piece.clone() });
                Taken::Piece(piece)
            }
        }
    }

    fn piece(&self, start: usize, filter: &Filter) -> Piece<P> {
        let (mut bytes, mut frames, mut upto, mut seen) = (0, 0, self.head, 0);
        for entry in self.entries.iter().skip(start) {
            let size = if filter.passes(entry.kind) { entry.sse.len() + filter.suffix().len() } else { 0 };
            if bytes > 0 && bytes + size > PIECE {
                break;
            }
            bytes += size;
            frames += usize::from(size > 0);
            upto = entry.at;
            seen += 1;
        }
        // Copied even where it is one event: whoever stalls would keep what that is a slice of.
        let mut out = BytesMut::with_capacity(bytes);
        let passing = self.entries.iter().skip(start).take(seen).filter(|entry| filter.passes(entry.kind));
        passing.for_each(|entry| append(&mut out, entry, filter));
        let left = self.entries.len() - start - seen;
        Piece { bytes: out.freeze(), frames, upto, count: self.count.saturating_sub(left as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::frame::Writer;

    fn entries(seqs: std::ops::RangeInclusive<u64>) -> Vec<Entry<u64>> {
        let mut writer = Writer::for_about(0, 0);
        for seq in seqs {
            let name = if seq % 2 == 0 { "completed" } else { "idle" };
            writer.event(seq, format!("evt_{seq}"), name, b"{}");
        }
        writer.finish().entries().collect()
    }

    fn piece(ring: &mut Ring<u64>, cursor: u64, filter: &Filter) -> Piece<u64> {
        match ring.take(cursor, filter) {
            Taken::Piece(piece) => piece,
            other => panic!("expected a piece, got {other:?}"),
        }
    }

    #[test]
    fn subscribers_at_one_place_share_one_piece_of_memory() {
        let mut ring = Ring::new(3, 3);
        ring.push(entries(4..=6).into_iter(), usize::MAX);
        let (one, two) = (piece(&mut ring, 3, &Filter::all()), piece(&mut ring, 3, &Filter::all()));
        assert_eq!(one.bytes.as_ptr(), two.bytes.as_ptr());
        assert_eq!((one.frames, one.upto, one.count), (3, 6, 6));
        ring.push(entries(7..=7).into_iter(), usize::MAX);
        assert_eq!(piece(&mut ring, 3, &Filter::all()).upto, 7);
    }

    #[test]
    fn beyond_its_cap_the_oldest_go_and_who_needs_them_is_behind() {
        let mut ring = Ring::new(0, 0);
        ring.push(entries(1..=9).into_iter(), 100);
        assert!(matches!(ring.take(0, &Filter::all()), Taken::Behind));
        assert!(ring.bytes <= 100 && !ring.entries.is_empty());
        let oldest = ring.base;
        assert_eq!(piece(&mut ring, oldest, &Filter::all()).upto, 9);
        assert!(matches!(ring.take(9, &Filter::all()), Taken::Current { upto: 9, count: 9 }));
    }

    #[test]
    fn a_filter_moves_the_place_even_when_nothing_passes() {
        let mut ring = Ring::new(0, 0);
        ring.push(entries(1..=1).into_iter(), usize::MAX);
        let nothing = piece(&mut ring, 0, &Filter::parse("completed").expect("known"));
        assert_eq!((nothing.bytes.len(), nothing.frames, nothing.upto), (0, 0, 1));
        ring.push(entries(2..=3).into_iter(), usize::MAX);
        let one = piece(&mut ring, 0, &Filter::parse("completed").expect("known"));
        assert_eq!((one.frames, one.upto), (1, 3));
        assert!(one.bytes.starts_with(b"id: evt_2~completed\n"));
    }

    #[test]
    fn a_piece_is_bounded_and_holds_whole_events() {
        let mut ring = Ring::new(0, 0);
        let mut writer = Writer::for_about(0, 0);
        let json = vec![b'1'; PIECE / 3];
        for seq in 1..=5_u64 {
            writer.event(seq, seq, "idle", &json);
        }
        ring.push(writer.finish().entries(), usize::MAX);
        let first = piece(&mut ring, 0, &Filter::all());
        assert_eq!((first.frames, first.upto, first.count), (2, 2, 2));
        assert_eq!(piece(&mut ring, first.upto, &Filter::all()).upto, 4);
    }
}
