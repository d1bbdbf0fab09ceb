//! Heads of runs. The events are the truth; only the journal writes here.

use sea_orm::entity::prelude::*;

/// A row of `runs`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "runs")]
pub struct Model {
    /// The tenant.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: Uuid,
    /// The run.
    #[sea_orm(primary_key, auto_increment = false)]
    pub run_id: Uuid,
    /// Where it stands.
    #[sea_orm(column_type = "Text")]
    pub status: String,
    /// The sequence number of its last event.
    pub last_seq: i64,
    /// What was asked for.
    #[sea_orm(column_type = "Text", nullable)]
    pub goal: Option<String>,
    /// The definition.
    #[sea_orm(column_type = "Text", nullable)]
    pub workflow_name: Option<String>,
    /// The definition's version.
    pub workflow_version: Option<i32>,
    /// The plan as it stood at `plan.ready`.
    #[sea_orm(column_type = "Json", nullable)]
    pub plan: Option<Json>,
    /// Its input.
    #[sea_orm(column_type = "Json")]
    pub input: Json,
    /// What it came to.
    #[sea_orm(column_type = "Json", nullable)]
    pub output: Option<Json>,
    /// Why it failed.
    #[sea_orm(column_type = "Json", nullable)]
    pub error: Option<Json>,
    /// The approvals it waits for.
    pub pending_approvals: Vec<Uuid>,
    /// What it has cost, in the tenant's unit.
    pub cost: f64,
    /// The most it may cost.
    pub budget: Option<f64>,
    /// What a denial means where the step does not say.
    #[sea_orm(column_type = "Text")]
    pub on_denied: String,
    /// The caller's own notes.
    #[sea_orm(column_type = "Json")]
    pub metadata: Json,
    /// Who started it.
    #[sea_orm(column_type = "Text")]
    pub created_by: String,
    /// The run that started it.
    pub parent_run_id: Option<Uuid>,
    /// The step that started it.
    #[sea_orm(column_type = "Text", nullable)]
    pub parent_step_id: Option<String>,
    /// When it was accepted.
    pub created_at: DateTimeUtc,
    /// When its last event happened.
    pub updated_at: DateTimeUtc,
    /// When it ended.
    pub finished_at: Option<DateTimeUtc>,
    /// The highest transaction that wrote events of the run.
    pub last_xact: i64,
}

/// What it refers to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    /// Its tenant.
    #[sea_orm(belongs_to = "super::tenant::Entity", from = "Column::TenantId", to = "super::tenant::Column::TenantId")]
    Tenant,
    /// The definition it follows.
    #[sea_orm(
        belongs_to = "super::workflow_definition::Entity",
        from = "(Column::TenantId, Column::WorkflowName, Column::WorkflowVersion)",
        to = "(super::workflow_definition::Column::TenantId, super::workflow_definition::Column::Name, super::workflow_definition::Column::Version)"
    )]
    WorkflowDefinition,
}

impl Related<super::tenant::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Tenant.def()
    }
}

impl Related<super::workflow_definition::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::WorkflowDefinition.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
