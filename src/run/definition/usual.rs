//! The definitions that every tenant finds in place. They are version 0; a put of the same name comes over one.

use uuid::Uuid;

use super::{Definition, DefinitionSummary, Media, StoredDefinition, read, store};
use crate::{
    db::TenantTx,
    kernel::{Actor, Error, Reference, Result, Timestamp, WorkflowId},
};

const ALL: [(&str, &str); 6] = [
    ("conversation", include_str!("conversation.yaml")),
    ("job", include_str!("job.yaml")),
    ("generate_text", include_str!("generate_text.yaml")),
    ("describe_image", include_str!("describe_image.yaml")),
    ("synthesize_speech", include_str!("synthesize_speech.yaml")),
    ("transcribe_speech", include_str!("transcribe_speech.yaml")),
];

/// One version, or the newest, of the tenant's own or of what the server brings along.
pub(super) async fn get(tx: &mut TenantTx, name: &str, version: Option<i32>) -> Result<Option<StoredDefinition>> {
    match store::get(tx, name, version).await? {
        None => brought(name, version),
        own => Ok(own),
    }
}

/// What the server brings along and the tenant has put nothing over, each with its place in the list: after all that is put.
pub(super) async fn besides(tx: &mut TenantTx, after: Option<Uuid>) -> Result<Vec<(Uuid, DefinitionSummary)>> {
    let taken = store::taken(tx, &ALL.map(|(name, _)| name)).await?;
    // The first has the highest place, as what was put last has.
    let places = (1..=ALL.len() as u128).rev().map(Uuid::from_u128);
    let left = places.zip(ALL).filter(|(place, (name, _))| {
        after.is_none_or(|after| *place < after) && !taken.iter().any(|taken| taken == name)
    });
    let found = left.filter_map(|(place, (name, _))| Some((place, brought(name, None).transpose()?)));
    found.map(|(place, found)| Ok((place, found?.summary()))).collect()
}

/// The definition that is meant, where the server brings it along, and what it is called.
///
/// # Errors
/// Never, unless what is built in cannot be read.
pub fn usual(reference: &Reference) -> Result<Option<(Definition, (String, i32))>> {
    let found = brought(&reference.name, reference.version)?;
    Ok(found.map(|found| (found.definition, (found.name, found.version))))
}

fn brought(name: &str, version: Option<i32>) -> Result<Option<StoredDefinition>> {
    let Some((name, source)) = ALL.into_iter().find(|(known, _)| *known == name && version.unwrap_or(0) == 0) else {
        return Ok(None);
    };
    let value = read(source.as_bytes(), Media::Yaml).map_err(|mistake| Error::internal(mistake.sentence()))?;
    Ok(Some(StoredDefinition {
        name: name.to_owned(),
        version: 0,
        workflow_id: WorkflowId::from_uuid(Uuid::nil()),
        definition: serde_json::from_value(value).map_err(Error::internal)?,
        source: source.to_owned(),
        media_type: Media::Yaml.as_str().to_owned(),
        created_by: Actor::System,
        created_at: Timestamp::UNIX_EPOCH,
    }))
}
