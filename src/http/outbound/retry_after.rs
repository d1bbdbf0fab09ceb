use std::num::NonZeroU32;

use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::kernel::Timestamp;

/// Seconds to wait before the next attempt, where the response says so (RFC 9110, 10.2.3).
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<NonZeroU32> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let at = || chrono::DateTime::parse_from_rfc2822(text).ok();
    let seconds = text.parse::<i64>().ok().or_else(|| at().map(|at| (at.to_utc() - now).num_seconds()))?;
    NonZeroU32::new(u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn a_wait_is_given_in_seconds_or_as_a_date() {
        let now = chrono::DateTime::parse_from_rfc3339("1994-11-06T08:49:00Z").unwrap().to_utc();
        let after = |text| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            retry_after(&headers, now).map(NonZeroU32::get)
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), None);
        assert_eq!(after("9999999999"), Some(u32::MAX));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
    }
}
