//! Reads YAML or JSON into a value that remembers where each of its nodes was written.

use std::{borrow::Cow, collections::HashMap};

use serde_json::Value;

use super::{Media, Mistake, json, yaml};

/// The longest name of a field, in bytes.
pub(super) const MAX_NAME: usize = 256;
/// The deepest nesting.
pub(super) const MAX_DEPTH: usize = 64;

/// A place in a text: line and column from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Mark {
    /// One column to the left.
    pub(super) fn left(self) -> Self {
        Self { column: self.column.saturating_sub(1).max(1), ..self }
    }
}

/// Why a text cannot be read, and where.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) message: Cow<'static, str>,
    pub(super) mark: Option<Mark>,
}

impl Unreadable {
    pub(super) fn new(message: impl Into<Cow<'static, str>>, mark: Mark) -> Self {
        Self { message: message.into(), mark: Some(mark) }
    }
}

/// Where a node is, and the nodes in it: the same tree as the value's.
#[derive(Debug)]
pub(super) struct Places {
    mark: Mark,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Nothing,
    Items(Vec<Places>),
    /// Each with the place of its name.
    Fields(HashMap<String, (Mark, Places)>),
}

impl Places {
    pub(super) fn leaf(mark: Mark) -> Self {
        Self { mark, inner: Inner::Nothing }
    }

    pub(super) fn list(mark: Mark, items: Vec<Self>) -> Self {
        Self { mark, inner: Inner::Items(items) }
    }

    pub(super) fn map(mark: Mark, fields: HashMap<String, (Mark, Self)>) -> Self {
        Self { mark, inner: Inner::Fields(fields) }
    }

    /// The places of the node of that pointer, or of the nearest one around it; the name's place too if it
    /// is exactly that node.
    fn find(&self, pointer: &str) -> (Mark, Option<Mark>) {
        let (mut node, mut name) = (self, None);
        for segment in pointer.split('/').skip(1) {
            let found = match &node.inner {
                Inner::Nothing => None,
                Inner::Items(items) => {
                    segment.parse().ok().and_then(|index: usize| items.get(index)).map(|n| (None, n))
                }
                Inner::Fields(fields) => fields.get(&*decoded(segment)).map(|(mark, node)| (Some(*mark), node)),
            };
            match found {
                Some((mark, inner)) => (name, node) = (mark, inner),
                None => return (node.mark, None),
            }
        }
        (node.mark, name)
    }
}

fn decoded(segment: &str) -> Cow<'_, str> {
    if segment.contains('~') {
        Cow::Owned(segment.replace("~1", "/").replace("~0", "~"))
    } else {
        Cow::Borrowed(segment)
    }
}

/// Reads a document of any size as the JSON it means, whatever it is about.
///
/// # Errors
/// When the text is not of its language, with the place.
pub fn read(bytes: &[u8], media: Media) -> Result<Value, Mistake> {
    Source::read(bytes, media, usize::MAX).map(|source| source.value)
}

/// A document with its places.
#[derive(Debug)]
pub(super) struct Source<'t> {
    pub(super) value: Value,
    text: &'t str,
    places: Option<Places>,
    /// What a path begins with, and how much of a pointer it leaves out.
    root: (&'static str, &'static str),
}

impl<'t> Source<'t> {
    /// Reads a document of at most `limit` bytes as it was sent.
    pub(super) fn read(bytes: &'t [u8], media: Media, limit: usize) -> Result<Self, Mistake> {
        let refused = |message: String| Mistake { message, path: String::new(), line: None, column: None };
        if bytes.len() > limit {
            return Err(refused(format!("a definition has at most {limit} bytes")));
        }
        let text = std::str::from_utf8(bytes).map_err(|e| refused(format!("not UTF-8 at byte {}", e.valid_up_to())))?;
        let read = match media {
            Media::Json => json::read(text),
            Media::Yaml => yaml::read(text),
        };
        let (value, places) = read.map_err(|unreadable| Mistake {
            message: unreadable.message.into_owned(),
            path: String::new(),
            line: unreadable.mark.map(|mark| mark.line),
            column: unreadable.mark.map(|mark| mark.column),
        })?;
        Ok(Self { value, text, places: Some(places), root: ("", "") })
    }

    /// Takes a value that was read already: mistakes have a path, which begins with `root` and leaves out the
    /// pointer's beginning `hidden`, but no line.
    pub(super) fn of_value(value: Value, root: &'static str, hidden: &'static str) -> Self {
        Self { value, text: "", places: None, root: (root, hidden) }
    }

    /// A mistake at the value of that pointer.
    pub(super) fn mistake(&self, pointer: &str, message: impl Into<String>) -> Mistake {
        self.mistake_at(pointer, self.mark(pointer), message)
    }

    /// A mistake in the name of a field.
    pub(super) fn mistake_in_field(&self, pointer: &str, message: impl Into<String>) -> Mistake {
        let mark = self.places.as_ref().map(|places| places.find(pointer)).map(|(value, name)| name.unwrap_or(value));
        self.mistake_at(pointer, mark, message)
    }

    /// A mistake inside the text of that pointer, at one of its bytes.
    pub(super) fn mistake_inside(&self, pointer: &str, offset: usize, message: impl Into<String>) -> Mistake {
        self.mistake_at(pointer, self.inside(pointer, offset), message)
    }

    fn mistake_at(&self, pointer: &str, mark: Option<Mark>, message: impl Into<String>) -> Mistake {
        Mistake {
            message: message.into(),
            path: self.path(pointer),
            line: mark.map(|mark| mark.line),
            column: mark.map(|mark| mark.column),
        }
    }

    fn mark(&self, pointer: &str) -> Option<Mark> {
        self.places.as_ref().map(|places| places.find(pointer).0)
    }

    /// Where a byte of a text was written, if its line stands in the source as it is; else the text's place.
    fn inside(&self, pointer: &str, offset: usize) -> Option<Mark> {
        let mark = self.mark(pointer)?;
        let found = || {
            let text = self.value.pointer(pointer)?.as_str()?;
            let before = text.get(..offset)?;
            let start = before.rfind('\n').map_or(0, |newline| newline + 1);
            let line = text.get(start..)?.lines().next()?;
            let number = mark.line + before.matches('\n').count();
            let source = self.text.lines().nth(number.checked_sub(1)?)?;
            let at = source.find(line)? + (offset - start);
            Some(Mark { line: number, column: source.get(..at)?.chars().count() + 1 })
        };
        found().or(Some(mark))
    }

    /// A pointer as people write it: `steps[1].with.url`.
    fn path(&self, pointer: &str) -> String {
        let (root, hidden) = self.root;
        let mut path = root.to_owned();
        let mut node = if pointer.starts_with(hidden) { self.value.pointer(hidden) } else { Some(&self.value) };
        for segment in pointer.strip_prefix(hidden).unwrap_or(pointer).split('/').skip(1) {
            let name = decoded(segment);
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
            if node.is_some_and(Value::is_array) {
                path += &format!("[{name}]");
            } else if !plain || name.is_empty() {
                path += &format!("[{name:?}]");
            } else {
                path.push_str(if path.is_empty() { "" } else { "." });
                path.push_str(&name);
            }
            node = match node {
                Some(Value::Array(items)) => name.parse().ok().and_then(|index: usize| items.get(index)),
                Some(Value::Object(fields)) => fields.get(&*name),
                _ => None,
            };
        }
        path
    }
}

/// A pointer one step further.
pub(super) fn child(pointer: &str, segment: &str) -> String {
    if segment.contains(['~', '/']) {
        format!("{pointer}/{}", segment.replace('~', "~0").replace('/', "~1"))
    } else {
        format!("{pointer}/{segment}")
    }
}
