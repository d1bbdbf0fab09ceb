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

    /// The page of a short list that is at hand in whole: a row's place is its number.
    ///
    /// # Errors
    /// As [`PageQuery::resolve`].
    pub fn cut<T>(&self, rows: Vec<T>) -> Result<Page<T>> {
        let (limit, after) = self.resolve()?;
        let first = after.map_or(0, |place| usize::try_from(place.as_u128()).unwrap_or(usize::MAX).saturating_add(1));
        let rows = (0_u128..).zip(rows).skip(first).take(limit + 1).collect();
        let Page { items, next_cursor } = Page::cut(rows, limit, |(place, _)| Uuid::from_u128(*place));
        Ok(Page { items: items.into_iter().map(|(_, row)| row).collect(), next_cursor })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let rows = vec!["a", "b", "c", "d", "e"];
        let mut query = PageQuery { limit: Some(2), cursor: None };
        let mut seen = Vec::new();
        for last in [false, false, true] {
            let page = query.cut(rows.clone()).unwrap();
            seen.extend(page.items);
            assert_eq!(page.next_cursor.is_none(), last);
            query.cursor = page.next_cursor;
        }
        assert_eq!(seen, rows);
    }
}
