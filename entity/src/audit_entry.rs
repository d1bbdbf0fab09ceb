//! The audit log: who did what to which thing; append-only by grant.

use sea_orm::entity::prelude::*;

/// A row of `audit_log`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_log")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// The entry.
    #[sea_orm(primary_key, auto_increment = false)]
    pub audit_id: Uuid,
    /// When.
    pub at: DateTimeUtc,
    /// Who.
    #[sea_orm(column_type = "Text")]
    pub actor: String,
    /// What.
    #[sea_orm(column_type = "Text")]
    pub action: String,
    /// To which thing.
    #[sea_orm(column_type = "Text")]
    pub target: String,
    /// More about it.
    #[sea_orm(column_type = "JsonBinary")]
    pub detail: Json,
    /// The request it was done by.
    #[sea_orm(column_type = "Text", nullable)]
    pub request_id: Option<String>,
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
