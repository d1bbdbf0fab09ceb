//! Holds: the exact call that waits, and its outcome.

use sea_orm::entity::prelude::*;

/// A row of `approvals`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "approvals")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// The approval.
    #[sea_orm(primary_key, auto_increment = false)]
    pub approval_id: Uuid,
    /// The run that waits.
    pub run_id: Uuid,
    /// The step that waits.
    #[sea_orm(column_type = "Text")]
    pub step_id: String,
    /// The attempt that waits.
    pub attempt: i32,
    /// `consent`, `repeat`, `budget` or `input`.
    #[sea_orm(column_type = "Text")]
    pub question: String,
    /// `pending`, `approved`, `denied`, `expired` or `cancelled`.
    #[sea_orm(column_type = "Text")]
    pub status: String,
    /// The tool.
    #[sea_orm(column_type = "Text")]
    pub action: String,
    /// The tool's version.
    #[sea_orm(column_type = "Text")]
    pub tool_version: String,
    /// The exact arguments.
    #[sea_orm(column_type = "Json")]
    pub arguments: Json,
    /// Over tool, version, arguments, run, step, attempt and tenant.
    #[sea_orm(column_type = "Text")]
    pub digest: String,
    /// What it is expected to cost.
    pub cost_estimate: Option<f64>,
    /// Why consent is asked.
    #[sea_orm(column_type = "Text", nullable)]
    pub reason: Option<String>,
    /// What it would touch.
    #[sea_orm(column_type = "JsonBinary")]
    pub scope: Json,
    /// Rights it would use.
    #[sea_orm(column_type = "JsonBinary")]
    pub requires: Json,
    /// Who may decide; anybody with the permission when empty.
    #[sea_orm(column_type = "JsonBinary")]
    pub approvers: Json,
    /// Whether the run's creator may decide.
    pub self_approval: bool,
    /// The run's creator.
    #[sea_orm(column_type = "Text")]
    pub asked_by: String,
    /// When the hold was committed.
    pub asked_at: DateTimeUtc,
    /// When it counts as denied.
    pub expires_at: Option<DateTimeUtc>,
    /// Who decided.
    #[sea_orm(column_type = "Text", nullable)]
    pub decided_by: Option<String>,
    /// When it was decided.
    pub decided_at: Option<DateTimeUtc>,
    /// What is to be filled in, where that is asked.
    #[sea_orm(column_type = "Json", nullable)]
    pub form: Option<Json>,
}

/// What it refers to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    /// Its run.
    #[sea_orm(
        belongs_to = "super::run::Entity",
        from = "(Column::TenantId, Column::RunId)",
        to = "(super::run::Column::TenantId, super::run::Column::RunId)"
    )]
    Run,
}

impl Related<super::run::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Run.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
