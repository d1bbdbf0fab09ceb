//! The outputs of steps that are too large for their events. Only the journal writes here.

use sea_orm::entity::prelude::*;

/// A row of `run_steps`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "run_steps")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// The run.
    #[sea_orm(primary_key, auto_increment = false)]
    pub run_id: Uuid,
    /// The step; item i of a `forEach` is `step_id[i]`.
    #[sea_orm(primary_key, auto_increment = false, column_type = "Text")]
    pub step_id: String,
    /// Where it stands.
    #[sea_orm(column_type = "Text")]
    pub status: String,
    /// The latest attempt, from 1.
    pub attempt: i32,
    /// The tool.
    #[sea_orm(column_type = "Text")]
    pub tool: String,
    /// The exact arguments.
    #[sea_orm(column_type = "Json", nullable)]
    pub arguments: Option<Json>,
    /// The whole output.
    #[sea_orm(column_type = "Json", nullable)]
    pub output: Option<Json>,
    /// Why it failed.
    #[sea_orm(column_type = "Json", nullable)]
    pub error: Option<Json>,
    /// When the attempt began.
    pub started_at: Option<DateTimeUtc>,
    /// When the step ended.
    pub finished_at: Option<DateTimeUtc>,
    /// When this row changed.
    pub updated_at: DateTimeUtc,
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
