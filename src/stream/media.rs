use axum::http::{HeaderMap, header};

use crate::kernel::{Error, Problem, Result};

/// The forms a run's events are offered in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `text/event-stream`, also for those who have no preference.
    Stream,
    /// `application/json`.
    Page,
}

impl Form {
    const fn media_type(self) -> (&'static str, &'static str) {
        match self {
            Self::Stream => ("text", "event-stream"),
            Self::Page => ("application", "json"),
        }
    }

    /// The one the client likes best.
    ///
    /// # Errors
    /// When it wants neither (406).
    pub fn wanted(headers: &HeaderMap, offered: &[Self]) -> Result<Self> {
        let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
        let ranges = lines.flat_map(|line| line.split(',')).filter_map(Range::read).collect::<Vec<_>>();
        if ranges.is_empty() {
            return Ok(Self::Stream);
        }
        let liked = offered.iter().map(|form| (*form, form.liking(&ranges))).filter(|(_, liking)| *liking > 0);
        // The last of equals is the maximum, and the first is to win.
        let best = liked.rev().max_by_key(|(_, liking)| *liking).map(|(form, _)| form);
        best.ok_or_else(|| {
            let types = offered.iter().map(|form| form.media_type()).map(|(kind, sub)| format!("{kind}/{sub}"));
            let detail = format!("this is offered as {}", types.collect::<Vec<_>>().join(" or "));
            Error::new(Problem::NotAcceptable, detail)
        })
    }

    /// From 0, not at all, to 1000; the most particular range decides (RFC 9110 §12.5.1).
    fn liking(self, ranges: &[Range<'_>]) -> u16 {
        let (kind, sub) = self.media_type();
        let particular = |range: &&Range<'_>| match (range.kind, range.sub) {
            ("*", "*") => Some(0),
            (k, "*") if k.eq_ignore_ascii_case(kind) => Some(1),
            (k, s) if k.eq_ignore_ascii_case(kind) && s.eq_ignore_ascii_case(sub) => Some(2),
            _ => None,
        };
        let matching = ranges.iter().filter_map(|range| Some((particular(&range)?, range.quality)));
        matching.max().map_or(0, |(_, quality)| quality)
    }
}

struct Range<'a> {
    kind: &'a str,
    sub: &'a str,
    quality: u16,
}

impl<'a> Range<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, sub) = parts.next()?.split_once('/')?;
        let quality = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.eq_ignore_ascii_case("q"));
        let quality = quality.map_or(Some(1.0), |(_, value)| value.parse::<f32>().ok()).unwrap_or(0.0);
        Some(Self { kind, sub, quality: (quality.clamp(0.0, 1.0) * 1000.0) as u16 })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const BOTH: [Form; 2] = [Form::Stream, Form::Page];

    fn wanted(accept: &str, offered: &[Form]) -> Option<Form> {
        let headers = [(header::ACCEPT, HeaderValue::from_str(accept).expect("a header"))].into_iter().collect();
        Form::wanted(&headers, offered).ok()
    }

    #[test]
    fn the_client_gets_what_it_likes_best() {
        for (accept, form) in [
            ("text/event-stream", Some(Form::Stream)),
            ("application/json", Some(Form::Page)),
            ("Application/JSON; charset=utf-8", Some(Form::Page)),
            ("*/*", Some(Form::Stream)),
            ("application/*", Some(Form::Page)),
            ("application/json, text/plain, */*", Some(Form::Stream)),
            ("application/json, */*;q=0.1", Some(Form::Page)),
            ("text/event-stream;q=0.5, application/json", Some(Form::Page)),
            ("text/event-stream;q=0, */*", Some(Form::Page)),
            ("text/html", None),
            ("application/json;q=0", None),
        ] {
            assert_eq!(wanted(accept, &BOTH), form, "{accept}");
        }
        assert_eq!(wanted("application/json", &[Form::Stream]), None);
        assert_eq!(Form::wanted(&HeaderMap::new(), &BOTH).ok(), Some(Form::Stream));
    }
}
