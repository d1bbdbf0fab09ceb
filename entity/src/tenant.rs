//! Tenants: the wall around everything else.

use sea_orm::entity::prelude::*;

/// A row of `tenants`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "tenants")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// Unique: `[a-z][a-z0-9-]{0,62}`.
    #[sea_orm(column_type = "Text")]
    pub name: String,
    /// Per-tenant settings.
    #[sea_orm(column_type = "JsonBinary")]
    pub settings: Json,
    /// When it was made.
    pub created_at: DateTimeUtc,
}

/// What it refers to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
