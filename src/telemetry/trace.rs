use std::fmt;

use sha2::{Digest, Sha256};

/// A place in a distributed trace (W3C Trace Context, version 00). Displays as a `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
    pub(super) parent_id: Option<u64>,
    pub(super) sampled: bool,
}

impl Trace {
    /// The trace's own id, 32 hexadecimal digits on the wire.
    #[must_use]
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The start of a trace.
    pub(super) fn start() -> Self {
        Self { trace_id: rand::random::<u128>().max(1), span_id: random_span(), parent_id: None, sampled: false }
    }

    /// The place in a trace that a name has, the same each time.
    pub(super) fn named(trace_id: u128, name: &str) -> Self {
        let digest = Sha256::digest(name);
        let span_id = digest.iter().take(8).fold(0, |id: u64, byte| id << 8 | u64::from(*byte));
        Self { trace_id, span_id: span_id.max(1), parent_id: None, sampled: true }
    }

    /// A new span of the same trace, below this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: random_span(), parent_id: Some(self.span_id), ..*self }
    }

    /// What a `traceparent` says, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let future = hex(version, 2)? > 0;
        // A later version may append fields; version 00 has exactly these, and ff is none.
        if version == "ff" || (!future && parts.next().is_some()) {
            return None;
        }
        let (trace_id, span_id) = (hex(trace, 32)?, u64::try_from(hex(span, 16)?).ok()?);
        let sampled = hex(flags, 2)? & 1 == 1;
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, parent_id: None, sampled })
    }

    /// Whether the trace is among this share of all: by the 56 bits of its id that are random in every kind of id, so
    /// that every service comes to the same.
    #[expect(clippy::cast_precision_loss, reason = "a share need not be exact to the 53rd bit")]
    pub(super) fn is_among(&self, ratio: f64) -> bool {
        const RANDOM: u128 = (1 << 56) - 1;
        (self.trace_id & RANDOM) as f64 >= (1.0 - ratio) * (RANDOM + 1) as f64
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (text.len() == digits && lower).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

fn random_span() -> u64 {
    rand::random::<u64>().max(1)
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Clock, RunId};

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(Trace::parse(good).map(|t| t.to_string()).as_deref(), Some(good));
        assert!(Trace::parse(&good.replacen("00", "cc", 1)).is_some());
        assert!(Trace::parse(&format!("{}-more", good.replacen("00", "cc", 1))).is_some());
        for bad in [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_share_of_the_traces_of_runs_is_that_share() {
        let now = Clock::system().now();
        for ratio in [0.0, 0.25, 0.5, 1.0] {
            let runs = (0..4000).map(|_| Trace::named(RunId::new(now).uuid().as_u128(), "step/1"));
            let share = runs.filter(|trace| trace.is_among(ratio)).count() as f64 / 4000.0;
            assert!((share - ratio).abs() < 0.05, "{share} of {ratio}");
        }
    }
}
