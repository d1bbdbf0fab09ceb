//! Events as they go over the wire: each is written once, whoever it is for.

use std::{fmt::Display, io::Write, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::filter::{Filter, Kind, kind_of};

/// One event, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Entry<P> {
    /// Its place in the stream.
    pub at: P,
    /// Its name.
    pub kind: Kind,
    /// `id:`, `event:`, `data:` and a blank line.
    pub sse: Bytes,
}

/// Events written side by side in one piece of memory.
#[derive(Clone, Debug)]
pub(super) struct Batch<P> {
    bytes: Bytes,
    marks: Arc<[Mark<P>]>,
}

#[derive(Clone, Copy, Debug)]
struct Mark<P> {
    at: P,
    kind: Kind,
    end: usize,
}

/// Writes a batch.
pub(super) struct Writer<P> {
    bytes: Vec<u8>,
    marks: Vec<Mark<P>>,
}

impl<P: Copy + Ord> Writer<P> {
    /// For about that many events and bytes of JSON.
    pub fn for_about(events: usize, json: usize) -> Self {
        Self { bytes: Vec::with_capacity(json + events * 64), marks: Vec::with_capacity(events) }
    }

    /// Adds the next event.
    pub fn event(&mut self, at: P, id: impl Display, name: &str, json: &[u8]) {
        write_event(&mut self.bytes, id, name, json);
        self.marks.push(Mark { at, kind: kind_of(name), end: self.bytes.len() });
    }

    /// What was written.
    pub fn finish(self) -> Batch<P> {
        Batch { bytes: self.bytes.into(), marks: self.marks.into() }
    }
}

impl<P: Copy + Ord> Batch<P> {
    /// The events, as slices of the one piece.
    pub fn entries(&self) -> impl Iterator<Item = Entry<P>> {
        let mut start = 0;
        self.marks.iter().map(move |mark| {
            let sse = self.bytes.slice(start..mark.end);
            start = mark.end;
            Entry { at: mark.at, kind: mark.kind, sse }
        })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// The size of it all.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The first event's place.
    pub fn first(&self) -> Option<P> {
        self.marks.first().map(|mark| mark.at)
    }

    /// The last event's place.
    pub fn last(&self) -> Option<P> {
        self.marks.last().map(|mark| mark.at)
    }

    /// The events after `cursor`, as many as `most` bytes hold but one at least; how many they are, and the last
    /// one's place. They are copied: a slice would keep the whole batch in memory.
    pub fn after(&self, cursor: P, most: usize) -> (Bytes, usize, Option<P>) {
        let skipped = self.marks.partition_point(|mark| mark.at <= cursor);
        let (before, marks) = self.marks.split_at(skipped);
        let start = before.last().map_or(0, |mark| mark.end);
        let fitting = marks.partition_point(|mark| mark.end - start <= most).max(1).min(marks.len());
        let last = marks.get(..fitting).and_then(<[_]>::last);
        let bytes = self.bytes.get(start..last.map_or(start, |mark| mark.end)).unwrap_or_default();
        (Bytes::copy_from_slice(bytes), fitting, last.map(|mark| mark.at))
    }
}

/// Appends one event. `id` and `name` come from fixed alphabets; JSON may hold line ends only between its
/// tokens, where a space means the same.
pub(super) fn write_event(out: &mut Vec<u8>, id: impl Display, name: &str, json: &[u8]) {
    // Writing to memory does not fail.
    drop(write!(out, "id: {id}\nevent: {name}\ndata: "));
    let start = out.len();
    out.extend_from_slice(json);
    for byte in out.iter_mut().skip(start).filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    out.extend_from_slice(b"\n\n");
}

/// Appends an event to what goes out in one piece, its id made the cursor of a filtered stream.
pub(super) fn append<P>(out: &mut BytesMut, entry: &Entry<P>, filter: &Filter) {
    let suffix = filter.suffix().as_bytes();
    let line = entry.sse.iter().position(|byte| *byte == b'\n').filter(|_| !suffix.is_empty()).unwrap_or(0);
    let (id, rest) = entry.sse.split_at(line);
    out.extend_from_slice(id);
    out.extend_from_slice(suffix);
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch<u64> {
        let mut writer = Writer::for_about(2, 0);
        writer.event(4, "evt_4", "step.started", br#"{"a":1}"#);
        writer.event(5, "evt_5", "completed", b"{\"a\":\r\n2}");
        writer.finish()
    }

    #[test]
    fn an_event_is_three_lines_and_a_blank_one() {
        let (bytes, frames, last) = batch().after(4, usize::MAX);
        assert_eq!((frames, last), (1, Some(5)));
        assert_eq!(bytes, "id: evt_5\nevent: completed\ndata: {\"a\":  2}\n\n");
    }

    #[test]
    fn slices_and_the_whole_agree() {
        let batch = batch();
        let joined = batch.entries().flat_map(|entry| entry.sse.to_vec()).collect::<Vec<_>>();
        assert_eq!(batch.after(0, joined.len()), (joined.clone().into(), 2, Some(5)));
        assert_eq!(batch.after(0, joined.len() - 1).1, 1);
        assert_eq!(batch.after(0, 0).2, Some(4));
        assert_eq!(batch.after(5, usize::MAX), (Bytes::new(), 0, None));
        assert_eq!((batch.first(), batch.last(), batch.len(), batch.bytes()), (Some(4), Some(5), 2, joined.len()));
    }

    #[test]
    fn a_filter_marks_the_cursor() {
        let mut out = BytesMut::new();
        let filter = Filter::parse("completed").expect("known");
        for entry in batch().entries().filter(|entry| filter.passes(entry.kind)) {
            append(&mut out, &entry, &filter);
        }
        assert!(out.starts_with(b"id: evt_5~completed\nevent: completed\n"), "{out:?}");
    }
}
