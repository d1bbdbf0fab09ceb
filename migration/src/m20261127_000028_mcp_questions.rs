use sea_orm_migration::prelude::*;

/// See the SQL beside this file.
#[derive(DeriveMigrationName, Debug)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(include_str!("m20261127_000028_mcp_questions.sql")).await?;
        Ok(())
    }
}
