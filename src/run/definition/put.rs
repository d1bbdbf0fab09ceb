use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{Definition, Media, store};
use crate::{
    audit,
    db::TenantTx,
    http::{Ctx, permit::WorkflowsWrite},
    kernel::{Actor, Result, Timestamp, WorkflowId, wire_time},
};

/// One version of a definition, with what was put.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoredDefinition {
    /// Its name.
    #[schema(example = "crm-sync")]
    pub name: String,
    /// Its version, from 1; 0 is what the server brings along.
    #[schema(minimum = 0, example = 3)]
    pub version: i32,
    /// The id of this version.
    pub workflow_id: WorkflowId,
    /// What it means.
    pub definition: Definition,
    /// What was put, byte for byte.
    pub source: String,
    /// The language of the source: `application/yaml` or `application/json`.
    #[schema(example = "application/yaml")]
    pub media_type: String,
    /// Who put it.
    pub created_by: Actor,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub created_at: Timestamp,
}

impl StoredDefinition {
    /// The same as a list shows it.
    pub(super) fn summary(self) -> DefinitionSummary {
        let Self { name, version, workflow_id, definition, media_type, created_by, created_at, .. } = self;
        let description = definition.description;
        DefinitionSummary { name, version, workflow_id, description, media_type, created_by, created_at }
    }
}

/// A version of a definition in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DefinitionSummary {
    /// Its name.
    #[schema(example = "crm-sync")]
    pub name: String,
    /// Its version, from 1; 0 is what the server brings along.
    #[schema(minimum = 0, example = 3)]
    pub version: i32,
    /// The id of this version.
    pub workflow_id: WorkflowId,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The language it is written in.
    #[schema(example = "application/yaml")]
    pub media_type: String,
    /// Who put it.
    pub created_by: Actor,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub created_at: Timestamp,
}

/// Makes a checked definition the next version of its name, with its entry in the audit log; nothing, if
/// the newest version is the same to the byte. Says which version it is, and whether it is new.
pub(super) async fn put(
    tx: &mut TenantTx,
    ctx: &Ctx<WorkflowsWrite>,
    definition: Definition,
    source: String,
    media: Media,
) -> Result<(StoredDefinition, bool)> {
    store::lock(tx, ctx.tenant_id, &definition.name).await?;
    let newest = store::get(tx, &definition.name, None).await?;
    let next = newest.as_ref().map_or(1, |newest| newest.version + 1);
    if let Some(same) = newest.filter(|newest| newest.source == source && newest.media_type == media.as_str()) {
        return Ok((same, false));
    }
    let now = ctx.now();
    let stored = StoredDefinition {
        name: definition.name.clone(),
        version: next,
        workflow_id: WorkflowId::new(now),
        definition,
        source,
        media_type: media.as_str().to_owned(),
        created_by: ctx.actor(),
        created_at: now,
    };
    store::insert(tx, ctx.tenant_id, &stored).await?;
    let detail = json!({ "version": stored.version, "workflowId": stored.workflow_id });
    audit::deed(tx, ctx, "workflow.put", &stored.name, detail).await?;
    Ok((stored, true))
}
