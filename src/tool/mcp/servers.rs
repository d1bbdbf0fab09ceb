//! The servers that tenants have registered: looked at when they are put, and their tools from then on.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::{
    McpEntry, McpServer,
    connect::{Connector, Credentials, Target},
    fault,
    pin::Pinned,
    session::Pool,
    store,
    tool::McpTool,
};
use crate::{
    audit,
    auth::Permission,
    config::{LimitSettings, ToolSettings},
    db::{Database, TenantTx},
    http::{Ctx, Outbound, Permit},
    kernel::{Clock, Error, Problem, Result, TenantId, Timestamp, check_name, wire_time},
    llm::{Document, shelf},
    tool::{Source, Tool, ToolError},
};

/// Servers of one tenant.
const SERVERS: usize = 64;
/// Tools of one server that are pinned.
const TOOLS: usize = 256;
/// Bytes of JSON that they may take together.
const PINNED: usize = 1024 * 1024;
/// How often sessions that nobody wants are looked for.
const TIDY: Duration = Duration::from_secs(5);

/// The MCP servers of this installation's tenants. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Servers(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) connector: Connector,
    pub(super) pool: Pool,
    pub(super) clock: Clock,
}

/// A server as it stands.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpServerView {
    /// The newest version, or the one asked for.
    #[serde(flatten)]
    pub document: Document<McpEntry>,
    /// Tools that are no longer what was pinned: out of use until somebody approves what they are now.
    pub changes: Vec<Change>,
}

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

impl Servers {
    /// Reached through `outbound`, or started as the operator has listed them.
    #[must_use]
    pub fn new(
        (db, clock): (Database, Clock),
        (tools, limits): (&ToolSettings, &LimitSettings),
        outbound: Arc<Outbound>,
        credentials: Credentials,
    ) -> Self {
        let connector = Connector { db, outbound, credentials, commands: tools.mcp.clone(), output: limits.output };
        Self(Arc::new(Inner { connector, pool: Pool::default(), clock }))
    }

    /// Closes sessions that nobody wants any more, and all of them in the end.
    pub async fn keep(self, until: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TIDY) => self.0.pool.tidy().await,
                () = until.cancelled() => return self.0.pool.close().await,
            }
        }
    }

    /// Looks at a server and makes what it offers the next version of its name. Says whether that is new.
    ///
    /// # Errors
    /// Forbidden (403), where a key is named by somebody who may not write keys; invalid (422), naming the
    /// field, also when there is no way to the server now. Then nothing is kept.
    pub(super) async fn put<P: Permit>(
        &self,
        ctx: &Ctx<P>,
        name: String,
        settings: McpServer,
    ) -> Result<(McpServerView, bool)> {
        check_name(&name)?;
        settings.check()?;
        // Whoever says where a key goes could send it anywhere.
        if settings.key.is_some() && !ctx.permissions.contains(Permission::KeysWrite) {
            let needed = Permission::KeysWrite;
            let detail = format!("to send a key along needs the permission `{needed}` besides");
            return Err(Error::new(Problem::Forbidden, detail).with("permission", needed.name()));
        }
        // Outside any transaction: it may take long.
        let mut entry = self.look(ctx.tenant_id, &name, settings).await?;
        let mut tx = ctx.begin().await?;
        let known = shelf::held::<McpEntry>(&mut tx, ctx.tenant_id, &name).await?;
        if known.is_none() && shelf::all::<McpEntry>(&mut tx, vec![]).await?.len() >= SERVERS {
            return Err(Error::invalid("name", format!("there are {SERVERS} MCP servers already; delete one")));
        }
        let changed = known.map(|known| entry.keep_pins(known.body)).unwrap_or_default();
        let (document, new) = shelf::write(&mut tx, ctx, name, entry).await?;
        store::forget(&mut tx, &document.name, None).await?;
        for seen in &changed {
            store::note(&mut tx, ctx.tenant_id, &document.name, seen, ctx.now()).await?;
        }
        let changes = changes(&mut tx, &document).await?;
        tx.commit().await?;
        Ok((McpServerView { document, changes }, new))
    }

    async fn look(&self, tenant: TenantId, name: &str, settings: McpServer) -> Result<McpEntry> {
        let target = Target { tenant, name, settings: &settings, protocol: None };
        let unregistered = |error| unregistered(&settings, error);
        let mut session = self.0.connector.open(target).await.map_err(unregistered)?;
        let listed = session.tools().await.cloned();
        let (protocol, implementation) = session.peer();
        session.close().await;
        let listed = listed.map_err(unregistered)?;
        let mut tools = Vec::new();
        for (name, tool) in listed.into_iter().filter(|(name, _)| settings.allows(name)) {
            tools.push(tool.pin().map_err(|why| {
                let detail =
                    format!("the tool `{name}` of the server cannot be used: {why}; name those you want in `tools`");
                Error::invalid("tools", detail)
            })?);
        }
        let bytes = serde_json::to_vec(&tools).map_err(Error::internal)?.len();
        if tools.is_empty() || tools.len() > TOOLS || bytes > PINNED {
            let detail = format!(
                "`tools` allow {} of the server's tools, of {bytes} bytes; from 1 to {TOOLS} are kept, {PINNED} bytes of them",
                tools.len()
            );
            return Err(Error::invalid("tools", detail));
        }
        Ok(McpEntry { settings, protocol, implementation, tools })
    }

    /// A server with what its tools have become.
    ///
    /// # Errors
    /// Not found (404).
    pub(super) async fn view<P: Permit>(
        &self,
        ctx: &Ctx<P>,
        name: String,
        version: Option<i32>,
    ) -> Result<McpServerView> {
        let document = shelf::get::<McpEntry, P>(ctx, vec![], name, version).await?;
        let changes = changes(&mut ctx.begin_reading().await?, &document).await?;
        Ok(McpServerView { document, changes })
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
        let mut document = found.ok_or_else(|| Error::not_found("MCP server"))?;
        let change = changes(tx, &document).await?.into_iter().find(|change| change.seen.tool.name == tool);
        let change = change.ok_or_else(|| Error::not_found("change of a tool"))?;
        let options = [Some(&change.seen), change.pinned.as_ref()];
        let Some(chosen) = options.into_iter().flatten().find(|option| option.digest == digest) else {
            let detail = "the digest is neither that of what the tool is now nor that of what was pinned: look again";
            return Err(Error::conflict(detail).with("digest", change.seen.digest.clone()));
        };
        let mut entry = document.body.clone();
        entry.tools.iter_mut().filter(|pinned| pinned.tool.name == tool).for_each(|pinned| *pinned = chosen.clone());
        store::forget(tx, name, Some(tool)).await?;
        (document, _) = shelf::write(tx, ctx, name.to_owned(), entry).await?;
        let detail = json!({ "tool": tool, "digest": digest, "version": document.version });
        audit::deed(tx, ctx, "mcp_server.approve", name, detail).await?;
        let changes = changes(tx, &document).await?;
        Ok(McpServerView { document, changes })
    }
}

/// What the tools of a server have become that are still in use.
async fn changes(tx: &mut TenantTx, document: &Document<McpEntry>) -> Result<Vec<Change>> {
    let noted = store::changes(tx, Some(&document.name)).await?;
    let with_pin = noted.into_iter().filter_map(|(_, change)| {
        let pinned = document.body.tools.iter().find(|pinned| pinned.tool.name == change.seen.tool.name)?;
        Some(Change { pinned: Some(pinned.clone()), ..change })
    });
    Ok(with_pin.collect())
}

/// Why a server cannot be put.
fn unregistered(settings: &McpServer, error: ToolError) -> Error {
    let (ToolError::Failed(failure) | ToolError::Unknown(failure)) = error;
    let place = if settings.url.is_some() { "url" } else { "command" };
    let field = match failure.code.as_str() {
        // Something of ours is away.
        "unavailable" | "internal" => return Error::new(Problem::Unavailable, failure.message),
        "connection_required" | "mcp_insufficient_scope" => "connection",
        fault::UNAUTHORIZED if settings.connection.is_some() => "connection",
        fault::UNAUTHORIZED => "key",
        "mcp_misconfigured" => settings.key.as_ref().map_or(place, |_| "key"),
        _ => place,
    };
    Error::invalid(field, failure.message)
}

#[async_trait]
impl Source for Servers {
    async fn tools(&self, tenant: TenantId) -> Result<Vec<Arc<dyn Tool>>> {
        let mut tx = self.0.connector.db.reader(tenant).await?;
        let documents = shelf::all::<McpEntry>(&mut tx, vec![]).await?;
        if documents.is_empty() {
            return Ok(vec![]);
        }
        let mut disabled: HashMap<String, Vec<String>> = HashMap::new();
        for (server, change) in store::changes(&mut tx, None).await? {
            disabled.entry(server).or_default().push(change.seen.tool.name);
        }
        let tools = documents.into_iter().flat_map(|document| {
            let changed = disabled.remove(&document.name).unwrap_or_default();
            let server = Arc::new(document);
            let places = 0..server.body.tools.len();
            let tool = move |place| McpTool::new(self, &server, place, &changed);
            places.filter_map(tool).collect::<Vec<_>>()
        });
        Ok(tools.map(|tool| Arc::new(tool) as Arc<dyn Tool>).collect())
    }
}
