//! What a user hands over on the command line: values, files, ids.

use std::{fs, path::Path, str::FromStr};

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

use super::failure::{Failure, Result};
use crate::kernel::Error;

/// `key=value`; the value is JSON where it parses as JSON, else a string.
pub(super) fn pair(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), loose(value))),
        _ => Err("write key=value".to_owned()),
    }
}

fn loose(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// JSON, or `@FILE` with JSON in it.
pub(super) fn json(text: &str) -> Result<Value, String> {
    let read = match text.strip_prefix('@') {
        Some(path) => fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?,
        None => text.to_owned(),
    };
    serde_json::from_str(&read).map_err(|e| format!("no JSON: {e}"))
}

/// An id of one kind.
pub(super) fn id<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: Error| e.detail().to_owned())
}

/// The input of a run: the file's object first, single values over it.
pub(super) fn merged(file: Option<&Path>, pairs: &[(String, Value)]) -> Result<Map<String, Value>> {
    let mut input = match file {
        None => Map::new(),
        Some(path) => match document(path)?.value {
            Value::Object(object) => object,
            _ => return Err(Failure::Usage(format!("{}: the input is an object", path.display()))),
        },
    };
    input.extend(pairs.iter().cloned());
    Ok(input)
}

/// A YAML or JSON file.
#[derive(Debug)]
pub(super) struct Document {
    /// As it is on disk; the server gets exactly this.
    pub(super) source: Vec<u8>,
    pub(super) media_type: &'static str,
    pub(super) value: Value,
}

impl Document {
    /// Its `name`, for a workflow definition that has one.
    pub(super) fn name(&self) -> Option<&str> {
        self.value.get("name")?.as_str()
    }
}

/// Reads a file.
pub(super) fn document(path: &Path) -> Result<Document> {
    let wrong = |cause: String| Failure::Usage(format!("{}: {cause}", path.display()));
    let source = fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let text = std::str::from_utf8(&source).map_err(|e| wrong(format!("not UTF-8: {e}")))?;
    let (media_type, value) = if path.extension().is_some_and(|extension| extension == "json") {
        ("application/json", serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?)
    } else {
        ("application/yaml", yaml(text).map_err(wrong)?)
    };
    Ok(Document { media_type, value, source })
}

fn yaml(text: &str) -> Result<Value, String> {
    match Yaml::load_from_str(text).map_err(|e| e.to_string())?.as_slice() {
        [document] => {
            from_yaml(document).ok_or_else(|| "it has a key, a tag or a number that JSON does not know".to_owned())
        }
        documents => Err(format!("one document is wanted, {} are there", documents.len())),
    }
}

fn from_yaml(node: &Yaml) -> Option<Value> {
    Some(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => Value::Bool(*value),
        Yaml::Value(Scalar::Integer(value)) => Value::from(*value),
        Yaml::Value(Scalar::FloatingPoint(value)) => Value::Number(serde_json::Number::from_f64(value.0)?),
        Yaml::Value(Scalar::String(value)) => Value::String(value.to_string()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(from_yaml).collect::<Option<_>>()?),
        Yaml::Mapping(fields) => {
            let field = |(key, value): (&Yaml, &Yaml)| Some((key.as_str()?.to_owned(), from_yaml(value)?));
            Value::Object(fields.iter().map(field).collect::<Option<_>>()?)
        }
        Yaml::Representation(..) | Yaml::Tagged(..) | Yaml::Alias(_) | Yaml::BadValue => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_json_where_it_can_be() {
        assert_eq!(pair("n=3"), Ok(("n".to_owned(), json!(3))));
        assert_eq!(pair("name=acme"), Ok(("name".to_owned(), json!("acme"))));
        assert_eq!(pair("url=https://x/?a=b"), Ok(("url".to_owned(), json!("https://x/?a=b"))));
        assert_eq!(pair("list=[1, true]"), Ok(("list".to_owned(), json!([1, true]))));
        assert!(pair("alone").is_err() && pair("=x").is_err());
    }

    #[test]
    fn yaml_becomes_the_json_it_means() {
        let text = "name: crm-sync\nsteps:\n  - id: a\n    with: { n: 1, x: 0.5, on: true, text: '1', none: null }\n";
        let with = json!({"n": 1, "x": 0.5, "on": true, "text": "1", "none": null});
        assert_eq!(yaml(text), Ok(json!({"name": "crm-sync", "steps": [{"id": "a", "with": with}]})));
        assert!(yaml("a: 1\n---\nb: 2\n").is_err());
        assert!(yaml("1: no\n").is_err());
    }
}
