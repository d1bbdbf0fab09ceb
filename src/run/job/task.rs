use std::sync::Arc;

use axum::{http::StatusCode, response::Response};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::TASK;
use crate::{
    http::{Ctx, Once, Reply, permit::RunsWrite},
    journal::Retry,
    kernel::{Error, Problem, Reference, Result, RunId},
    llm::UNKNOWN_TEMPLATE,
    run::{
        routes::RunRoutes,
        service::{Opening, Request, Source},
    },
    tool,
};

/// Of the arguments of a call, what is left at least to everything but a task's own words, in bytes.
pub(super) const BESIDES: usize = 1024;

/// A kind of task.
pub(super) struct Kind {
    /// What the workflow is called, and its runs are marked with.
    pub(super) name: &'static str,
    /// The fields that say something also where the caller leaves them out.
    pub(super) usual: &'static [(&'static str, &'static str)],
}

impl Kind {
    /// Takes a task: opens a run with the caller's body as its input, and answers with what is made of its id.
    ///
    /// # Errors
    /// Invalid (422), naming the field of what cannot be; no-planner (422) where the configuration is of no use; what
    /// opening a run comes to.
    pub(super) async fn take<T: Serialize>(
        &self,
        state: &RunRoutes,
        ctx: &Ctx<RunsWrite>,
        once: Once,
        (body, retry): (impl Serialize, Option<Retry>),
        taken: fn(RunId) -> T,
    ) -> Result<Response> {
        let request = match self.request(state, ctx, json!(body)).await {
            Ok(request) => Request { retry, ..request },
            Err(refused) => return once.again(ctx, refused).await,
        };
        let (opening, run_id) = Opening::by(ctx);
        let work = async |tx: &mut _| {
            state.runs.open(tx, opening, request).await.map_err(|error| self.refused(error))?;
            Reply::json(StatusCode::ACCEPTED, &taken(run_id))
        };
        once.command(ctx, work).await
    }

    async fn request(&self, state: &RunRoutes, ctx: &Ctx<RunsWrite>, body: Value) -> Result<Request> {
        let Value::Object(mut input) = body else { return Err(Error::internal("the body of a task is a map")) };
        input.retain(|_, value| !value.is_null());
        for (field, usual) in self.usual {
            input.entry(*field).or_insert_with(|| Value::from(*usual));
        }
        self.check_config(state, ctx, &input).await?;
        check_template(state, ctx, &input).await?;
        check_room(state, &input)?;
        Ok(Request {
            goal: None,
            source: Source::Workflow(self.name.to_owned()),
            input: Value::Object(input),
            budget: None,
            on_denied: None,
            retry: None,
            metadata: json!({ TASK: self.name }),
            foresight: None,
            execute: true,
        })
    }

    /// Whether the configuration can be asked, where the workflow asks it: one that somebody has put may not.
    async fn check_config(&self, state: &RunRoutes, ctx: &Ctx<RunsWrite>, input: &Map<String, Value>) -> Result<()> {
        let field = "config_name";
        let name = input.get(field).and_then(Value::as_str).unwrap_or_default();
        let wanted: Reference = name.parse().map_err(|reason: &str| Error::invalid(field, reason))?;
        let Err(error) = state.models.pin(ctx.tenant_id, &wanted).await else { return Ok(()) };
        let workflow = Source::Workflow(self.name.to_owned());
        let plan = state.runs.steps_of(&mut ctx.begin().await?, ctx.tenant_id, &workflow).await?.unwrap_or_default();
        let (asked, _) = tool::named(&plan.steps, &Arc::new(json!(input)));
        if !asked.contains(&wanted) {
            return Ok(());
        }
        if error.retryable {
            return Err(Error::unavailable(error.message));
        }
        let detail = format!("{}: put the configuration, or have the operator set a key", error.message);
        Err(Error::new(Problem::NoPlanner, detail).with("field", field))
    }

    /// What somebody has put over the workflow may ask for another input than the caller knows of.
    fn refused(&self, error: Error) -> Error {
        let Some(errors) = error.members().get("errors").cloned() else { return error };
        let field = error.members().get("field").and_then(Value::as_str).unwrap_or_default();
        let field = field.strip_prefix("input.").unwrap_or(field);
        let detail = format!("the workflow `{}` does not take it: {}", self.name, error.detail());
        Error::invalid(field, detail).with("errors", errors)
    }
}

/// Whether the template is there and takes the variables.
async fn check_template(state: &RunRoutes, ctx: &Ctx<RunsWrite>, input: &Map<String, Value>) -> Result<()> {
    let invalid = |field, why: String| Error::invalid(field, format!("`{field}`: {why}"));
    let Some(template) = input.get("template_name").and_then(Value::as_str) else {
        let has_variables = input.contains_key("variables");
        return if has_variables {
            Err(invalid("variables", "they need a `template_name`".to_owned()))
        } else {
            Ok(())
        };
    };
    let template: Reference = template.parse().map_err(|why: &str| invalid("template_name", why.to_owned()))?;
    let variables = input.get("variables").and_then(Value::as_object).cloned().unwrap_or_default();
    let prompt = input.get("prompt").and_then(Value::as_str);
    let worded = state.models.word(ctx.tenant_id, &template, &variables, prompt).await;
    worded.map(drop).map_err(|error| match error.code.as_str() {
        UNKNOWN_TEMPLATE => invalid("template_name", error.message),
        _ if error.retryable => Error::unavailable(error.message),
        _ => invalid("variables", error.message),
    })
}

/// Whether all of it together is no more than a run and a call take, naming the largest part.
fn check_room(state: &RunRoutes, input: &Map<String, Value>) -> Result<()> {
    let limits = state.runs.limits();
    let most = limits.arguments.saturating_sub(BESIDES).min(limits.input);
    if tool::fits(&json!(input), most) {
        return Ok(());
    }
    let largest = input.iter().max_by_key(|(_, value)| value.to_string().len());
    let field = largest.map_or("prompt", |(name, _)| name.as_str());
    Err(Error::invalid(field, format!("`{field}` is too large: all of it may have {most} bytes of JSON together")))
}

/// Whether somebody wrote something, and not too much of it.
pub(super) fn words(field: &'static str, text: &str) -> Result<()> {
    if (1..=65_536).contains(&text.len()) {
        Ok(())
    } else {
        Err(Error::invalid(field, format!("`{field}` has 1 to 65,536 bytes")))
    }
}
