use entity::tenant::{ActiveModel, Entity, Model};
use sea_orm::{ActiveValue::Set, EntityTrait, SqlErr};

use super::{Tenant, TenantSettings};
use crate::{
    db::{SystemTx, TenantTx},
    kernel::{Error, Result, TenantId},
};

pub(super) async fn insert(tx: &TenantTx, tenant: &Tenant) -> Result<()> {
    let row = ActiveModel {
        tenant_id: Set(tenant.tenant_id.uuid()),
        name: Set(tenant.name.clone()),
        settings: Set(serde_json::to_value(&tenant.settings).map_err(Error::internal)?),
        created_at: Set(tenant.created_at),
    };
    match Entity::insert(row).exec_without_returning(tx).await {
        Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => {
            Err(Error::conflict(format!("there is a tenant named {} already", tenant.name)))
        }
        done => Ok(done.map(drop)?),
    }
}

pub(super) async fn get(tx: &TenantTx, tenant_id: TenantId) -> Result<Option<Tenant>> {
    Entity::find_by_id(tenant_id.uuid()).one(tx).await?.map(tenant).transpose()
}

pub(super) async fn find(tx: &mut SystemTx, name: &str) -> Result<Option<TenantId>> {
    let found: Option<uuid::Uuid> =
        sqlx::query_scalar("select find_tenant($1)").bind(name).fetch_one(tx.conn()).await?;
    Ok(found.map(TenantId::from_uuid))
}

fn tenant(row: Model) -> Result<Tenant> {
    let settings: TenantSettings = serde_json::from_value(row.settings).map_err(Error::internal)?;
    Ok(Tenant { tenant_id: TenantId::from_uuid(row.tenant_id), name: row.name, settings, created_at: row.created_at })
}
