//! `fermata approvals`, `approve` and `deny`: what waits for a person, and the answer.

use clap::Args;
use console::style;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    api::Api,
    connection::{Connection, Role},
    failure::{Failure, Problem, Result},
    input, line, output,
    runs::status,
    text,
};
use crate::{
    journal::Form,
    kernel::{self, ApprovalId, Clock, Page, RunId, Timestamp},
};

/// `approvals`
#[derive(Debug, Args)]
pub struct Inbox {
    /// Show this one in full
    #[arg(value_name = "APPROVAL", value_parser = input::id::<ApprovalId>, conflicts_with_all = ["status", "run"])]
    approval: Option<ApprovalId>,
    /// pending, approved, denied, expired, cancelled, or all
    #[arg(long, default_value = "pending")]
    status: String,
    /// Only those of this run
    #[arg(long, value_parser = input::id::<RunId>)]
    run: Option<RunId>,
    /// The most approvals to list
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200))]
    limit: u16,
    /// Print what the server sends
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `approve`
#[derive(Debug, Args)]
pub struct Approve {
    #[arg(value_name = "APPROVAL", value_parser = input::id::<ApprovalId>)]
    approval: ApprovalId,
    /// Act with these arguments in place of the held ones, or fill in the form with them: JSON, or @FILE
    #[arg(long, value_name = "JSON", value_parser = input::json)]
    arguments: Option<Value>,
    #[command(flatten)]
    answer: Answer,
}

/// `deny`
#[derive(Debug, Args)]
pub struct Deny {
    #[arg(value_name = "APPROVAL", value_parser = input::id::<ApprovalId>)]
    approval: ApprovalId,
    #[command(flatten)]
    answer: Answer,
}

#[derive(Debug, Args)]
struct Answer {
    /// Why, for the record and for whoever started the run
    #[arg(long)]
    reason: Option<String>,
    /// Decide only if the held call still has this digest
    #[arg(long, value_name = "SHA256")]
    digest: Option<String>,
    /// Print the decided approval as the server sends it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// A hold, as far as it is shown.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Approval {
    approval_id: ApprovalId,
    run_id: RunId,
    step_id: String,
    #[serde(default)]
    question: String,
    status: String,
    action: String,
    arguments: Value,
    digest: String,
    form: Option<Form>,
    cost_estimate: Option<f64>,
    reason: Option<String>,
    #[serde(default)]
    scope: Vec<String>,
    #[serde(default)]
    requires: Vec<String>,
    #[serde(default)]
    approvers: Vec<String>,
    asked_by: String,
    asked_at: Timestamp,
    expires_at: Option<Timestamp>,
    #[serde(default)]
    decisions: Vec<Decision>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decision {
    decided_by: String,
    status: String,
    reason: Option<String>,
}

/// The body of `POST /approvals/{id}/decision`.
#[derive(Debug, Serialize)]
struct Verdict<'a> {
    status: &'a str,
    digest: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<Value>,
}

impl Inbox {
    pub(super) async fn run(self) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Approver)?)?;
        let reply = match self.approval {
            Some(id) => api.get(&["approvals", &id.to_string()]).await?,
            None => api.list(&["approvals"], &self.query()).await?,
        };
        if self.json {
            return reply.print();
        }
        let now = Clock::system().now();
        if self.approval.is_some() {
            let approval: Approval = reply.json()?;
            output::lines(approval.described(now))?;
            return output::lines(approval.answers());
        }
        let page: Page<Approval> = reply.json()?;
        output::lines(text::table(&page.items.iter().map(|approval| approval.cells(now)).collect::<Vec<_>>()))?;
        match page.items.first() {
            None => output::hint("nothing waits"),
            Some(first) => output::hint(&format!("one in full: `fermata approvals {}`", first.approval_id)),
        }
        Ok(())
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = vec![("limit", self.limit.to_string())];
        if self.status != "all" {
            query.push(("status", self.status.clone()));
        }
        query.extend(self.run.map(|run| ("runId", run.to_string())));
        query
    }
}

impl Approve {
    pub(super) async fn run(self) -> Result<()> {
        self.answer.give(self.approval, "approved", self.arguments).await
    }
}

impl Deny {
    pub(super) async fn run(self) -> Result<()> {
        self.answer.give(self.approval, "denied", None).await
    }
}

impl Answer {
    /// Shows what is decided, then decides exactly that: its digest goes along, so that a call that
    /// changed in between is refused.
    async fn give(self, id: ApprovalId, answer: &str, arguments: Option<Value>) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Approver)?)?;
        let id = id.to_string();
        let seen: Approval = api.get(&["approvals", &id]).await?.json()?;
        if self.digest.as_ref().is_some_and(|digest| *digest != seen.digest) {
            return Err(Failure::Refused(Box::new(stale(&seen.digest))));
        }
        if !self.json {
            output::lines(seen.described(Clock::system().now()))?;
            if let Some(arguments) = &arguments {
                let form = seen.form.is_some();
                output::line(if form { "filled in with:" } else { "with these arguments instead:" })?;
                output::lines(text::json_lines(arguments).iter().map(|line| format!("  {line}")))?;
            }
        }
        let body = Verdict { status: answer, digest: &seen.digest, reason: self.reason, arguments };
        let reply = api.post(&["approvals", &id, "decision"], &body, None).await?;
        if self.json { reply.print() } else { output::line(&status(answer)) }
    }
}

/// The same refusal the server would give.
fn stale(digest: &str) -> Problem {
    let problem = kernel::Problem::StaleDigest;
    Problem {
        status: problem.status(),
        title: problem.title().to_owned(),
        detail: format!("the held call has the digest {digest}"),
        ..Problem::default()
    }
}

impl Approval {
    fn described(&self, now: Timestamp) -> Vec<String> {
        let mut lines = vec![format!("{}  {}  {}", style(self.approval_id).bold(), status(&self.status), self.run_id)];
        let what = match self.question.as_str() {
            "repeat" => "it may have acted already: approve to act again, deny to take it as done",
            "budget" => "may the budget be raised for it?",
            "input" => "will you fill in its form?",
            _ => "may it act?",
        };
        lines.push(text::safe(&format!("{} of {}, asked by {}: {what}", self.action, self.step_id, self.asked_by)));
        lines.extend(self.reason.as_deref().map(text::safe));
        lines.extend(self.cost_estimate.map(|cost| format!("costs {cost}")));
        lines.extend((!self.scope.is_empty()).then(|| text::safe(&format!("touches {}", self.scope.join(", ")))));
        lines.extend((!self.requires.is_empty()).then(|| text::safe(&format!("needs {}", self.requires.join(", ")))));
        lines.extend((!self.approvers.is_empty()).then(|| text::safe(&format!("for {}", self.approvers.join(" or ")))));
        lines.extend(
            self.expires_at
                .filter(|_| self.status == "pending")
                .map(|at| format!("expires in {}", text::whole_duration(at - now))),
        );
        lines.push("arguments:".to_owned());
        lines.extend(text::json_lines(&self.arguments).iter().map(|line| format!("  {line}")));
        lines.extend(self.form.as_ref().map(line::form).into_iter().flatten());
        lines.push(text::safe(&self.digest));
        lines.extend(self.decisions.iter().map(Decision::text));
        lines
    }

    fn answers(&self) -> Vec<String> {
        if self.status != "pending" {
            return Vec::new();
        }
        let form = if self.form.is_some() { " --arguments JSON" } else { "" };
        vec![format!("fermata approve {}{form}", self.approval_id), format!("fermata deny {}", self.approval_id)]
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let expires = self.expires_at.filter(|_| self.status == "pending");
        vec![
            self.approval_id.to_string(),
            status(&self.status),
            text::safe(&self.step_id),
            text::safe(&self.action),
            format!("{} ago", text::whole_duration(now - self.asked_at)),
            expires.map(|at| format!("expires in {}", text::whole_duration(at - now))).unwrap_or_default(),
            text::json_line(&self.arguments, 60),
        ]
    }
}

impl Decision {
    fn text(&self) -> String {
        let why = self.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        text::safe(&format!("{} by {}{why}", self.status, self.decided_by))
    }
}
