//! Schemas out of an OpenAPI document, as JSON Schema that refers to nothing. Pure, and bounded, however often the document
//! refers to what it says once.

use serde_json::{Map, Value, json};

use crate::kernel::{Error, Result};

/// The most values that an operation's schemas come to, with all that they refer to.
const VALUES: usize = 4000;
/// The most bytes that their texts and names come to: what is said once may be referred to often.
const BYTES: usize = 256 * 1024;
/// How deep they may nest.
const DEPTH: usize = 32;

/// What is for readers of the document alone.
const ASIDE: [&str; 6] = ["discriminator", "xml", "externalDocs", "example", "examples", "deprecated"];

pub(super) fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::invalid("openapi", detail)
}

/// Reads parts of a document with what they refer to in its place.
pub(super) struct Reader<'d> {
    pub(super) document: &'d Value,
    /// So many values more.
    values: usize,
    /// So many bytes of text more.
    bytes: usize,
    /// What is being read, from the outside in.
    within: Vec<String>,
}

impl<'d> Reader<'d> {
    pub(super) fn new(document: &'d Value) -> Self {
        Self { document, values: VALUES, bytes: BYTES, within: Vec::new() }
    }

    /// A part, or what it refers to.
    pub(super) fn followed(&self, part: &'d Value) -> Result<&'d Value> {
        let mut part = part;
        for _ in 0..DEPTH {
            match part.get("$ref").and_then(Value::as_str) {
                Some(reference) => part = self.target(reference)?,
                None => return Ok(part),
            }
        }
        Err(invalid("the document refers in a circle"))
    }

    fn target(&self, reference: &str) -> Result<&'d Value> {
        let pointer = reference.strip_prefix('#').ok_or_else(|| {
            invalid(format!("the document refers to `{reference}`, which is elsewhere: put it into the document"))
        })?;
        self.document.pointer(pointer).ok_or_else(|| invalid(format!("`{reference}` is not in the document")))
    }

    /// A schema as JSON Schema that refers to nothing.
    pub(super) fn plain(&mut self, schema: &Value) -> Result<Value> {
        if self.within.len() >= DEPTH {
            return Err(invalid(format!("the schemas of the operation nest deeper than {DEPTH} levels")));
        }
        let Some(fields) = schema.as_object() else { return self.counted(schema) };
        self.value()?;
        match fields.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.referred(reference, fields),
            None => self.said(fields).map(Value::Object),
        }
    }

    /// What a schema says itself, besides what it refers to.
    fn said(&mut self, fields: &Map<String, Value>) -> Result<Map<String, Value>> {
        self.within.push(String::new());
        let mut plain = Map::new();
        let is_aside = |name: &str, value: &Value| ASIDE.contains(&name) || (name == "$ref" && value.is_string());
        for (keyword, value) in fields.iter().filter(|(name, value)| !is_aside(name, value)) {
            self.text(keyword)?;
            plain.insert(keyword.clone(), self.keyword(keyword, value)?);
        }
        self.within.pop();
        modernise(&mut plain);
        Ok(plain)
    }

    fn referred(&mut self, reference: &str, fields: &Map<String, Value>) -> Result<Value> {
        self.text(reference)?;
        if self.within.iter().any(|outer| outer == reference) {
            // It goes on for ever: what is further in is not described.
            return Ok(json!({ "description": format!("As {reference}, which it is in.") }));
        }
        let target = self.target(reference)?;
        self.within.push(reference.to_owned());
        let mut plain = self.plain(target)?;
        self.within.pop();
        // What stands beside a reference adds to it.
        let besides = self.said(fields)?;
        if let Some(plain) = plain.as_object_mut() {
            plain.extend(besides);
        }
        Ok(plain)
    }

    fn keyword(&mut self, keyword: &str, value: &Value) -> Result<Value> {
        match (keyword, value) {
            ("properties" | "patternProperties" | "dependentSchemas" | "$defs", Value::Object(members)) => {
                let plain = members.iter().map(|(name, member)| {
                    self.text(name)?;
                    Ok((name.clone(), self.plain(member)?))
                });
                plain.collect::<Result<Map<_, _>>>().map(Value::Object)
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems", Value::Array(all)) => {
                all.iter().map(|one| self.plain(one)).collect::<Result<Vec<_>>>().map(Value::Array)
            }
            (
                "items" | "additionalProperties" | "not" | "if" | "then" | "else" | "contains" | "propertyNames",
                Value::Object(_),
            ) => self.plain(value),
            _ => self.counted(value),
        }
    }

    fn counted(&mut self, value: &Value) -> Result<Value> {
        self.count(value)?;
        Ok(value.clone())
    }

    fn count(&mut self, value: &Value) -> Result<()> {
        self.value()?;
        match value {
            Value::String(text) => self.text(text),
            Value::Array(items) => items.iter().try_for_each(|item| self.count(item)),
            Value::Object(members) => members.iter().try_for_each(|(name, member)| {
                self.text(name)?;
                self.count(member)
            }),
            _ => Ok(()),
        }
    }

    /// One value more.
    fn value(&mut self) -> Result<()> {
        self.values = self.values.checked_sub(1).ok_or_else(|| too_much(VALUES, "values"))?;
        Ok(())
    }

    /// So much text more.
    fn text(&mut self, text: &str) -> Result<()> {
        self.bytes = self.bytes.checked_sub(text.len()).ok_or_else(|| too_much(BYTES, "bytes of text"))?;
        Ok(())
    }
}

fn too_much(most: usize, what: &str) -> Error {
    invalid(format!("the schemas of the operation, with what they refer to, have more than {most} {what}"))
}

/// Version 3.0 has some words of its own.
fn modernise(schema: &mut Map<String, Value>) {
    if schema.remove("nullable") == Some(Value::Bool(true)) {
        if let Some(kind) = schema.get("type").filter(|kind| kind.is_string()).cloned() {
            schema.insert("type".to_owned(), json!([kind, "null"]));
        }
        if let Some(Value::Array(values)) = schema.get_mut("enum")
            && !values.contains(&Value::Null)
        {
            values.push(Value::Null);
        }
    }
    for (flag, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        match schema.get(flag) {
            Some(Value::Bool(true)) => match schema.remove(bound) {
                Some(value) => drop(schema.insert(flag.to_owned(), value)),
                None => drop(schema.remove(flag)),
            },
            Some(Value::Bool(false)) => drop(schema.remove(flag)),
            _ => {}
        }
    }
}
