use std::{collections::BTreeMap, sync::Arc};

use minijinja::{
    Value as Engine,
    value::{Enumerator, Object},
};
use serde_json::Value;

use super::value::{Names, Omit, lift};

/// What the templates of one run can see.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// `run`.
    pub run: RunFacts,
    /// `input`.
    pub input: Arc<Value>,
    /// `metadata`.
    pub metadata: Arc<Value>,
    /// `steps`; a step that is absent is undefined, so it is enough to give the ones that are mentioned.
    pub steps: BTreeMap<String, StepFacts>,
    /// `item` and its `index`, from 0, in a `forEach`.
    pub item: Option<(Arc<Value>, u32)>,
}

/// `run.id`, `run.goal` and `run.createdBy`.
#[derive(Clone, Debug, Default)]
pub struct RunFacts {
    /// The run's id as on the wire.
    pub id: String,
    /// What was asked for; null when absent.
    pub goal: Option<String>,
    /// Who started it, as on the wire.
    pub created_by: String,
}

/// `steps.<id>.status`, `.output` and `.error`; the last two are null when absent.
#[derive(Clone, Debug, Default)]
pub struct StepFacts {
    /// How it ended: `completed`, `failed` or `skipped`.
    pub status: &'static str,
    /// What it gave.
    pub output: Option<Arc<Value>>,
    /// Why it failed: `{code, message, …}`.
    pub error: Option<Arc<Value>>,
}

/// What to render in. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Context {
    /// The run's, by its own names.
    Run(Arc<Scope>),
    /// The fields of this object, and nothing else.
    Variables(Arc<Value>),
}

impl Context {
    pub(super) fn root(&self) -> Engine {
        match self {
            Self::Run(scope) => Engine::from_object(Root(Arc::clone(scope))),
            Self::Variables(variables) => lift(variables),
        }
    }
}

#[derive(Debug)]
struct Root(Arc<Scope>);

impl Object for Root {
    fn get_value(self: &Arc<Self>, key: &Engine) -> Option<Engine> {
        let scope = &self.0;
        match (key.as_str()?, &scope.item) {
            ("input", _) => Some(lift(&scope.input)),
            ("metadata", _) => Some(lift(&scope.metadata)),
            ("run", _) => Some(run(&scope.run)),
            ("omit", _) => Some(Engine::from_object(Omit)),
            ("steps", _) => Some(Engine::from_object(Steps(Arc::clone(scope)))),
            ("item", Some((item, _))) => Some(lift(item)),
            ("index", Some((_, index))) => Some(Engine::from(*index)),
            _ => None,
        }
    }
}

fn run(facts: &RunFacts) -> Engine {
    Engine::from_object(Names(BTreeMap::from([
        ("createdBy", Engine::from(facts.created_by.as_str())),
        ("goal", facts.goal.as_deref().map_or(Engine::from(()), Engine::from)),
        ("id", Engine::from(facts.id.as_str())),
    ])))
}

#[derive(Debug)]
struct Steps(Arc<Scope>);

impl Object for Steps {
    fn get_value(self: &Arc<Self>, key: &Engine) -> Option<Engine> {
        let facts = self.0.steps.get(key.as_str()?)?;
        let document = |value: &Option<Arc<Value>>| value.as_ref().map_or(Engine::from(()), lift);
        Some(Engine::from_object(Names(BTreeMap::from([
            ("error", document(&facts.error)),
            ("output", document(&facts.output)),
            ("status", Engine::from(facts.status)),
        ]))))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.steps.keys().map(|id| Engine::from(id.as_str())).collect())
    }
}
