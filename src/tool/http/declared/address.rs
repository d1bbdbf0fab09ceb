//! A URL with places for arguments. What an argument says stays where it is put: in its segment of the path, or in its
//! value of the query.

use reqwest::Url;
use serde_json::{Map, Value};

use crate::tool::ToolError;

/// The longest template, in bytes.
const LONGEST: usize = 2048;

/// `https://shop.example/orders/{order}/refunds?notify={notify}`, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Address {
    parts: Vec<Part>,
    origin: String,
    segments: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    /// In a segment of the path.
    InPath(String),
    /// In the query.
    InQuery(String),
}

impl Address {
    /// Reads a template.
    ///
    /// # Errors
    /// What it should be.
    pub(super) fn read(template: &str) -> Result<Self, &'static str> {
        if template.len() > LONGEST {
            return Err("`url` has 2,048 bytes at most");
        }
        if !template.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') || template.contains('#') {
            return Err("`url` is written in visible ASCII characters without `\\` and without a fragment");
        }
        let parts = parts(template)?;
        let plain: String = parts.iter().map(|part| if let Part::Text(text) = part { text } else { "x" }).collect();
        let url = Url::parse(&plain).map_err(|_| "`url` is an absolute http or https URL")?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
            return Err("`url` is an http or https URL without a user or password");
        }
        let path = plain.splitn(4, '/').nth(3).unwrap_or_default().split('?').next().unwrap_or_default();
        if path.split('/').any(is_dots) {
            return Err("`url` has no `.` or `..` in its path");
        }
        let places = parts.iter().filter(|part| !matches!(part, Part::Text(_))).count();
        let begins_with_host = matches!(parts.first(), Some(Part::Text(text)) if has_path(text));
        if places > 0 && !begins_with_host {
            return Err("`url` has places for arguments in its path and query only: `https://host/{name}`");
        }
        Ok(Self { origin: origin(&url), segments: segments(&url), parts })
    }

    /// The arguments it has places for.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::InPath(name) | Part::InQuery(name) => Some(name.as_str()),
        })
    }

    /// The names in the query of a URL.
    pub(super) fn query(url: &str) -> Vec<String> {
        let names = |url: Url| url.query_pairs().map(|(name, _)| name.into_owned()).collect();
        Url::parse(url).map(names).unwrap_or_default()
    }

    /// The URL with these arguments in their places.
    ///
    /// # Errors
    /// `invalid_arguments`, for a value that would not stay in its place.
    pub(super) fn with(&self, arguments: &Map<String, Value>) -> Result<String, ToolError> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::InQuery(name) => encode(&scalar(name, arguments)?, &mut text),
                Part::InPath(name) => {
                    let value = scalar(name, arguments)?;
                    // Some servers decode before they look at the path.
                    if value.is_empty() || value.split(['/', '\\']).any(is_dots) {
                        return Err(invalid(name, "is neither empty nor has `.` or `..` between slashes"));
                    }
                    encode(&value, &mut text);
                }
            }
        }
        let url = Url::parse(&text).ok().filter(|url| origin(url) == self.origin && segments(url) == self.segments);
        let name = self.names().next().unwrap_or_default();
        url.map(|_| text).ok_or_else(|| invalid(name, "leads elsewhere"))
    }
}

fn parts(template: &str) -> Result<Vec<Part>, &'static str> {
    let mut parts = Vec::new();
    let (mut rest, mut in_query) = (template, false);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or("`url` has a `{` without its `}`")?;
        if !is_place(name) || before.contains('}') {
            return Err("`url` has places written `{name}`: 1 to 64 letters, digits, `_`, `-` or `.`");
        }
        in_query |= before.contains('?');
        parts.push(Part::Text(before.to_owned()));
        let name = name.to_owned();
        parts.push(if in_query { Part::InQuery(name) } else { Part::InPath(name) });
        rest = after;
    }
    if rest.contains('}') {
        return Err("`url` has a `}` without its `{`");
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
}

/// Whether a place for an argument can be called that.
pub(super) fn is_place(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Whether the host ends in this text: a slash or a question mark follows it.
fn has_path(text: &str) -> bool {
    text.split_once("://").is_some_and(|(_, rest)| rest.contains(['/', '?']))
}

/// Whether a reader of URLs takes the segment for this or the one above.
fn is_dots(segment: &str) -> bool {
    matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn segments(url: &Url) -> usize {
    url.path_segments().map_or(0, Iterator::count)
}

fn scalar(name: &str, arguments: &Map<String, Value>) -> Result<String, ToolError> {
    match arguments.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        _ => Err(invalid(name, "is a text, a number, true or false")),
    }
}

fn invalid(name: &str, rule: &str) -> ToolError {
    ToolError::failed("invalid_arguments", format!("`{name}` {rule}"))
}

/// All but RFC 3986's unreserved characters in their encoded form.
fn encode(value: &str, into: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn with(template: &str, arguments: Value) -> Result<String, ToolError> {
        Address::read(template).unwrap().with(arguments.as_object().unwrap())
    }

    #[test]
    fn values_stand_in_their_places() {
        let template = "https://shop.example/orders/{order}/refunds?notify={notify}&v=2";
        assert_eq!(Address::read(template).unwrap().names().collect::<Vec<_>>(), ["order", "notify"]);
        let url = with(template, json!({ "order": "A 1/2?#ä", "notify": true }));
        assert_eq!(url.unwrap(), "https://shop.example/orders/A%201%2F2%3F%23%C3%A4/refunds?notify=true&v=2");
        assert_eq!(with("http://a.example/v{v}.json", json!({ "v": 2 })).unwrap(), "http://a.example/v2.json");
        assert_eq!(with("https://a.example", json!({})).unwrap(), "https://a.example");
    }

    #[test]
    fn no_value_leaves_its_place() {
        for value in ["", ".", "..", "../admin", "a/../b", "..\\..", "a\\..", "%2e%2E", "%2e/.."] {
            let refused = with("https://a.example/x/{id}/y", json!({ "id": value }));
            assert!(
                matches!(refused, Err(ToolError::Failed(failure)) if failure.code == "invalid_arguments"),
                "{value}"
            );
        }
        let two = |first: &str, last: &str| with("https://a.example/x/{a}{b}/y", json!({ "a": first, "b": last }));
        assert!(two(".", "x").is_err() && two("x", "y").is_ok());
        for value in ["@evil.example", "?admin=1", "#x", "a\r\nHost: evil", "//evil.example", "%2f", ":80", ";a=b"] {
            let text = with("https://a.example/x/{id}/y?q={id}", json!({ "id": value })).unwrap();
            let url = Url::parse(&text).unwrap();
            assert_eq!((url.host_str(), url.fragment(), url.username()), (Some("a.example"), None, ""), "{value}");
            assert_eq!(url.path_segments().unwrap().count(), 3, "{value}");
            assert_eq!(url.query_pairs().collect::<Vec<_>>(), [("q".into(), value.into())], "{value}");
        }
        for value in [json!(null), json!([1]), json!({ "a": 1 })] {
            assert!(with("https://a.example/{id}", json!({ "id": value })).is_err());
        }
        assert!(with("https://a.example/{id}", json!({})).is_err());
    }

    #[test]
    fn a_template_leaves_no_doubt_about_its_host() {
        for wrong in [
            "a.example/x",
            "ftp://a.example/",
            "https://{host}/x",
            "https://a.example{rest}",
            "https://{user}@a.example/",
            "https://user@a.example/",
            "https://a.example:{port}/",
            "{url}",
            "https://a.example\\{x}",
            "https://a.example/x#{y}",
            "https://a.example/{x",
            "https://a.example/x}",
            "https://a.example/{+x}",
            "https://a.example/{?x}",
            "https://a.example/{}",
            "https://a.example/../{x}",
            "https://a.example/%2E./{x}",
            "https://a.example/ä",
        ] {
            assert!(Address::read(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_said_goes_to_the_same_place(value in "\\PC{0,20}|[./\\\\%2eE@:?#]{0,8}") {
            let Ok(text) = with("https://a.example/x/{id}/y?q={id}", json!({ "id": value })) else { return Ok(()) };
            let url = Url::parse(&text).unwrap();
            prop_assert_eq!(url.host_str(), Some("a.example"));
            let segments: Vec<_> = url.path_segments().unwrap().collect();
            prop_assert!(segments.len() == 3 && segments[0] == "x" && segments[2] == "y", "{}", url);
            prop_assert_eq!(url.query_pairs().next().unwrap().1, value);
        }
    }
}
