use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{AgentDefinition, grow::turn};
use crate::{
    http::{Ctx, Permit},
    journal::{AgentPin, Plan, TurnRate, fits},
    kernel::{
        Error, Pinned, Problem, Reference, Result,
        template::{self, Context},
    },
    llm::{Models, shelf},
    tool::{OUTPUT_READ, Registry, Toolbox},
};

/// Tokens of the longest answer, where the configuration sets no bound: models rarely say more at once.
const ANSWER: u32 = 4096;

/// Tokens that a model takes, where the configuration does not say: few take less.
const WINDOW: u32 = 128_000;

/// The agents of this installation.
#[derive(Clone)]
pub struct Agents {
    tools: Toolbox,
    models: Models,
}

impl Agents {
    /// With the tools and models there are.
    #[must_use]
    pub fn new(tools: Toolbox, models: Models) -> Self {
        Self { tools, models }
    }

    /// The plan that a run of an agent begins with: everything in it as it is now, and the first turn.
    ///
    /// # Errors
    /// Not found (404) for an unknown agent; no-planner (422) without a model of use; invalid (422), when its instructions
    /// fail over the goal and input.
    pub async fn plan<P: Permit>(&self, ctx: &Ctx<P>, agent: &str, goal: &str, input: &Value) -> Result<Plan> {
        // What is no name is nobody's name.
        let reference: Reference = agent.parse().map_err(|_| Error::not_found("agent"))?;
        let document = shelf::get::<AgentDefinition, P>(ctx, vec![], reference.name, reference.version).await?;
        let body = &document.body;
        let wanted = body.config.as_deref().unwrap_or("default-smart").parse().map_err(|e: &str| Error::internal(e))?;
        let config = self.models.pin(ctx.tenant_id, &wanted).await.map_err(|error| {
            let detail = format!("{}: put the configuration, or have the operator set a key", error.message);
            Error::new(Problem::NoPlanner, detail).with("field", "agent")
        })?;
        let answer = config.body.max_tokens.unwrap_or(ANSWER);
        let pin = AgentPin {
            agent: document.reference(),
            config: Pinned { name: config.name, version: config.version },
            instructions: instructions(&body.instructions, goal, input)?,
            tools: given(&self.tools.of(ctx.tenant_id).await?, body.tools.as_deref().unwrap_or_default()),
            approval: body.approval.clone().unwrap_or_default(),
            max_turns: body.max_turns.unwrap_or(10),
            max_parallel: body.max_parallel.unwrap_or(8),
            output: body.output.clone(),
            window: question(config.body.window.unwrap_or(WINDOW), answer),
            rate: config
                .body
                .price
                .map(|price| TurnRate { input: price.input, answer: f64::from(answer) * price.output / 1_000_000.0 }),
        };
        let first = Arc::new(turn(1, vec![]));
        Ok(Plan { steps: vec![first], output: None, agent: Some(Arc::new(pin)) })
    }
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

/// The tools that the names and patterns mean. Whoever has any can read what they gave: from the beginning, so that the
/// list stays as it is from turn to turn, and what a provider has cached of a question is of use for the next.
fn given(tools: &Registry, patterns: &[String]) -> Vec<String> {
    let named = |name: &&str| patterns.iter().any(|pattern| fits(pattern, name));
    let mut given: Vec<_> = tools.names().filter(named).map(str::to_owned).collect();
    if !given.is_empty() && !given.iter().any(|name| name == OUTPUT_READ) {
        given.push(OUTPUT_READ.to_owned());
    }
    given
}

/// The tokens that are left for a question beside the longest answer; half of the window at least.
const fn question(window: u32, answer: u32) -> u32 {
    let (left, half) = (window.saturating_sub(answer), window / 2);
    if left > half { left } else { half }
}

fn instructions(text: &str, goal: &str, input: &Value) -> Result<String> {
    let names: Map<String, Value> =
        Map::from_iter([("goal".to_owned(), json!(goal)), ("input".to_owned(), input.clone())]);
    let context = Context::Variables(Arc::new(Value::Object(names)));
    template::render_text(text, &context)
        .map_err(|error| Error::invalid("input", format!("the agent's instructions fail over it: {error}")))
}
