//! Typed ids: a UUIDv7 in the database, a TypeID (`run_01h…`) on the wire. Every prefix the product
//! uses is listed here and nowhere else.

use std::{borrow::Cow, cmp::Ordering, fmt, hash, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use type_safe_id::{DynamicType, TypeSafeId};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};
use uuid::Uuid;

use super::{Error, Timestamp};

/// What an id names; the prefix is its TypeID prefix.
pub trait Kind: 'static {
    /// The TypeID prefix, without the underscore.
    const PREFIX: &'static str;
    /// The noun used in messages and in the OpenAPI document.
    const NOUN: &'static str;
}

/// An id of kind `K`. Ids of different kinds are different types.
pub struct Id<K: Kind>(Uuid, PhantomData<fn() -> K>);

macro_rules! kinds {
    ($($(#[$doc:meta])* $alias:ident = $kind:ident, $prefix:literal, $noun:literal;)*) => {$(
        #[doc = concat!("Marks the ids written `", $prefix, "_…`.")]
        #[derive(Debug)]
        pub enum $kind {}
        impl Kind for $kind {
            const PREFIX: &'static str = $prefix;
            const NOUN: &'static str = $noun;
        }
        $(#[$doc])*
        pub type $alias = Id<$kind>;
    )*};
}

kinds! {
    /// A tenant: the wall around everything else.
    TenantId = TenantKind, "tnt", "tenant";
    /// A run of a workflow.
    RunId = RunKind, "run", "run";
    /// One version of a workflow definition.
    WorkflowId = WorkflowKind, "wf", "workflow";
    /// A hold and its outcome.
    ApprovalId = ApprovalKind, "apr", "approval";
    /// An OAuth grant to a provider.
    ConnectionId = ConnectionKind, "conn", "connection";
    /// A token's `jti`.
    TokenId = TokenKind, "tok", "token";
    /// A one-time permission to open a stream.
    TicketId = TicketKind, "tkt", "ticket";
    /// A worker process.
    WorkerId = WorkerKind, "wrk", "worker";
    /// A request, as echoed in `X-Request-Id`.
    RequestId = RequestKind, "req", "request";
}

impl<K: Kind> Id<K> {
    /// A fresh UUIDv7 stamped with `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
        let stamp = uuid::Timestamp::from_unix(uuid::NoContext, seconds, now.timestamp_subsec_nanos());
        Self::from_uuid(Uuid::new_v7(stamp))
    }

    /// The id of a row that is already in the database.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid, PhantomData)
    }

    /// The value as the database holds it.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = DynamicType::new(K::PREFIX).map_err(|_| fmt::Error)?;
        write!(f, "{}", TypeSafeId::from_type_and_uuid(prefix, self.0))
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::malformed(format!("no {} id: it is written `{}_…`", K::NOUN, K::PREFIX));
        // The prefix first: the library slices long prefixes at a byte, which panics inside a character.
        let ours = text.strip_prefix(K::PREFIX).and_then(|rest| rest.strip_prefix('_')).is_some_and(|s| s.len() == 26);
        let id =
            if ours { TypeSafeId::<DynamicType>::from_str(text).map_err(|_| wrong())? } else { return Err(wrong()) };
        Ok(Self::from_uuid(id.uuid()))
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|e: Error| de::Error::custom(e.detail()))
    }
}

impl<K: Kind> PartialSchema for Id<K> {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(format!("^{}_[0-7][0-9a-hjkmnp-tv-z]{{25}}$", K::PREFIX)))
            .description(Some(format!("The id of a {} (a TypeID).", K::NOUN)))
            .into()
    }
}

impl<K: Kind> ToSchema for Id<K> {
    // Each kind by a name of its own (`RunId`): by default all would be the same `Id`.
    fn name() -> Cow<'static, str> {
        let (first, rest) = K::NOUN.split_at(1);
        format!("{}{rest}Id", first.to_ascii_uppercase()).into()
    }
}

impl<K: Kind> Copy for Id<K> {}
impl<K: Kind> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K: Kind> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K: Kind> Eq for Id<K> {}
impl<K: Kind> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K: Kind> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K: Kind> hash::Hash for Id<K> {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_and_another_kind_is_refused() {
        let run = RunId::new(chrono::DateTime::UNIX_EPOCH);
        assert_eq!(run.to_string().parse::<RunId>().ok(), Some(run));
        assert!(run.to_string().parse::<TenantId>().is_err());
        assert!("run_".parse::<RunId>().is_err());
    }

    #[test]
    fn each_kind_has_its_own_schema() {
        assert_eq!(RunId::name(), "RunId");
        assert_eq!(ApprovalId::name(), "ApprovalId");
    }
}
