use std::io::{self, Write};

use clap::{Args, Subcommand};
use secrecy::ExposeSecret;

use super::{Beside, Configured, Result, address, addresses, told};
use crate::{
    app,
    auth::{Grant, Minter, Role},
    config::Settings,
    db::{self, Database},
    identity::{TenantSettings, Tenants},
    kernel::{Clock, Error, Span, Subject},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Token {
    /// The tenant's name
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// Roles, separated by commas: owner, admin, operator, approver, viewer, service
    #[arg(long, value_delimiter = ',', required = true)]
    roles: Vec<Role>,
    /// Who bears it
    #[arg(long, default_value = "user_cli")]
    sub: String,
    /// Groups, separated by commas
    #[arg(long, value_delimiter = ',')]
    groups: Vec<String>,
    /// Narrows the roles to these permissions, separated by spaces
    #[arg(long)]
    scope: Option<String>,
    /// How long it is good
    #[arg(long, default_value = "8h")]
    ttl: Span,
    #[command(flatten)]
    beside: Beside,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Tenant {
    /// Make a tenant
    Create(Create),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Create {
    /// Lower-case letters, digits and `-`
    name: String,
    /// Networks or hosts that `http.request` may reach besides the public internet
    #[arg(long, value_name = "NETWORK")]
    http_allow: Vec<String>,
    #[command(flatten)]
    beside: Beside,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Openapi {
    /// JSON instead of YAML
    #[arg(long)]
    json: bool,
}

/// Brings the schema to this version.
pub(super) async fn migrate(configured: &Configured) -> Result<()> {
    let settings = configured.load()?;
    let owner = address(settings.database.admin_url.as_ref(), "DATABASE_ADMIN_URL")?;
    db::migrate(owner).await.map_err(|failure| failure.to_string())?;
    eprintln!("the schema is up to date");
    Ok(())
}

async fn connect(settings: &Settings) -> Result<Database> {
    let (database, _) = addresses(settings)?;
    Database::connect(database, 1, settings.database.acquire_timeout.0).await.map_err(|error| told(&error))
}

/// Prints a token and nothing else. Beside a development server the tenant is made if need be.
pub(super) async fn token(token: Token) -> Result<()> {
    let (settings, developing) = token.beside.load()?;
    let clock = Clock::system();
    let minter = Minter::new(&settings.auth)?;
    let tenants = Tenants::new(connect(&settings).await?, clock.clone());
    let tenant_id = if developing {
        tenants.find_or_create(&token.tenant).await.map_err(|error| told(&error))?
    } else {
        let found = tenants.find(&token.tenant).await.map_err(|error| told(&error))?;
        let unknown = || format!("there is no tenant `{0}`: make it with `fermata tenant create {0}`", token.tenant);
        found.ok_or_else(unknown)?
    };
    let subject: Subject = token.sub.parse().map_err(|error: Error| format!("--sub: {}", error.detail()))?;
    let Token { roles, groups, scope, ttl, .. } = token;
    let grant = Grant { tenant_id, subject, roles, groups, scope, ttl };
    let (made, _) = minter.mint(&grant, clock.now())?;
    println!("{}", made.expose_secret());
    Ok(())
}

/// Makes a tenant and prints its id.
pub(super) async fn tenant(Tenant::Create(create): Tenant) -> Result<()> {
    let (settings, _) = create.beside.load()?;
    let tenants = Tenants::new(connect(&settings).await?, Clock::system());
    let wanted = TenantSettings { http_allow: create.http_allow };
    let tenant = tenants.create(&create.name, wanted).await.map_err(|error| told(&error))?;
    println!("{}", tenant.tenant_id);
    Ok(())
}

/// Prints the document.
pub(super) fn openapi(openapi: &Openapi) -> Result<()> {
    let document = app::openapi().map_err(|error| told(&error))?;
    let text = if openapi.json {
        document.to_pretty_json().map_err(|error| error.to_string())?
    } else {
        document.to_yaml().map_err(|error| error.to_string())?
    };
    // Whoever reads the beginning only, as `head` does, has had enough; that is no failure.
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}
