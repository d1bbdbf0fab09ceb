//! The gate. Asked before a call is planned and again, with the consent in hand, right before it is made.
//! Policies will speak in [`verdict`] and nowhere else.

use std::fmt::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    journal::{Intent, RunState, Stage, StepKey},
    kernel::{Error, Result},
};

/// What the gate says of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be made.
    Allow,
    /// Somebody has to consent first.
    Hold,
    /// It may not be made, for this reason.
    Forbid(String),
}

/// Judges the call that `step` is about to make. Fails closed: consent counts for exactly the call it was
/// given for.
#[must_use]
pub fn verdict(state: &RunState, step: &StepKey, intent: &Intent) -> Verdict {
    if !state.is_advancing() {
        return Verdict::Forbid("the run is ending".to_owned());
    }
    match state.stage(step) {
        Some(Stage::Cleared { digest, .. }) if *digest == intent.digest => Verdict::Allow,
        // A repetition of a call that passed the gate before the process that made it died.
        Some(Stage::Running { arguments, .. }) if *arguments == intent.arguments => Verdict::Allow,
        Some(Stage::Cleared { .. } | Stage::Running { .. }) => Verdict::Hold,
        _ if state.terms(step).is_some() => Verdict::Hold,
        _ => Verdict::Allow,
    }
}

/// `sha256:` over the RFC 8785 form of tool, version, arguments, run, step, attempt and tenant: what a
/// person consents to, and nothing else.
///
/// # Errors
/// When the arguments have no canonical form (a number outside IEEE 754).
pub fn digest(
    state: &RunState,
    step: &StepKey,
    attempt: u32,
    (tool, version): (&str, &str),
    arguments: &Value,
) -> Result<String> {
    let call = json!({
        "tool": tool,
        "toolVersion": version,
        "arguments": arguments,
        "tenantId": state.tenant_id,
        "runId": state.run_id,
        "stepId": step,
        "attempt": attempt,
    });
    let canonical = serde_json_canonicalizer::to_vec(&call).map_err(Error::internal)?;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(&canonical) {
        write!(text, "{byte:02x}").map_err(Error::internal)?;
    }
    Ok(text)
}
