use axum::{
    extract::{FromRef, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Answer, Approval, ApprovalStatus, Approvals, DecisionStatus, store};
use crate::{
    http::{
        Ctx, Front, Json, Once, Path, Query, Reply,
        permit::{ApprovalsDecide, ApprovalsRead},
    },
    journal::StepKey,
    kernel::{ApprovalId, Error, Page, PageQuery, Problem, Result, RunId, Timestamp},
};

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct ApprovalState {
    /// The extractors' needs.
    pub front: Front,
    /// The use case.
    pub approvals: Approvals,
}

impl FromRef<ApprovalState> for Front {
    fn from_ref(state: &ApprovalState) -> Self {
        state.front.clone()
    }
}

/// The inbox and the doors to decide through.
pub fn routes(state: ApprovalState) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(approve))
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(decide))
        .with_state(state)
}

/// The body of `POST /agent/approve`, as UIs send it.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApproveBody {
    /// The run that waits.
    pub run_id: RunId,
    /// Its step: `sync`, or `sync[2]` for an item.
    #[schema(value_type = String, example = "sync")]
    pub step_id: StepKey,
    /// The answer.
    pub approval: StepAnswer,
}

/// The answer in `POST /agent/approve`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepAnswer {
    /// Yes or no.
    pub status: DecisionStatus,
    /// Who decides: the token's own subject, or absent.
    pub actor: Option<String>,
    /// Why.
    #[schema(max_length = 2000)]
    pub reason: Option<String>,
    /// When, as the caller claims; the record has the server's time.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ts: Option<Timestamp>,
}

/// The body of `POST /approvals/{id}/decision`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DecisionBody {
    /// Yes or no.
    pub status: DecisionStatus,
    /// Why.
    #[schema(max_length = 2000)]
    pub reason: Option<String>,
    /// The digest the approver saw; a stale one is refused.
    pub digest: Option<String>,
    /// Arguments to act with in place of the held ones; what is filled into the `form`, where there is one.
    #[schema(value_type = Option<Object>)]
    pub arguments: Option<Value>,
}

/// Which approvals to list.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct InboxQuery {
    /// Only those that stand so.
    pub status: Option<ApprovalStatus>,
    /// Only those of this run.
    pub run_id: Option<RunId>,
    /// Rows a page, 1 to 200 (50 when absent).
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u16>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}

/// Decide on a step that waits
///
/// The same answer again is 200; a contrary one is 409 and says what was decided by whom. The decider is
/// the token's subject.
#[utoipa::path(post, path = "/agent/approve", operation_id = "approveStep", tag = "approvals", security(("bearer" = ["approvals:decide"])),
    request_body(content = ApproveBody, example = json!({"runId": "run_01kahx3c5qf8k9z4v7t2m6w8np", "stepId": "sync",
        "approval": {"status": "approved", "reason": "go on"}})),
    params(Once), extensions(("x-problems" = json!(["not-found", "already-decided", "conflict", "unreadable-run"]))),
    responses((status = 200, description = "As it stands now", body = Approval)))]
async fn approve(
    State(state): State<ApprovalState>,
    ctx: Ctx<ApprovalsDecide>,
    once: Once,
    Json(body): Json<ApproveBody>,
) -> Result<Response> {
    let StepAnswer { status, actor, reason, ts } = body.approval;
    if actor.is_some_and(|actor| actor.parse().ok() != Some(ctx.actor())) {
        let detail = "`approval.actor` is somebody else: the decider is the token's subject";
        return Err(Error::new(Problem::Forbidden, detail).with("field", "approval.actor"));
    }
    let answer = Answer { status, reason: sane(reason)?, digest: None, arguments: None, claimed_at: ts };
    once.command(&ctx, async |tx| {
        let id = state.approvals.find(tx, &ctx, body.run_id, &body.step_id).await?;
        Reply::json(StatusCode::OK, &state.approvals.decide(tx, &ctx, id, answer).await?)
    })
    .await
}

/// The inbox
#[utoipa::path(get, path = "/approvals", operation_id = "listApprovals", tag = "approvals", security(("bearer" = ["approvals:read"])), params(InboxQuery),
    responses((status = 200, description = "Newest first", body = Page<Approval>)))]
async fn list(ctx: Ctx<ApprovalsRead>, Query(query): Query<InboxQuery>) -> Result<Json<Page<Approval>>> {
    let page = PageQuery { limit: query.limit, cursor: query.cursor }.resolve()?;
    let tx = ctx.begin().await?;
    let rows = store::list(&tx, ctx.tenant_id, query.status, query.run_id, page).await?;
    Ok(Json(Page::cut(rows, page.0, |row| row.approval_id.uuid())))
}

/// One approval
#[utoipa::path(get, path = "/approvals/{id}", operation_id = "getApproval", tag = "approvals", security(("bearer" = ["approvals:read"])),
    params(("id" = ApprovalId, Path, description = "The approval")),
    responses((status = 200, description = "The hold and its outcome", body = Approval)))]
async fn get(ctx: Ctx<ApprovalsRead>, Path(id): Path<ApprovalId>) -> Result<Json<Approval>> {
    let tx = ctx.begin().await?;
    let found = store::get(&tx, ctx.tenant_id, id).await?;
    found.map(Json).ok_or_else(|| Error::not_found("approval"))
}

/// Decide
///
/// The same answer again is 200; a contrary one is 409 and says what was decided by whom.
#[utoipa::path(post, path = "/approvals/{id}/decision", operation_id = "decideApproval", tag = "approvals", security(("bearer" = ["approvals:decide"])),
    params(("id" = ApprovalId, Path, description = "The approval"), Once),
    extensions(("x-problems" = json!(["already-decided", "stale-digest", "conflict", "unreadable-run"]))),
    request_body(content = DecisionBody, example = json!({"status": "approved", "reason": "go on",
        "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"})),
    responses((status = 200, description = "As it stands now", body = Approval)))]
async fn decide(
    State(state): State<ApprovalState>,
    ctx: Ctx<ApprovalsDecide>,
    once: Once,
    Path(id): Path<ApprovalId>,
    Json(body): Json<DecisionBody>,
) -> Result<Response> {
    let DecisionBody { status, reason, digest, arguments } = body;
    let answer = Answer { status, reason: sane(reason)?, digest, arguments, claimed_at: None };
    once.command(&ctx, async |tx| Reply::json(StatusCode::OK, &state.approvals.decide(tx, &ctx, id, answer).await?))
        .await
}

/// A reason is for people to read: 2,000 characters at most.
fn sane(reason: Option<String>) -> Result<Option<String>> {
    match reason {
        Some(text) if text.chars().count() > 2000 => {
            Err(Error::invalid("reason", "`reason` has more than 2,000 characters"))
        }
        other => Ok(other),
    }
}
