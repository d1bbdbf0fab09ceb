use axum::Router;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use super::{Role, Rooms};
use crate::{
    agent::{self, AgentRoutes, ToolRoutes},
    approval::{self, ApprovalState},
    db::guard,
    http::{Probe, docs, openapi, vitals},
    integration::{self, IntegrationRoutes},
    journal,
    kernel::{Error, Result},
    llm, run, stream,
    tool::{self, McpRoutes},
    usage::{self, UsageRoutes},
};

/// Every route of the process, bare and under `/v1`, and the document that describes them.
pub(super) fn router(rooms: &Rooms, role: Role) -> Result<(Router, OpenApi)> {
    let vitals = vitals(probes(rooms), rooms.metrics.clone(), rooms.stop.clone());
    if role == Role::Worker {
        return Ok(vitals.split_for_parts());
    }
    let approvals = ApprovalState { front: rooms.front.clone(), approvals: rooms.approvals.clone() };
    let (api, document) = OpenApiRouter::with_openapi(openapi::base())
        .merge(run::routes(rooms.run_routes()))
        .merge(run::definition::routes(rooms.front.clone(), rooms.tools.clone()))
        .merge(approval::routes(approvals))
        .merge(stream::routes(rooms.streams.clone()))
        .merge(agent::routes(AgentRoutes { front: rooms.front.clone() }))
        .merge(llm::routes(rooms.llm.clone()))
        .merge(usage::routes(UsageRoutes { front: rooms.front.clone(), days: rooms.days.clone() }))
        .merge(agent::tools(ToolRoutes { front: rooms.front.clone(), tools: rooms.tools.clone() }))
        .merge(tool::mcp_routes(McpRoutes { front: rooms.front.clone(), servers: rooms.mcp.clone() }))
        .merge(integration::routes(IntegrationRoutes {
            front: rooms.front.clone(),
            connections: rooms.connections.clone(),
        }))
        .merge(tool::routes(rooms.front.clone(), rooms.tools.clone()))
        .merge(vitals)
        .split_for_parts();
    let events = openapi::Events { payloads: journal::payload_schemas(), parts: journal::payload_parts() };
    let document = openapi::complete(document, events)?;
    let all = api.merge(docs(&document)?);
    Ok((Router::new().merge(all.clone()).nest("/v1", all), document))
}

fn probes(rooms: &Rooms) -> Vec<Probe> {
    let (database, schema) = (rooms.database.clone(), rooms.database.clone());
    vec![
        Probe::new("database", move || {
            let database = database.clone();
            async move { database.system().await?.commit().await }
        }),
        Probe::new("schema", move || {
            let schema = schema.clone();
            async move {
                let pending = guard::version(&schema).await?;
                pending.first().map_or(Ok(()), |finding| Err(Error::unavailable(finding.to_string())))
            }
        }),
    ]
}
