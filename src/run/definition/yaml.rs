use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::{Map, Number, Value};

use super::{
    json::{check_name, refuse_nul},
    source::{MAX_DEPTH, Mark, Places, Unreadable},
};

/// Reads one YAML 1.2 document (core schema) as JSON: no anchors, no tags, text keys, each once.
pub(super) fn read(text: &str) -> Result<(Value, Places), Unreadable> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| unreadable(&e))?;
        builder.take(event, place(&span))?;
    }
    builder.root.ok_or_else(|| Unreadable::new("the document is empty", Mark { line: 1, column: 1 }))
}

fn unreadable(error: &ScanError) -> Unreadable {
    let marker = error.marker();
    Unreadable::new(error.info().to_owned(), Mark { line: marker.line(), column: marker.col() + 1 })
}

fn place(span: &Span) -> Mark {
    Mark { line: span.start.line(), column: span.start.col() + 1 }
}

/// Builds the value from the parser's events, without recursion and refusing as early as can be.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<(Value, Places)>,
}

/// A list or map that is not closed yet.
struct Open {
    mark: Mark,
    node: Node,
}

enum Node {
    List(Vec<Value>, Vec<Places>),
    /// The last one is the name whose value comes next.
    Map(Map<String, Value>, HashMap<String, (Mark, Places)>, Option<(String, Mark)>),
}

impl Builder {
    fn take(&mut self, event: Event<'_>, mark: Mark) -> Result<(), Unreadable> {
        match event {
            Event::Alias(_) => Err(Unreadable::new("aliases are not allowed: write it out", mark)),
            Event::Scalar(_, _, anchor, _) | Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _)
                if anchor > 0 =>
            {
                Err(Unreadable::new("anchors are not allowed", mark))
            }
            Event::Scalar(.., Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                Err(Unreadable::new("tags are not allowed", mark))
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(Unreadable::new("one document only: `---` begins another", mark))
            }
            Event::Scalar(text, style, ..) => self.scalar(text, style, mark),
            Event::SequenceStart(..) => self.start(Node::List(Vec::new(), Vec::new()), mark),
            Event::MappingStart(..) => self.start(Node::Map(Map::new(), HashMap::new(), None), mark),
            Event::SequenceEnd | Event::MappingEnd => {
                match self.open.pop() {
                    Some(Open { mark, node: Node::List(items, places) }) => {
                        self.put(Value::Array(items), Places::list(mark, places));
                    }
                    Some(Open { mark, node: Node::Map(fields, places, _) }) => {
                        self.put(Value::Object(fields), Places::map(mark, places));
                    }
                    None => {}
                }
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    fn start(&mut self, node: Node, mark: Mark) -> Result<(), Unreadable> {
        if self.expects_name() {
            return Err(Unreadable::new("a field's name must be a text", mark));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(Unreadable::new(format!("nested more than {MAX_DEPTH} deep"), mark));
        }
        self.open.push(Open { mark, node });
        Ok(())
    }

    fn scalar(&mut self, text: Cow<'_, str>, style: ScalarStyle, mark: Mark) -> Result<(), Unreadable> {
        let value = if style == ScalarStyle::Plain { plain(text, mark)? } else { Value::String(text.into_owned()) };
        refuse_nul(&value, mark)?;
        if let Some(Open { node: Node::Map(fields, _, next @ None), .. }) = self.open.last_mut() {
            let Value::String(name) = value else {
                return Err(Unreadable::new(format!("a field's name must be a text: write \"{value}\""), mark));
            };
            check_name(&name, fields.contains_key(&name), mark)?;
            *next = Some((name, mark));
        } else {
            self.put(value, Places::leaf(mark));
        }
        Ok(())
    }

    fn expects_name(&self) -> bool {
        matches!(self.open.last(), Some(Open { node: Node::Map(.., None), .. }))
    }

    fn put(&mut self, value: Value, place: Places) {
        match self.open.last_mut() {
            Some(Open { node: Node::List(items, places), .. }) => {
                items.push(value);
                places.push(place);
            }
            Some(Open { node: Node::Map(fields, places, next), .. }) => {
                if let Some((name, mark)) = next.take() {
                    places.insert(name.clone(), (mark, place));
                    fields.insert(name, value);
                }
            }
            None => self.root = Some((value, place)),
        }
    }
}

/// What an unquoted scalar means in YAML 1.2's core schema.
fn plain(text: Cow<'_, str>, mark: Mark) -> Result<Value, Unreadable> {
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(&text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN") {
        return Err(Unreadable::new("a number must be finite", mark));
    }
    let digits = |prefix: &str, radix| text.strip_prefix(prefix).and_then(|rest| u64::from_str_radix(rest, radix).ok());
    if let Some(number) = digits("0x", 16).or_else(|| digits("0o", 8)).filter(|_| !text.contains(['+', '-'])) {
        return Ok(Value::from(number));
    }
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        || !unsigned.contains(|c: char| c.is_ascii_digit())
    {
        return Ok(Value::String(text.into_owned()));
    }
    let whole = text.strip_prefix('+').unwrap_or(&text);
    if let Ok(number) = whole.parse::<i64>() {
        return Ok(Value::from(number));
    }
    if let Ok(number) = whole.parse::<u64>() {
        return Ok(Value::from(number));
    }
    match text.parse::<f64>() {
        Ok(number) => {
            Number::from_f64(number).map(Value::Number).ok_or_else(|| Unreadable::new("the number is too large", mark))
        }
        Err(_) => Ok(Value::String(text.into_owned())),
    }
}
