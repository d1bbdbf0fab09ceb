use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};

use super::{Error, RunId};

/// The subject of a verified token: `[A-Za-z0-9._:@|-]`, 1 to 128 characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(String);

impl Subject {
    /// The subject as the token spells it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Subject {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:@|-".contains(c);
        // A person must never be taken for the orchestrator or for a run.
        let reserved = text == "system" || text.parse::<RunId>().is_ok();
        if (1..=128).contains(&text.len()) && text.chars().all(allowed) && !reserved {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::malformed("a subject is 1 to 128 letters, digits or `._:@|-`"))
        }
    }
}

/// Who did something. On the wire a string: the subject itself, a run's id, or `system`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A person or service with a token.
    User(Subject),
    /// A run acting on another run (a parent on its child).
    Run(RunId),
    /// The orchestrator itself: a timer, a recovery.
    System,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(subject) => f.write_str(subject.as_str()),
            Self::Run(run) => run.fmt(f),
            Self::System => f.write_str("system"),
        }
    }
}

impl FromStr for Actor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "system" {
            return Ok(Self::System);
        }
        match text.parse() {
            Ok(run) => Ok(Self::Run(run)),
            Err(_) => text.parse().map(Self::User),
        }
    }
}

impl Serialize for Actor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Actor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|e: Error| de::Error::custom(e.detail()))
    }
}

impl PartialSchema for Actor {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("Who: a token's subject, a run's id, or `system`."))
            .examples(["user_789"])
            .into()
    }
}

impl ToSchema for Actor {}
