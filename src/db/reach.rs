use std::{io, time::Duration};

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};

use super::Failure;
use crate::kernel::Span;

/// Whether a database answers there and lets this login in. A pool would go on knocking in silence, and in the
/// end only say that it has waited. What may pass by itself, such as a server that is starting, is left to it.
pub(super) async fn reach(options: &PgConnectOptions, patience: Duration) -> Result<(), Failure> {
    let trouble = match tokio::time::timeout(patience, PgConnection::connect_with(options)).await {
        Ok(Ok(session)) => {
            drop(session.close().await);
            None
        }
        Ok(Err(error)) => trouble(&error),
        Err(_) => {
            Some(format!("does not answer within {}: is it PostgreSQL, and is the network open?", Span(patience)))
        }
    };
    trouble.map_or(Ok(()), |trouble| Err(Failure::Unreachable { place: place(options), trouble }))
}

fn trouble(error: &sqlx::Error) -> Option<String> {
    match error {
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Some("refuses connections: is PostgreSQL running there, and is the address right?".to_owned())
        }
        sqlx::Error::Io(error) => Some(format!("cannot be reached ({error}): is the address right?")),
        // The login, its password or the database is wrong.
        sqlx::Error::Database(refused)
            if refused.code().is_some_and(|code| code.starts_with("28") || code == "3D000") =>
        {
            Some(format!("refuses the login ({}): are user, password and database right?", refused.message()))
        }
        _ => None,
    }
}

fn place(options: &PgConnectOptions) -> String {
    let host = options.get_socket().map_or(options.get_host().into(), |folder| folder.to_string_lossy());
    format!("{host}:{}", options.get_port())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn refusal(port: u16, patience: Duration) -> String {
        let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port);
        reach(&options, patience).await.expect_err("nothing is there").to_string()
    }

    #[tokio::test]
    async fn who_does_not_let_us_in_is_named_with_the_reason() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = refusal(port, Duration::from_millis(20)).await;
        assert!(
            silent.starts_with(&format!("the database at 127.0.0.1:{port} does not answer within 20ms")),
            "{silent}"
        );
        drop(listener);
        let closed = refusal(port, Duration::from_secs(30)).await;
        assert!(closed.starts_with(&format!("the database at 127.0.0.1:{port} refuses connections")), "{closed}");
    }
}
