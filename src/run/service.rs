//! What callers can do with runs: plan, execute, cancel, retry. Each is one transaction: row, events, audit
//! entry and the wake-up of a worker.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    definition,
    forecast::Foresight,
    fork::Fork,
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
        self, Append, Budget, Claim, Command, Draft, Estimate, Event, Journal, Loaded, Lock, OnDenied, Parent, Phase,
        Plan, Planner, Refusal, Retry, RunHead, RunState, Stage, Step, StepKey,
    },
    kernel::{Actor, Error, Problem, Reference, Result, RunId, TenantId, Timestamp},
    llm::Models,
    tool, usage,
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
    /// Steps that were checked, or the beginning of an agent's that plans as it goes.
    Plan(Plan),
    /// The goal, from which a model makes a whole plan.
    Goal(Planner),
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
    /// What it may take.
    pub budget: Option<Budget>,
    /// What a denial means where the step does not say; the definition's word when absent.
    pub on_denied: Option<OnDenied>,
    /// How steps are tried again that do not say it themselves; not at all when absent. Of a plan that is still to be made,
    /// it says nothing.
    pub retry: Option<Retry>,
    /// The caller's own notes.
    pub metadata: Value,
    /// What its plan is forecast with, where somebody looks at it before it begins.
    pub foresight: Option<Foresight>,
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
        let Resolved { plan, planner, workflow, usual } =
            self.resolve(tx, opening.tenant_id, request.source, &request.input).await?;
        let (input, retry) = (Arc::new(request.input), request.retry.as_ref());
        let plan = match plan {
            Some(plan) => Some(Arc::new(self.pin(tx, plan.retried(retry), &input).await?)),
            None => None,
        };
        let on_denied = request.on_denied.or(usual).unwrap_or_default();
        let named = workflow.as_ref().map(|(name, version)| format!("{name}@{version}"));
        let planning = planner.as_ref().and_then(|planner| planner.agent.as_ref());
        let agent = plan.as_ref().and_then(|plan| plan.agent.as_ref()).or(planning);
        let budget = request.budget.unwrap_or_default().within(agent.map(|agent| agent.budget).unwrap_or_default());
        let (goal, parent) = (request.goal.clone(), opening.parent.clone());
        let mut commands = vec![Command::Open { goal, workflow: named.clone(), parent, planner, budget }];
        let has_plan = plan.is_some();
        commands.extend(plan.map(|plan| {
            let foresight = request.foresight.as_ref();
            let forecast = foresight.map(|it| it.announce(&plan, budget)).unwrap_or_default();
            Command::Draft(Draft::Ready { plan, forecast })
        }));
        // One that a model plans begins once it has its plan.
        if request.execute && has_plan {
            commands.push(Command::Execute { by: opening.by.clone() });
        }
        let detail = json!({ "workflow": named, "parent": opening.parent, "execute": request.execute });
        let head = RunHead {
            goal: request.goal,
            workflow,
            input,
            budget: budget.cost,
            metadata: Arc::new(request.metadata),
            created_by: opening.by.clone(),
            parent: opening.parent.clone(),
            created_at: opening.now,
        };
        self.begin(tx, opening, (head, on_denied), commands, ("run.create", detail)).await
    }

    /// Opens a run with the past of another, and lets it go on from there.
    ///
    /// # Errors
    /// 422 for an input that the workflow does not take, 429 when the tenant has too many live runs.
    pub(super) async fn fork(&self, tx: &mut TenantTx, opening: Opening, fork: Fork) -> Result<Run> {
        let Fork { from, past, head, on_denied, budget } = fork;
        let reference = head.workflow.clone().map(|(name, version)| Reference { name, version: Some(version) });
        let ground = store::ground(tx, opening.tenant_id, self.live_runs, reference.as_ref()).await?;
        self.room(ground.live_runs)?;
        if let Some((definition, _)) = &ground.definition {
            definition::check_input(definition, &head.input)?;
        }
        let (by, created_at) = (opening.by.clone(), opening.now);
        let head = RunHead { created_by: by, parent: None, created_at, ..head };
        let detail = json!(from);
        let command = Command::Fork { goal: head.goal.clone(), workflow: head.workflow_name(), from, past, budget };
        self.begin(tx, opening, (head, on_denied), vec![command], ("run.fork", detail)).await
    }

    /// Opens a run with what follows from the commands, and says so in the audit log. A run of that id that is there
    /// already is left as it is.
    async fn begin(
        &self,
        tx: &mut TenantTx,
        opening: Opening,
        (head, on_denied): (RunHead, OnDenied),
        commands: Vec<Command>,
        (action, detail): (&'static str, Value),
    ) -> Result<Run> {
        let Opening { tenant_id, run_id, by, parent, request_id, now } = opening;
        let mut state = RunState::new(tenant_id, run_id, by.clone(), on_denied);
        let events = decide_all(&mut state, commands, now)?;
        let claim = if state.phase == Phase::Executing || state.is_drafted() { Claim::Due } else { Claim::Keep };
        let append = Append::new(&state, events, parent.as_ref(), claim, now)?;
        let target = run_id.to_string();
        let request_id = request_id.as_ref();
        let entry = audit::Entry { tenant_id, actor: &by, action, target: &target, detail, request_id, at: now };
        let entry = audit::rider(run_id, &entry);
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
            Source::Plan(_) | Source::Goal(_) => None,
        };
        let Ground { live_runs, definition } = store::ground(tx, tenant_id, self.live_runs, reference.as_ref()).await?;
        self.room(live_runs)?;
        match source {
            Source::Workflow(_) => {
                let (definition, workflow) = definition.ok_or_else(not_found)?;
                definition::check_input(&definition, input)?;
                let plan = Some(definition.plan());
                Ok(Resolved { plan, workflow: Some(workflow), usual: definition.on_denied, planner: None })
            }
            Source::Plan(plan) => Ok(Resolved { plan: Some(plan), workflow: None, usual: None, planner: None }),
            Source::Goal(planner) => Ok(Resolved { plan: None, workflow: None, usual: None, planner: Some(planner) }),
        }
    }

    /// The plan with the versions of the models that its steps name, in a run with this input: later ones do not touch the
    /// run. What is not there now is left to the step that needs it; what is pinned already stays.
    pub(super) async fn pin(&self, tx: &mut TenantTx, mut plan: Plan, input: &Arc<Value>) -> Result<Plan> {
        let (configs, templates) = tool::named(&plan.steps, input);
        if !configs.is_empty() || !templates.is_empty() {
            let mut pins = self.models.pins(tx, &configs, &templates).await?;
            if let Some(before) = plan.models.as_deref().cloned() {
                pins.configs.extend(before.configs);
                pins.templates.extend(before.templates);
            }
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
        request.goal.as_ref().map_or(Ok(()), |goal| check_goal("goal", goal))?;
        request.budget.unwrap_or_default().check()?;
        if !request.metadata.is_object() {
            return Err(Error::invalid("metadata", "`metadata` is an object"));
        }
        check_size("input", &request.input, self.limits.input)?;
        check_size("metadata", &request.metadata, METADATA)
    }

    /// How much a run may carry.
    pub(super) fn limits(&self) -> &LimitSettings {
        &self.limits
    }

    /// Lets a planned run begin.
    ///
    /// # Errors
    /// 404 for an unknown run, 409 when it is not planned or has begun, 429 when the tenant has too many live runs.
    pub async fn execute<P: Permit>(&self, tx: &mut TenantTx, ctx: &Ctx<P>, run_id: RunId) -> Result<Run> {
        self.room(store::ground(tx, ctx.tenant_id, self.live_runs, None).await?.live_runs)?;
        self.command(tx, ctx, run_id, "run.execute", json!({}), Command::Execute { by: ctx.actor() }).await
    }

    /// Puts another plan in the place of that of a run which has not begun.
    ///
    /// # Errors
    /// 404 for an unknown run, 409 when it has no plan yet, has begun, or is an agent's.
    pub async fn edit<P: Permit>(
        &self,
        tx: &mut TenantTx,
        ctx: &Ctx<P>,
        run_id: RunId,
        (plan, foresight): (Plan, Foresight),
    ) -> Result<Run> {
        let run = self.loaded(tx, ctx.tenant_id, run_id).await?;
        let plan = self.pin(tx, plan, &run.head.input).await?;
        let left = run.state.left(Estimate::default(), Estimate::default(), ctx.now());
        let forecast = foresight.announce(&plan, left);
        let detail = json!({ "steps": plan.steps.len() });
        let edited = Draft::Edited { plan: Arc::new(plan), forecast, by: ctx.actor() };
        self.command(tx, ctx, run_id, "run.edit", detail, Command::Draft(edited)).await
    }

    /// The plan as far as it has not ended and its input, and what is left of the run's budget and of its tenant's day.
    ///
    /// # Errors
    /// 404 for an unknown run.
    pub async fn to_come(
        &self,
        tx: &mut TenantTx,
        tenant_id: TenantId,
        run_id: RunId,
        now: Timestamp,
    ) -> Result<((Plan, Arc<Value>), Budget, Budget)> {
        let Loaded { state, head, .. } = self.loaded(tx, tenant_id, run_id).await?;
        let mut plan = state.plan.as_deref().cloned().unwrap_or_default();
        let has_ended = |step: &Step| state.stage(&StepKey::whole(&step.id)).is_some_and(Stage::is_ended);
        // What those that have ended took is in what is spent.
        plan.steps.retain(|step| !has_ended(step));
        let left = state.left(Estimate::default(), Estimate::default(), now);
        Ok(((plan, head.input), left, usage::left_of_day(tx, tenant_id, now).await?))
    }

    /// The steps of what a run is to carry out, where they are known.
    ///
    /// # Errors
    /// 404 for an unknown workflow.
    pub async fn steps_of(&self, tx: &mut TenantTx, tenant_id: TenantId, source: &Source) -> Result<Option<Plan>> {
        Ok(match source {
            Source::Plan(plan) => Some(plan.clone()),
            Source::Goal(_) => None,
            Source::Workflow(name) => {
                let reference: Reference = name.parse().map_err(|_| Error::not_found("workflow"))?;
                let ground = store::ground(tx, tenant_id, self.live_runs, Some(&reference)).await?;
                ground.definition.map(|(definition, _)| definition.plan())
            }
        })
    }

    async fn loaded(&self, tx: &mut TenantTx, tenant_id: TenantId, run_id: RunId) -> Result<Loaded> {
        let loaded = journal::load(tx, &[(tenant_id, run_id)], Lock::Free).await?.pop();
        loaded.ok_or_else(|| Error::not_found("run"))
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
                // A plan that was edited waits for its word to begin.
                let claim = if run.state.is_planned() { Claim::Keep } else { Claim::Due };
                let append = Append::new(&run.state, events, run.head.parent.as_ref(), claim, now)?;
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

/// Whether a run may have that goal.
///
/// # Errors
/// 422, naming the field.
pub(super) fn check_goal(field: &str, goal: &str) -> Result<()> {
    if goal.is_empty() || goal.chars().count() > GOAL {
        return Err(Error::invalid(field, format!("`{field}` has 1 to {GOAL} characters")));
    }
    if goal.contains('\0') {
        return Err(Error::invalid(field, format!("`{field}` cannot hold the character U+0000")));
    }
    Ok(())
}

/// Whether a value is small enough.
///
/// # Errors
/// 422, naming the field.
pub(super) fn check_size(field: &str, value: &Value, most: usize) -> Result<()> {
    if value.to_string().len() > most {
        return Err(Error::invalid(field, format!("`{field}` takes more than {most} bytes of JSON")));
    }
    Ok(())
}

/// What a source came to.
struct Resolved {
    /// The steps, where they are known.
    plan: Option<Plan>,
    /// Else the model that makes them.
    planner: Option<Planner>,
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
