//! All checks of a definition; each adds what it finds, none stops the others.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use serde_path_to_error::Segment;

use super::{
    Definition, Media, Mistake, arguments,
    graph::Graph,
    names,
    schema::{self, MAX_MISTAKES},
    source::{Source, child},
};
use crate::{
    journal::{Plan, Step},
    kernel::{Error, Result, Span, compile, template},
    tool::Registry,
};

/// How many tools a message names, where one is not there.
const NAMED_TOOLS: usize = 24;
/// The longest time-out, back-off or deadline: ten years, in seconds.
const MAX_SECONDS: u64 = 10 * 366 * 86_400;

/// Reads and checks a definition, which must have the `name` it is to be put under, if that is known.
///
/// # Errors
/// The 422 that lists every mistake, each with its line, column and path.
pub fn check(bytes: &[u8], media: Media, name: Option<&str>, tools: &Registry) -> Result<Definition> {
    let source = Source::read(bytes, media, tools.limits().definition).map_err(|mistake| super::refuse(&[mistake]))?;
    let mut mistakes = schema::check(&source)?;
    let written = source.value.get("name").and_then(Value::as_str);
    if let (Some(name), Some(written)) = (name, written)
        && name != written
    {
        mistakes.push(source.mistake("/name", format!("is `{written}`, but it is to be put under `{name}`")));
    }
    Check { source: &source, tools, mistakes }.run()
}

/// Checks the inline plan of a request: `{steps, output?}` or the list of steps alone.
///
/// # Errors
/// The 422 that lists every mistake, each with its path from `plan`.
pub fn check_plan(plan: &Value, tools: &Registry) -> Result<Plan> {
    let (body, hidden) = match plan {
        Value::Array(_) => (json!({ "steps": plan }), "/steps"),
        _ => (plan.clone(), ""),
    };
    let mut source = Source::of_value(body, "plan", hidden);
    let Value::Object(fields) = &mut source.value else {
        return Err(super::refuse(&[source.mistake("", "must be a list of steps or a map with `steps`")]));
    };
    let others = fields.keys().filter(|name| !matches!(name.as_str(), "steps" | "output")).cloned().collect::<Vec<_>>();
    // A plan is a definition without a name of its own.
    fields.insert("name".to_owned(), json!("plan"));
    if !others.is_empty() {
        let message = |name: &String| format!("there is no field `{name}` here: output, steps");
        let mistakes = others.iter().map(|name| source.mistake(&child("", name), message(name))).collect::<Vec<_>>();
        return Err(super::refuse(&mistakes));
    }
    let mistakes = schema::check(&source)?;
    Check { source: &source, tools, mistakes }.run().map(|definition| definition.plan())
}

/// The tools that an inline plan names, whatever else is in it.
pub fn uses(plan: &Value) -> impl Iterator<Item = &str> {
    let steps = plan.get("steps").unwrap_or(plan).as_array();
    steps.into_iter().flatten().filter_map(|step| step.get("uses")?.as_str())
}

/// A step as it was written, and as it is understood if it could be.
struct Draft {
    pointer: String,
    id: String,
    step: Option<Step>,
}

struct Check<'s> {
    source: &'s Source<'s>,
    tools: &'s Registry,
    mistakes: Vec<Mistake>,
}

impl<'s> Check<'s> {
    fn run(mut self) -> Result<Definition> {
        let source = self.source;
        let drafts = self.drafts();
        let graph = self.graph(&drafts);
        for (index, draft) in drafts.iter().enumerate() {
            self.tool(&draft.pointer);
            let names = names::Of { source, graph: &graph, step: Some(index) };
            self.mistakes.extend(names.check_step(&draft.pointer));
            if let Some(step) = &draft.step {
                self.step(step, &draft.pointer);
            }
        }
        if let Some(output) = source.value.get("output") {
            self.mistakes.extend(names::Of { source, graph: &graph, step: None }.check_value("/output", output));
        }
        if let Some(input) = source.value.get("input").filter(|input| input.is_object())
            && let Err(message) = compile(input)
        {
            self.add("/input", format!("not a JSON Schema (2020-12): {message}"));
        }
        self.finish(drafts)
    }

    fn add(&mut self, pointer: &str, message: impl Into<String>) {
        self.mistakes.push(self.source.mistake(pointer, message));
    }

    fn finish(mut self, drafts: Vec<Draft>) -> Result<Definition> {
        if self.mistakes.is_empty() {
            let steps = drafts.into_iter().filter_map(|draft| draft.step).collect();
            let definition = assemble(&self.source.value, steps)?;
            let most = self.tools.limits().payload();
            if serde_json::to_vec(&definition.plan()).map_err(Error::internal)?.len() <= most {
                return Ok(definition);
            }
            // `plan.ready` carries it whole.
            self.add("", format!("the steps and the output take more than {most} bytes of JSON together"));
        }
        self.mistakes.sort_by(|a, b| (a.line, a.column, &a.path).cmp(&(b.line, b.column, &b.path)));
        self.mistakes.dedup();
        self.mistakes.truncate(MAX_MISTAKES);
        Err(super::refuse(&self.mistakes))
    }

    /// Understands every step that can be, so that a mistake in one does not hide those in others.
    fn drafts(&mut self) -> Vec<Draft> {
        let steps = self.source.value.get("steps").and_then(Value::as_array);
        let most = self.tools.limits().steps;
        if steps.is_some_and(|steps| steps.len() > most) {
            self.add("/steps", format!("must have at most {most} steps"));
        }
        let steps = steps.into_iter().flatten().take(most).enumerate();
        steps
            .map(|(index, value)| {
                let pointer = format!("/steps/{index}");
                let id = value.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
                let step = self.understand(value, &pointer);
                Draft { pointer, id, step }
            })
            .collect()
    }

    fn understand(&mut self, value: &Value, pointer: &str) -> Option<Step> {
        let mut value = value.clone();
        // `if: false` is how people switch a step off.
        if let Some(condition) = value.get_mut("if").filter(|condition| condition.is_boolean()) {
            *condition = Value::String(condition.to_string());
        }
        match serde_path_to_error::deserialize::<_, Step>(value) {
            Ok(step) => Some(step),
            Err(error) => {
                let place = error.path().iter().fold(pointer.to_owned(), |pointer, segment| match segment {
                    Segment::Seq { index } => format!("{pointer}/{index}"),
                    Segment::Map { key } => child(&pointer, key),
                    Segment::Enum { .. } | Segment::Unknown => pointer,
                });
                // The schema has usually said it already, and better.
                let around = self.source.mistake(pointer, "").path;
                let inside =
                    |path: &str| path.strip_prefix(&*around).is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']));
                if !self.mistakes.iter().any(|mistake| inside(&mistake.path)) {
                    self.add(&place, error.inner().to_string());
                }
                None
            }
        }
    }

    /// Ids, `needs` and cycles.
    fn graph(&mut self, drafts: &[Draft]) -> Graph {
        let mut graph = Graph::new(drafts.iter().map(|draft| draft.id.clone()).collect());
        for (index, draft) in drafts.iter().enumerate() {
            if !draft.id.is_empty() && graph.find(&draft.id) != Some(index) {
                self.add(&child(&draft.pointer, "id"), format!("another step has the id `{}`", draft.id));
            }
            let needs = self.source.value.pointer(&child(&draft.pointer, "needs")).and_then(Value::as_array);
            for (place, need) in needs.into_iter().flatten().enumerate() {
                let Some(need) = need.as_str() else { continue };
                let pointer = format!("{}/needs/{place}", draft.pointer);
                match graph.find(need) {
                    Some(needed) if needed == index => self.add(&pointer, "a step cannot need itself"),
                    Some(needed) => graph.need(index, needed),
                    None => self.add(&pointer, format!("there is no step `{need}`")),
                }
            }
        }
        if let Some(cycle) = graph.close() {
            let names = cycle.iter().filter_map(|index| drafts.get(*index)).map(|draft| draft.id.as_str());
            let path = names.collect::<Vec<_>>().join(" needs ");
            let at = cycle.first().map_or(0, |index| *index);
            self.add(&format!("/steps/{at}/needs"), format!("the steps go round in a circle: {path}"));
        }
        graph
    }

    /// The tool and what it is given, also of a step that is not understood otherwise.
    fn tool(&mut self, pointer: &str) {
        let Some(step) = self.source.value.pointer(pointer) else { return };
        let Some(uses) = step.get("uses").and_then(Value::as_str) else { return };
        let Some(schema) = self.tools.arguments(uses) else {
            let mut names = self.tools.names();
            let mut known = names.by_ref().take(NAMED_TOOLS).collect::<Vec<_>>().join(", ");
            if names.next().is_some() {
                known.push_str(", and more: see `GET /tools`");
            }
            return self.add(&child(pointer, "uses"), format!("there is no tool `{uses}`: {known}"));
        };
        if let Some(with) = step.get("with").cloned().or(Some(json!({}))).filter(Value::is_object) {
            self.mistakes.extend(arguments::check(self.source, pointer, &with, schema));
        }
    }

    /// What can be said of one step alone.
    fn step(&mut self, step: &Step, pointer: &str) {
        match &step.for_each {
            Some(Value::String(text)) if !template::is_template(&Value::String(text.clone())) => {
                self.add(&child(pointer, "forEach"), "must be a list, or a template of one as in `{{ input.list }}`");
            }
            None if step.concurrency.is_some() => {
                self.add(&child(pointer, "concurrency"), "only a step with `forEach` has a `concurrency`");
            }
            _ => {}
        }
        let retry = step.retry.as_ref();
        let expires = step.approval.as_ref().and_then(|terms| terms.expires);
        self.span(&child(pointer, "timeout"), step.timeout, true);
        self.span(&format!("{pointer}/approval/expires"), expires, true);
        self.span(&format!("{pointer}/retry/backoff"), retry.and_then(|retry| retry.backoff), false);
        self.span(&format!("{pointer}/retry/maxBackoff"), retry.and_then(|retry| retry.max_backoff), false);
        self.span(&format!("{pointer}/retry/minBackoff"), retry.and_then(|retry| retry.min_backoff), false);
        self.terms(step, pointer);
    }

    fn span(&mut self, pointer: &str, span: Option<Span>, positive: bool) {
        let Some(Span(span)) = span else { return };
        if span.as_secs() > MAX_SECONDS {
            self.add(pointer, "must be at most ten years");
        } else if positive && span.is_zero() {
            self.add(pointer, "must be longer than nothing");
        }
    }

    /// What an approver reads is fixed with the definition, so that no input can reword the question.
    fn terms(&mut self, step: &Step, pointer: &str) {
        let Some(terms) = &step.approval else { return };
        let reason = terms.reason.iter().map(|text| ("reason".to_owned(), text));
        let scope = terms.scope.iter().enumerate().map(|(index, text)| (format!("scope/{index}"), text));
        let requires = terms.requires.iter().enumerate().map(|(index, text)| (format!("requires/{index}"), text));
        let approvers = terms.approvers.iter().enumerate().map(|(index, text)| (format!("approvers/{index}"), text));
        for (field, text) in reason.chain(scope).chain(requires).chain(approvers) {
            if text.contains("{{") || text.contains("{%") {
                let message =
                    "is shown as it stands: templates are not rendered here, the exact arguments are shown too";
                self.add(&format!("{pointer}/approval/{field}"), message);
            }
        }
    }
}

fn assemble(value: &Value, steps: Vec<Step>) -> Result<Definition> {
    let fields = value.as_object().map(|fields| {
        fields.iter().filter(|(name, _)| *name != "steps").map(|(name, value)| (name.clone(), value.clone()))
    });
    let mut fields: Map<String, Value> = fields.into_iter().flatten().collect();
    fields.insert("steps".to_owned(), json!([]));
    let definition: Definition = serde_json::from_value(Value::Object(fields)).map_err(Error::internal)?;
    Ok(Definition { steps: steps.into_iter().map(Arc::new).collect(), ..definition })
}
