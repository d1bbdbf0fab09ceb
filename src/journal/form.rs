//! What a call asks for before it can go on, and what it is given.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Question, Ruling, RunState, StepKey};

/// What somebody is to fill in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Form {
    /// Why, in the words of whoever asks: nobody here vouches for them.
    pub message: String,
    /// JSON Schema of what is filled in.
    #[schema(value_type = Object)]
    pub schema: Arc<Value>,
    /// What the tool needs to go on where it stopped, and nobody else understands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub resume: Option<Arc<Value>>,
}

/// A form and what somebody filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Filled {
    /// What was asked.
    pub form: Form,
    /// The answer.
    pub input: Arc<Value>,
}

impl RunState {
    /// What the present attempt of a step asked for and was given, in order.
    #[must_use]
    pub fn filled(&self, key: &StepKey) -> Vec<Filled> {
        // What was not called has asked for nothing.
        let Some(step) = self.steps.get(key).filter(|step| step.called == step.attempt) else { return vec![] };
        let asked = self
            .holds
            .values()
            .filter(|hold| hold.asked.question == Question::Input && hold.step == *key && hold.attempt == step.attempt);
        let filled = asked.filter_map(|hold| match (&hold.ruling, &hold.asked.form) {
            (Some(Ruling::Approved { input: Some(input), .. }), Some(form)) => {
                Some(Filled { form: form.clone(), input: Arc::clone(input) })
            }
            _ => None,
        });
        filled.collect()
    }
}
