//! Leases: one row a live run, with when it wants a worker next and which one has it.

use sea_orm::entity::prelude::*;

/// A row of `run_leases`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "run_leases")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// The run.
    #[sea_orm(primary_key, auto_increment = false)]
    pub run_id: Uuid,
    /// When it has something to do; null while only a command can move it.
    pub due_at: Option<DateTimeUtc>,
    /// The worker that has it.
    pub worker_id: Option<Uuid>,
    /// Counts claims.
    pub epoch: i64,
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
    /// The worker that has it.
    #[sea_orm(belongs_to = "super::worker::Entity", from = "Column::WorkerId", to = "super::worker::Column::WorkerId")]
    Worker,
}

impl Related<super::run::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Run.def()
    }
}

impl Related<super::worker::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Worker.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
