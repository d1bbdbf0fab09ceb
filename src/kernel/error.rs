//! The one error of the product. Its public half may be shown to a caller; its private half is only
//! logged. `http::problem` maps it, once, to RFC 9457.

use std::{borrow::Cow, error::Error as StdError, fmt};

use serde_json::{Map, Value};

/// Shorthand for results with the neutral error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $slug:literal, $title:literal, retry: $retryable:literal;)*) => {
        /// Everything that can go wrong as far as a caller can tell; each has a page in `docs/problems`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Problem { $($(#[$doc])* $name,)* }

        impl Problem {
            /// Every problem, for the walk over the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The HTTP status it is answered with.
            #[must_use]
            pub const fn status(self) -> u16 { match self { $(Self::$name => $status,)* } }

            /// The last segment of its `type` URI and the name of its page.
            #[must_use]
            pub const fn slug(self) -> &'static str { match self { $(Self::$name => $slug,)* } }

            /// Its `title`: the same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str { match self { $(Self::$name => $title,)* } }

            /// Whether the same request may succeed later, unchanged.
            #[must_use]
            pub const fn retryable(self) -> bool { match self { $(Self::$name => $retryable,)* } }
        }
    };
}

problems! {
    /// The request cannot be read: bad JSON, a bad id, a bad header.
    Malformed = 400, "malformed-request", "The request cannot be read", retry: false;
    /// A cursor or event id that this server did not issue.
    MalformedCursor = 400, "malformed-cursor", "The cursor cannot be read", retry: false;
    /// No token, or one that does not verify.
    Unauthenticated = 401, "unauthenticated", "A valid token is needed", retry: false;
    /// The token lacks the permission.
    Forbidden = 403, "forbidden", "The token does not allow this", retry: false;
    /// There is no such thing for this tenant.
    NotFound = 404, "not-found", "There is no such thing", retry: false;
    /// The path exists, the method does not.
    MethodNotAllowed = 405, "method-not-allowed", "The path does not take this method", retry: false;
    /// The resource is not offered in the wanted media type.
    NotAcceptable = 406, "not-acceptable", "The wanted media type is not offered", retry: false;
    /// The request took too long to arrive.
    RequestTimeout = 408, "request-timeout", "The request took too long to arrive", retry: true;
    /// The thing's state does not allow the command.
    Conflict = 409, "conflict", "The state does not allow this", retry: false;
    /// Somebody else decided otherwise first.
    AlreadyDecided = 409, "already-decided", "The approval is already decided", retry: false;
    /// The digest is not that of the held call.
    StaleDigest = 409, "stale-digest", "The approval shows something else now", retry: false;
    /// The cursor lies beyond the last event.
    CursorBeyondHead = 409, "cursor-beyond-head", "The cursor lies beyond the last event", retry: false;
    /// The first request with this idempotency key is still at work.
    IdempotencyInFlight = 409, "idempotency-in-flight", "The first request with this key is still at work", retry: true;
    /// The body is over the limit.
    TooLarge = 413, "too-large", "The body is too large", retry: false;
    /// The body's media type is not one the operation takes.
    UnsupportedMediaType = 415, "unsupported-media-type", "The media type is not supported", retry: false;
    /// The body is readable but says something impossible.
    Invalid = 422, "invalid-input", "The input is not valid", retry: false;
    /// A workflow definition with mistakes in it.
    InvalidDefinition = 422, "invalid-definition", "The workflow definition is not valid", retry: false;
    /// The same idempotency key with another body.
    IdempotencyMismatch = 422, "idempotency-mismatch", "The key was used with another body", retry: false;
    /// A goal without anything that could plan it.
    NoPlanner = 422, "no-planner", "Nothing here can plan a goal", retry: false;
    /// The tenant's or token's share of open streams is taken.
    TooManyStreams = 429, "too-many-streams", "Too many open streams", retry: true;
    /// The tenant has too many live runs.
    TooManyRuns = 429, "too-many-runs", "Too many live runs", retry: true;
    /// A fault of ours.
    Internal = 500, "internal", "Something went wrong here", retry: true;
    /// The run holds an event that this version does not know.
    UnreadableRun = 500, "unreadable-run", "The run cannot be read here", retry: true;
    /// Something this server depends on is away, or it is stopping.
    Unavailable = 503, "unavailable", "The service is not available now", retry: true;
}

/// A failure with a public and a private half.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    problem: Problem,
    detail: Cow<'static, str>,
    members: Map<String, Value>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error a caller may read in full.
    pub fn new(problem: Problem, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { inner: Box::new(Inner { problem, detail: detail.into(), members: Map::new(), source: None }) }
    }

    /// A request that cannot be read (400).
    pub fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Problem::Malformed, detail)
    }

    /// Readable input that says something impossible (422); `field` is its JSON path.
    pub fn invalid(field: &str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Problem::Invalid, detail).with("field", field)
    }

    /// Nothing of that name for this tenant (404).
    #[must_use]
    pub fn not_found(noun: &str) -> Self {
        Self::new(Problem::NotFound, format!("no such {noun}"))
    }

    /// The state does not allow it (409).
    pub fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Problem::Conflict, detail)
    }

    /// A fault of ours (500); `source` is logged and never shown.
    pub fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Problem::Internal, "the fault is logged under this request's id").because(source)
    }

    /// Something we depend on is away (503); `source` is logged and never shown.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Problem::Unavailable, "try again in a moment").because(source)
    }

    /// Adds a public extension member (RFC 9457 §3.2).
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.inner.members.insert(member.to_owned(), value.into());
        self
    }

    /// Adds the private half.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Which problem it is.
    #[must_use]
    pub fn problem(&self) -> Problem {
        self.inner.problem
    }

    /// The public explanation of this occurrence.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.inner.detail
    }

    /// The public extension members.
    #[must_use]
    pub fn members(&self) -> &Map<String, Value> {
        &self.inner.members
    }

    /// Whether trying again, unchanged, may help.
    #[must_use]
    pub fn retryable(&self) -> bool {
        self.inner.problem.retryable()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.inner.problem.title(), self.inner.detail)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        match &self.inner.source {
            Some(source) => write!(f, " ({source:?})"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|s| s as _)
    }
}
