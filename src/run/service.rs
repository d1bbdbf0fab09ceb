//! What callers can do with runs: plan, execute, cancel, retry. Each is one transaction: row, events, audit
//! entry and the wake-up of a worker.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    definition,
    steps::{Recount, StepView},
    store::{self, Ground},
    view::Run,
};
use crate::{
    audit,
    config::{LimitSettings, WorkerSettings},
    db::{Rider, TenantTx},
    http::{Ctx, Permit, RequestId},
    journal::{
        self, Append, Claim, Command, Event, Journal, Loaded, Lock, OnDenied, Parent, Plan, Refusal, RunHead, RunState,
    },
    kernel::{Actor, Error, Problem, Reference, Result, RunId, TenantId, Timestamp},
    llm::Models,
    tool,
};

/// The longest goal, in characters.
const GOAL: usize = 4000;
/// The largest metadata, in bytes of JSON.
const METADATA: usize = 16 * 1024;

/// The use cases of runs.
#[derive(Clone, Debug)]
pub struct Runs {
    journal: Journal,
    models: Models,
    limits: LimitSettings,
    live_runs: u64,
}

/// What is to be carried out.
#[derive(Clone, Debug)]
pub enum Source {
    /// A definition by name, or `name@version`.
    Workflow(String),
    /// Steps that were checked, or the beginning of an agent's.
    Plan(Plan),
}

/// A run to be.
#[derive(Clone, Debug)]
pub struct Request {
    /// What was asked for.
    pub goal: Option<String>,
    /// What is to be carried out.
    pub source: Source,
    /// Its input.
    pub input: Value,
    /// The most it may cost.
    pub budget: Option<f64>,
    /// What a denial means where the step does not say; the definition's word when absent.
    pub on_denied: Option<OnDenied>,
    /// The caller's own notes.
    pub metadata: Value,
    /// Whether it begins at once.
    pub execute: bool,
}

/// On whose behalf, and under which id, a run is opened.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The id it gets.
    pub run_id: RunId,
    /// Who starts it.
    pub by: Actor,
    /// The run and step that start it.
    pub parent: Option<Parent>,
    /// The request it comes from.
    pub request_id: Option<RequestId>,
    /// When.
    pub now: Timestamp,
}

impl Opening {
    /// A run that a caller begins, under an id of its own.
    #[must_use]
    pub fn by<P: Permit>(ctx: &Ctx<P>) -> (Self, RunId) {
        let (tenant_id, now) = (ctx.tenant_id, ctx.now());
        let run_id = RunId::new(now);
        let request_id = Some(ctx.request_id.clone());
        (Self { tenant_id, run_id, by: ctx.actor(), parent: None, request_id, now }, run_id)
    }
}

impl Runs {
    /// Writes through `journal`, and pins what asks `models`.
    #[must_use]
    pub fn new(journal: Journal, models: Models, limits: LimitSettings, worker: &WorkerSettings) -> Self {
        Self { journal, models, limits, live_runs: worker.live_runs_per_tenant }
    }

    /// Accepts a run and plans it; begins it where the request says so. A run of that id that is there
    /// already is left as it is.
    ///
    /// # Errors
    /// 404 for an unknown workflow, 422 for a plan, input or bound that is not valid, 429 when the tenant
    /// has too many live runs.
    pub async fn open(&self, tx: &mut TenantTx, opening: Opening, request: Request) -> Result<Run> {
        self.check(&request)?;
        let Opening { tenant_id, run_id, by, parent, request_id, now } = opening;
        let Resolved { plan, workflow, usual } = self.resolve(tx, tenant_id, request.source, &request.input).await?;
        let plan = Arc::new(self.pin(tx, plan).await?);
        let on_denied = request.on_denied.or(usual).unwrap_or_default();
        let named = workflow.as_ref().map(|(name, version)| format!("{name}@{version}"));
        let mut state = RunState::new(tenant_id, run_id, by.clone(), on_denied);
        let open = Command::Open { goal: request.goal.clone(), workflow: named.clone(), parent: parent.clone() };
        let mut commands = vec![open, Command::Plan(plan)];
        if request.execute {
            commands.push(Command::Execute { by: by.clone() });
        }
        let events = decide_all(&mut state, commands, now)?;
        let claim = if request.execute { Claim::Due } else { Claim::Keep };
        let append = Append::new(&state, events, parent.as_ref(), claim, now)?;
        let head = RunHead {
            goal: request.goal,
            workflow,
            input: Arc::new(request.input),
            budget: request.budget,
            metadata: Arc::new(request.metadata),
            created_by: by.clone(),
            parent: parent.clone(),
            created_at: now,
        };
        let entry = audit::rider(
            run_id,
            &audit::Entry {
                tenant_id,
                actor: &by,
                action: "run.create",
                target: &run_id.to_string(),
                detail: json!({ "workflow": named, "parent": parent, "execute": request.execute }),
                request_id: request_id.as_ref(),
                at: now,
            },
        );
        let run = Loaded { head, state };
        let view = Run::of(&run, now)?;
        if self.journal.open_in(tx, run, append, vec![entry]).await? {
            return Ok(view);
        }
        self.get(tx, tenant_id, run_id).await
    }

    /// What the source comes to, where there is room for another live run.
    async fn resolve(&self, tx: &mut TenantTx, tenant_id: TenantId, source: Source, input: &Value) -> Result<Resolved> {
        let not_found = || Error::not_found("workflow");
        let reference: Option<Reference> = match &source {
            // What is no name is nobody's name.
            Source::Workflow(name) => Some(name.parse().map_err(|_| not_found())?),
            Source::Plan(_) => None,
        };
        let Ground { live_runs, definition } = store::ground(tx, tenant_id, self.live_runs, reference.as_ref()).await?;
        self.room(live_runs)?;
        match source {
            Source::Workflow(_) => {
                let (definition, workflow) = definition.ok_or_else(not_found)?;
                definition::check_input(&definition, input)?;
                let plan = definition.plan();
                Ok(Resolved { plan, workflow: Some(workflow), usual: definition.on_denied })
            }
            Source::Plan(plan) => Ok(Resolved { plan, workflow: None, usual: None }),
        }
    }

    /// The plan with the versions of the models that its steps name: later ones do not touch the run. What is not there
    /// now is left to the step that needs it.
    async fn pin(&self, tx: &mut TenantTx, mut plan: Plan) -> Result<Plan> {
        let (configs, templates) = tool::named(&plan.steps);
        if !configs.is_empty() || !templates.is_empty() {
            let pins = self.models.pins(tx, &configs, &templates).await?;
            plan.models = (!pins.is_empty()).then(|| Arc::new(pins));
        }
        Ok(plan)
    }

    /// Refuses what would be one live run too many. A planned run is not live, nor is a failed one.
    fn room(&self, live_runs: u64) -> Result<()> {
        if live_runs < self.live_runs {
            return Ok(());
        }
        let detail = format!("the tenant has {} live runs: wait for some to end", self.live_runs);
        Err(Error::new(Problem::TooManyRuns, detail).with("limit", self.live_runs))
    }

    fn check(&self, request: &Request) -> Result<()> {
        if request.goal.as_ref().is_some_and(|goal| goal.is_empty() || goal.chars().count() > GOAL) {
            return Err(Error::invalid("goal", format!("`goal` has 1 to {GOAL} characters")));
        }
        if request.goal.as_ref().is_some_and(|goal| goal.contains('\0')) {
            return Err(Error::invalid("goal", "`goal` cannot hold the character U+0000"));
        }
        if request.budget.is_some_and(|budget| !budget.is_finite() || budget < 0.0) {
            return Err(Error::invalid("budget", "`budget` is a number from 0"));
        }
        if !request.metadata.is_object() {
            return Err(Error::invalid("metadata", "`metadata` is an object"));
        }
        for (field, value, most) in
            [("input", &request.input, self.limits.input), ("metadata", &request.metadata, METADATA)]
        {
            if value.to_string().len() > most {
                return Err(Error::invalid(field, format!("`{field}` takes more than {most} bytes of JSON")));
            }
        }
        Ok(())
    }

    /// Lets a planned run begin.
    ///
    /// # Errors
    /// 404 for an unknown run, 409 when it is not planned or has begun, 429 when the tenant has too many live runs.
    pub async fn execute<P: Permit>(&self, tx: &mut TenantTx, ctx: &Ctx<P>, run_id: RunId) -> Result<Run> {
        self.room(store::ground(tx, ctx.tenant_id, self.live_runs, None).await?.live_runs)?;
        self.command(tx, ctx, run_id, "run.execute", json!({}), Command::Execute { by: ctx.actor() }).await
    }

    /// Cancels a live run; one that is cancelled already stays so.
    ///
    /// # Errors
    /// 404 for an unknown run, 409 when it ended otherwise.
    pub async fn cancel<P: Permit>(
        &self,
        tx: &mut TenantTx,
        ctx: &Ctx<P>,
        run_id: RunId,
        reason: Option<String>,
    ) -> Result<Run> {
        let detail = json!({ "reason": reason });
        self.command(tx, ctx, run_id, "run.cancel", detail, Command::Cancel { by: ctx.actor(), reason }).await
    }

    /// Takes a failed run up again at the steps that failed.
    ///
    /// # Errors
    /// 404 for an unknown run, 409 when it has not failed, 429 when the tenant has too many live runs.
    pub async fn retry<P: Permit>(&self, tx: &mut TenantTx, ctx: &Ctx<P>, run_id: RunId) -> Result<Run> {
        self.room(store::ground(tx, ctx.tenant_id, self.live_runs, None).await?.live_runs)?;
        self.command(tx, ctx, run_id, "run.retry", json!({}), Command::Retry { by: ctx.actor() }).await
    }

    async fn command<P: Permit>(
        &self,
        tx: &mut TenantTx,
        ctx: &Ctx<P>,
        run_id: RunId,
        action: &'static str,
        detail: Value,
        command: Command,
    ) -> Result<Run> {
        let entry = audit::rider(
            run_id,
            &audit::Entry {
                tenant_id: ctx.tenant_id,
                actor: &ctx.actor(),
                action,
                target: &run_id.to_string(),
                detail,
                request_id: Some(&ctx.request_id),
                at: ctx.now(),
            },
        );
        match self.move_run(tx, ctx.tenant_id, run_id, command, ctx.now(), vec![entry]).await? {
            Some(run) => Ok(run),
            None => self.get(tx, ctx.tenant_id, run_id).await,
        }
    }

    /// Decides a command on a run that exists and appends what follows; none when it was so already.
    pub(super) async fn move_run(
        &self,
        tx: &mut TenantTx,
        tenant_id: TenantId,
        run_id: RunId,
        command: Command,
        now: Timestamp,
        riders: Vec<Rider>,
    ) -> Result<Option<Run>> {
        let mut loaded = journal::load(tx, &[(tenant_id, run_id)], Lock::Held).await?;
        let Some(mut run) = loaded.pop() else { return Err(Error::not_found("run")) };
        match decide_all(&mut run.state, vec![command], now) {
            Ok(events) => {
                let append = Append::new(&run.state, events, run.head.parent.as_ref(), Claim::Due, now)?;
                let view = Run::of(&run, now)?;
                self.journal.append_in(tx, run, append, riders).await?;
                Ok(Some(view))
            }
            Err(Refusal::AlreadySo) => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// The run as it stands in this transaction.
    ///
    /// # Errors
    /// 404 for an unknown run.
    pub async fn get(&self, tx: &mut TenantTx, tenant_id: TenantId, run_id: RunId) -> Result<Run> {
        store::get(tx, tenant_id, run_id).await?.ok_or_else(|| Error::not_found("run"))
    }

    /// The steps of a run in the plan's order, each followed by its items. Those not begun are `pending`, and
    /// once the run is over all that have not ended.
    ///
    /// # Errors
    /// 404 for an unknown run.
    pub async fn steps(&self, tx: &mut TenantTx, tenant_id: TenantId, run_id: RunId) -> Result<Vec<StepView>> {
        let mut recount = Recount::default();
        let run = journal::recount(tx, tenant_id, run_id, |at, event| recount.hear(at, event)).await?;
        Ok(recount.steps(&run.ok_or_else(|| Error::not_found("run"))?.state))
    }
}

/// What a source came to.
struct Resolved {
    plan: Plan,
    /// The definition's name and version.
    workflow: Option<(String, i32)>,
    /// What a denial means by the definition.
    usual: Option<OnDenied>,
}

fn decide_all(state: &mut RunState, commands: Vec<Command>, now: Timestamp) -> Result<Vec<Event>, Refusal> {
    let mut all = Vec::new();
    for command in commands {
        let events = journal::decide(state, command, now)?;
        events.iter().for_each(|event| state.apply(now, event));
        all.extend(events);
    }
    Ok(all)
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Status(status) => {
                Self::conflict(format!("the run is {}", status.name())).with("runStatus", status.name())
            }
            other => Self::conflict(other.to_string()),
        }
    }
}
