use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Error;

/// Something with versions, by name: `crm-sync` for the newest, or `crm-sync@3` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The name.
    pub name: String,
    /// The version, from 1, where one is named.
    pub version: Option<i32>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.version.map_or(Ok(()), |version| write!(f, "@{version}"))
    }
}

impl FromStr for Reference {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(number(version, 1).ok_or(WRITTEN)?)),
            None => (text, None),
        };
        if is_name(name) { Ok(Self { name: name.to_owned(), version }) } else { Err(WRITTEN) }
    }
}

/// One version, once it is settled which: `crm-sync@3`, or `default-smart@0=openai/gpt-5.4` of what the server brings along.
/// Nobody asks for that by its number, as it is not the same for ever: so what it was is written with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The name.
    pub name: String,
    /// The version, from 1; 0 is what the server brings along.
    pub version: i32,
    /// The provider and the model of a configuration that the server brings along.
    pub model: Option<(String, String)>,
}

impl Pinned {
    /// `name@version`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference())?;
        self.model.as_ref().map_or(Ok(()), |(provider, model)| write!(f, "={provider}/{model}"))
    }
}

impl FromStr for Pinned {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, version) = text.split_once('@').filter(|(name, _)| is_name(name)).ok_or(WRITTEN)?;
        let (version, model) = match version.split_once('=') {
            Some((version, model)) => (version, Some(model.split_once('/').ok_or(WRITTEN)?)),
            None => (version, None),
        };
        let model = model.map(|(provider, model)| (provider.to_owned(), model.to_owned()));
        Ok(Self { name: name.to_owned(), version: number(version, 0).ok_or(WRITTEN)?, model })
    }
}

impl From<&Pinned> for Reference {
    fn from(pinned: &Pinned) -> Self {
        Self { name: pinned.name.clone(), version: Some(pinned.version) }
    }
}

const WRITTEN: &str = "a name is written `crm-sync`, with its version `crm-sync@3`";

fn number(text: &str, least: i32) -> Option<i32> {
    text.parse().ok().filter(|version| *version >= least && text.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether anything can be called that.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 63
        && bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

/// Refuses a `name` that nothing can be called.
///
/// # Errors
/// Invalid (422), naming the field `name`.
pub fn check_name(name: &str) -> Result<(), Error> {
    let rule = "a name has 1 to 63 lower-case letters, digits, `.`, `_` or `-` and begins with a letter";
    if is_name(name) { Ok(()) } else { Err(Error::invalid("name", rule)) }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Pinned {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pinned {
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
        for text in ["crm-sync", "crm-sync@12"] {
            assert_eq!(text.parse::<Reference>().map(|found| found.to_string()), Ok(text.to_owned()));
        }
        for wrong in ["", "Crm", "a b", "a@", "a@0", "a@-1", "a@+1", "a@x", "a@1@2", "@1", "a@99999999999"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_pinned_has_its_version_and_may_be_the_servers_own() {
        for text in ["default-smart@0", "crm-sync@12", "default-smart@0=huggingface/openai/gpt-oss-120b"] {
            assert_eq!(text.parse::<Pinned>().map(|pinned| pinned.to_string()), Ok(text.to_owned()));
        }
        for wrong in ["", "a", "A@1", "a@", "a@-1", "a@+1", "a@x", "a@1@2", "@1", "a@99999999999", "a@0=b"] {
            assert!(wrong.parse::<Pinned>().is_err(), "{wrong}");
        }
    }
}
