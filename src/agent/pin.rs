use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{AgentDefinition, definition::MOST_HANDOFFS, grow::turn, tool, usual};
use crate::{
    db::{Database, TenantTx},
    journal::{AgentPin, Budget, Plan, Planner, TurnRate, fits},
    kernel::{
        Error, Problem, Reference, Result, TenantId,
        template::{self, Context},
    },
    llm::{Choice, Document, ModelConfig, Models, shelf},
    tool::{OUTPUT_READ, Toolbox},
};

/// The agents of this installation.
#[derive(Clone)]
pub struct Agents {
    db: Database,
    tools: Toolbox,
    models: Models,
}

/// An agent and the others that it may hand over to, each as `name@version`.
struct Reached {
    agent: Document<AgentDefinition>,
    handoffs: Vec<String>,
}

impl Agents {
    /// Those put in `db`, with the tools that there are besides agents, and the models.
    #[must_use]
    pub fn new(db: Database, tools: Toolbox, models: Models) -> Self {
        Self { db, tools, models }
    }

    /// The plan that a run of an agent begins with: everything in it as it is now, the agents that the conversation can
    /// be handed to as well, and the first turn.
    ///
    /// # Errors
    /// Not found (404) for an unknown agent; no-planner (422) without a model of use; invalid (422), when instructions
    /// fail over the goal and input, or hand-offs lead nowhere or to too many.
    pub async fn plan(&self, tenant: TenantId, agent: &Reference, goal: &str, input: &Value) -> Result<Plan> {
        let reached = self.reached(tenant, agent).await?;
        let names = self.names(tenant).await?;
        let configs: Vec<_> = reached.iter().map(|one| one.agent.body.config.as_deref()).collect();
        let chains = self.chains(tenant, "agent", &configs).await?;
        let pinned = reached.into_iter().zip(chains).map(|(one, chain)| pin(one, &chain, &names, goal, input));
        let mut pins = pinned.map(|pin| pin.map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let first = pins.first().ok_or_else(|| Error::not_found("agent"))?;
        let steps = vec![Arc::new(turn(1, first, vec![]))];
        let plan = Plan { steps, agent: Some(pins.remove(0)), agents: pins, ..Plan::default() };
        self.check_size(&plan)?;
        Ok(plan)
    }

    /// An agent that draws up the whole plan before anything is done: everything in it as it is now. Whom it could hand
    /// over to has no part in that.
    ///
    /// # Errors
    /// Not found (404) for an unknown agent; no-planner (422) without a model of use; invalid (422), when instructions
    /// fail over the goal and input.
    pub async fn planner_as(&self, tenant: TenantId, agent: &Reference, goal: &str, input: &Value) -> Result<Planner> {
        let mut tx = self.db.tenant(tenant).await?;
        let agent = shelf::find(&mut tx, &usual::agents(), std::slice::from_ref(agent)).await?.pop().flatten();
        drop(tx);
        let agent = agent.ok_or_else(|| Error::not_found("agent"))?;
        let chain = self.chain(tenant, "agent", agent.body.config.as_deref()).await?;
        let pin = pin(Reached { agent, handoffs: vec![] }, &chain, &self.names(tenant).await?, goal, input)?;
        if pin.tools.is_empty() {
            let detail = "the agent was given no tools, so there is nothing that a plan of its could do: execute it, or \
                          give it some";
            return Err(Error::invalid("agent", detail));
        }
        self.check_size(&pin)?;
        Ok(Planner::of(pin))
    }

    /// The names of all the tools that there are, agents among them.
    async fn names(&self, tenant: TenantId) -> Result<Vec<String>> {
        let (tools, agents) = (self.tools.of(tenant).await?, self.all(tenant).await?);
        Ok(tools.names().map(str::to_owned).chain(agents.iter().map(|it| tool::name(&it.name))).collect())
    }

    /// Refuses what an event cannot carry.
    fn check_size(&self, pinned: &impl Serialize) -> Result<()> {
        let most = self.tools.server().limits().payload();
        if serde_json::to_vec(pinned).map_err(Error::internal)?.len() > most {
            let detail = format!("the agent and those it leads to take more than {most} bytes of JSON together");
            return Err(Error::invalid("agent", detail));
        }
        Ok(())
    }

    /// The newest version of each of a tenant's agents, and what the server brings along.
    pub(super) async fn all(&self, tenant: TenantId) -> Result<Vec<Document<AgentDefinition>>> {
        let mut tx = self.db.tenant(tenant).await?;
        shelf::all(&mut tx, usual::agents()).await
    }

    /// The agent, and after it those that hand-offs lead to.
    async fn reached(&self, tenant: TenantId, agent: &Reference) -> Result<Vec<Reached>> {
        let brought = usual::agents();
        let mut tx = self.db.tenant(tenant).await?;
        let first = shelf::find(&mut tx, &brought, std::slice::from_ref(agent)).await?.pop().flatten();
        let mut reached = vec![];
        let mut known = vec![first.ok_or_else(|| Error::not_found("agent"))?];
        while let Some(agent) = known.get(reached.len()).cloned() {
            let wanted = references(agent.body.handoffs.as_deref().unwrap_or_default())?;
            let mut handoffs = vec![];
            for (found, wanted) in shelf::find(&mut tx, &brought, &wanted).await?.into_iter().zip(&wanted) {
                let found = found.ok_or_else(|| {
                    Error::invalid("agent", format!("`{}` hands over to `{wanted}`, which is no agent", agent.name))
                })?;
                handoffs.push(found.reference());
                if !known.iter().any(|it| it.reference() == found.reference()) {
                    known.push(found);
                }
            }
            if known.len() > MOST_HANDOFFS + 1 {
                let detail = format!("hand-offs lead to more than {MOST_HANDOFFS} agents");
                return Err(Error::invalid("agent", detail));
            }
            reached.push(Reached { agent, handoffs });
        }
        Ok(reached)
    }

    /// The model that plans where only a goal is given.
    ///
    /// # Errors
    /// No-planner (422) without a model of use.
    pub async fn planner(&self, tenant: TenantId, execute: bool) -> Result<Planner> {
        let chain = self.chain(tenant, "goal", None).await?;
        let [first, fallback @ ..] = &chain[..] else { return Err(Error::internal("a chain without a beginning")) };
        Ok(Planner {
            config: first.pinned(),
            fallback: fallback.iter().map(Document::pinned).collect(),
            rate: rate(&chain),
            longest_answer: longest_answer(&chain),
            window: narrowest(&chain),
            execute,
            agent: None,
        })
    }

    /// The configuration that is meant now, which is named in, or missing from, that field, and what it falls back on.
    async fn chain(&self, tenant: TenantId, field: &str, name: Option<&str>) -> Result<Vec<Document<ModelConfig>>> {
        Ok(self.chains(tenant, field, &[name]).await?.pop().unwrap_or_default())
    }

    /// The same of many, in their order.
    async fn chains(
        &self,
        tenant: TenantId,
        field: &str,
        names: &[Option<&str>],
    ) -> Result<Vec<Vec<Document<ModelConfig>>>> {
        let named = |name: &Option<&str>| name.unwrap_or("default-smart").parse().map(Choice::Named);
        let wanted = names.iter().map(named).collect::<Result<Vec<_>, &str>>().map_err(Error::internal)?;
        self.models.usable(tenant, &wanted.iter().collect::<Vec<_>>()).await.map_err(|error| {
            if error.retryable {
                return Error::unavailable(error.message);
            }
            let detail = format!("{}: put the configuration, or have the operator set a key", error.message);
            Error::new(Problem::NoPlanner, detail).with("field", field)
        })
    }

    /// Tells agents of another goal or input; all else in them stays.
    ///
    /// # Errors
    /// Not found (404) for an agent that is gone; invalid (422) when its instructions fail over the goal and input.
    pub async fn retell(
        &self,
        tx: &mut TenantTx,
        pins: Vec<&mut Arc<AgentPin>>,
        goal: &str,
        input: &Value,
    ) -> Result<()> {
        let wanted = references(&pins.iter().map(|pin| pin.agent.clone()).collect::<Vec<_>>())?;
        let found = shelf::find::<AgentDefinition>(tx, &usual::agents(), &wanted).await?;
        for (pin, document) in pins.into_iter().zip(found) {
            let document = document.ok_or_else(|| Error::not_found("agent"))?;
            Arc::make_mut(pin).instructions = instructions(&document.body.instructions, goal, input)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

/// An agent as it is now, whose model is the first of the chain and falls back on the others.
fn pin(
    Reached { agent, handoffs }: Reached,
    chain: &[Document<ModelConfig>],
    tools: &[String],
    goal: &str,
    input: &Value,
) -> Result<AgentPin> {
    let body = &agent.body;
    let patterns = body.tools.as_deref().unwrap_or_default();
    let [config, fallback @ ..] = chain else { return Err(Error::internal("a chain without a beginning")) };
    Ok(AgentPin {
        agent: agent.reference(),
        description: body.description.clone(),
        config: config.pinned(),
        fallback: fallback.iter().map(Document::pinned).collect(),
        instructions: instructions(&body.instructions, goal, input)?,
        tools: given(&agent.name, tools, patterns),
        missing: missing(&agent.name, tools, patterns),
        handoffs,
        approval: body.approval.clone().unwrap_or_default(),
        max_turns: body.max_turns.unwrap_or(10),
        max_parallel: body.max_parallel.unwrap_or(8),
        budget: body.budget.map(Budget::from).unwrap_or_default(),
        output: body.output.clone(),
        reasoning: body.reasoning.unwrap_or_default(),
        rate: rate(chain),
        longest_answer: longest_answer(chain),
        window: narrowest(chain),
    })
}

fn references(names: &[String]) -> Result<Vec<Reference>> {
    names.iter().map(|name| name.parse().map_err(|wrong: &str| Error::internal(wrong))).collect()
}

/// The most tokens of a question that each of them takes: which of them answers is not known when it is put together.
fn narrowest(chain: &[Document<ModelConfig>]) -> u32 {
    chain.iter().map(|one| one.body.question_window()).min().unwrap_or_default()
}

/// The tools that the names and patterns mean. An agent is its own tool only where it is named in full. Whoever has any can
/// read what they gave: from the beginning, so that the list stays as it is from turn to turn, and what a provider has
/// cached of a question is of use for the next.
pub(super) fn given(agent: &str, tools: &[String], patterns: &[String]) -> Vec<String> {
    let is_given = |name: &&String| patterns.iter().any(|pattern| means(agent, pattern, name));
    let mut given: Vec<_> = tools.iter().filter(is_given).cloned().collect();
    if !given.is_empty() && !given.iter().any(|name| name == OUTPUT_READ) {
        given.push(OUTPUT_READ.to_owned());
    }
    given
}

/// The names and patterns that mean none of the tools.
fn missing(agent: &str, tools: &[String], patterns: &[String]) -> Vec<String> {
    let is_missing = |pattern: &&String| !tools.iter().any(|name| means(agent, pattern, name));
    patterns.iter().filter(is_missing).cloned().collect()
}

/// Whether an agent that was given this was given that tool.
fn means(agent: &str, pattern: &str, tool: &str) -> bool {
    if tool == tool::name(agent) { pattern == tool } else { fits(pattern, tool) }
}

/// The most tokens of an answer, whichever of them gives it.
fn longest_answer(chain: &[Document<ModelConfig>]) -> u32 {
    chain.iter().map(|one| one.body.longest_answer()).max().unwrap_or_default()
}

/// What a question costs at most by their prices, whichever of them answers.
fn rate(chain: &[Document<ModelConfig>]) -> Option<TurnRate> {
    let rates = chain.iter().filter_map(|Document { body, .. }| {
        let price = body.price?;
        let answer = f64::from(body.longest_answer()) * price.output / 1_000_000.0;
        Some(TurnRate { input: price.dearest_input(), answer })
    });
    rates.reduce(|one, other| TurnRate { input: one.input.max(other.input), answer: one.answer.max(other.answer) })
}

fn instructions(text: &str, goal: &str, input: &Value) -> Result<String> {
    let names: Map<String, Value> =
        Map::from_iter([("goal".to_owned(), json!(goal)), ("input".to_owned(), input.clone())]);
    let context = Context::Variables(Arc::new(Value::Object(names)));
    template::render_text(text, &context)
        .map_err(|error| Error::invalid("input", format!("the agent's instructions fail over it: {error}")))
}
