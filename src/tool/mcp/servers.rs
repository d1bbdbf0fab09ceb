//! The servers that tenants have registered: looked at when they are put, and their tools from then on.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::{
    McpEntry, McpServer, accept,
    change::{Change, Questions, changes},
    connect::{Connector, Credentials, Target},
    fault,
    pin::Pinned,
    session::{Listing, Pool},
    store,
    tool::McpTool,
};
use crate::{
    auth::Permission,
    config::{LimitSettings, ToolSettings},
    db::{Database, TenantTx},
    http::{Ctx, Outbound, Permit},
    kernel::{Clock, Error, Problem, Result, TenantId, Timestamp, check_name},
    llm::{Author, Document, shelf},
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
#[derive(Clone)]
pub struct Servers(pub(super) Arc<Inner>);

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Servers").finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) connector: Connector,
    pub(super) pool: Pool,
    pub(super) clock: Clock,
    pub(super) questions: Arc<dyn Questions>,
    /// How large arguments may be that are asked about.
    pub(super) arguments: usize,
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

impl Servers {
    /// Reached through `outbound`, or started as the operator has listed them; what they change is asked about by `questions`.
    #[must_use]
    pub fn new(
        (db, clock): (Database, Clock),
        (tools, limits): (&ToolSettings, &LimitSettings),
        outbound: Arc<Outbound>,
        credentials: Credentials,
        questions: Arc<dyn Questions>,
    ) -> Self {
        let (commands, output) = (tools.mcp.clone(), limits.output);
        let connector = Connector { db, clock: clock.clone(), outbound, credentials, commands, output };
        // The event of a hold has them, and that of the plan.
        let arguments = limits.arguments.min(limits.event / 2);
        Self(Arc::new(Inner { connector, pool: Pool::default(), clock, questions, arguments }))
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
        let bytes = serde_json::to_vec(&entry.gone).map_err(Error::internal)?.len();
        if entry.gone.len() > TOOLS || bytes > PINNED {
            let detail = format!(
                "of the server's tools {} are gone, of {bytes} bytes; up to {TOOLS} and {PINNED} bytes are remembered: \
                 delete the server and put it again where all of it is to be pinned anew",
                entry.gone.len()
            );
            return Err(Error::invalid("tools", detail));
        }
        let (document, new) = shelf::write(&mut tx, ctx, name, entry).await?;
        store::forget(&mut tx, &document.name, None).await?;
        let still: Vec<_> = changed.iter().map(|(pinned, _)| pinned.tool.name.as_str()).collect();
        self.settle(&mut tx, &Author::of(ctx), &document.name, (None, &still)).await?;
        for (pinned, seen) in &changed {
            self.notice(&mut tx, ctx.tenant_id, (&document.name, pinned), seen).await?;
        }
        let changes = changes(&mut tx, &document).await?;
        tx.commit().await?;
        Ok((McpServerView { document, changes }, new))
    }

    async fn look(&self, tenant: TenantId, name: &str, settings: McpServer) -> Result<McpEntry> {
        let target = Target { tenant, name, settings: &settings, protocol: None };
        // It is as one more call of the server.
        let place = async { Ok(self.0.pool.enter(tenant, name).await) };
        let busy = |_| Error::unavailable(format!("MCP server `{name}` is called as often at once as it may be"));
        let _place = self.0.connector.in_time(target, place).await.map_err(busy)?;
        let unregistered = |error| unregistered(&settings, error);
        let (listed, (protocol, implementation)) = self.ask(target).await.map_err(unregistered)?;
        let mut tools = Vec::new();
        for (name, tool) in listed {
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
        Ok(McpEntry { settings, protocol, implementation, tools, gone: vec![] })
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

    /// Puts a server out of use: its tools are nobody's any more, and nobody has to look at them.
    ///
    /// # Errors
    /// Not found (404).
    pub(super) async fn delete<P: Permit>(&self, ctx: &Ctx<P>, name: &str) -> Result<()> {
        let mut tx = ctx.begin().await?;
        shelf::remove::<McpEntry, P>(&mut tx, ctx, name).await?;
        store::forget(&mut tx, name, None).await?;
        self.settle(&mut tx, &Author::of(ctx), name, (None, &[])).await?;
        tx.commit().await
    }

    /// The newest version of a server that is in use.
    pub(super) async fn document(&self, tenant: TenantId, name: &str) -> Result<Option<Document<McpEntry>>> {
        let mut tx = self.0.connector.db.reader(tenant).await?;
        let all = shelf::all::<McpEntry>(&mut tx, vec![]).await?;
        Ok(all.into_iter().find(|document| document.name == name))
    }

    /// What a server lists now, in a session of its own.
    ///
    /// # Errors
    /// Why there is no way to it.
    pub(super) async fn listed(&self, tenant: TenantId, server: &Document<McpEntry>) -> Result<Listing, ToolError> {
        let (name, body) = (&server.name, &server.body);
        self.ask(Target { tenant, name, settings: &body.settings, protocol: Some(&body.protocol) })
            .await
            .map(|(it, _)| it)
    }

    /// What a server lists now of the tools that may be used, the revision of the protocol it does so in, and what it calls
    /// itself.
    async fn ask(&self, target: Target<'_>) -> Result<(Listing, (String, Option<String>)), ToolError> {
        let connector = &self.0.connector;
        let ready = async { connector.open(target, connector.token(target).await?).await };
        let mut session = connector.in_time(target, ready).await?;
        let allowed = |name: &str| target.settings.allows(name);
        let listed = async { session.tools(self.now(), allowed).await.cloned() };
        let listed = connector.in_time(target, listed).await;
        let peer = session.peer();
        session.close().await;
        listed.map(|listed| (listed, peer))
    }

    /// A transaction of the tenant's.
    pub(super) async fn begin(&self, tenant: TenantId) -> Result<TenantTx> {
        self.0.connector.db.tenant(tenant).await
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }
}

/// Why a server cannot be put.
fn unregistered(settings: &McpServer, error: ToolError) -> Error {
    let (ToolError::Failed(failure) | ToolError::Unknown(failure)) = error;
    let place = if settings.url.is_some() { "url" } else { "command" };
    let field = match failure.code.as_str() {
        // Something of ours is away.
        "unavailable" | "internal" => return Error::new(Problem::Unavailable, failure.message),
        fault::UNCONNECTED | "mcp_insufficient_scope" => "connection",
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
        let accept = accept::tool(self);
        let mut tx = self.0.connector.db.reader(tenant).await?;
        let documents = shelf::all::<McpEntry>(&mut tx, vec![]).await?;
        if documents.is_empty() {
            return Ok(vec![accept]);
        }
        let mut disabled: HashMap<String, Vec<Pinned>> = HashMap::new();
        for (server, change) in store::changes(&mut tx, None).await? {
            disabled.entry(server).or_default().push(change.seen);
        }
        let tools = documents.into_iter().flat_map(|document| {
            let changed = disabled.remove(&document.name).unwrap_or_default();
            let server = Arc::new(document);
            let places = 0..server.body.tools.len();
            let tool = move |place| McpTool::new(self, &server, place, &changed);
            places.filter_map(tool).collect::<Vec<_>>()
        });
        Ok(tools.map(|tool| Arc::new(tool) as Arc<dyn Tool>).chain([accept]).collect())
    }
}
