//! Between JSON and the engine's values. A document goes in as a view of itself, so that what a template
//! does not touch is neither copied nor converted.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use minijinja::{
    Error, ErrorKind, Value as Engine,
    value::{Enumerator, Object, ObjectRepr, ValueKind},
};
use serde_json::{Map, Number, Value};

/// The most one rendering may produce, in bytes of text and eight for each node.
pub(super) const MAX_RENDERED: usize = 4 * 1024 * 1024;
const MAX_DEPTH: usize = 128;

/// What is left of [`MAX_RENDERED`].
#[derive(Debug)]
pub(super) struct Budget(usize);

impl Budget {
    pub(super) fn full() -> Self {
        Self(MAX_RENDERED)
    }

    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), Error> {
        self.0 = self.0.checked_sub(bytes).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, format!("the result is over {MAX_RENDERED} bytes"))
        })?;
        Ok(())
    }

    fn spend_on(&mut self, value: &Value) -> Result<(), Error> {
        self.spend(8)?;
        match value {
            Value::String(text) => self.spend(text.len()),
            Value::Array(items) => items.iter().try_for_each(|item| self.spend_on(item)),
            Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
                self.spend(name.len())?;
                self.spend_on(value)
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }
}

#[derive(Clone, Debug)]
enum Key {
    Field(Arc<str>),
    Item(usize),
}

/// A list or map inside a shared document.
#[derive(Debug)]
struct View {
    document: Arc<Value>,
    path: Vec<Key>,
}

impl View {
    fn target(&self) -> Option<&Value> {
        self.path.iter().try_fold(&*self.document, |value, key| match key {
            Key::Field(name) => value.get(&**name),
            Key::Item(index) => value.get(index),
        })
    }

    fn child(&self, key: Key, value: &Value) -> Engine {
        let mut path = Vec::with_capacity(self.path.len() + 1);
        path.extend_from_slice(&self.path);
        path.push(key);
        lift_at(&self.document, path, value)
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.target().is_some_and(Value::is_array) { ObjectRepr::Seq } else { ObjectRepr::Map }
    }

    fn get_value(self: &Arc<Self>, key: &Engine) -> Option<Engine> {
        match self.target()? {
            Value::Array(items) => {
                let index = key.as_usize()?;
                items.get(index).map(|value| self.child(Key::Item(index), value))
            }
            Value::Object(fields) => {
                let name = key.as_str()?;
                fields.get(name).map(|value| self.child(Key::Field(name.into()), value))
            }
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.target() {
            Some(Value::Array(items)) => Enumerator::Seq(items.len()),
            Some(Value::Object(fields)) => {
                Enumerator::Values(fields.keys().map(|name| Engine::from(name.as_str())).collect())
            }
            _ => Enumerator::Empty,
        }
    }
}

/// A document as the engine sees it.
pub(super) fn lift(document: &Arc<Value>) -> Engine {
    lift_at(document, Vec::new(), document)
}

fn lift_at(document: &Arc<Value>, path: Vec<Key>, value: &Value) -> Engine {
    match value {
        Value::Null => Engine::from(()),
        Value::Bool(value) => Engine::from(*value),
        Value::Number(number) => lift_number(number),
        Value::String(text) => Engine::from(text.as_str()),
        Value::Array(_) | Value::Object(_) => Engine::from_object(View { document: Arc::clone(document), path }),
    }
}

fn lift_number(number: &Number) -> Engine {
    match (number.as_i64(), number.as_u64()) {
        (Some(value), _) => Engine::from(value),
        (None, Some(value)) => Engine::from(value),
        (None, None) => Engine::from(number.as_f64().unwrap_or(f64::NAN)),
    }
}

/// A name → value map of the engine's own, for what is not a document.
#[derive(Debug)]
pub(super) struct Names(pub(super) BTreeMap<&'static str, Engine>);

impl Object for Names {
    fn get_value(self: &Arc<Self>, key: &Engine) -> Option<Engine> {
        self.0.get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().map(|name| Engine::from(*name)).collect())
    }
}

/// `omit`: what it is the value of is left out.
#[derive(Debug)]
pub(super) struct Omit;

impl Object for Omit {}

impl Omit {
    pub(super) fn is(value: &Engine) -> bool {
        value.downcast_object_ref::<Self>().is_some()
    }
}

/// Back to JSON.
pub(super) fn lower(value: &Engine, budget: &mut Budget) -> Result<Value, Error> {
    lower_at(value, budget, 0)
}

fn lower_at(value: &Engine, budget: &mut Budget, depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "the result is nested too deeply"));
    }
    if let Some(target) = value.downcast_object_ref::<View>().and_then(View::target) {
        budget.spend_on(target)?;
        return Ok(target.clone());
    }
    if Omit::is(value) {
        return Err(Error::new(ErrorKind::InvalidOperation, "`omit` has to be the whole of a value"));
    }
    budget.spend(8)?;
    match value.kind() {
        ValueKind::None => Ok(Value::Null),
        ValueKind::Bool => Ok(Value::Bool(value.is_true())),
        ValueKind::Number => lower_number(value),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            budget.spend(text.len())?;
            Ok(Value::String(text.to_owned()))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.checked().map(|item| lower_at(&item?, budget, depth + 1));
            items.collect::<Result<_, _>>().map(Value::Array)
        }
        ValueKind::Map => lower_map(value, budget, depth),
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("a {kind} is not JSON"))),
    }
}

fn lower_number(value: &Engine) -> Result<Value, Error> {
    if let Some(number) = value.as_i64().filter(|_| value.is_integer()) {
        return Ok(Value::from(number));
    }
    if let (true, Ok(number)) = (value.is_integer(), u64::try_from(value.clone())) {
        return Ok(Value::from(number));
    }
    let number = f64::try_from(value.clone())?;
    Number::from_f64(number)
        .map(Value::Number)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the number is not finite"))
}

fn lower_map(value: &Engine, budget: &mut Budget, depth: usize) -> Result<Value, Error> {
    let mut fields = Map::new();
    for key in value.try_iter()? {
        let name = key.as_str().ok_or_else(|| {
            Error::new(ErrorKind::NonKey, format!("a field's name must be a text, not a {}", key.kind()))
        })?;
        budget.spend(name.len())?;
        let item = value.get_item(&key)?;
        fields.insert(name.to_owned(), lower_at(&item, budget, depth + 1)?);
    }
    Ok(Value::Object(fields))
}

/// Writes a value into a text: texts as they are, everything else as JSON.
pub(super) fn write_text(value: &Engine, budget: &mut Budget, out: &mut String) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        budget.spend(text.len())?;
        out.push_str(text);
        return Ok(());
    }
    let json = lower(value, budget)?;
    write!(out, "{json}").map_err(Error::from)
}
