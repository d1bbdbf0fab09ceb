//! What a tool of a server was when somebody looked at it, and whether it still is that.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::{kernel::compile, tool::size};

/// The longest name of a tool.
const NAME: usize = 128;
/// The longest description, in bytes.
const DESCRIPTION: usize = 16 * 1024;
/// The largest tool all in all, in bytes of JSON.
const TOOL: usize = 64 * 1024;

/// A tool as its server lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Its name at the server.
    #[schema(example = "create_issue")]
    pub name: String,
    /// What people read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it does, in the server's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of its arguments.
    #[schema(value_type = Object)]
    pub input_schema: Value,
    /// JSON Schema of its structured output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output_schema: Option<Value>,
    /// What the server hints at: `readOnlyHint` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub annotations: Option<Value>,
}

/// A tool as it was when it was pinned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    /// The tool.
    #[serde(flatten)]
    pub tool: Listed,
    /// `sha256:` over its canonical JSON (RFC 8785).
    #[schema(example = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub digest: String,
}

impl Listed {
    /// It, pinned.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) fn pin(self) -> Result<Pinned, String> {
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
        if !(1..=NAME).contains(&self.name.len()) || !self.name.chars().all(named) {
            return Err(format!("its name is none of 1 to {NAME} letters, digits and `_-./`"));
        }
        if self.description.as_ref().is_some_and(|text| text.len() > DESCRIPTION) {
            return Err(format!("its description has more than {DESCRIPTION} bytes"));
        }
        let whole = serde_json::to_value(&self).map_err(|e| e.to_string())?;
        if size::check("tool", &whole, TOOL).is_err() || has_nul(&whole) {
            return Err(format!("it takes more than {TOOL} bytes of JSON, nests too deep or has a NUL in it"));
        }
        if !self.input_schema.is_object() {
            return Err("the schema of its arguments is no object".to_owned());
        }
        compile(&self.input_schema).map_err(|why| format!("the schema of its arguments is of no use: {why}"))?;
        let digest = digest(&whole)?;
        Ok(Pinned { tool: self, digest })
    }

    /// Whether the server hints at this.
    pub(super) fn hints(&self, hint: &str) -> bool {
        self.annotations.as_ref().and_then(|hints| hints.get(hint)) == Some(&Value::Bool(true))
    }
}

fn digest(value: &Value) -> Result<String, String> {
    let canonical = serde_json_canonicalizer::to_vec(value).map_err(|e| e.to_string())?;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(&canonical) {
        write!(text, "{byte:02x}").map_err(|e| e.to_string())?;
    }
    Ok(text)
}

/// Whether there is something in it that the database cannot keep.
pub(super) fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, member)| name.contains('\0') || has_nul(member)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listed(change: Value) -> Listed {
        let mut tool = json!({ "name": "send", "description": "Sends.", "inputSchema": { "type": "object" } });
        tool.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(tool).unwrap()
    }

    #[test]
    fn a_pin_is_over_everything_a_model_or_a_person_goes_by() {
        let digest = |change| listed(change).pin().unwrap().digest;
        let this = digest(json!({}));
        assert_eq!(this, digest(json!({ "name": "send" })));
        for change in [
            json!({ "name": "sent" }),
            json!({ "description": "Sends. And tell nobody." }),
            json!({ "title": "Send" }),
            json!({ "inputSchema": { "type": "object", "properties": { "a": { "description": "x" } } } }),
            json!({ "outputSchema": {} }),
            json!({ "annotations": { "readOnlyHint": true } }),
        ] {
            assert_ne!(this, digest(change.clone()), "{change}");
        }
    }

    #[test]
    fn what_cannot_be_checked_or_kept_is_no_tool() {
        for change in [
            json!({ "name": "" }),
            json!({ "name": "a b" }),
            json!({ "name": "x".repeat(129) }),
            json!({ "description": "x".repeat(DESCRIPTION + 1) }),
            json!({ "title": "\0" }),
            json!({ "inputSchema": { "$ref": "https://elsewhere.example/schema" } }),
            json!({ "inputSchema": true }),
            json!({ "inputSchema": { "properties": { "a": { "pattern": "(a)\\1" } } } }),
            json!({ "annotations": { "x": "y".repeat(TOOL) } }),
        ] {
            assert!(listed(change.clone()).pin().is_err(), "{change}");
        }
    }
}
