//! Worker processes; no tenant data.

use sea_orm::entity::prelude::*;

/// A row of `workers`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "workers")]
pub struct Model {
    /// The worker.
    #[sea_orm(primary_key, auto_increment = false)]
    pub worker_id: Uuid,
    /// The session advisory lock it holds for as long as it lives.
    #[sea_orm(unique)]
    pub lock_key: i64,
    /// When it counts as dead unless it says otherwise.
    pub alive_until: DateTimeUtc,
}

/// What it refers to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
