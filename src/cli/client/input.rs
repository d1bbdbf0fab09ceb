//! What a user hands over on the command line: values, files, ids.

use std::{fs, path::Path, str::FromStr};

use serde_json::{Map, Value};

use super::failure::{Failure, Result};
use crate::{
    kernel::Error,
    run::definition::{Media, read},
};

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
    pub(super) media: Media,
    pub(super) value: Value,
}

impl Document {
    /// Its `name`, for a workflow definition that has one.
    pub(super) fn name(&self) -> Option<&str> {
        self.value.get("name")?.as_str()
    }
}

/// Reads a file, as the server would.
pub(super) fn document(path: &Path) -> Result<Document> {
    let wrong = |cause: String| Failure::Usage(format!("{}: {cause}", path.display()));
    let source = fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let media = if path.extension().is_some_and(|extension| extension == "json") { Media::Json } else { Media::Yaml };
    let value = read(&source, media).map_err(|mistake| wrong(mistake.sentence()))?;
    Ok(Document { source, media, value })
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
    fn single_values_go_over_the_file() {
        let path = std::env::temp_dir().join(format!("fermata-input-{}.yaml", std::process::id()));
        fs::write(&path, "account: acme\nlimits: { most: 3 }\n").unwrap();
        let input = merged(Some(&path), &[("account".to_owned(), json!("other"))]).unwrap();
        assert_eq!(Value::Object(input), json!({"account": "other", "limits": {"most": 3}}));
        fs::write(&path, "- a list\n").unwrap();
        assert!(matches!(merged(Some(&path), &[]), Err(Failure::Usage(_))));
        fs::remove_file(&path).unwrap();
    }
}
