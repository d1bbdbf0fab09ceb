use jsonschema::Validator;
use serde_json::{Value, json};

use super::{
    Definition,
    schema::{MAX_MISTAKES, sentence},
    source::{Source, child},
};
use crate::kernel::{Error, Problem, Result, compile};

/// Whether a run's input is what the definition asks for.
///
/// # Errors
/// The 422 that lists every mistake with its JSON path from `input`.
pub fn check_input(definition: &Definition, input: &Value) -> Result<()> {
    let Some(schema) = &definition.input else { return Ok(()) };
    fits(&compile(schema).map_err(Error::internal)?, input, "input")
}

/// Whether a value that a request calls `name` is what a schema asks for.
///
/// # Errors
/// The 422 that lists every mistake with its JSON path from `name`.
pub fn fits(schema: &Validator, value: &Value, name: &'static str) -> Result<()> {
    if schema.is_valid(value) {
        return Ok(());
    }
    let source = Source::of_value(value.clone(), name, "");
    let mistakes = schema.iter_errors(value).take(MAX_MISTAKES).map(|error| {
        let pointer = match error.kind() {
            jsonschema::error::ValidationErrorKind::Required { property } => {
                child(error.instance_path().as_str(), property.as_str().unwrap_or_default())
            }
            _ => error.instance_path().as_str().to_owned(),
        };
        source.mistake(&pointer, sentence(&error))
    });
    let mistakes = mistakes.collect::<Vec<_>>();
    let (path, message) = mistakes.first().map(|first| (&*first.path, &*first.message)).unwrap_or_default();
    let detail = format!("{path}: {message}");
    Err(Error::new(Problem::Invalid, detail).with("field", path).with("errors", json!(mistakes)))
}
