//! The one way to decide, whatever the door: the approval's row names the call, the token names the
//! decider, and the run's lock lets exactly one decision be the first.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    form, gate, store,
    view::{Approval, DecisionRecord},
};
use crate::{
    audit,
    db::{Rider, TenantTx},
    http::{Ctx, Permit},
    journal::{self, Append, Claim, Command, Hold, Journal, Lock, Question, Refusal, Ruling, RunState, StepKey},
    kernel::{Actor, ApprovalId, Error, Problem, Result, RunId, TenantId, Timestamp},
};

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DecisionStatus {
    /// It may act.
    Approved,
    /// It may not.
    Denied,
}

impl DecisionStatus {
    /// Its name on the wire and in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Denied => "denied",
        }
    }
}

/// What somebody says of a hold.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Yes or no.
    pub status: DecisionStatus,
    /// Why.
    pub reason: Option<String>,
    /// The call they saw; a mismatch is refused.
    pub digest: Option<String>,
    /// Arguments in place of the held ones; or what is filled into the form, where there is one.
    pub arguments: Option<Value>,
    /// When, as they claim.
    pub claimed_at: Option<Timestamp>,
}

/// Says whether a tool takes these arguments; the room of tools above implements it.
#[async_trait]
pub trait Arguments: Send + Sync + 'static {
    /// # Errors
    /// A 422 that names what is wrong.
    async fn check(&self, tenant: TenantId, tool: &str, arguments: &Value) -> Result<()>;
}

/// A call in place of the held one: its arguments and digest.
type Instead = Option<(Arc<Value>, String)>;

/// Decides on holds.
#[derive(Clone)]
pub struct Approvals {
    journal: Journal,
    arguments: Arc<dyn Arguments>,
}

impl std::fmt::Debug for Approvals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Approvals").finish_non_exhaustive()
    }
}

impl Approvals {
    /// Decides through `journal`.
    #[must_use]
    pub fn new(journal: Journal, arguments: Arc<dyn Arguments>) -> Self {
        Self { journal, arguments }
    }

    /// Takes in an answer: decision, event, audit entry and the run's wake-up in the caller's transaction.
    /// The same answer again changes nothing and is no error.
    ///
    /// # Errors
    /// 404 for an unknown approval, 403 for the run's own creator and whoever is not among the approvers, 409 when it is already decided otherwise
    /// or the digest is stale, 422 for arguments the tool does not take.
    pub async fn decide<P: Permit>(
        &self,
        tx: &mut TenantTx,
        ctx: &Ctx<P>,
        approval_id: ApprovalId,
        answer: Answer,
    ) -> Result<Approval> {
        let asked = store::asked(tx, ctx.tenant_id, approval_id).await?;
        let asked = asked.ok_or_else(|| Error::not_found("approval"))?;
        let run_id = asked.run_id;
        let mut run = journal::load(tx, &[(ctx.tenant_id, run_id)], Lock::Held).await?;
        let Some(mut run) = run.pop() else { return Err(Error::not_found("approval")) };
        let hold = run.state.holds.get(&approval_id).ok_or_else(|| Error::not_found("approval"))?;
        if answer.digest.as_ref().is_some_and(|seen| *seen != hold.asked.digest) {
            let detail = "the digest is not that of the held call: read the approval again";
            return Err(Error::new(Problem::StaleDigest, detail).with("digest", hold.asked.digest.clone()));
        }
        let (instead, input) = self.said(&run.state, hold, &answer).await?;
        let digest = instead.as_ref().map_or_else(|| hold.asked.digest.clone(), |(_, digest)| digest.clone());
        let now = ctx.now();
        let command = Command::Decide {
            approval_id,
            approve: answer.status == DecisionStatus::Approved,
            by: ctx.actor(),
            known_as: ctx.known_as(),
            reason: answer.reason.clone(),
            instead,
            input,
        };
        match journal::decide(&run.state, command, now) {
            Ok(events) => {
                events.iter().for_each(|event| run.state.apply(now, event));
                let append = Append::new(&run.state, events, run.head.parent.as_ref(), Claim::Due, now)?;
                let said = DecisionRecord {
                    decided_by: ctx.actor(),
                    status: answer.status,
                    reason: answer.reason,
                    digest,
                    claimed_at: answer.claimed_at,
                    decided_at: now,
                };
                let said_of = store::said(ctx.tenant_id, run_id, approval_id, &said);
                let riders = vec![said_of, audit_entry(ctx, approval_id, run_id, &said)];
                self.journal.append_in(tx, run, append, riders).await?;
                Ok(asked.decided(said))
            }
            Err(Refusal::AlreadySo) => {
                let settled = store::get(tx, ctx.tenant_id, approval_id).await?;
                settled.ok_or_else(|| Error::not_found("approval"))
            }
            Err(refusal) => Err(explain(refusal)),
        }
    }

    /// The approval of a step, by the step: the open one, or the one that was settled last.
    ///
    /// # Errors
    /// 404 when the run or such a hold does not exist.
    pub async fn find<P: Permit>(
        &self,
        tx: &mut TenantTx,
        ctx: &Ctx<P>,
        run_id: RunId,
        step: &StepKey,
    ) -> Result<ApprovalId> {
        let found = store::latest_of(tx, ctx.tenant_id, run_id, &step.to_string()).await?;
        found.ok_or_else(|| Error::not_found("approval for this run and step"))
    }

    /// What the approver sets: the call with arguments of their own, or what the form asks for.
    async fn said(&self, state: &RunState, hold: &Hold, answer: &Answer) -> Result<(Instead, Option<Arc<Value>>)> {
        let denied = answer.status == DecisionStatus::Denied;
        if denied && answer.arguments.is_some() {
            return Err(Error::invalid("arguments", "a denial takes no arguments"));
        }
        if let Some(asked) = hold.asked.form.as_ref().filter(|_| !denied) {
            return Ok((None, Some(form::filled(asked, answer.arguments.as_ref())?)));
        }
        let Some(arguments) = &answer.arguments else { return Ok((None, None)) };
        match hold.asked.question {
            Question::Consent | Question::Input => {}
            Question::Repeat => {
                return Err(Error::invalid("arguments", "a call that may have been made is repeated as it was"));
            }
            Question::Budget => return Err(Error::invalid("arguments", "a budget is raised for the call as it is")),
        }
        self.arguments.check(state.tenant_id, &hold.asked.action, arguments).await?;
        let tool = (hold.asked.action.as_str(), hold.asked.tool_version.as_str());
        let digest = gate::digest(state, &hold.step, hold.attempt, tool, arguments)?;
        Ok((Some((Arc::new(arguments.clone()), digest)), None))
    }
}

fn audit_entry<P: Permit>(ctx: &Ctx<P>, approval_id: ApprovalId, run_id: RunId, said: &DecisionRecord) -> Rider {
    audit::rider(
        run_id,
        &audit::Entry {
            tenant_id: ctx.tenant_id,
            actor: &said.decided_by,
            action: "approval.decide",
            target: &approval_id.to_string(),
            detail: json!({ "runId": run_id, "status": said.status, "reason": said.reason, "digest": said.digest }),
            request_id: Some(&ctx.request_id),
            at: said.decided_at,
        },
    )
}

fn explain(refusal: Refusal) -> Error {
    match refusal {
        Refusal::UnknownHold => Error::not_found("approval"),
        Refusal::OwnRun => {
            let detail = "whoever started the run does not decide on it, unless the step says `selfApproval: true`";
            Error::new(Problem::Forbidden, detail)
        }
        refusal @ Refusal::NotApprover(_) => Error::new(Problem::Forbidden, refusal.to_string()),
        Refusal::Ruled(ruling) => already(&ruling),
        other => Error::conflict(other.to_string()),
    }
}

fn already(ruling: &Ruling) -> Error {
    let (status, by): (_, Option<&Actor>) = match ruling {
        Ruling::Approved { by, .. } => ("approved", Some(by)),
        Ruling::Denied { by, .. } => ("denied", Some(by)),
        Ruling::Expired => ("expired", None),
        Ruling::Cancelled => ("cancelled", None),
    };
    let detail = by.map_or_else(|| format!("it is {status}"), |by| format!("it was {status} by {by}"));
    let error = Error::new(Problem::AlreadyDecided, detail).with("decision", status);
    match by {
        Some(by) => error.with("decidedBy", by.to_string()),
        None => error,
    }
}
