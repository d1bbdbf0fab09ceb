//! `mcp.accept`: takes what a tool of a server has become for good. Only the engine puts it into plans, where it is held
//! until somebody who looks after approvals has seen what changed.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{McpEntry, Servers, change::Question, pin::Pinned};
use crate::{
    auth::{Permission, Permissions, Role},
    journal::{ApprovalTerms, Effect, Step},
    kernel::{Actor, Result},
    llm::{Author, Document, shelf},
    tool::{Call, Outcome, Tool, ToolError, size},
};

const NAME: &str = "mcp.accept";
/// What the arguments have besides the two descriptions, in bytes.
const FRAME: usize = 1024;

/// What it uses, and so what whoever decides has to have: the inbox is no way around it.
const NEEDED: Permission = Permission::IntegrationsWrite;

/// The question whether a tool may be used as it is now, in arguments of so many bytes.
pub(super) fn question(server: &str, pinned: &Pinned, seen: &Pinned, most: usize) -> Question {
    let tool = &seen.tool.name;
    let name = format!("mcp:{server}/{tool}");
    let (before, after) = (told(pinned, seen), told(seen, pinned));
    let fits = size::fits(&json!([before, after]), most.saturating_sub(FRAME));
    let (before, after) =
        if fits { (before, after) } else { (json!({ "digest": pinned.digest }), json!({ "digest": seen.digest })) };
    let with = [("server", json!(server)), ("tool", json!(tool)), ("pinned", before), ("seen", after)];
    let terms = ApprovalTerms {
        reason: Some(format!(
            "`{name}` is no longer what was pinned and is out of use: approve to use it as it is now, deny to leave it so. \
             Both are whole under /tools/mcp/{server}"
        )),
        scope: vec![name.clone()],
        requires: vec![NEEDED.name().to_owned()],
        approvers: entitled(),
        ..ApprovalTerms::default()
    };
    let with = Map::from_iter(with.map(|(name, value)| (name.to_owned(), value)));
    // A server's words are no templates.
    let step = Step { with, approval: Some(terms), verbatim: true, ..Step::of("accept", NAME) };
    Question { goal: format!("Accept what `{name}` has become"), step }
}

/// The roles that have it.
fn entitled() -> Vec<String> {
    let has = |role: &Role| Permissions::of(&[*role], None).contains(NEEDED);
    Role::ALL.into_iter().filter(has).map(|role| role.name().to_owned()).collect()
}

/// The digest of a tool, and what of it is otherwise than in another.
fn told(tool: &Pinned, other: &Pinned) -> Value {
    let members = |tool| match serde_json::to_value(tool) {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    };
    let other = members(other);
    members(tool).into_iter().filter(|(name, value)| other.get(name) != Some(value)).collect()
}

/// The tool.
pub(super) struct Accept(pub(super) Servers);

#[derive(Deserialize)]
struct Arguments {
    server: String,
    tool: String,
    seen: Seen,
}

#[derive(Deserialize)]
struct Seen {
    digest: String,
}

#[async_trait]
impl Tool for Accept {
    fn name(&self) -> &str {
        NAME
    }

    fn description(&self) -> &str {
        "Pins a tool of an MCP server as it is now, if it is what was seen."
    }

    fn arguments(&self) -> Value {
        let told =
            json!({ "type": "object", "required": ["digest"], "properties": { "digest": { "type": "string" } } });
        json!({
            "type": "object",
            "required": ["server", "tool", "pinned", "seen"],
            "additionalProperties": false,
            "properties": { "server": { "type": "string" }, "tool": { "type": "string" }, "pinned": told, "seen": told }
        })
    }

    fn output(&self) -> Value {
        json!({ "type": "object", "description": "`{server, version}`: the version in which it is pinned." })
    }

    /// What is pinned already stays so.
    fn effect(&self, _: &Value) -> Effect {
        Effect::Repeatable
    }

    fn internal(&self) -> bool {
        true
    }

    async fn call(&self, call: Call) -> std::result::Result<Outcome, ToolError> {
        let wanted: Arguments = call.read()?;
        let found = call.patiently(|| self.0.document(call.tenant_id, &wanted.server)).await;
        let document = found.map_err(|error| ToolError::idempotent(&error))?.ok_or_else(gone)?;
        let pinned = document.body.pinned(&wanted.tool).ok_or_else(gone)?;
        if pinned.digest == wanted.seen.digest {
            return Ok(done(&document));
        }
        let listed = tokio::select! {
            biased;
            () = call.cancel.cancelled() => return Err(ToolError::cancelled()),
            listed = self.0.listed(call.tenant_id, &document) => listed?,
        };
        let seen = listed.get(&wanted.tool).cloned().ok_or_else(gone)?;
        let seen = seen.pin().map_err(|why| ToolError::failed("tool_changed", format!("it is of no use: {why}")))?;
        let settled = call.patiently(|| self.settle(&call, &document, &wanted, &seen)).await;
        match settled.map_err(|error| ToolError::idempotent(&error))? {
            Some(document) => Ok(done(&document)),
            None => Err(ToolError::failed(
                "tool_changed",
                format!("it is not what was approved any more but {}: it stays out of use", seen.digest),
            )),
        }
    }
}

impl Accept {
    /// Pins the tool if it is what was approved; else has that looked at which it is now.
    async fn settle(
        &self,
        call: &Call,
        looked_at: &Document<McpEntry>,
        wanted: &Arguments,
        seen: &Pinned,
    ) -> Result<Option<Document<McpEntry>>> {
        let mut tx = self.0.begin(call.tenant_id).await?;
        let held = shelf::held::<McpEntry>(&mut tx, call.tenant_id, &wanted.server).await?;
        let pinned = looked_at.body.pinned(&wanted.tool);
        // What was seen is of the server as it was registered then.
        let Some(document) = held.filter(|held| held.body.stands(&looked_at.body, pinned)) else { return Ok(None) };
        if seen.digest == wanted.seen.digest {
            let (tenant_id, now) = (call.tenant_id, self.0.now());
            let author = Author { tenant_id, actor: Actor::Run(call.run_id), request_id: None, now };
            let document = self.0.pin(&mut tx, &author, document, seen).await?;
            tx.commit().await?;
            return Ok(Some(document));
        }
        if let Some(pinned) = pinned.filter(|pinned| pinned.digest != seen.digest) {
            self.0.notice(&mut tx, call.tenant_id, (&wanted.server, pinned), seen).await?;
            tx.commit().await?;
        }
        Ok(None)
    }
}

fn gone() -> ToolError {
    ToolError::failed("tool_gone", "there is no such tool any more")
}

fn done(document: &Document<McpEntry>) -> Outcome {
    Outcome::done(json!({ "server": document.name, "version": document.version }))
}

/// The tool, as a tenant's box has it.
pub(super) fn tool(servers: &Servers) -> Arc<dyn Tool> {
    Arc::new(Accept(servers.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::mcp::pin::Listed;

    fn pinned(description: &str) -> Pinned {
        let tool = json!({ "name": "send", "description": description, "inputSchema": { "type": "object" } });
        serde_json::from_value::<Listed>(tool).unwrap().pin().unwrap()
    }

    #[test]
    fn a_question_shows_what_changed_and_where_that_is_too_much_its_digests() {
        let (before, after) = (pinned("Sends."), pinned("Sends {{ input.key }}."));
        let asked = question("fake", &before, &after, 64 * 1024).step;
        assert!(asked.verbatim, "a server's words are no templates");
        assert_eq!(asked.with["pinned"], json!({ "digest": before.digest, "description": "Sends." }));
        assert_eq!(asked.with["seen"], json!({ "digest": after.digest, "description": "Sends {{ input.key }}." }));
        let terms = asked.approval.unwrap();
        assert_eq!((terms.scope, terms.self_approval), (vec!["mcp:fake/send".to_owned()], false));
        assert_eq!(
            (terms.requires, terms.approvers.join(" ")),
            (vec![NEEDED.to_string()], "owner admin operator".into())
        );
        let long = pinned(&"x".repeat(10_000));
        let short = question("fake", &before, &long, 8 * 1024).step;
        assert_eq!(short.with["seen"], json!({ "digest": long.digest }));
    }
}
