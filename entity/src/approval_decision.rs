//! What each person said, for the record; the first one decides.

use sea_orm::entity::prelude::*;

/// A row of `approval_decisions`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "approval_decisions")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// The approval.
    #[sea_orm(primary_key, auto_increment = false)]
    pub approval_id: Uuid,
    /// Who said it.
    #[sea_orm(primary_key, auto_increment = false, column_type = "Text")]
    pub decided_by: String,
    /// `approved` or `denied`.
    #[sea_orm(column_type = "Text")]
    pub status: String,
    /// Why.
    #[sea_orm(column_type = "Text", nullable)]
    pub reason: Option<String>,
    /// The call the decision is about.
    #[sea_orm(column_type = "Text")]
    pub digest: String,
    /// The time the caller claims.
    pub claimed_at: Option<DateTimeUtc>,
    /// The time on record.
    pub decided_at: DateTimeUtc,
}

/// What it refers to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    /// What it answers.
    #[sea_orm(
        belongs_to = "super::approval::Entity",
        from = "(Column::TenantId, Column::ApprovalId)",
        to = "(super::approval::Column::TenantId, super::approval::Column::ApprovalId)"
    )]
    Approval,
}

impl Related<super::approval::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Approval.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
