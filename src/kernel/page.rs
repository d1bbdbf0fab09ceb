use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Error, Problem, Result};

/// One page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The rows of this page.
    pub items: Vec<T>,
    /// Send it back as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Cuts `rows`, of which one more than `limit` was asked for, into a page; `key` names a row's place.
    pub fn cut(mut rows: Vec<T>, limit: usize, key: impl Fn(&T) -> Uuid) -> Self {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|row| PageCursor(key(row)).to_string());
        Self { items: rows, next_cursor }
    }
}

/// `?limit=&cursor=` of every list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Rows a page, 1 to 200 (50 when absent).
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u16>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}

impl PageQuery {
    /// The page size and the row to go on after.
    ///
    /// # Errors
    /// When the limit is out of range or the cursor is not ours.
    pub fn resolve(&self) -> Result<(usize, Option<Uuid>)> {
        let limit = self.limit.unwrap_or(50);
        if !(1..=200).contains(&limit) {
            return Err(Error::invalid("limit", "`limit` is from 1 to 200"));
        }
        let after = self.cursor.as_deref().map(str::parse::<PageCursor>).transpose()?;
        Ok((usize::from(limit), after.map(|c| c.0)))
    }
}

/// A place in a list that is ordered by UUIDv7, newest first. Opaque on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCursor(pub Uuid);

impl std::fmt::Display for PageCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p{}", self.0.simple())
    }
}

impl std::str::FromStr for PageCursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.strip_prefix('p')
            .and_then(|hex| Uuid::try_parse(hex).ok())
            .map(Self)
            .ok_or_else(|| Error::new(Problem::MalformedCursor, "send back a `nextCursor` as it was given"))
    }
}
