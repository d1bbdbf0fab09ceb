use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// Something with versions, by name: `crm-sync` for the newest, or `crm-sync@3` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The name.
    pub name: String,
    /// The version, from 1, where one is named.
    pub version: Option<i32>,
}

impl FromStr for Reference {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(number(version).ok_or(WRITTEN)?)),
            None => (text, None),
        };
        if is_name(name) { Ok(Self { name: name.to_owned(), version }) } else { Err(WRITTEN) }
    }
}

const WRITTEN: &str = "a workflow is written `crm-sync`, or `crm-sync@3` for one version";

fn number(text: &str) -> Option<i32> {
    text.parse().ok().filter(|version| *version > 0 && text.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether anything can be called that.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 63
        && bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_name_and_perhaps_a_version() {
        let read = |text: &str| text.parse::<Reference>().map(|found| (found.name, found.version));
        assert_eq!(read("crm-sync"), Ok(("crm-sync".to_owned(), None)));
        assert_eq!(read("crm-sync@12"), Ok(("crm-sync".to_owned(), Some(12))));
        for wrong in ["", "Crm", "a b", "a@", "a@0", "a@-1", "a@+1", "a@x", "a@1@2", "@1", "a@99999999999"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
