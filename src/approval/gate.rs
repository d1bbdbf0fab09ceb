//! The gate. Asked before a call is planned and again, with the consent in hand, right before it is made.
//! Policies will speak in [`verdict`] and nowhere else.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, value::RawValue};
use sha2::{Digest, Sha256};

use crate::{
    journal::{AGENT_HANDOFF, Intent, RunState, Stage, StepKey, call_of, turn_id, turn_of},
    kernel::{Error, Result, RunId, TenantId},
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
    if let Some(reason) = beyond(state, step, intent) {
        return Verdict::Forbid(reason);
    }
    let asks = state.terms(step).is_some();
    match state.stage(step) {
        Some(Stage::Cleared { digest, .. }) if *digest == intent.digest => Verdict::Allow,
        // A repetition of a call that passed the gate before the process that made it died.
        Some(Stage::Running { tool_version, arguments, .. })
            if *arguments == intent.arguments && (*tool_version == intent.tool_version || !asks) =>
        {
            Verdict::Allow
        }
        Some(Stage::Cleared { .. } | Stage::Running { .. }) => Verdict::Hold,
        _ if asks => Verdict::Hold,
        _ => Verdict::Allow,
    }
}

/// Why an agent may not make the call, whatever its model says: it was not given the tool, or may not hand over.
fn beyond(state: &RunState, key: &StepKey, intent: &Intent) -> Option<String> {
    state.plan.as_ref()?.agent.as_ref()?;
    let step = state.step(key)?;
    // Turns are the engine's own; everything else is what the model of one of them wants.
    if turn_of(step).is_some() {
        return None;
    }
    let agent = state.agent_of(step);
    if intent.tool != AGENT_HANDOFF {
        let given = agent.is_some_and(|agent| agent.may_call(&intent.tool));
        return (!given).then(|| format!("the agent was not given the tool `{}`", intent.tool));
    }
    let to = intent.arguments.get("agent").and_then(Value::as_str).unwrap_or_default();
    if !agent.is_some_and(|agent| agent.handoffs.iter().any(|handoff| handoff == to)) {
        return Some(format!("the agent may not hand over to `{to}`"));
    }
    let next = call_of(step).and_then(|turn| state.step(&StepKey::whole(&turn_id(turn + 1))));
    let next = next.and_then(|turn| state.agent_of(turn)).map_or("nobody", |agent| &agent.agent);
    (next != to).then(|| format!("the conversation goes to `{next}`, and only to one agent at once"))
}

/// What a digest is over. Its members stand in the order of RFC 8785, which leaves only the arguments to be sorted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Call<'a> {
    arguments: &'a RawValue,
    attempt: u32,
    run_id: RunId,
    step_id: &'a StepKey,
    tenant_id: TenantId,
    tool: &'a str,
    tool_version: &'a str,
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
    let (tenant_id, run_id) = (state.tenant_id, state.run_id);
    let arguments = serde_json_canonicalizer::to_string(arguments).map_err(Error::internal)?;
    let arguments = &*RawValue::from_string(arguments).map_err(Error::internal)?;
    let call = Call { arguments, attempt, run_id, step_id: step, tenant_id, tool, tool_version: version };
    let canonical = serde_json::to_vec(&call).map_err(Error::internal)?;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(&canonical) {
        write!(text, "{byte:02x}").map_err(Error::internal)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::json;

    use super::*;
    use crate::{
        journal::OnDenied,
        kernel::{Actor, Id},
    };

    fn a_run() -> RunState {
        let now = DateTime::UNIX_EPOCH;
        RunState::new(Id::new(now), Id::new(now), Actor::System, OnDenied::Fail)
    }

    #[test]
    fn a_digest_is_over_every_part_of_the_call() {
        let run = a_run();
        let (step, arguments) = (StepKey::item("sync", 1), json!({ "a": 1 }));
        let digest_of = |run: &RunState, step: &StepKey, attempt, tool, arguments: &Value| {
            digest(run, step, attempt, tool, arguments).unwrap()
        };
        let this = digest_of(&run, &step, 1, ("crm.sync", "1"), &arguments);
        assert_eq!(this.len(), "sha256:".len() + 64);
        let mut other_run = run.clone();
        other_run.run_id = a_run().run_id;
        let mut other_tenant = run.clone();
        other_tenant.tenant_id = a_run().tenant_id;
        let others = [
            digest_of(&other_run, &step, 1, ("crm.sync", "1"), &arguments),
            digest_of(&other_tenant, &step, 1, ("crm.sync", "1"), &arguments),
            digest_of(&run, &StepKey::item("sync", 2), 1, ("crm.sync", "1"), &arguments),
            digest_of(&run, &StepKey::whole("sync"), 1, ("crm.sync", "1"), &arguments),
            digest_of(&run, &step, 2, ("crm.sync", "1"), &arguments),
            digest_of(&run, &step, 1, ("crm.sink", "1"), &arguments),
            digest_of(&run, &step, 1, ("crm.sync", "2"), &arguments),
            digest_of(&run, &step, 1, ("crm.sync", "1"), &json!({ "a": "1" })),
            digest_of(&run, &step, 1, ("crm.sync", "1"), &json!({ "a": 1, "b": null })),
        ];
        let distinct: std::collections::HashSet<_> = others.iter().chain([&this]).collect();
        assert_eq!(distinct.len(), others.len() + 1);
    }

    #[test]
    fn a_digest_is_over_the_canonical_form() {
        let (run, step) = (a_run(), StepKey::item("sync", 1));
        let arguments = json!({ "z": [1.50, 1e30, -0.0], "a": { "\u{20ac}": "\u{0}\n\"", "\u{1f600}": null } });
        let call = json!({
            "tool": "crm/\u{7f}\u{e9}", "toolVersion": "1\t", "arguments": arguments, "tenantId": run.tenant_id,
            "runId": run.run_id, "stepId": step, "attempt": 2
        });
        let whole = Sha256::digest(serde_json_canonicalizer::to_vec(&call).unwrap());
        let hex: String = whole.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest(&run, &step, 2, ("crm/\u{7f}\u{e9}", "1\t"), &arguments).unwrap(), format!("sha256:{hex}"));
    }

    #[test]
    fn a_digest_is_of_the_meaning_and_not_of_the_spelling() {
        let (run, step) = (a_run(), StepKey::whole("sync"));
        let of = |text: &str| digest(&run, &step, 1, ("t", "1"), &serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(of(r#"{"a":1,"b":[1.50,"\u00e9"]}"#), of(r#"{ "b": [1.5, "é"], "a": 1.0 }"#));
        assert_ne!(of(r#"{"b":[1,2]}"#), of(r#"{"b":[2,1]}"#));
    }
}
