use std::io::{self, Write};

use serde_json::Value;

use super::ToolError;

/// How deep arguments and outputs may nest: well below what a reader of the journal can follow (128).
const DEPTH: usize = 64;

/// How large what goes into and comes out of a tool may be, in bytes of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The rendered arguments; they travel in an event, so they stay below its cap.
    pub arguments: usize,
    /// A step's output.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { arguments: 192 * 1024, output: 1024 * 1024 }
    }
}

impl Limits {
    /// Whether these arguments may be journaled and passed on.
    ///
    /// # Errors
    /// `arguments_too_large` or `arguments_too_deep`.
    pub fn check_arguments(&self, arguments: &Value) -> Result<(), ToolError> {
        check("arguments", arguments, self.arguments)
    }

    /// Whether this output may be journaled.
    ///
    /// # Errors
    /// `output_too_large` or `output_too_deep`.
    pub fn check_output(&self, output: &Value) -> Result<(), ToolError> {
        check("output", output, self.output)
    }
}

fn check(what: &str, value: &Value, limit: usize) -> Result<(), ToolError> {
    if !shallow(value, DEPTH) {
        let message = format!("the {what} nest deeper than {DEPTH} levels");
        return Err(ToolError::failed(&format!("{what}_too_deep"), message));
    }
    if serde_json::to_writer(Budget(limit), value).is_err() {
        let message = format!("the {what} take more than {limit} bytes of JSON");
        return Err(ToolError::failed(&format!("{what}_too_large"), message));
    }
    Ok(())
}

fn shallow(value: &Value, levels: usize) -> bool {
    let Some(left) = levels.checked_sub(1) else { return false };
    match value {
        Value::Array(items) => items.iter().all(|item| shallow(item, left)),
        Value::Object(members) => members.values().all(|member| shallow(member, left)),
        _ => true,
    }
}

/// Counts instead of writing, and gives up at the limit.
struct Budget(usize);

impl Write for Budget {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn code(result: Result<(), ToolError>) -> Option<String> {
        match result {
            Err(ToolError::Failed(failure)) => Some(failure.code),
            _ => None,
        }
    }

    #[test]
    fn the_limit_is_exact() {
        let limits = Limits { arguments: 7, output: 8 };
        let value = json!({"a":"b"});
        assert_eq!(code(limits.check_arguments(&json!("12345"))), None);
        assert_eq!(code(limits.check_arguments(&value)).as_deref(), Some("arguments_too_large"));
        assert_eq!(code(limits.check_output(&value)).as_deref(), Some("output_too_large"));
        assert_eq!(code(Limits { output: 9, ..limits }.check_output(&value)), None);
    }

    #[test]
    fn what_nests_too_deep_is_refused() {
        let nest = |levels: usize| (1..levels).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(code(Limits::default().check_output(&nest(DEPTH))), None);
        assert_eq!(code(Limits::default().check_output(&nest(DEPTH + 1))).as_deref(), Some("output_too_deep"));
    }
}
