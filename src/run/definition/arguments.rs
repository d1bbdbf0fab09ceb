//! A step's `with` against its tool's schema, as far as it can be known before templates are rendered.

use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde_json::Value;

use super::{
    Mistake,
    schema::{MAX_MISTAKES, sentence},
    source::{Source, child},
};
use crate::kernel::template;

/// The mistakes in what the step of that pointer gives its tool; the step is named where it gives nothing.
pub(super) fn check(source: &Source<'_>, step: &str, arguments: &Value, schema: &Validator) -> Vec<Mistake> {
    let with = child(step, "with");
    let mut mistakes = Vec::new();
    for error in schema.iter_errors(arguments).take(MAX_MISTAKES).filter(|error| is_certain(error, arguments)) {
        let inner = error.instance_path().as_str();
        let pointer = if source.value.pointer(&with).is_some() { format!("{with}{inner}") } else { step.to_owned() };
        if let ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() {
            let message = |name: &String| format!("the tool takes no `{name}`");
            mistakes.extend(unexpected.iter().map(|n| source.mistake_in_field(&child(&pointer, n), message(n))));
        } else {
            mistakes.push(source.mistake(&pointer, sentence(&error)));
        }
    }
    mistakes
}

/// Whether no template could still make it right.
fn is_certain(error: &ValidationError<'_>, arguments: &Value) -> bool {
    let node = arguments.pointer(error.instance_path().as_str());
    match error.kind() {
        // The fields of a map are known whatever their values become.
        ValidationErrorKind::Required { .. } | ValidationErrorKind::AdditionalProperties { .. } => true,
        _ => node.is_some_and(|node| !template::is_template(node)),
    }
}
