//! What every operation on documents with names and versions does.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;
use uuid::Uuid;

use super::{Author, Document, DocumentKind, document, store, usual};
use crate::{
    db::TenantTx,
    http::{Ctx, Json, Permit},
    kernel::{Error, Page, PageQuery, Reference, Result, TenantId},
};

/// Which version.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VersionQuery {
    /// A version; the newest when absent. One that was put stays, also when its name is deleted.
    #[param(minimum = 0, example = 3)]
    pub version: Option<i32>,
}

/// Makes `body` the next version of its name, with its entry in the audit log; nothing, if the newest version says the
/// same. Says which version it is, and whether it is new.
///
/// # Errors
/// Invalid (422), naming the field.
pub async fn write<T: DocumentKind, P: Permit>(
    tx: &mut TenantTx,
    ctx: &Ctx<P>,
    name: String,
    body: T,
) -> Result<(Document<T>, bool)> {
    document::put(tx, &Author::of(ctx), name, body).await
}

/// The same by whoever is no bearer.
///
/// # Errors
/// Invalid (422), naming the field.
pub async fn write_as<T: DocumentKind>(
    tx: &mut TenantTx,
    author: &Author,
    name: String,
    body: T,
) -> Result<(Document<T>, bool)> {
    document::put(tx, author, name, body).await
}

/// The newest version of a name that is in use. Nobody else puts one until the transaction ends.
///
/// # Errors
/// When the database is away.
pub async fn held<T: DocumentKind>(tx: &mut TenantTx, tenant: TenantId, name: &str) -> Result<Option<Document<T>>> {
    store::lock(tx, tenant, T::KIND, name).await?;
    Ok(store::newest(tx, name).await?.and_then(|(_, document)| document))
}

/// Puts a document and answers as an operation at `path` does: with 201 where it is a new version.
///
/// # Errors
/// Invalid (422), naming the field.
pub async fn put<T: DocumentKind, P: Permit>(ctx: &Ctx<P>, path: &str, name: String, body: T) -> Result<Response>
where
    Document<T>: Serialize,
{
    let mut tx = ctx.begin().await?;
    let (document, new) = write(&mut tx, ctx, name, body).await?;
    tx.commit().await?;
    if !new {
        return Ok(Json(document).into_response());
    }
    let location = format!("{path}/{}?version={}", document.name, document.version);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(document)).into_response())
}

/// The version that is meant, of the tenant's or of what the server brings along.
///
/// # Errors
/// Not found.
pub async fn get<T: DocumentKind + Clone, P: Permit>(
    ctx: &Ctx<P>,
    brought: Vec<Document<T>>,
    name: String,
    version: Option<i32>,
) -> Result<Document<T>> {
    let mut tx = ctx.begin().await?;
    let found = find(&mut tx, &brought, &[Reference { name, version }]).await?.pop().flatten();
    found.ok_or_else(|| Error::not_found(T::NOUN))
}

/// The versions that are meant, of the tenant's or of what the server brings along, in the order of the references.
///
/// # Errors
/// Those of the database.
pub async fn find<T: DocumentKind + Clone>(
    tx: &mut TenantTx,
    brought: &[Document<T>],
    wanted: &[Reference],
) -> Result<Vec<Option<Document<T>>>> {
    let found = store::get(tx, wanted).await?.into_iter().zip(wanted);
    Ok(found.map(|(own, reference)| own.or_else(|| usual::meant(brought, reference).cloned())).collect())
}

/// The newest version of each of the tenant's own, at most a thousand in order of name, and of what the server brings along
/// besides.
///
/// # Errors
/// Those of the database.
pub async fn all<T: DocumentKind>(tx: &mut TenantTx, brought: Vec<Document<T>>) -> Result<Vec<Document<T>>> {
    let mut all = store::all(tx).await?;
    all.extend(besides(tx, brought).await?);
    Ok(all)
}

/// What the server brings along and the tenant has nothing over.
async fn besides<T: DocumentKind>(tx: &mut TenantTx, brought: Vec<Document<T>>) -> Result<Vec<Document<T>>> {
    let names: Vec<_> = brought.iter().map(|it| Reference { name: it.name.clone(), version: None }).collect();
    let own = store::get::<T>(tx, &names).await?;
    Ok(brought.into_iter().zip(own).filter(|(_, own)| own.is_none()).map(|(brought, _)| brought).collect())
}

/// The tenant's own, those first put latest first, and on the last page what the server brings along besides.
///
/// # Errors
/// Those of the query and of the database.
pub async fn list<T: DocumentKind, P: Permit>(
    ctx: &Ctx<P>,
    brought: Vec<Document<T>>,
    query: &PageQuery,
) -> Result<Page<Document<T>>> {
    let (limit, after) = query.resolve()?;
    let mut tx = ctx.begin().await?;
    let page = Page::cut(store::list(&mut tx, limit, after).await?, limit, |(first, _)| *first);
    let mut items: Vec<_> = page.items.into_iter().map(|(_, document)| document).collect();
    if page.next_cursor.is_none() {
        items.extend(besides(&mut tx, brought).await?);
    }
    Ok(Page { items, next_cursor: page.next_cursor })
}

/// The versions that were put under a name, newest first.
///
/// # Errors
/// Not found; those of the query.
pub async fn versions<T: DocumentKind, P: Permit>(
    ctx: &Ctx<P>,
    name: &str,
    query: &PageQuery,
) -> Result<Page<Document<T>>> {
    let (limit, after) = query.resolve()?;
    // Here the place in the list is the version itself.
    let below = after.map(|place| i32::try_from(place.as_u128()).unwrap_or(i32::MAX));
    let mut tx = ctx.begin().await?;
    let rows = store::versions(&mut tx, name, limit, below).await?;
    if rows.is_empty() && store::newest::<T>(&mut tx, name).await?.is_none() {
        return Err(Error::not_found(T::NOUN));
    }
    Ok(Page::cut(rows, limit, |row| Uuid::from_u128(u128::from(row.version.unsigned_abs()))))
}

/// Puts a name out of use.
///
/// # Errors
/// Not found.
pub async fn delete<T: DocumentKind, P: Permit>(ctx: &Ctx<P>, name: &str) -> Result<StatusCode> {
    let mut tx = ctx.begin().await?;
    remove::<T, P>(&mut tx, ctx, name).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts a name out of use in `tx`.
///
/// # Errors
/// Not found.
pub async fn remove<T: DocumentKind, P: Permit>(tx: &mut TenantTx, ctx: &Ctx<P>, name: &str) -> Result<()> {
    document::delete::<T, P>(tx, ctx, name).await
}
