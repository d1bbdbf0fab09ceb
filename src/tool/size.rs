use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

use super::ToolError;

/// How deep arguments and outputs may nest: well below what a reader of the journal can follow (128).
const DEPTH: usize = 64;

/// Whether `value` may be journaled and passed on: at most `limit` bytes of JSON, and not too deep.
///
/// # Errors
/// `<what>_too_large` or `<what>_too_deep`.
pub(super) fn check(what: &str, value: &Value, limit: usize) -> Result<(), ToolError> {
    if !shallow(value, DEPTH) {
        let message = format!("the {what} nests deeper than {DEPTH} levels");
        return Err(ToolError::failed(&format!("{what}_too_deep"), message));
    }
    if !fits(value, limit) {
        let message = format!("the {what} takes more than {limit} bytes of JSON");
        return Err(ToolError::failed(&format!("{what}_too_large"), message));
    }
    Ok(())
}

/// Whether `value` takes at most `limit` bytes of JSON.
pub fn fits(value: &impl Serialize, limit: usize) -> bool {
    serde_json::to_writer(Budget(limit), value).is_ok()
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
        let value = json!({"a":"b"});
        assert_eq!(code(check("output", &value, 9)), None);
        assert_eq!(code(check("output", &value, 8)).as_deref(), Some("output_too_large"));
    }

    #[test]
    fn what_nests_too_deep_is_refused() {
        let nest = |levels: usize| (1..levels).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(code(check("input", &nest(DEPTH), 1000)), None);
        assert_eq!(code(check("input", &nest(DEPTH + 1), 1000)).as_deref(), Some("input_too_deep"));
    }
}
