//! What comes in on a stream, piece by piece: the chunks of HTTP/1.1 around it and the events in it. No JSON
//! is parsed, and what arrives whole is read where it lies.

use memchr::{memchr, memmem};

/// An event as it lies in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// The run's own number of it.
    pub(super) number: u64,
    /// Its name.
    pub(super) name: &'a [u8],
    /// Its JSON.
    pub(super) data: &'a [u8],
}

impl<'a> Event<'a> {
    /// Whether it is the run's last.
    pub(super) fn ends_run(&self) -> bool {
        matches!(self.name, b"completed" | b"failed" | b"cancelled")
    }

    /// The first text of this name in its JSON; for ids, digests and times, which have nothing escaped in them.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        let mut at = 0;
        loop {
            let from = at + memmem::find(self.data.get(at..)?, name.as_bytes())?;
            at = from + name.len();
            let value = self.data.get(at..)?;
            if let Some(value) = value.strip_prefix(b"\":\"") {
                return std::str::from_utf8(value.get(..memchr(b'"', value)?)?).ok();
            }
        }
    }
}

/// Cuts a stream into events.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The beginning of an event whose end has not come yet.
    begun: Vec<u8>,
}

impl Frames {
    /// Tells of every event that is complete with these bytes.
    pub(super) fn feed(&mut self, bytes: &[u8], tell: &mut impl FnMut(Event<'_>)) {
        if self.begun.is_empty() {
            let used = events(bytes, tell);
            self.begun.extend_from_slice(bytes.get(used..).unwrap_or_default());
        } else {
            self.begun.extend_from_slice(bytes);
            let used = events(&self.begun, tell);
            self.begun.drain(..used);
        }
    }
}

/// Tells of the whole events and returns how many bytes they took.
fn events(bytes: &[u8], tell: &mut impl FnMut(Event<'_>)) -> usize {
    let (mut used, mut at) = (0, 0);
    let (mut number, mut name, mut data) = (None, &[][..], None);
    while let Some(rest) = bytes.get(at..)
        && let Some(end) = memchr(b'\n', rest)
        && let Some(line) = rest.get(..end)
    {
        at += end + 1;
        if let Some(text) = line.strip_prefix(b"data: ") {
            data = Some(text);
        } else if let Some(text) = line.strip_prefix(b"event: ") {
            name = text;
        } else if let Some(text) = line.strip_prefix(b"id: evt_") {
            number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        } else if line.is_empty() {
            used = at;
            // The greeting and comments have no number and no data.
            if let (Some(number), Some(data)) = (number.take(), data.take()) {
                tell(Event { number, name, data });
            }
        }
    }
    used
}

/// Takes the chunks off a body.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    place: Place,
    /// A line whose end has not come yet.
    line: Vec<u8>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    Data(usize),
    DataEnd,
    Trailer,
    Over,
}

/// A body that is not written as HTTP/1.1 has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl Chunks {
    /// Whether the last chunk has come.
    pub(super) fn over(&self) -> bool {
        self.place == Place::Over
    }

    /// Hands on what is inside the chunks; returns what is left when the body is over.
    pub(super) fn feed<'b>(&mut self, mut bytes: &'b [u8], tell: &mut impl FnMut(&[u8])) -> Result<&'b [u8], Broken> {
        while !bytes.is_empty() && self.place != Place::Over {
            if let Place::Data(left) = self.place {
                let (data, rest) = bytes.split_at(left.min(bytes.len()));
                tell(data);
                bytes = rest;
                self.place = if data.len() == left { Place::DataEnd } else { Place::Data(left - data.len()) };
                continue;
            }
            let Some(end) = memchr(b'\n', bytes) else {
                self.line.extend_from_slice(bytes);
                return Ok(&[]);
            };
            self.line.extend_from_slice(bytes.get(..end).unwrap_or_default());
            bytes = bytes.get(end + 1..).unwrap_or_default();
            self.place = self.place.after(self.line.trim_ascii())?;
            self.line.clear();
        }
        Ok(bytes)
    }
}

impl Place {
    /// What comes after this line.
    fn after(self, line: &[u8]) -> Result<Self, Broken> {
        match self {
            Self::Size => {
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
                let size =
                    std::str::from_utf8(digits).ok().and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
                match size.ok_or(Broken)? {
                    0 => Ok(Self::Trailer),
                    size => Ok(Self::Data(size)),
                }
            }
            Self::DataEnd if line.is_empty() => Ok(Self::Size),
            Self::Trailer if line.is_empty() => Ok(Self::Over),
            Self::Trailer => Ok(Self::Trailer),
            Self::Data(_) | Self::DataEnd | Self::Over => Err(Broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = "retry: 1000\n\nid: evt_1\nevent: idle\ndata: {\"eventId\":\"evt_1\",\"ts\":\"t\"}\n\n:\n\n\
        id: evt_2\nevent: completed\ndata: {\"n\":\"approvalId\",\"approvalId\":\"apr_1\"}\n\n";

    /// The stream as a server sends it, in chunks of this size.
    fn chunked(size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for part in STREAM.as_bytes().chunks(size) {
            out.extend(format!("{:x}\r\n", part.len()).into_bytes());
            out.extend_from_slice(part);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n\r\nHTTP/1.1");
        out
    }

    proptest! {
        #[test]
        fn events_are_found_however_the_stream_is_cut(size in 1_usize..200, piece in 1_usize..200) {
            let (mut chunks, mut frames, mut seen) = (Chunks::default(), Frames::default(), Vec::new());
            let (bytes, mut left) = (chunked(size), Vec::new());
            for piece in bytes.chunks(piece) {
                let mut tell = |event: Event<'_>| {
                    let id = event.text("approvalId").map(str::to_owned);
                    seen.push((event.number, String::from_utf8_lossy(event.name).into_owned(), event.ends_run(), id));
                };
                left.extend_from_slice(chunks.feed(piece, &mut |data| frames.feed(data, &mut tell)).unwrap());
            }
            prop_assert!(chunks.over());
            prop_assert_eq!(left, b"HTTP/1.1");
            let expected =
                [(1, "idle".to_owned(), false, None), (2, "completed".to_owned(), true, Some("apr_1".to_owned()))];
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        assert_eq!(Chunks::default().feed(b"xyz\r\n", &mut |_| ()), Err(Broken));
        assert_eq!(Chunks::default().feed(b"2\r\nabc\r\n", &mut |_| ()), Err(Broken));
    }
}
