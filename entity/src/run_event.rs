//! Events: append-only, numbered without a gap. Only the journal writes here.

use sea_orm::entity::prelude::*;

/// A row of `run_events`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "run_events")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// The run.
    #[sea_orm(primary_key, auto_increment = false)]
    pub run_id: Uuid,
    /// Its place in the run, from 1.
    #[sea_orm(primary_key, auto_increment = false)]
    pub seq: i64,
    /// The writing transaction; the database sets it.
    pub xact: i64,
    /// The event's name.
    #[sea_orm(column_type = "Text")]
    pub name: String,
    /// The event exactly as it goes over the wire.
    #[sea_orm(column_type = "Json", select_as = "text", save_as = "json")]
    pub data: String,
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
