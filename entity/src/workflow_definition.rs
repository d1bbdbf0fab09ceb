//! Named definitions; a put makes the next version, and a version never changes.

use sea_orm::entity::prelude::*;

/// A row of `workflow_definitions`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "workflow_definitions")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// The name.
    #[sea_orm(primary_key, auto_increment = false, column_type = "Text")]
    pub name: String,
    /// From 1, without a gap.
    #[sea_orm(primary_key, auto_increment = false)]
    pub version: i32,
    /// The id of this version.
    pub workflow_id: Uuid,
    /// What was put, byte for byte.
    #[sea_orm(column_type = "Text")]
    pub source: String,
    /// What it was written in.
    #[sea_orm(column_type = "Text")]
    pub media_type: String,
    /// What it says.
    #[sea_orm(column_type = "JsonBinary")]
    pub definition: Json,
    /// Who put it.
    #[sea_orm(column_type = "Text")]
    pub created_by: String,
    /// When it was put.
    pub created_at: DateTimeUtc,
}

/// What it refers to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    /// Its tenant.
    #[sea_orm(belongs_to = "super::tenant::Entity", from = "Column::TenantId", to = "super::tenant::Column::TenantId")]
    Tenant,
}

impl Related<super::tenant::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Tenant.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
