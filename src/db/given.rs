use std::time::Duration;

use sqlx::{Connection, postgres::PgConnectOptions};

use super::{Failure, reach::reach};

/// How long it may take to let us in.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes a database that somebody brought fit for development: the roles are there and own it. Returns the
/// owner's and the server's way in, which take on their role at the start of each session, so that no
/// passwords are needed.
///
/// # Errors
/// When the database lets nobody in, or the login is no superuser, who alone can make roles and take them on.
pub async fn adopt(given: &PgConnectOptions) -> Result<(PgConnectOptions, PgConnectOptions), Failure> {
    reach(given, PATIENCE).await?;
    let connecting = Failure::of("connecting to the database that was named");
    let mut session = sqlx::PgConnection::connect_with(given).await.map_err(connecting)?;
    let superuser: bool = sqlx::query_scalar("select rolsuper from pg_roles where rolname = current_user")
        .fetch_one(&mut session)
        .await
        .map_err(Failure::of("looking at the login"))?;
    if !superuser {
        let reason = "`fermata dev --database-url` needs a superuser's login, to make the roles; \
                      with a database of your own and its roles, use `fermata migrate` and `fermata serve`";
        return Err(Failure::Server(reason.to_owned()));
    }
    let prepare = concat!(
        include_str!("../../deploy/roles.sql"),
        "do $$ begin execute format('alter database %I owner to fermata_owner', current_database()); end $$;"
    );
    sqlx::raw_sql(prepare).execute(&mut session).await.map_err(Failure::of("making the roles"))?;
    session.close().await.map_err(Failure::of("closing a session"))?;
    let by = |role: &str| given.clone().options([("role", role)]);
    Ok((by("fermata_owner"), by("fermata_app")))
}
