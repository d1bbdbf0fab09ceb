use axum::extract::{FromRef, State};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{
    AgentDefinition,
    standing::{Judged, StandingTool},
    usual,
};
use crate::{
    http::{Ctx, Front, Json, Path, Query, permit::WorkflowsRead},
    kernel::{Error, Page, PageQuery, Reference, Result},
    llm::shelf,
    tool::{Registry, Toolbox},
};

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct ToolRoutes {
    /// Who asks, and the database.
    pub front: Front,
    /// The tools there are.
    pub tools: Toolbox,
}

impl FromRef<ToolRoutes> for Front {
    fn from_ref(state: &ToolRoutes) -> Self {
        state.front.clone()
    }
}

/// Reading the tools there are, and how the gate stands to them.
pub fn tools(state: ToolRoutes) -> OpenApiRouter {
    OpenApiRouter::new().routes(paths!(list)).routes(paths!(get)).with_state(state)
}

/// Whose calls are judged.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct JudgedQuery {
    /// An agent, `support` or `support@3`: judge as its calls would be. Any model's, when absent.
    #[param(example = "support")]
    agent: Option<String>,
}

/// Which tools, and whose calls of them are judged.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ToolsQuery {
    /// An agent, `support` or `support@3`: judge as its calls would be. Any model's, when absent.
    #[param(example = "support")]
    agent: Option<String>,
    /// Rows a page, 1 to 200 (50 when absent).
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
    /// `nextCursor` of the page before.
    cursor: Option<String>,
}

/// List tools
///
/// The tools of this server in order of name, and then the tenant's own, with the JSON Schemas of their arguments and
/// outputs, and how the gate stands to a model's calls of them.
#[utoipa::path(
    get,
    path = "/tools",
    tag = "tools",
    operation_id = "listTools",
    params(ToolsQuery),
    security(("bearer" = ["workflows:read"])),
    extensions(("x-problems" = json!(["not-found"]))),
    responses((status = 200, description = "A page of tools.", body = Page<StandingTool>)),
)]
async fn list(
    State(state): State<ToolRoutes>,
    ctx: Ctx<WorkflowsRead>,
    Query(query): Query<ToolsQuery>,
) -> Result<Json<Page<StandingTool>>> {
    let tools = state.tools.of(ctx.tenant_id).await?;
    let agent = judged(&ctx, query.agent, &tools).await?;
    let all = tools.all().map(|tool| StandingTool::of(&**tool, agent.as_ref())).collect();
    PageQuery { limit: query.limit, cursor: query.cursor }.cut(all).map(Json)
}

/// One tool
#[utoipa::path(
    get,
    path = "/tools/{name}",
    tag = "tools",
    operation_id = "getTool",
    params(("name" = String, Path, description = "The tool's name, percent-encoded: `mcp%3Agithub%2Fissues`", example = "http.request"), JudgedQuery),
    security(("bearer" = ["workflows:read"])),
    responses((status = 200, description = "The tool, as it is now.", body = StandingTool)),
)]
async fn get(
    State(state): State<ToolRoutes>,
    ctx: Ctx<WorkflowsRead>,
    Path(name): Path<String>,
    Query(query): Query<JudgedQuery>,
) -> Result<Json<StandingTool>> {
    let tools = match query.agent {
        // What else there is decides what it is given.
        Some(_) => state.tools.of(ctx.tenant_id).await?,
        None => state.tools.with(ctx.tenant_id, [name.as_str()]).await?,
    };
    let agent = judged(&ctx, query.agent, &tools).await?;
    let tool = tools.tool(&name).ok().filter(|tool| !tool.internal()).ok_or_else(|| Error::not_found("tool"))?;
    Ok(Json(StandingTool::of(&**tool, agent.as_ref())))
}

async fn judged(ctx: &Ctx<WorkflowsRead>, agent: Option<String>, tools: &Registry) -> Result<Option<Judged>> {
    let Some(agent) = agent else { return Ok(None) };
    // What is no name is nobody's name.
    let reference: Reference = agent.parse().map_err(|_| Error::not_found("agent"))?;
    let found = shelf::get::<AgentDefinition, _>(ctx, usual::agents(), reference.name, reference.version).await?;
    let names: Vec<_> = tools.names().map(str::to_owned).collect();
    Ok(Some(Judged::new(&found.name, &found.body, &names)))
}
