use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::Pinned;

/// What the names of model configurations and templates in a plan's steps mean: the versions of when the run was opened.
/// Later ones do not touch it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ModelPins {
    /// By the name of a configuration: its version and, after it, those that are asked when it gives no answer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Vec<String>>, example = json!({ "support": ["support@3", "default-fast@0=openai/gpt-5.4-mini"] }))]
    pub configs: BTreeMap<String, Vec<Pinned>>,
    /// By the name of a prompt template: its version.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>, example = json!({ "greeting": "greeting@2" }))]
    pub templates: BTreeMap<String, Pinned>,
}

impl ModelPins {
    /// Whether they say nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.configs.is_empty() && self.templates.is_empty()
    }
}
