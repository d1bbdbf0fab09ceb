//! How much a subscriber's connection may hold. A reader that stalls keeps what it was given; so it is given
//! little at a time, and more only when the connection has let go of that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;

/// The most that goes to a subscriber in one piece, in bytes; a larger event goes alone.
pub(super) const PIECE: usize = 8 * 1024;

/// The connection gets no further piece while it holds that many bytes.
const WINDOW: usize = 8 * 1024;

/// After that long without room a reader has stalled.
pub(super) const STALLED: Duration = Duration::from_millis(250);

/// What a connection was given and still holds.
#[derive(Debug, Default)]
pub(super) struct Window(Arc<Held>);

#[derive(Debug, Default)]
struct Held {
    bytes: AtomicUsize,
    room: Notify,
}

/// A piece on its way; dropped when it is written.
struct Lent {
    piece: Bytes,
    held: Arc<Held>,
}

impl Window {
    /// There is room for a piece.
    pub fn is_open(&self) -> bool {
        self.0.bytes.load(Ordering::Acquire) < WINDOW
    }

    /// Returns when there is.
    pub async fn opens(&self) {
        while !self.is_open() {
            self.0.room.notified().await;
        }
    }

    /// The piece, which counts until the connection drops it.
    pub fn lend(&self, piece: Bytes) -> Bytes {
        self.0.bytes.fetch_add(piece.len(), Ordering::AcqRel);
        Bytes::from_owner(Lent { piece, held: self.0.clone() })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let before = self.held.bytes.fetch_sub(self.piece.len(), Ordering::AcqRel);
        if before >= WINDOW && before - self.piece.len() < WINDOW {
            self.held.room.notify_one();
        }
    }
}

/// How many bytes of the table are read at once for one subscriber: few at first, twice as many each time while
/// it keeps up, few again when it has stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach(usize);

impl Reach {
    const LEAST: Self = Self(32 * 1024);
    const MOST: Self = Self(256 * 1024);

    /// That of this reading; the next reaches further.
    pub fn grow(&mut self) -> usize {
        let Self(now) = *self;
        self.0 = (now * 2).min(Self::MOST.0);
        now
    }
}

impl Default for Reach {
    fn default() -> Self {
        Self::LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reach_doubles_up_to_a_bound() {
        let mut reach = Reach::default();
        assert_eq!([(); 5].map(|()| reach.grow() / 1024), [32, 64, 128, 256, 256]);
        assert_eq!(Reach::default().grow(), 32 * 1024);
    }

    #[tokio::test]
    async fn a_window_opens_when_the_connection_lets_go() {
        let window = Window::default();
        let small = window.lend(Bytes::from_static(b"x"));
        assert!(window.is_open());
        let large = window.lend(vec![b'y'; 3 * WINDOW].into());
        assert_eq!((small.len(), large.len()), (1, 3 * WINDOW));
        let part = large.slice(1..2);
        drop(large);
        assert!(!window.is_open(), "a part of it is still held");
        let waiting = tokio::spawn(async move { window.opens().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(part);
        waiting.await.expect("opened");
    }
}
