//! The JSON Schema of a definition, in one place: it is served, documented, and the first of the checks.

use std::sync::LazyLock;

use jsonschema::{
    JsonType, ValidationError, Validator,
    error::{TypeKind, ValidationErrorKind},
};
use serde_json::Value;

use super::{
    Mistake,
    source::{Source, child},
};
use crate::kernel::{Error, Result, compile};

/// The schema as it is served and printed in `docs/workflows.md`.
pub const SCHEMA: &str = include_str!("workflow.schema.json");

/// Mistakes that are listed of one document.
pub(super) const MAX_MISTAKES: usize = 100;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(SCHEMA).unwrap_or_default());
static VALIDATOR: LazyLock<std::result::Result<Validator, String>> = LazyLock::new(|| compile(&DOCUMENT));

/// Checks a document against the schema of a definition.
pub(super) fn check(source: &Source<'_>) -> Result<Vec<Mistake>> {
    let validator = VALIDATOR.as_ref().map_err(|e| Error::internal(e.clone()))?;
    let mut mistakes = Vec::new();
    for error in validator.iter_errors(&source.value).take(MAX_MISTAKES) {
        let pointer = error.instance_path().as_str();
        if let ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() {
            for name in unexpected {
                let message = format!("there is no field `{name}` here: {}", known(error.schema_path().as_str()));
                mistakes.push(source.mistake_in_field(&child(pointer, name), message));
            }
        } else {
            mistakes.push(source.mistake(pointer, sentence(&error)));
        }
    }
    Ok(mistakes)
}

/// The fields the schema knows beside an `additionalProperties`.
fn known(keyword: &str) -> String {
    let beside = keyword.strip_suffix("/additionalProperties").unwrap_or(keyword);
    let names = DOCUMENT.pointer(beside).and_then(|schema| schema.get("properties")).and_then(Value::as_object);
    names.map(|names| names.keys().map(String::as_str).collect::<Vec<_>>().join(", ")).unwrap_or_default()
}

/// A mistake in the words of this product; the rarer ones in the library's, without the value.
pub(super) fn sentence(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::Type { kind: TypeKind::Single(kind) } => format!("must be {}", noun(*kind)),
        ValidationErrorKind::Type { kind: TypeKind::Multiple(kinds) } => {
            format!("must be {}", kinds.iter().map(noun).collect::<Vec<_>>().join(" or "))
        }
        ValidationErrorKind::Required { property } => {
            format!("the field `{}` is missing", property.as_str().unwrap_or_default())
        }
        ValidationErrorKind::Enum { options } => {
            let options = options.as_array().into_iter().flatten().map(ToString::to_string);
            format!("must be one of {}", options.collect::<Vec<_>>().join(", "))
        }
        ValidationErrorKind::Pattern { pattern } => {
            let schema = error.schema_path().as_str().strip_suffix("/pattern").and_then(|at| DOCUMENT.pointer(at));
            match schema.filter(|schema| schema.get("pattern").and_then(Value::as_str) == Some(pattern)) {
                Some(schema) => must_be(schema.get("description").and_then(Value::as_str).unwrap_or_default()),
                None => format!("does not match {pattern}"),
            }
        }
        ValidationErrorKind::Minimum { limit } => format!("must be at least {limit}"),
        ValidationErrorKind::Maximum { limit } => format!("must be at most {limit}"),
        ValidationErrorKind::MinItems { limit } => format!("must have at least {limit} items"),
        ValidationErrorKind::MaxItems { limit } => format!("must have at most {limit} items"),
        ValidationErrorKind::MaxLength { limit } => format!("must have at most {limit} characters"),
        ValidationErrorKind::UniqueItems => "must not name the same thing twice".to_owned(),
        _ => error.masked().to_string(),
    }
}

fn must_be(description: &str) -> String {
    let mut rest = description.chars();
    let first = rest.next().map(|c| c.to_ascii_lowercase());
    format!("must be {}", first.into_iter().chain(rest).collect::<String>())
}

fn noun(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Array => "a list",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "a whole number",
        JsonType::Null => "null",
        JsonType::Number => "a number",
        JsonType::Object => "a map",
        JsonType::String => "a text",
    }
}
