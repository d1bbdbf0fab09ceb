//! What a tool gave, as a step's output: the server's words, cut to size, and nothing that anybody here believes.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use serde_json::{Map, Value, json};

use super::fault;
use crate::tool::{ToolError, sealed::Sealed, size};

/// What the frame around texts and parts may take.
const FRAME: usize = 4 * 1024;
/// Parts that are kept; a server may send as many as it likes.
const PARTS: usize = 100;

/// JSON Schema of the output.
pub(super) fn schema() -> Value {
    json!({
        "type": "object",
        "required": ["text"],
        "properties": {
            "text": { "type": "string", "description": "What the server says, its texts joined by new lines." },
            "structured": { "description": "The same for a program, where the server gives it." },
            "parts": {
                "type": "array",
                "description": "What is no text: images, audio, resources and links to them.",
                "items": { "type": "object", "required": ["type"], "properties": { "type": { "type": "string" } } }
            },
            "truncated": { "type": "boolean", "description": "Something was left out because it was too large." }
        }
    })
}

/// The output of a call within so many bytes.
///
/// # Errors
/// `mcp_error` with the server's words, where it says that the call failed.
pub(super) fn output(
    (server, sealed): (&str, &Sealed),
    result: CallToolResult,
    limit: usize,
) -> Result<Value, ToolError> {
    let mut left = Budget { left: limit.saturating_sub(FRAME), cut: false };
    let failed = result.is_error == Some(true);
    // Hidden before anything is cut: half a key would be found no more.
    let structured = result.structured_content.map(|mut value| {
        sealed.hide(&mut value);
        clean(value)
    });
    let structured = structured.filter(|value| left.take(value));
    let (mut texts, mut parts) = (Vec::new(), Vec::new());
    for block in result.content {
        match block {
            ContentBlock::Text(text) => texts.push(sealed.without(&text.text).into_owned()),
            _ if parts.len() == PARTS => left.cut = true,
            other => parts.push(hidden(part(other), sealed)),
        }
    }
    // That there is something is said before what there is.
    parts.retain(|(told, _)| left.take(told));
    let text = left.text(&texts.join("\n").replace('\0', "\u{fffd}"));
    if failed {
        let said = if text.is_empty() { "it gives no reason".to_owned() } else { fault::excerpt(&text) };
        return Err(ToolError::failed("mcp_error", format!("MCP server `{server}`: {said}")));
    }
    let parts: Vec<Value> = parts.into_iter().map(|(told, content)| left.whole(told, content)).collect();
    let mut output = Map::from_iter([("text".to_owned(), Value::String(text))]);
    output.extend(structured.map(|value| ("structured".to_owned(), value)));
    output.extend((!parts.is_empty()).then(|| ("parts".to_owned(), Value::Array(parts))));
    output.extend(left.cut.then(|| ("truncated".to_owned(), Value::Bool(true))));
    Ok(Value::Object(output))
}

/// The field of a part that is large, with what is in it.
type Content = Option<(&'static str, String)>;

/// What a part is, and apart from that its content.
fn part(block: ContentBlock) -> (Value, Content) {
    let (told, content) = match block {
        ContentBlock::Image(it) => (json!({ "type": "image", "mimeType": it.mime_type }), Some(("data", it.data))),
        ContentBlock::Audio(it) => (json!({ "type": "audio", "mimeType": it.mime_type }), Some(("data", it.data))),
        ContentBlock::Resource(embedded) => match embedded.resource {
            ResourceContents::TextResourceContents { uri, mime_type, text, .. } => {
                (json!({ "type": "resource", "uri": uri, "mimeType": mime_type }), Some(("text", text)))
            }
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                (json!({ "type": "resource", "uri": uri, "mimeType": mime_type }), Some(("data", blob)))
            }
            _ => (json!({ "type": "resource" }), None),
        },
        ContentBlock::ResourceLink(link) => {
            let told =
                json!({ "type": "resource_link", "uri": link.uri, "name": link.name, "mimeType": link.mime_type });
            (told, None)
        }
        _ => (json!({ "type": "unknown" }), None),
    };
    (clean(told), content.map(|(field, text)| (field, text.replace('\0', "\u{fffd}"))))
}

fn hidden((mut told, content): (Value, Content), sealed: &Sealed) -> (Value, Content) {
    sealed.hide(&mut told);
    (told, content.map(|(field, text)| (field, sealed.without(&text).into_owned())))
}

/// What may still go into the output.
struct Budget {
    left: usize,
    cut: bool,
}

impl Budget {
    /// Whether there is room for the value.
    fn take(&mut self, value: &Value) -> bool {
        // Shallower than an output may be, since it goes into one.
        let fits = size::check("part", &json!([[value]]), self.left).is_ok();
        match serde_json::to_vec(value) {
            Ok(bytes) if fits => self.left = self.left.saturating_sub(bytes.len() + 1),
            _ => self.cut = true,
        }
        fits
    }

    /// As much of the text as there is room for.
    fn text(&mut self, text: &str) -> String {
        let mut end = 0;
        for (at, letter) in text.char_indices() {
            // As JSON writes it.
            let bytes = match letter {
                '"' | '\\' | '\n' | '\r' | '\t' => 2,
                '\u{0}'..='\u{1f}' => 6,
                other => other.len_utf8(),
            };
            let Some(left) = self.left.checked_sub(bytes) else {
                self.cut = true;
                break;
            };
            (self.left, end) = (left, at + letter.len_utf8());
        }
        text.get(..end).unwrap_or_default().to_owned()
    }

    /// The part with its content, where there is room for that, and else with its size.
    fn whole(&mut self, mut told: Value, content: Content) -> Value {
        if let (Some(fields), Some((field, text))) = (told.as_object_mut(), content) {
            let (bytes, text) = (text.len(), Value::String(text));
            match self.take(&text) {
                true => fields.insert(field.to_owned(), text),
                false => fields.insert("omittedBytes".to_owned(), json!(bytes)),
            };
        }
        told
    }
}

/// The value without what the database cannot keep.
fn clean(value: Value) -> Value {
    match value {
        Value::String(text) if text.contains('\0') => Value::String(text.replace('\0', "\u{fffd}")),
        Value::Array(items) => items.into_iter().map(clean).collect(),
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, member)| (name.replace('\0', "\u{fffd}"), clean(member)));
            Value::Object(members.collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(value: Value) -> CallToolResult {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn texts_are_joined_and_the_rest_is_told_by_its_kind() {
        let given = output(
            ("s", &Sealed::default()),
            result(json!({
                "content": [
                    { "type": "text", "text": "one" },
                    { "type": "image", "data": "aGk=", "mimeType": "image/png" },
                    { "type": "resource", "resource": { "uri": "file:///a", "text": "inside\u{0}" } },
                    { "type": "resource_link", "uri": "file:///b", "name": "b" },
                    { "type": "text", "text": "two\u{0}" },
                ],
                "structuredContent": { "n": 1 },
            })),
            64 * 1024,
        )
        .unwrap();
        assert_eq!(given["text"], "one\ntwo\u{fffd}");
        assert_eq!(given["structured"], json!({ "n": 1 }));
        let kinds: Vec<_> = given["parts"].as_array().unwrap().iter().map(|part| part["type"].clone()).collect();
        assert_eq!(kinds, ["image", "resource", "resource_link"]);
        assert_eq!(
            (&given["parts"][0]["data"], &given["parts"][1]["text"]),
            (&json!("aGk="), &json!("inside\u{fffd}"))
        );
        assert_eq!(given.get("truncated"), None);
    }

    #[test]
    fn an_output_is_cut_to_size_whatever_is_in_it() {
        for letter in ["x", "ü", "\u{1}", "\"", "😀"] {
            let content = json!([
                { "type": "text", "text": letter.repeat(20_000) },
                { "type": "image", "data": "A".repeat(20_000), "mimeType": "image/png" },
            ]);
            for limit in [FRAME + 10, 10_000, 23_000] {
                let given = output(("s", &Sealed::default()), result(json!({ "content": content })), limit).unwrap();
                assert!(size::check("output", &given, limit).is_ok(), "{letter} {limit}");
                assert_eq!(given["truncated"], true);
            }
        }
    }

    #[test]
    fn a_failure_has_the_servers_words() {
        let said = json!({ "content": [{ "type": "text", "text": "no such order" }], "isError": true });
        match output(("shop", &Sealed::default()), result(said), 64 * 1024) {
            Err(ToolError::Failed(failure)) => {
                assert_eq!(failure.code, "mcp_error");
                assert!(failure.message.contains("`shop`: no such order"), "{}", failure.message);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_that_is_said_back_is_hidden_before_anything_is_cut() {
        let key = "sk-tenant-0123456789";
        let sealed = Sealed::new([key]);
        let said = json!({
            "content": [
                { "type": "text", "text": format!("you sent {key}") },
                { "type": "resource", "resource": { "uri": format!("file:///{key}"), "text": format!("in {key}") } },
            ],
            "structuredContent": { key: [key] },
        });
        let given = output(("s", &sealed), result(said), 64 * 1024).unwrap().to_string();
        assert!(!given.contains(key) && given.matches("[sealed key]").count() == 5, "{given}");
        for room in 0..60 {
            let text = json!({ "content": [{ "type": "text", "text": format!("{key}{}", "x".repeat(100)) }] });
            let given = output(("s", &sealed), result(text), FRAME + room).unwrap().to_string();
            assert!(!given.contains("sk-"), "{given}");
        }
    }
}
