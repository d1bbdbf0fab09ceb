//! One-time permissions for a browser to open one stream; a row is deleted when it is used.

use sea_orm::entity::prelude::*;

/// A row of `stream_tickets`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "stream_tickets")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// The ticket.
    #[sea_orm(primary_key, auto_increment = false)]
    pub ticket_id: Uuid,
    /// SHA-256 of the ticket, which itself is never stored.
    pub secret: Vec<u8>,
    /// The stream it opens.
    #[sea_orm(column_type = "Text")]
    pub path: String,
    /// Whose it is.
    #[sea_orm(column_type = "Text")]
    pub subject: String,
    /// The caller's verified claims.
    #[sea_orm(column_type = "JsonBinary")]
    pub claims: Json,
    /// When it is void.
    pub expires_at: DateTimeUtc,
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
