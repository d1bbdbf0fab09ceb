use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

/// Compiles a JSON Schema (2020-12) that somebody wrote: nothing is fetched, and patterns run in linear time.
///
/// # Errors
/// What is wrong with it, where.
pub fn compile(schema: &Value) -> Result<Validator, String> {
    let options = jsonschema::options().with_draft(Draft::Draft202012).offline();
    options.with_pattern_options(PatternOptions::regex()).build(schema).map_err(|e| match e.instance_path().as_str() {
        "" => e.masked().to_string(),
        path => format!("at {path}: {}", e.masked()),
    })
}
