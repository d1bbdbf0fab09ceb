//! A tool as providers take it. What a schema says of all arguments together (`oneOf`, `not` …) is refused by OpenAI and
//! Anthropic, and a long description by OpenAI; it is said in words then. Arguments are checked against the whole schema
//! all the same.

use serde_json::{Map, Value, json};

use super::ToolSpec;
use crate::config::Api;

/// What says something of all arguments together. OpenAI: "schema must have type 'object' and not have
/// 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the top level".
const TOGETHER: [&str; 5] = ["oneOf", "anyOf", "allOf", "enum", "not"];

/// The longest description that OpenAI takes, in characters.
const LONGEST: usize = 1024;

/// What a provider is told of a tool.
pub(super) struct Parameters {
    /// With what the description has no room for as its own.
    pub(super) schema: Value,
    pub(super) description: String,
}

impl Parameters {
    /// As those who speak that protocol take it.
    pub(super) fn of(tool: &ToolSpec, api: Api) -> Self {
        let (mut schema, together) = apart(&tool.arguments);
        let mut description = tool.description.clone();
        if !together.is_empty() {
            description.push_str(&format!(" Of its arguments together this holds: {}", Value::Object(together)));
        }
        let most = match api {
            Api::Openai | Api::OpenaiResponses => LONGEST,
            Api::Anthropic | Api::Gemini => usize::MAX,
        };
        let end = description.char_indices().nth(most).map(|(end, _)| end);
        if let Some(more) = end.map(|end| description.split_off(end)) {
            let own =
                schema.get("description").and_then(Value::as_str).map(|own| format!("\n{own}")).unwrap_or_default();
            schema.insert("description".to_owned(), format!("…{more}{own}").into());
        }
        Self { schema: Value::Object(schema), description }
    }
}

/// A schema of an object with each property that it names anywhere at its top, and what it says of all of them together.
fn apart(schema: &Value) -> (Map<String, Value>, Map<String, Value>) {
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    let together: Map<_, _> = TOGETHER.iter().filter_map(|word| schema.remove_entry(*word)).collect();
    let mut properties = match schema.remove("properties") {
        Some(Value::Object(properties)) => properties,
        _ => Map::new(),
    };
    let alternatives = together.values().filter_map(Value::as_array).flatten();
    for (name, described) in alternatives.filter_map(|one| one.get("properties")?.as_object()).flatten() {
        properties.entry(name).or_insert_with(|| described.clone());
    }
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), Value::Object(properties));
    (schema, together)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn told(arguments: Value, description: &str, api: Api) -> Parameters {
        let (name, description) = ("wait".to_owned(), description.to_owned());
        Parameters::of(&ToolSpec { name, description, arguments: Arc::new(arguments) }, api)
    }

    #[test]
    fn what_holds_of_all_arguments_together_is_said_in_words() {
        let plain = json!({ "type": "object", "properties": { "for": { "type": "string" } }, "required": ["for"] });
        let same = told(plain.clone(), "Waits.", Api::Openai);
        assert_eq!((&same.schema, &*same.description), (&plain, "Waits."));
        let either = json!({
            "oneOf": [{ "required": ["for"] }, { "required": ["until"], "properties": { "until": { "type": "string" } } }],
            "properties": { "for": { "type": "string" } },
        });
        let apart = told(either, "Waits.", Api::Openai);
        let properties = json!({ "for": { "type": "string" }, "until": { "type": "string" } });
        assert_eq!(apart.schema, json!({ "type": "object", "properties": properties }));
        assert!(apart.description.starts_with("Waits. Of its arguments together this holds: {\"oneOf\":[{"));
        assert_eq!(told(json!(true), "", Api::Gemini).schema, json!({ "type": "object", "properties": {} }));
    }

    #[test]
    fn what_is_too_long_for_a_description_is_said_with_the_schema() {
        let long = format!("{}end", "ü".repeat(LONGEST));
        let cut = told(json!({ "description": "Of its arguments." }), &long, Api::OpenaiResponses);
        assert_eq!(cut.description.chars().count(), LONGEST);
        assert_eq!(cut.schema["description"], "…end\nOf its arguments.");
        assert_eq!(told(json!({}), &long, Api::Anthropic).description, long);
    }
}
