//! Every answer a test gets is held against the API's own description.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use jsonschema::Validator;
use serde_json::{Value, json};

use super::Answer;

/// The API's description, as the server serves it.
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        // The database it describes itself with wants a runtime, which it never uses.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let entered = runtime.enter();
        let document = serde_json::to_value(fermata::app::openapi().unwrap()).unwrap();
        drop(entered);
        runtime.shutdown_background();
        document
    });
    &DOCUMENT
}

/// Refuses an answer to a path (without its query) that the description does not promise. Paths it does not have are
/// nobody's promise.
pub fn check(method: &str, path: &str, answer: &Answer) {
    let path = path.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path);
    let Some((template, item)) = find(path) else { return };
    let Some(operation) = item.get(method.to_ascii_lowercase()) else { return };
    let to = format!("{method} {template} → {}", answer.status);
    let status = answer.status.to_string();
    let Some(response) = operation["responses"].get(&status) else {
        panic!("{to} is not in the description: {}", answer.text());
    };
    let response = match response["$ref"].as_str() {
        Some(reference) => document().pointer(&reference[1..]).unwrap(),
        None => response,
    };
    assert!(answer.header("x-request-id").is_some() && answer.header("traceparent").is_some(), "{to}");
    let Some(kind) = answer.header("content-type").map(|kind| kind.split(';').next().unwrap_or_default()) else {
        assert!(answer.body.is_empty(), "{to} has a body without a type");
        return;
    };
    if kind == "application/problem+json" {
        return assert_fits(&format!("{to} (problem)"), &json!({ "$ref": "#/components/schemas/Problem" }), answer);
    }
    let described = response["content"].as_object().into_iter().flatten();
    let mut described = described.filter(|(name, _)| name.split(';').next() == Some(kind));
    let Some((_, content)) = described.next() else { panic!("{to} as {kind} is not in the description") };
    if kind.ends_with("json") && content["schema"].is_object() {
        assert_fits(&format!("{to} ({kind})"), &content["schema"], answer);
    }
}

/// The path's template; where several fit, the one with the fewest parameters.
fn find(path: &str) -> Option<(&'static String, &'static Value)> {
    let fits = |template: &str| {
        let (mut wanted, mut given) = (template.split('/'), path.split('/'));
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return true,
                (Some(part), Some(text)) if part.starts_with('{') || part == text => {}
                _ => return false,
            }
        }
    };
    let paths = document()["paths"].as_object()?;
    paths.iter().filter(|(template, _)| fits(template)).min_by_key(|(template, _)| template.matches('{').count())
}

fn assert_fits(to: &str, schema: &Value, answer: &Answer) {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{to}: {error}"));
    let faults = faults(schema, &body);
    assert!(faults.is_empty(), "{to} does not fit its schema: {faults:#?}\n{body:#}");
}

/// What in `value` does not fit `schema`, which may refer to the description's components.
pub fn faults(schema: &Value, value: &Value) -> Vec<String> {
    static VALIDATORS: Mutex<Option<HashMap<String, Arc<Validator>>>> = Mutex::new(None);
    let validator = {
        let mut known = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default().entry(schema.to_string());
        Arc::clone(known.or_insert_with(|| Arc::new(compile(schema))))
    };
    validator.iter_errors(value).map(|fault| format!("{}: {fault}", fault.instance_path())).collect()
}

fn compile(schema: &Value) -> Validator {
    let mut whole = schema.clone();
    whole["components"] = document()["components"].clone();
    jsonschema::draft202012::new(&whole).unwrap()
}
