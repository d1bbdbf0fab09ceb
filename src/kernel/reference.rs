use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Something with versions, by name: `crm-sync` for the newest, or `crm-sync@3` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The name.
    pub name: String,
    /// The version, from 1, where one is named; 0 is what the server brings along.
    pub version: Option<i32>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.version.map_or(Ok(()), |version| write!(f, "@{version}"))
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
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

const WRITTEN: &str = "a name is written `crm-sync`, with its version `crm-sync@3`";

fn number(text: &str) -> Option<i32> {
    text.parse().ok().filter(|version| *version >= 0 && text.bytes().all(|b| b.is_ascii_digit()))
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
        assert_eq!(read("default-smart@0"), Ok(("default-smart".to_owned(), Some(0))));
        for text in ["crm-sync", "crm-sync@12", "default-smart@0"] {
            assert_eq!(text.parse::<Reference>().map(|found| found.to_string()), Ok(text.to_owned()));
        }
        for wrong in ["", "Crm", "a b", "a@", "a@-1", "a@+1", "a@x", "a@1@2", "@1", "a@99999999999"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
