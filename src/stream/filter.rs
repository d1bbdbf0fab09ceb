use std::sync::Arc;

use crate::{
    journal::Body,
    kernel::{Error, Result},
};

/// The place of an event's name in [`Body::NAMES`]; a name this version does not know is [`UNKNOWN`].
pub(super) type Kind = u8;

/// A name written by a newer version: only an unfiltered stream carries it.
const UNKNOWN: Kind = 63;

/// The kind of that name.
pub(super) fn kind_of(name: &str) -> Kind {
    Body::NAMES.iter().position(|known| *known == name).and_then(|at| Kind::try_from(at).ok()).unwrap_or(UNKNOWN)
}

/// Which events a tenant's stream carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    mask: u64,
    /// `~name,name`, as it is appended to every cursor; empty when everything passes.
    suffix: Arc<str>,
}

impl Filter {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self { mask: u64::MAX, suffix: Arc::from("") }
    }

    /// The events named in `types`, separated by commas; order and repetition do not matter.
    ///
    /// # Errors
    /// When a name is not that of an event (422, `types`).
    pub fn parse(types: &str) -> Result<Self> {
        let mut mask = 0_u64;
        for name in types.split(',') {
            let kind = kind_of(name);
            if kind == UNKNOWN {
                let detail = format!("`types` lists names of events, separated by commas: {}", Body::NAMES.join(", "));
                return Err(Error::invalid("types", detail));
            }
            mask |= 1 << kind;
        }
        let mut filter = Self { mask, suffix: Arc::from("") };
        filter.suffix = format!("~{}", filter.names().collect::<Vec<_>>().join(",")).into();
        Ok(filter)
    }

    /// Whether an event of that kind passes.
    pub(super) fn passes(&self, kind: Kind) -> bool {
        self.mask >> kind & 1 == 1
    }

    /// Two filters with the same mask pass the same events.
    pub(super) fn mask(&self) -> u64 {
        self.mask
    }

    /// What it appends to a cursor.
    pub(super) fn suffix(&self) -> &str {
        &self.suffix
    }

    /// The names that pass, for the table; none when everything does.
    pub(super) fn wanted(&self) -> Option<Vec<&'static str>> {
        (self.mask != u64::MAX).then(|| self.names().collect())
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        let mask = self.mask;
        Body::NAMES.iter().enumerate().filter(move |(at, _)| mask >> at & 1 == 1).map(|(_, name)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_has_its_own_bit() {
        assert!(Body::NAMES.len() <= usize::from(UNKNOWN));
        for name in Body::NAMES {
            let filter = Filter::parse(name).expect("a known name");
            assert_eq!(filter.wanted(), Some(vec![*name]));
            assert!(!filter.passes(UNKNOWN));
        }
    }

    #[test]
    fn order_and_repetition_do_not_matter() {
        let one = Filter::parse("failed,completed,failed").expect("known");
        assert_eq!(one, Filter::parse("completed,failed").expect("known"));
        assert_eq!(one.suffix(), "~completed,failed");
        assert_eq!(Filter::all().wanted(), None);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        for types in ["", "complete", "completed,", "failed completed"] {
            assert!(Filter::parse(types).is_err(), "{types:?}");
        }
    }
}
