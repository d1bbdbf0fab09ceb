use std::{borrow::Cow, collections::HashMap, fmt};

use serde::{
    Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use super::source::{MAX_DEPTH, MAX_NAME, Mark, Places, Unreadable};

/// Reads strict JSON. serde_json keeps no places, but a raw value is a slice of the text it came from.
pub(super) fn read(text: &str) -> Result<(Value, Places), Unreadable> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let raw: &RawValue = serde_json::from_str(text)
        .map_err(|e| Unreadable::new(without_place(&e), Mark { line: e.line().max(1), column: e.column().max(1) }))?;
    Reader { text, offset: 0, mark: Mark { line: 1, column: 1 } }.node(raw.get(), 0)
}

/// The library's message without its own " at line 1 column 2".
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.split_once(" at line ").map_or(message.clone(), |(before, _)| before.to_owned())
}

struct Reader<'t> {
    text: &'t str,
    /// The last place asked for; the next one is almost always after it.
    offset: usize,
    mark: Mark,
}

impl<'t> Reader<'t> {
    fn node(&mut self, raw: &'t str, depth: usize) -> Result<(Value, Places), Unreadable> {
        let mark = self.mark(raw);
        if depth > MAX_DEPTH {
            return Err(Unreadable::new(format!("nested more than {MAX_DEPTH} deep"), mark));
        }
        match raw.as_bytes().first() {
            Some(b'{') => self.object(raw, depth, mark),
            Some(b'[') => {
                let items: Items<'_> = parse(raw, Items::default(), mark)?;
                let read = items.0.into_iter().map(|item| self.node(item, depth + 1));
                let (values, places) = read.collect::<Result<(Vec<_>, Vec<_>), _>>()?;
                Ok((Value::Array(values), Places::list(mark, places)))
            }
            _ => {
                let value = serde_json::from_str(raw).map_err(|e| Unreadable::new(without_place(&e), mark))?;
                refuse_nul(&value, mark)?;
                Ok((value, Places::leaf(mark)))
            }
        }
    }

    fn object(&mut self, raw: &'t str, depth: usize, mark: Mark) -> Result<(Value, Places), Unreadable> {
        let (mut fields, mut places) = (Map::new(), HashMap::new());
        for (name, value) in parse(raw, Fields::default(), mark)?.0 {
            let place = match &name {
                // The slice is the name without its quote.
                Cow::Borrowed(name) => self.mark(name).left(),
                Cow::Owned(_) => self.mark(value),
            };
            check_name(&name, fields.contains_key(&*name), place)?;
            let (value, inner) = self.node(value, depth + 1)?;
            places.insert(name.clone().into_owned(), (place, inner));
            fields.insert(name.into_owned(), value);
        }
        Ok((Value::Object(fields), Places::map(mark, places)))
    }

    /// The place of a slice of the text.
    fn mark(&mut self, slice: &str) -> Mark {
        let offset = (slice.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        if offset < self.offset {
            (self.offset, self.mark) = (0, Mark { line: 1, column: 1 });
        }
        for c in self.text.get(self.offset..offset).unwrap_or_default().chars() {
            if c == '\n' {
                self.mark = Mark { line: self.mark.line + 1, column: 1 };
            } else {
                self.mark.column += 1;
            }
        }
        self.offset = offset;
        self.mark
    }
}

/// What the name of a field must be in either language.
pub(super) fn check_name(name: &str, taken: bool, mark: Mark) -> Result<(), Unreadable> {
    if taken {
        return Err(Unreadable::new(format!("the field `{name}` is given twice"), mark));
    }
    if name.contains('\0') || name.len() > MAX_NAME {
        return Err(Unreadable::new(format!("a field's name has at most {MAX_NAME} bytes, and no NUL"), mark));
    }
    Ok(())
}

/// The database's JSON cannot hold NUL.
pub(super) fn refuse_nul(value: &Value, mark: Mark) -> Result<(), Unreadable> {
    match value.as_str() {
        Some(text) if text.contains('\0') => Err(Unreadable::new("a text holds the NUL character", mark)),
        _ => Ok(()),
    }
}

fn parse<'t, V: Visitor<'t, Value = V>>(raw: &'t str, visitor: V, mark: Mark) -> Result<V, Unreadable> {
    let mut reader = serde_json::Deserializer::from_str(raw);
    reader.deserialize_any(visitor).map_err(|e| Unreadable::new(without_place(&e), mark))
}

#[derive(Default)]
struct Fields<'t>(Vec<(Cow<'t, str>, &'t str)>);

impl<'t> Visitor<'t> for Fields<'t> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'t>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            self.0.push((name, map.next_value::<&RawValue>()?.get()));
        }
        Ok(self)
    }
}

/// A name, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Name<'t>(#[serde(borrow)] Cow<'t, str>);

#[derive(Default)]
struct Items<'t>(Vec<&'t str>);

impl<'t> Visitor<'t> for Items<'t> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'t>>(mut self, mut seq: A) -> Result<Self, A::Error> {
        while let Some(item) = seq.next_element::<&RawValue>()? {
            self.0.push(item.get());
        }
        Ok(self)
    }
}
