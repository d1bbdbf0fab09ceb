//! Trying a tool out: a run of one call, through the same gate as a model's.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes as paths};

use super::{
    definition, job,
    routes::RunRoutes,
    service::{Request, Source},
    view::Run,
};
use crate::{
    http::{Ctx, Json, Once, Path, Prefer, permit::RunsWrite},
    journal::{Plan, Step},
    kernel::{Error, Result},
    tool::{Registry, ToolError},
};

/// What the run's metadata calls it.
const KIND: &str = "tool_test";

pub(super) fn routes() -> OpenApiRouter<RunRoutes> {
    OpenApiRouter::new().routes(paths!(test))
}

/// What a tool is to be called with.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TestBody {
    /// The arguments, as they stand: nothing in them is a template. `{}` when absent.
    #[schema(value_type = Option<Object>)]
    arguments: Option<Map<String, Value>>,
}

/// Call a tool
///
/// One call, as a run of its own: held where a model's would be, and its outcome is the run's output. With
/// `Prefer: wait=N` the answer is the run once it has ended or is held.
#[utoipa::path(post, path = "/tools/{name}/test", operation_id = "testTool", tag = "tools", security(("bearer" = ["runs:write"])),
    params(("name" = String, Path, description = "The tool's name, percent-encoded: `mcp%3Agithub%2Fissues`", example = "data.transform"), Once, Prefer),
    request_body(content = TestBody, example = json!({"arguments": {"value": {"n": 41}}})),
    extensions(("x-problems" = json!(["too-many-runs"]))),
    responses((status = 202, description = "The run", body = Run)))]
async fn test(
    State(state): State<RunRoutes>,
    ctx: Ctx<RunsWrite>,
    once: Once,
    prefer: Prefer,
    Path(name): Path<String>,
    Json(body): Json<TestBody>,
) -> Result<Response> {
    let tools = state.tools.with(ctx.tenant_id, [name.as_str()]).await?;
    match request(&tools, &name, body.arguments.unwrap_or_default()) {
        Ok(request) => state.open(&ctx, once, prefer, request).await,
        Err(refused) => once.again(&ctx, refused).await,
    }
}

/// The run that calls it.
fn request(tools: &Registry, name: &str, arguments: Map<String, Value>) -> Result<Request> {
    let schema = tools.arguments(name).ok_or_else(|| Error::not_found("tool"))?;
    let given = Value::Object(arguments.clone());
    definition::fits(schema, &given, "arguments")?;
    tools.validate(name, &given).map_err(|error| match error {
        ToolError::Failed(failure) | ToolError::Unknown(failure) => Error::invalid("arguments", failure.message),
    })?;
    let approval = tools.wanted(name, &given).terms(&[]);
    let step = Step { with: arguments, approval, verbatim: true, ..Step::of("call", name) };
    let output = Some(json!("{{ steps.call.output }}"));
    Ok(Request {
        goal: None,
        source: Source::Plan(Plan { steps: vec![Arc::new(step)], output, ..Plan::default() }),
        input: json!({}),
        budget: None,
        on_denied: None,
        retry: None,
        metadata: json!({ job::TASK: KIND }),
        foresight: None,
        execute: true,
    })
}
