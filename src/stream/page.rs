use std::sync::Arc;

use super::{frame::Batch, ring::Piece, window::PIECE};

/// What the table had after a place, of which a subscriber takes piece by piece.
#[derive(Debug)]
pub(super) struct Page<P> {
    /// What is said first: that events are missing.
    pub gap: Option<Piece<P>>,
    /// The events; some may lie before the place.
    pub events: Arc<Batch<P>>,
    /// Where whoever has had all of it stands.
    pub upto: P,
    /// How many events the stream had up to a place; 0 where that is not known.
    pub count: fn(P) -> u64,
}

impl<P: Copy + Ord> Page<P> {
    /// What follows the cursor; none when it has no more.
    pub fn piece(&mut self, cursor: P) -> Option<Piece<P>> {
        if let Some(gap) = self.gap.take() {
            return Some(gap);
        }
        if cursor >= self.upto {
            return None;
        }
        let (bytes, frames, last) = self.events.after(cursor, PIECE);
        let upto = last.filter(|last| self.events.last() > Some(*last)).unwrap_or(self.upto);
        Some(Piece { bytes, frames, upto, count: (self.count)(upto) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::frame::Writer;

    #[test]
    fn pieces_are_small_whole_and_lead_to_the_end_of_the_page() {
        let mut writer = Writer::for_about(0, 0);
        let json = vec![b'1'; PIECE / 3];
        for seq in 1..=5_u64 {
            writer.event(seq, seq, "idle", &json);
        }
        let events = Arc::new(writer.finish());
        let mut page = Page { gap: None, events: events.clone(), upto: 9, count: |seq| seq };
        let (mut cursor, mut got, mut steps) = (1, Vec::new(), Vec::new());
        while let Some(piece) = page.piece(cursor) {
            assert!(piece.bytes.len() <= PIECE);
            got.extend_from_slice(&piece.bytes);
            steps.push((piece.frames, piece.upto, piece.count));
            cursor = piece.upto;
        }
        assert_eq!(steps, [(2, 3, 3), (2, 9, 9)]);
        assert_eq!(got, events.after(1, usize::MAX).0);
    }

    #[test]
    fn what_is_missing_is_said_first_and_a_page_without_events_moves_on() {
        let events = Arc::new(Writer::for_about(0, 0).finish());
        let gap = Piece { bytes: "gap".into(), frames: 0, upto: 4, count: 4 };
        let mut page = Page { gap: Some(gap), events, upto: 7, count: |seq: u64| seq };
        assert_eq!(page.piece(2).map(|piece| (piece.bytes, piece.upto)), Some(("gap".into(), 4)));
        assert_eq!(page.piece(4).map(|piece| (piece.bytes.len(), piece.upto)), Some((0, 7)));
        assert!(page.piece(7).is_none());
    }
}
