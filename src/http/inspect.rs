//! One pass over a JSON text before anything is made of it: depth, fields given twice, NUL. The reader
//! behind it keeps its own stack limit, so no text is deep enough to hurt.

use std::{cell::RefCell, collections::HashSet, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::kernel::{Error, Result};

/// Refuses a text that is no JSON, is nested deeper than `depth`, gives a field twice or holds `\u0000`,
/// which the database's text cannot. Names the place.
pub(super) fn inspect(text: &str, depth: usize) -> Result<()> {
    let walk = Walk { depth, path: RefCell::default(), found: RefCell::default() };
    let mut reader = serde_json::Deserializer::from_str(text);
    let outcome = Value { walk: &walk, level: 0 }.deserialize(&mut reader).and_then(|()| reader.end());
    let Err(error) = outcome else { return Ok(()) };
    match walk.found.into_inner() {
        Some(found) => Err(Error::malformed(found.why).with("field", found.path)),
        None if error.to_string().starts_with("recursion limit") => Err(too_deep(depth)),
        None => Err(Error::malformed(format!("not JSON: {error}"))
            .with("line", error.line())
            .with("column", error.column())),
    }
}

fn too_deep(depth: usize) -> Error {
    Error::malformed(format!("the JSON is nested deeper than {depth} levels"))
}

struct Walk {
    depth: usize,
    path: RefCell<Vec<Segment>>,
    found: RefCell<Option<Found>>,
}

enum Segment {
    Field(String),
    Item(usize),
}

struct Found {
    path: String,
    why: String,
}

impl Walk {
    fn refuse<E: de::Error>(&self, why: &str) -> E {
        let mut path = String::new();
        for segment in self.path.borrow().iter() {
            match segment {
                Segment::Field(name) if path.is_empty() => path.push_str(name),
                Segment::Field(name) => path.extend([".", name]),
                Segment::Item(index) => path.push_str(&format!("[{index}]")),
            }
        }
        self.found.replace(Some(Found { path: path.replace('\0', "\\u0000"), why: why.to_owned() }));
        E::custom(why)
    }

    fn text<E: de::Error>(&self, text: &str) -> std::result::Result<(), E> {
        if text.contains('\0') { Err(self.refuse("text cannot hold the character U+0000")) } else { Ok(()) }
    }

    fn within<T, E>(
        &self,
        segment: Segment,
        go: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.path.borrow_mut().push(segment);
        let result = go();
        self.path.borrow_mut().pop();
        result
    }
}

#[derive(Clone, Copy)]
struct Value<'a> {
    walk: &'a Walk,
    level: usize,
}

impl Value<'_> {
    fn deeper<E: de::Error>(self) -> std::result::Result<Self, E> {
        if self.level >= self.walk.depth {
            let why = format!("the JSON is nested deeper than {} levels", self.walk.depth);
            return Err(self.walk.refuse(&why));
        }
        Ok(Self { level: self.level + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> std::result::Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<(), E> {
        self.walk.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<(), A::Error> {
        let inside = self.deeper()?;
        for index in 0.. {
            let next = self.walk.within(Segment::Item(index), || items.next_element_seed(inside))?;
            if next.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<(), A::Error> {
        let inside = self.deeper()?;
        let mut seen = HashSet::new();
        while let Some(name) = fields.next_key::<String>()? {
            self.walk.within(Segment::Field(name.clone()), || {
                self.walk.text(&name)?;
                if !seen.insert(name) {
                    return Err(self.walk.refuse("the field is given twice"));
                }
                fields.next_value_seed(inside)
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(text: &str) -> String {
        let error = inspect(text, 8).expect_err(text);
        assert_eq!(error.problem().status(), 400);
        error.members().get("field").and_then(|v| v.as_str()).unwrap_or("none").to_owned()
    }

    #[test]
    fn trouble_is_named_by_its_path() {
        assert_eq!(place(r#"{"a":[1,{"b":"x\u0000"}]}"#), "a[1].b");
        assert_eq!(place(r#"{"a":{"b":1,"b":2}}"#), "a.b");
        assert_eq!(place(r#"{"a\u0000":1}"#), "a\\u0000");
        assert_eq!(place(&"[".repeat(9)), "[0][0][0][0][0][0][0][0]");
        assert_eq!(place("{\"a\":}"), "none");
    }

    #[test]
    fn an_escaped_backslash_is_no_nul() {
        assert!(inspect(r#"{"a":"\\u0000"}"#, 8).is_ok());
    }

    #[test]
    fn no_depth_hurts() {
        for open in ["[", "{\"a\":"] {
            assert!(inspect(&open.repeat(100_000), 64).is_err());
            assert!(inspect(&open.repeat(100_000), usize::MAX).is_err());
        }
        assert!(inspect(&format!("{}{}", "[".repeat(8), "]".repeat(8)), 8).is_ok());
    }

    proptest! {
        #[test]
        fn what_the_reader_takes_passes_unless_it_is_refused_for_a_reason(text in "[\\[\\]{}:,\"a1\\\\u0 ]{0,40}") {
            let readable = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            let verdict = inspect(&text, 64);
            prop_assert!(readable || verdict.is_err(), "{text}");
            if let (true, Err(error)) = (readable, verdict) {
                prop_assert!(error.members().contains_key("field"), "{text}");
            }
        }
    }
}
