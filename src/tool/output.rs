use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Handed, Outcome, Tool, ToolError};
use crate::journal::{Effect, Stage, StepKey};

/// The tool that reads parts of what steps gave.
pub const OUTPUT_READ: &str = "output.read";

/// Bytes of a part: where none are asked for, and at most. With its head a part is still shown to a model whole.
const USUAL: usize = 8_000;
const MOST: usize = 32_000;

/// `output.read`: a part of what an earlier step of the same run gave.
#[derive(Debug)]
pub(super) struct OutputRead;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Arguments {
    step: String,
    pointer: Option<String>,
    offset: Option<usize>,
    length: Option<usize>,
}

#[async_trait]
impl Tool for OutputRead {
    fn name(&self) -> &str {
        OUTPUT_READ
    }

    fn description(&self) -> &str {
        "Reads a part of what an earlier step of this run gave, where it was too large to be shown whole."
    }

    fn arguments(&self) -> Value {
        json!({
            "type": "object",
            "required": ["step"],
            "additionalProperties": false,
            "properties": {
                "step": { "type": "string", "description": "The step, such as `call-1-2`." },
                "pointer": { "type": "string", "description": "JSON pointer to the part of a JSON output that is meant, such as `/items/0`; the whole when absent." },
                "offset": { "type": "integer", "minimum": 0, "description": "The byte to begin at; 0 when absent." },
                "length": { "type": "integer", "minimum": 1, "maximum": MOST, "description": format!("The most bytes to read; {USUAL} when absent.") }
            }
        })
    }

    fn output(&self) -> Value {
        json!({ "type": "string", "description": "Which bytes these are, in brackets on a line of its own, and then the part." })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Pure
    }

    fn at_once(&self) -> bool {
        true
    }

    fn reads(&self, arguments: &Value) -> Option<StepKey> {
        arguments.get("step")?.as_str()?.parse().ok()
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let Arguments { step, pointer, offset, length } = call.read()?;
        let refuse = |code, why: &str| Err(ToolError::failed(code, format!("the step `{step}` {why}")));
        let output = match &call.handed {
            Handed::Stage(Stage::Completed { output }) => output.as_deref().unwrap_or(&Value::Null),
            Handed::Stage(Stage::Failed { .. } | Stage::Skipped { .. }) => return refuse("no_output", "gave nothing"),
            Handed::Stage(_) => return refuse("not_ended", "has not ended"),
            _ => return refuse("unknown_step", "is none of this run that has begun"),
        };
        let Some(meant) = output.pointer(pointer.as_deref().unwrap_or_default()) else {
            return refuse("unknown_pointer", "has nothing there in its output");
        };
        let text = text(meant);
        let (all, offset) = (text.len(), offset.unwrap_or_default());
        if offset > all || (offset == all && all > 0) {
            return refuse("beyond_the_end", &format!("has {all} bytes there"));
        }
        let (from, to) = bounds(&text, offset, length.unwrap_or(USUAL).min(MOST));
        let part = text.get(from..to).unwrap_or_default();
        Ok(Outcome::done(Value::String(format!("[bytes {from} to {to} of {all}]\n{part}"))))
    }
}

/// An output as it is shown to a model and read in parts.
pub fn text(output: &Value) -> String {
    match output {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// From the letter that has the byte to the end of the letter that has the last: whoever goes on at the end misses nothing
/// and gets on.
fn bounds(text: &str, offset: usize, length: usize) -> (usize, usize) {
    let from = text.floor_char_boundary(offset);
    (from, text.ceil_char_boundary(from.saturating_add(length)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::DateTime;
    use proptest::prelude::*;

    use super::*;
    use crate::journal::Failure;

    fn read(handed: Handed, arguments: Value) -> Result<String, String> {
        let call = Call { handed, ..crate::tool::tests::call(arguments) };
        match futures_util::FutureExt::now_or_never(OutputRead.call(call)).unwrap() {
            Ok(Outcome::Done { output: Value::String(text), .. }) => Ok(text),
            Err(ToolError::Failed(failure)) => Err(failure.code),
            other => panic!("{other:?}"),
        }
    }

    fn gave(output: Value) -> Handed {
        Handed::Stage(Stage::Completed { output: Some(Arc::new(output)) })
    }

    #[test]
    fn a_part_is_of_the_text_of_what_is_meant() {
        let output = json!({ "items": [{ "name": "Ärger" }, 7], "a/b": null });
        for (arguments, part) in [
            (json!({ "step": "s", "pointer": "/items/0/name" }), "[bytes 0 to 6 of 6]\nÄrger"),
            (json!({ "step": "s", "pointer": "/items/0/name", "offset": 1, "length": 1 }), "[bytes 0 to 2 of 6]\nÄ"),
            (json!({ "step": "s", "pointer": "/items/0/name", "offset": 2 }), "[bytes 2 to 6 of 6]\nrger"),
            (json!({ "step": "s", "pointer": "/items" }), "[bytes 0 to 21 of 21]\n[{\"name\":\"Ärger\"},7]"),
            (json!({ "step": "s", "pointer": "/a~1b" }), "[bytes 0 to 4 of 4]\nnull"),
        ] {
            assert_eq!(read(gave(output.clone()), arguments.clone()).as_deref(), Ok(part), "{arguments}");
        }
        assert_eq!(read(gave(json!("")), json!({ "step": "s" })).as_deref(), Ok("[bytes 0 to 0 of 0]\n"));
        let much = read(gave(json!("x".repeat(100_000))), json!({ "step": "s" })).unwrap();
        assert!(much.starts_with("[bytes 0 to 8000 of 100000]\n") && much.len() < 8100);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let failed = Stage::Failed { error: Failure::new("x", "y"), continued: true, unknown: None };
        let retrying = Stage::Retrying { at: DateTime::UNIX_EPOCH };
        let step = json!({ "step": "s" });
        for (handed, arguments, code) in [
            (Handed::Nothing, step.clone(), "unknown_step"),
            (Handed::Stage(failed), step.clone(), "no_output"),
            (Handed::Stage(retrying), step, "not_ended"),
            (gave(json!({ "a": 1 })), json!({ "step": "s", "pointer": "/b" }), "unknown_pointer"),
            (gave(json!("text")), json!({ "step": "s", "pointer": "/b" }), "unknown_pointer"),
            (gave(json!("text")), json!({ "step": "s", "offset": 4 }), "beyond_the_end"),
            (gave(json!("")), json!({ "step": "s", "offset": 1 }), "beyond_the_end"),
        ] {
            assert_eq!(read(handed, arguments.clone()), Err(code.to_owned()), "{arguments}");
        }
        assert_eq!(OutputRead.reads(&json!({ "step": "run_1/s" })), None, "no step of another run has a name here");
    }

    proptest! {
        #[test]
        fn reading_on_reads_all_once(text in "\\PC{1,60}", length in 1_usize..20) {
            let (mut at, mut whole) = (0, String::new());
            while at < text.len() {
                let (from, to) = bounds(&text, at, length);
                prop_assert!(from == at && to > at);
                whole.push_str(&text[from..to]);
                at = to;
            }
            prop_assert_eq!(whole, text);
        }
    }
}
