//! Places in streams. A run's is its event id; a tenant's is opaque and bound to tenant and filter.

use std::fmt;

use uuid::Uuid;

use super::filter::Filter;
use crate::{
    journal::event_number,
    kernel::{Error, Problem, Result, TenantId},
};

/// Reads `evt_N`; 7 for `evt_7`.
///
/// # Errors
/// When it is not an event's id as this server writes it (400).
pub fn parse_event_id(text: &str) -> Result<u64> {
    event_number(text).ok_or_else(|| malformed("an event's id is written `evt_7`"))
}

/// A place in the order of commits. Everything at or before it has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The writing transaction.
    pub xact: u64,
    /// The run.
    pub run: Uuid,
    /// The event's number in the run.
    pub seq: u64,
}

impl Place {
    /// Before everything.
    pub const START: Self = Self::below(0);

    /// Behind every event of the transactions before `horizon`, before those of `horizon` itself.
    #[must_use]
    pub const fn below(horizon: u64) -> Self {
        Self { xact: horizon, run: Uuid::nil(), seq: 0 }
    }

    /// The last place before this event's.
    pub(super) fn before(self) -> Self {
        Self { seq: self.seq.saturating_sub(1), ..self }
    }

    /// As a cursor of that tenant's stream, without its filter.
    pub(super) fn of(self, tenant: TenantId) -> impl fmt::Display {
        Written(self, tenant)
    }
}

struct Written(Place, TenantId);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(place, tenant) = self;
        write!(f, "{:08x}-{:x}-{}-{:x}", tag(*tenant), place.xact, place.run.simple(), place.seq)
    }
}

/// The random end of a tenant's id: enough to catch a cursor that strayed; the rows behind it are walled off anyway.
fn tag(tenant: TenantId) -> u32 {
    (tenant.uuid().as_u128() & u128::from(u32::MAX)) as u32
}

/// Reads a cursor of the tenant's stream: its place and the filter it belongs to.
///
/// # Errors
/// When this server did not write it, or not for this tenant (400).
pub fn parse_place(text: &str, tenant: TenantId) -> Result<(Place, Filter)> {
    let wrong = || malformed("send back the `id` of an event of this stream as it was given");
    let (place, types) = match text.split_once('~') {
        Some((place, types)) => (place, Some(types)),
        None => (text, None),
    };
    let parts = place.split('-').collect::<Vec<_>>();
    let &[mark, xact, run, seq] = parts.as_slice() else { return Err(wrong()) };
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok().filter(|n| i64::try_from(*n).is_ok());
    let place = Place {
        xact: hex(xact).ok_or_else(wrong)?,
        run: Some(run).filter(|run| run.len() == 32).and_then(|run| Uuid::try_parse(run).ok()).ok_or_else(wrong)?,
        seq: hex(seq).ok_or_else(wrong)?,
    };
    let filter = types.map_or_else(|| Ok(Filter::all()), Filter::parse).map_err(|_| wrong())?;
    // Written again it must be the same text: no signs, no zeros, no capitals, no other order.
    if mark == format!("{:08x}", tag(tenant)) && format!("{}{}", place.of(tenant), filter.suffix()) == text {
        Ok((place, filter))
    } else {
        Err(wrong())
    }
}

/// The cursor names an event that is not there yet; `head` is the last that is.
pub(super) fn beyond_head(head: &str) -> Error {
    Error::new(Problem::CursorBeyondHead, format!("the last event is {head}")).with("lastEventId", head)
}

/// A cursor this server did not write (400).
pub(super) fn malformed(detail: &'static str) -> Error {
    Error::new(Problem::MalformedCursor, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenant(n: u128) -> TenantId {
        TenantId::from_uuid(Uuid::from_u128(n))
    }

    #[test]
    fn an_event_id_is_read_only_as_it_is_written() {
        assert_eq!(parse_event_id("evt_7").ok(), Some(7));
        for text in
            ["", "7", "evt_", "evt_0", "evt_07", "evt_-1", "evt_+1", "evt_1 ", "EVT_1", "evt_99999999999999999999"]
        {
            let error = parse_event_id(text).expect_err(text);
            assert_eq!(error.problem(), Problem::MalformedCursor);
        }
    }

    #[test]
    fn a_cursor_of_another_tenant_or_spelling_is_refused() {
        let text = Place { xact: 255, run: Uuid::from_u128(9), seq: 1 }.of(tenant(5)).to_string();
        assert!(parse_place(&text, tenant(5)).is_ok());
        assert!(parse_place(&text, tenant(6)).is_err());
        assert!(parse_place(&text.to_uppercase(), tenant(5)).is_err());
        assert!(parse_place(&text.replace("-ff-", "-0ff-"), tenant(5)).is_err());
        assert!(parse_place(&format!("{text}~failed,completed"), tenant(5)).is_err());
        assert!(parse_place(&format!("{text}~nonsense"), tenant(5)).is_err());
    }

    proptest! {
        #[test]
        fn a_cursor_round_trips(xact in 0..i64::MAX as u64, run: u128, seq in 0..i64::MAX as u64, t: u128, filtered: bool) {
            let place = Place { xact, run: Uuid::from_u128(run), seq };
            let filter = if filtered { Filter::parse("failed,idle").expect("known") } else { Filter::all() };
            let text = format!("{}{}", place.of(tenant(t)), filter.suffix());
            prop_assert_eq!(parse_place(&text, tenant(t)).ok(), Some((place, filter)));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in ".*") {
            drop(parse_place(&text, tenant(1)));
            drop(parse_event_id(&text));
        }
    }
}
