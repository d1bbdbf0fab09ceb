use std::{sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions, PgConnection, Postgres,
    postgres::{PgArguments, PgConnectOptions, PgRow},
    query::Query,
};

use super::tx::{database_error, is_cut, names};
use crate::kernel::{
    Error, Result, TenantId,
    crash::{self, Side},
};

/// A connection of its own for statements that are transactions by themselves: nobody to ask for it, and what
/// the server has prepared stays warm.
#[derive(Debug)]
pub struct Lane {
    pub(super) options: Arc<PgConnectOptions>,
    pub(super) patience: Duration,
    pub(super) connection: Option<PgConnection>,
}

impl Lane {
    /// One statement over exactly the tenants named, which it is given to name by itself: a transaction in one
    /// round trip. It has to bear being sent twice, since a connection may be lost with its answer.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn at_once(
        &mut self,
        tenants: &[TenantId],
        statement: impl Fn(&str) -> Result<Query<'static, Postgres, PgArguments>>,
    ) -> Result<PgRow> {
        crash::point("append", Side::Before, &"shared");
        let row = self.fetch(&names(tenants), statement).await;
        crash::point("append", Side::After, &"shared");
        row
    }

    async fn fetch(
        &mut self,
        named: &str,
        statement: impl Fn(&str) -> Result<Query<'static, Postgres, PgArguments>>,
    ) -> Result<PgRow> {
        // Taken while it is used: a connection that was dropped in the middle of a statement is not used again.
        if let Some(mut connection) = self.connection.take() {
            match statement(named)?.fetch_one(&mut connection).await {
                Err(error) if is_cut(&error) => {}
                done => {
                    self.connection = Some(connection);
                    return done.map_err(database_error);
                }
            }
        }
        let connecting = tokio::time::timeout(self.patience, self.options.connect());
        let mut connection = connecting.await.map_err(Error::unavailable)?.map_err(Error::unavailable)?;
        let done = statement(named)?.fetch_one(&mut connection).await;
        self.connection = Some(connection);
        done.map_err(database_error)
    }
}
