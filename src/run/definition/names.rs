//! Templates and conditions: that they parse, and that what they name is there when they are rendered.

use serde_json::Value;

use super::{
    Mistake,
    graph::Graph,
    source::{Source, child},
};
use crate::kernel::template::{self, Names, TemplateError};

/// The names in the templates of one step, or of the run's output.
pub(super) struct Of<'s> {
    pub(super) source: &'s Source<'s>,
    pub(super) graph: &'s Graph,
    /// Which step, if it is one.
    pub(super) step: Option<usize>,
}

impl Of<'_> {
    pub(super) fn check_step(&self, pointer: &str) -> Vec<Mistake> {
        let Some(step) = self.source.value.pointer(pointer) else { return Vec::new() };
        let mut mistakes = Vec::new();
        if let Some(condition) = step.get("if").and_then(Value::as_str) {
            let at = child(pointer, "if");
            self.judge(&at, template::check_condition(condition), false, &mut mistakes);
        }
        let items = step.get("forEach");
        for (field, value, item) in [("forEach", items, false), ("with", step.get("with"), items.is_some())] {
            let at = child(pointer, field);
            value.into_iter().for_each(|value| self.walk(&Trail::root(&at), value, item, &mut mistakes));
        }
        mistakes
    }

    pub(super) fn check_value(&self, pointer: &str, value: &Value) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        self.walk(&Trail::root(pointer), value, false, &mut mistakes);
        mistakes
    }

    fn walk(&self, trail: &Trail<'_>, value: &Value, item: bool, mistakes: &mut Vec<Mistake>) {
        match value {
            Value::String(text) => match template::check(text) {
                Ok(names) if names == Names::default() => {}
                checked => self.judge(&trail.pointer(), checked, item, mistakes),
            },
            Value::Array(items) => {
                for (index, value) in items.iter().enumerate() {
                    self.walk(&trail.item(index), value, item, mistakes);
                }
            }
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                self.walk(&trail.field(name), value, item, mistakes);
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn judge(&self, pointer: &str, checked: Result<Names, TemplateError>, item: bool, mistakes: &mut Vec<Mistake>) {
        let names = match checked {
            Ok(names) => names,
            Err(error) => {
                mistakes.push(self.source.mistake_inside(pointer, error.offset(), error.message()));
                return;
            }
        };
        let dynamic = names.any_step.then(|| "name the step: `steps.fetch` or `steps[\"fetch\"]`".to_owned());
        let steps = names.steps.iter().filter_map(|id| self.judge_step(id));
        let roots = names.roots.iter().filter_map(|root| judge_root(root, item));
        for message in dynamic.into_iter().chain(steps).chain(roots) {
            mistakes.push(self.source.mistake(pointer, message));
        }
    }

    fn judge_step(&self, id: &str) -> Option<String> {
        let Some(named) = self.graph.find(id) else {
            let dashed =
                self.graph.ids().iter().find(|other| other.strip_prefix(id).is_some_and(|r| r.starts_with('-')));
            let hint = dashed.map(|id| format!(": write `steps[\"{id}\"]`")).unwrap_or_default();
            return Some(format!("there is no step `{id}`{hint}"));
        };
        match self.step {
            Some(index) if index == named => Some("a step cannot use its own outcome".to_owned()),
            Some(index) if !self.graph.is_before(named, index) => {
                Some(format!("step `{id}` may not have ended by then: add it to `needs`"))
            }
            _ => None,
        }
    }
}

fn judge_root(root: &str, item: bool) -> Option<String> {
    match root {
        "input" | "metadata" | "omit" | "run" => None,
        "item" | "index" if item => None,
        "item" | "index" => Some(format!("`{root}` exists only in the `with` of a step with `forEach`")),
        other => {
            Some(format!("there is no `{other}`: input, steps, run, metadata, omit, and item and index in a `forEach`"))
        }
    }
}

/// A pointer that is only spelled out when it is needed.
enum Trail<'t> {
    Root(&'t str),
    Field(&'t Trail<'t>, &'t str),
    Item(&'t Trail<'t>, usize),
}

impl<'t> Trail<'t> {
    fn root(pointer: &'t str) -> Self {
        Self::Root(pointer)
    }

    fn field(&'t self, name: &'t str) -> Self {
        Self::Field(self, name)
    }

    fn item(&'t self, index: usize) -> Self {
        Self::Item(self, index)
    }

    fn pointer(&self) -> String {
        match self {
            Self::Root(pointer) => (*pointer).to_owned(),
            Self::Field(parent, name) => child(&parent.pointer(), name),
            Self::Item(parent, index) => format!("{}/{index}", parent.pointer()),
        }
    }
}
