//! The commands of those who run Fermata: serve, develop, migrate, tenants, tokens, and the check-up.

mod admin;
mod dev;
mod doctor;
mod run;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use sqlx::postgres::PgConnectOptions;

use crate::{
    app::Role,
    config::{self, Settings},
    kernel::Error,
};

/// What went wrong, for a person.
type Result<T, E = String> = std::result::Result<T, E>;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run everything on this machine: database, server, worker, a tenant and tokens to try it with
    Dev(dev::Dev),
    /// Serve in production (needs DATABASE_URL and FERMATA_AUTH_SECRET or keys)
    Serve(Serve),
    /// Bring the database's schema to this version (needs DATABASE_ADMIN_URL)
    Migrate(Configured),
    /// Make a token
    Token(admin::Token),
    /// Manage tenants
    #[command(subcommand)]
    Tenant(admin::Tenant),
    /// Print the OpenAPI document
    Openapi(admin::Openapi),
    /// Check the database, its roles and walls, the clock, and the public URL
    Doctor(doctor::Doctor),
}

/// `--config`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Configured {
    /// Settings file (`fermata.toml` in this folder, where there is one)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Configured {
    fn load(&self) -> Result<Settings> {
        config::load(self.config.as_deref()).map_err(|error| error.to_string())
    }
}

/// `--config`, or a development server beside.
#[derive(Debug, Args)]
pub(in crate::cli) struct Beside {
    /// A development server's data directory: meant where it is there and no database is configured
    #[arg(long, default_value = ".fermata", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    configured: Configured,
}

impl Beside {
    /// The settings, and whether they are those of the development server.
    fn load(&self) -> Result<(Settings, bool)> {
        let mut settings = self.configured.load()?;
        let developing = dev::adopt(&mut settings, &self.data_dir)?;
        Ok((settings, developing))
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Serve {
    #[command(flatten)]
    configured: Configured,
    /// What this process does
    #[arg(long, value_enum, default_value = "all")]
    role: Role,
}

/// Does it; what went wrong has been said on stderr when this returns.
pub(super) async fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Dev(dev) => dev::run(dev).await,
        Command::Serve(serve) => run::serve(serve).await,
        Command::Migrate(configured) => admin::migrate(&configured).await,
        Command::Token(token) => admin::token(token).await,
        Command::Tenant(tenant) => admin::tenant(tenant).await,
        Command::Openapi(openapi) => admin::openapi(&openapi),
        Command::Doctor(doctor) => doctor::run(doctor).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The address of a database as a setting names it.
fn address(url: Option<&secrecy::SecretString>, variable: &str) -> Result<PgConnectOptions> {
    use secrecy::ExposeSecret;
    let url = url.ok_or_else(|| format!("{variable} is not set: give it as postgres://USER:PASSWORD@HOST/DATABASE"))?;
    // A pooler refuses start-up parameters it does not know, and this one changes nothing since PostgreSQL 12.
    url.expose_secret()
        .parse()
        .map(|options: PgConnectOptions| options.extra_float_digits(None))
        .map_err(|_| format!("{variable} is no database address: write postgres://USER:PASSWORD@HOST/DATABASE"))
}

/// The server's login, and the direct way beside it.
fn addresses(settings: &Settings) -> Result<(PgConnectOptions, PgConnectOptions)> {
    let database = address(settings.database.url.as_ref(), "DATABASE_URL")?;
    let direct = match &settings.database.direct_url {
        Some(url) => address(Some(url), "DATABASE_DIRECT_URL")?,
        None => database.clone(),
    };
    Ok((database, direct))
}

/// What went wrong, for whoever runs the server: the cause itself, which a caller of the API is not told.
fn told(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.detail().to_owned(), ToString::to_string)
}
