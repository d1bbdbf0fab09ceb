//! Templates and conditions: minijinja over JSON. A text that is one whole `{{ expression }}` keeps the
//! expression's JSON type; any other text with braces renders to a text; lists and maps render through.

mod compile;
mod context;
mod engine;
mod scan;
mod value;

use std::fmt;

use serde_json::{Map, Value};

pub use compile::Names;
pub use context::{Context, RunFacts, Scope, StepFacts};

use value::Budget;

/// Why a template cannot be compiled or rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    message: String,
    offset: usize,
}

impl TemplateError {
    fn new(message: impl Into<String>, offset: usize) -> Self {
        Self { message: message.into(), offset }
    }

    /// What is wrong, for the author.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The byte of the template where it is wrong.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TemplateError {}

/// Whether any text inside is a template; what is not renders to itself.
#[must_use]
pub fn is_template(value: &Value) -> bool {
    match value {
        Value::String(text) => scan::is_template(text),
        Value::Array(items) => items.iter().any(is_template),
        Value::Object(fields) => fields.values().any(is_template),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Renders every text inside `value`; names of fields are left as they are. A field or item whose template gives `omit` is
/// left out.
///
/// # Errors
/// When a template does not parse, names something undefined, fails, or the result grows too large.
pub fn render(value: &Value, context: &Context) -> Result<Value, TemplateError> {
    render_within(value, context, &mut Budget::full())?.ok_or_else(nothing)
}

fn nothing() -> TemplateError {
    TemplateError::new("`omit` leaves out a field of a map or an item of a list, and this is neither", 0)
}

/// Renders a text to a text: what a whole expression gives otherwise is written as JSON.
///
/// # Errors
/// As [`render`].
pub fn render_text(text: &str, context: &Context) -> Result<String, TemplateError> {
    Ok(match render(&Value::String(text.to_owned()), context)? {
        Value::String(text) => text,
        other => other.to_string(),
    })
}

fn render_within(value: &Value, context: &Context, budget: &mut Budget) -> Result<Option<Value>, TemplateError> {
    let rendered = match value {
        Value::String(text) if scan::is_template(text) => return compile::text(text)?.render(context, budget),
        Value::Array(items) => {
            let items = items.iter().filter_map(|item| render_within(item, context, budget).transpose());
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => {
            let mut rendered = Map::with_capacity(fields.len());
            for (name, value) in fields {
                rendered.extend(render_within(value, context, budget)?.map(|value| (name.clone(), value)));
            }
            Value::Object(rendered)
        }
        other => other.clone(),
    };
    Ok(Some(rendered))
}

/// Evaluates a condition: one expression, with or without its braces.
///
/// True and false are themselves; null, zero and an empty list or map are false, other numbers, lists and
/// maps true.
///
/// # Errors
/// When it does not parse or fails, or when it gives a text: `"false"` would be true.
pub fn condition(source: &str, context: &Context) -> Result<bool, TemplateError> {
    match compile::condition(source)?.render(context, &mut Budget::full())?.ok_or_else(nothing)? {
        Value::Bool(value) => Ok(value),
        Value::Null => Ok(false),
        Value::Number(number) => Ok(number.as_f64() != Some(0.0)),
        Value::Array(items) => Ok(!items.is_empty()),
        Value::Object(fields) => Ok(!fields.is_empty()),
        Value::String(_) => {
            Err(TemplateError::new("a condition cannot be a text: compare it with something, as in `x == \"yes\"`", 0))
        }
    }
}

/// Parses a text's template without running it, and gives the names it uses. A text without braces uses none.
///
/// # Errors
/// When it does not parse or uses a filter, test or function that does not exist.
pub fn check(text: &str) -> Result<Names, TemplateError> {
    if scan::is_template(text) {
        compile::text(text).map(|compiled| compiled.names.clone())
    } else {
        Ok(Names::default())
    }
}

/// The same for a condition.
///
/// # Errors
/// As [`check`], or when it is not one single expression.
pub fn check_condition(source: &str) -> Result<Names, TemplateError> {
    compile::condition(source).map(|compiled| compiled.names.clone())
}

#[cfg(test)]
mod tests;
