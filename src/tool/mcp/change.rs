//! What becomes of tools after they were pinned: noticed, shown, asked about, and taken for good by whoever may.

use async_trait::async_trait;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{McpEntry, Servers, accept, pin::Pinned, servers::McpServerView, store};
use crate::{
    db::TenantTx,
    http::{Ctx, Permit},
    journal::Step,
    kernel::{Actor, Error, Problem, Result, RunId, TenantId, Timestamp, wire_time},
    llm::{Author, Document, shelf},
};

/// Changes of one tool that people are asked about, until it is pinned anew, and questions about one server's tools that
/// wait at a time: a server that says something else each time does not fill anybody's inbox.
const QUESTIONS: i64 = 16;

/// What a tool has become.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pinned>,
    /// What it is now; its digest is what is approved.
    pub seen: Pinned,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub seen_at: Timestamp,
}

/// Something that a tenant's people are asked: a step that is held.
#[derive(Clone, Debug)]
pub struct Question {
    /// What it is for.
    pub goal: String,
    /// What is done where they consent.
    pub step: Step,
}

/// Asks people where no run of theirs is at it. A port: the engine above implements it.
#[async_trait]
pub trait Questions: Send + Sync + 'static {
    /// Asks, by a run of that id.
    ///
    /// # Errors
    /// Too-many-runs (429), when the tenant has too many live ones: then `tx` is as it was.
    async fn ask(&self, tx: &mut TenantTx, of: (TenantId, RunId), question: Question, now: Timestamp) -> Result<()>;

    /// Nobody needs to answer any more. What has been answered, or is gone, stays as it is.
    ///
    /// # Errors
    /// When the database is away.
    async fn withdraw(&self, tx: &mut TenantTx, of: (TenantId, RunId), by: &Actor, now: Timestamp) -> Result<()>;
}

impl Servers {
    /// Puts a tool out of use until somebody has looked at what it has become, and asks for that, once for each digest.
    /// Where that is one question too many, of the server's or of the tenant's live runs, it is out of use all the same, and
    /// the next who notices asks.
    ///
    /// # Errors
    /// When the database is away.
    pub(super) async fn notice(
        &self,
        tx: &mut TenantTx,
        tenant: TenantId,
        (server, pinned): (&str, &Pinned),
        seen: &Pinned,
    ) -> Result<()> {
        let now = self.0.clock.now();
        store::note(tx, tenant, server, seen, now).await?;
        let run_id = RunId::new(now);
        if store::ask(tx, tenant, server, seen, (run_id, QUESTIONS), now).await? {
            let question = accept::question(server, pinned, seen, self.0.arguments);
            match self.0.questions.ask(tx, (tenant, run_id), question, now).await {
                Err(error) if error.problem() == Problem::TooManyRuns => {
                    tracing::warn!(server, tool = seen.tool.name, "nobody can be asked about a changed tool now");
                    store::unask(tx, run_id).await?;
                }
                asked => asked?,
            }
        }
        Ok(())
    }

    /// Asks about what a tool has become, where nobody could be asked when that was noticed.
    ///
    /// # Errors
    /// When the database is away.
    pub(super) async fn remind(&self, tenant: TenantId, server: &str, tool: &str) -> Result<()> {
        let mut tx = self.begin(tenant).await?;
        let Some(document) = shelf::held::<McpEntry>(&mut tx, tenant, server).await? else { return Ok(()) };
        let changes = changes(&mut tx, &document).await?;
        let change = changes.iter().find(|change| change.seen.tool.name == tool);
        if let Some((pinned, seen)) = change.and_then(|change| Some((change.pinned.as_ref()?, &change.seen))) {
            self.notice(&mut tx, tenant, (server, pinned), seen).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// Nobody needs to look any more at a tool of the server, or at any but those that still are something else.
    pub(super) async fn settle(
        &self,
        tx: &mut TenantTx,
        author: &Author,
        server: &str,
        (tool, still): (Option<&str>, &[&str]),
    ) -> Result<()> {
        for run in store::take_questions(tx, server, tool, still).await? {
            // Who accepts it is about to end by itself.
            if author.actor != Actor::Run(run) {
                self.0.questions.withdraw(tx, (author.tenant_id, run), &author.actor, author.now).await?;
            }
        }
        Ok(())
    }

    /// Takes what a tool has become for good: it is pinned in the next version. What was pinned before can be approved
    /// too, and is in use again.
    ///
    /// # Errors
    /// Not found (404), where there is no such server or change; conflict (409), where the tool is something else by now.
    pub(super) async fn approve<P: Permit>(
        &self,
        tx: &mut TenantTx,
        ctx: &Ctx<P>,
        name: &str,
        (tool, digest): (&str, &str),
    ) -> Result<McpServerView> {
        let found = shelf::held::<McpEntry>(tx, ctx.tenant_id, name).await?;
        let document = found.ok_or_else(|| Error::not_found("MCP server"))?;
        let change = changes(tx, &document).await?.into_iter().find(|change| change.seen.tool.name == tool);
        let change = change.ok_or_else(|| Error::not_found("change of a tool"))?;
        let options = [Some(&change.seen), change.pinned.as_ref()];
        let Some(chosen) = options.into_iter().flatten().find(|option| option.digest == digest) else {
            let detail = "the digest is neither that of what the tool is now nor that of what was pinned: look again";
            return Err(Error::conflict(detail).with("digest", change.seen.digest.clone()));
        };
        let document = self.pin(tx, &Author::of(ctx), document, chosen).await?;
        let changes = changes(tx, &document).await?;
        Ok(McpServerView { document, changes })
    }

    /// Pins a tool of the server, which is held, as it is chosen.
    pub(super) async fn pin(
        &self,
        tx: &mut TenantTx,
        author: &Author,
        document: Document<McpEntry>,
        chosen: &Pinned,
    ) -> Result<Document<McpEntry>> {
        let (name, tool, mut entry) = (document.name, &chosen.tool.name, document.body);
        entry.tools.iter_mut().filter(|pinned| pinned.tool.name == *tool).for_each(|pinned| *pinned = chosen.clone());
        store::forget(tx, &name, Some(tool)).await?;
        let (document, _) = shelf::write_as(tx, author, name, entry).await?;
        let detail = json!({ "tool": tool, "digest": chosen.digest, "version": document.version });
        author.deed(tx, "mcp_server.approve", &document.name, detail).await?;
        self.settle(tx, author, &document.name, (Some(tool), &[])).await?;
        Ok(document)
    }
}

/// What the tools of a server have become that are still in use.
pub(super) async fn changes(tx: &mut TenantTx, document: &Document<McpEntry>) -> Result<Vec<Change>> {
    let noted = store::changes(tx, Some(&document.name)).await?;
    let with_pin = noted.into_iter().filter_map(|(_, change)| {
        let pinned = document.body.pinned(&change.seen.tool.name)?;
        (pinned.digest != change.seen.digest).then(|| Change { pinned: Some(pinned.clone()), ..change })
    });
    Ok(with_pin.collect())
}
