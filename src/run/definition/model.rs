use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    journal::{OnDenied, Plan, Step},
    kernel::{Error, Problem},
};

/// A named plan with a contract for its input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Definition {
    /// `[a-z][a-z0-9._-]{0,62}`.
    #[schema(pattern = "^[a-z][a-z0-9._-]{0,62}$", example = "crm-sync")]
    pub name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema (2020-12) of a run's input; any input when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub input: Option<Value>,
    /// What a denial means where a step does not say (`fail` when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_denied: Option<OnDenied>,
    /// The steps.
    #[schema(value_type = Vec<Step>)]
    pub steps: Vec<Arc<Step>>,
    /// Any JSON; texts in it are templates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
}

impl Definition {
    /// The plan of its runs.
    #[must_use]
    pub fn plan(&self) -> Plan {
        Plan { steps: self.steps.clone(), output: self.output.clone(), ..Plan::default() }
    }
}

/// The language a definition is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
}

impl Media {
    /// The media type as it is stored and served.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }

    /// The language of a `Content-Type`, if it is one of ours.
    #[must_use]
    pub fn of_content_type(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Some(Self::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// One thing that is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mistake {
    /// What is wrong, and what would be right.
    pub message: String,
    /// Where, as in `steps[1].uses`; empty for the whole.
    #[schema(example = "steps[1].uses")]
    pub path: String,
    /// The line of the source, from 1; absent where there is no source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column in characters, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

impl Mistake {
    /// All of it on one line, for a person.
    #[must_use]
    pub fn sentence(&self) -> String {
        let place = match (self.line, self.column) {
            (Some(line), Some(column)) => format!("line {line}, column {column}: "),
            _ => String::new(),
        };
        let path = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) };
        format!("{place}{path}{}", self.message)
    }
}

/// The 422 that lists the mistakes of a definition or plan.
#[must_use]
pub fn refuse(mistakes: &[Mistake]) -> Error {
    let first = mistakes.first().map(Mistake::sentence).unwrap_or_default();
    let detail = match mistakes.len() {
        0 | 1 => first,
        count => format!("{first} (the first of {count} mistakes)"),
    };
    let errors = serde_json::to_value(mistakes).unwrap_or_default();
    Error::new(Problem::InvalidDefinition, detail).with("errors", errors)
}
