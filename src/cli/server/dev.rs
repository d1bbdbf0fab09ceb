use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use console::style;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};

use super::{Configured, Result, run as server, told};
use crate::{
    app::{App, Outside, Role},
    auth::{self, Grant, Minter},
    config::Settings,
    db::{
        self,
        cluster::{Cluster, DataDir, Durability},
    },
    identity::Tenants,
    kernel::{Clock, Span, Subject, TenantId},
    telemetry::{self, LogFormat},
};

/// How long the tokens of `dev.json` are good.
const TTL: Span = Span::seconds(30 * 24 * 3600);

#[derive(Debug, Args)]
pub(in crate::cli) struct Dev {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where everything is kept
    #[arg(long, default_value = ".fermata", value_name = "DIR")]
    data_dir: PathBuf,
    /// A database to use instead of an own one; its login must be a superuser
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    #[command(flatten)]
    configured: Configured,
}

/// What `dev.json` tells the client's commands.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    base_url: String,
    tenant_id: TenantId,
    tokens: BTreeMap<String, String>,
}

/// The database under a development server.
enum Ground {
    Own(Box<Cluster>),
    Given,
}

/// Runs everything until told to stop.
pub(super) async fn run(dev: Dev) -> Result<()> {
    telemetry::init(LogFormat::Compact);
    let begun = Instant::now();
    let clock = Clock::system();
    let mut settings = dev.configured.load()?;
    settings.http.listen = dev.listen;
    settings.tools.debug = true;
    settings.tools.loopback = true;
    let dir = DataDir::claim(&dev.data_dir, &clock).map_err(|failure| failure.to_string())?;
    // Before the database, so that a taken port is known at once.
    let listener = server::listen(&settings).await?;
    if settings.auth.secret.is_none() && settings.auth.keys.is_empty() {
        settings.auth.secret = Some(secret(&dir.path().join("secret"))?);
    }
    if settings.vault.secret.is_none() {
        settings.vault.secret = Some(secret(&dir.path().join("vault"))?);
    }
    let path = dir.path().to_owned();
    let (ground, admin, login) = ground(dir.clone(), dev.database_url.as_deref()).await?;
    let outcome = serve(&settings, &clock, (admin, login), listener, &dir, &path, (&ground, begun)).await;
    if let Ground::Own(cluster) = ground {
        cluster.stop().await.map_err(|failure| failure.to_string())?;
    }
    outcome
}

async fn ground(dir: DataDir, url: Option<&str>) -> Result<(Ground, PgConnectOptions, PgConnectOptions)> {
    match url {
        Some(url) => {
            let given: PgConnectOptions =
                url.parse().map_err(|_| "--database-url is no database address".to_owned())?;
            let (owner, login) = db::adopt(&given).await.map_err(|failure| failure.to_string())?;
            Ok((Ground::Given, owner, login))
        }
        None => {
            let cluster = Cluster::start(dir, Durability::Full).await.map_err(|failure| failure.to_string())?;
            let (admin, login) = (cluster.admin_options(), cluster.app_options());
            Ok((Ground::Own(Box::new(cluster)), admin, login))
        }
    }
}

async fn serve(
    settings: &Settings,
    clock: &Clock,
    (admin, login): (PgConnectOptions, PgConnectOptions),
    listener: tokio::net::TcpListener,
    dir: &DataDir,
    path: &Path,
    (ground, begun): (&Ground, Instant),
) -> Result<()> {
    db::migrate(admin).await.map_err(|failure| failure.to_string())?;
    let login_url = login.to_url_lossy().to_string();
    let outside = Outside {
        settings: settings.clone(),
        clock: clock.clone(),
        database: login.clone(),
        direct: login,
        role: Role::All,
    };
    let app = App::start(outside, listener).await.map_err(|error| told(&error))?;
    let ready = async {
        let tenant = Tenants::new(app.database().clone(), clock.clone()).find_or_create("dev").await;
        let tenant = tenant.map_err(|error| told(&error))?;
        let note = note(settings, clock, tenant, app.address())?;
        let json = serde_json::to_string_pretty(&note).map_err(|error| error.to_string())?;
        write_secretly(&path.join("dev.json"), &json)?;
        write_secretly(&path.join("database"), &login_url)?;
        dir.announce(&note.base_url).map_err(|failure| failure.to_string())?;
        announce(&note, ground, &path.join("dev.json"), begun);
        server::told_to_stop().await
    };
    let outcome = ready.await;
    eprintln!("{}", style("stopping: requests and steps in flight may finish; once more to stop at once").dim());
    server::stop(app).await;
    outcome
}

/// Takes on the secret, the database and the address of a development server in `data_dir`, where there is one
/// and nothing else is configured; says whether it did.
pub(super) fn adopt(settings: &mut Settings, data_dir: &Path) -> Result<bool> {
    let file = data_dir.join("secret");
    if settings.database.url.is_some() || !file.is_file() {
        return Ok(false);
    }
    let absent = |error: std::io::Error| {
        format!("{} holds no running development server ({error}): start `fermata dev`", data_dir.display())
    };
    let read = |name: &str| fs::read_to_string(data_dir.join(name)).map_err(absent);
    let note: Note = serde_json::from_str(&read("dev.json")?).map_err(|error| absent(error.into()))?;
    settings.auth.secret = Some(secret(&file)?);
    settings.database.url = Some(SecretString::from(read("database")?));
    settings.http.public_url.get_or_insert(note.base_url);
    Ok(true)
}

/// A secret of 32 bytes, made once for each data directory.
fn secret(file: &Path) -> Result<SecretString> {
    let fault = |error: std::io::Error| format!("{}: {error}", file.display());
    if let Ok(text) = fs::read_to_string(file) {
        return Ok(SecretString::from(text));
    }
    let bytes: [u8; 32] = rand::random();
    let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut open = fs::OpenOptions::new();
    let mut made = open.write(true).create_new(true).mode(0o600).open(file).map_err(fault)?;
    made.write_all(text.as_bytes()).map_err(fault)?;
    Ok(SecretString::from(text))
}

fn note(settings: &Settings, clock: &Clock, tenant_id: TenantId, address: SocketAddr) -> Result<Note> {
    let minter = Minter::new(&settings.auth)?;
    let mut tokens = BTreeMap::new();
    for role in [auth::Role::Owner, auth::Role::Admin, auth::Role::Operator, auth::Role::Approver, auth::Role::Viewer] {
        let subject: Subject =
            format!("user_{}", role.name()).parse().map_err(|_| "a role's name is no subject".to_owned())?;
        let grant = Grant { tenant_id, subject, roles: vec![role], groups: vec![], scope: None, ttl: TTL };
        let (token, _) = minter.mint(&grant, clock.now())?;
        tokens.insert(role.name().to_owned(), token.expose_secret().to_owned());
    }
    let base_url = settings.http.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
    Ok(Note { base_url, tenant_id, tokens })
}

/// Writes the file whole or not at all, for its owner only.
fn write_secretly(file: &Path, text: &str) -> Result<()> {
    let fault = |error: std::io::Error| format!("{}: {error}", file.display());
    let fresh = file.with_extension("new");
    let mut open = fs::OpenOptions::new();
    let mut out = open.write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(fault)?;
    out.write_all(text.as_bytes()).map_err(fault)?;
    fs::rename(&fresh, file).map_err(fault)
}

fn announce(note: &Note, ground: &Ground, file: &Path, begun: Instant) {
    let name = |text: &str| style(format!("{text:<9}")).dim();
    let took = begun.elapsed().as_secs_f64();
    println!("{} is ready in {took:.1} s", style("Fermata").bold());
    println!();
    println!("  {} {}", name("url"), note.base_url);
    println!("  {} {}/docs", name("api docs"), note.base_url);
    match ground {
        Ground::Own(cluster) => {
            println!("  {} psql -h {} -U fermata_owner fermata", name("database"), cluster.socket_dir().display());
            if let Some(notice) = cluster.notice() {
                println!("  {} {notice}", name(""));
            }
        }
        Ground::Given => println!("  {} as given", name("database")),
    }
    println!("  {} {} (30 days; also in {})", name("tenant"), note.tenant_id, file.display());
    println!();
    for (role, token) in &note.tokens {
        println!("  {} {token}", name(role));
    }
    println!();
    println!("  Try, in another terminal:");
    println!("    fermata run start docs/examples/crm-sync.yaml --input account=acme --watch");
    println!("    fermata approvals");
    println!("    fermata approve apr_… --reason \"go on\"");
    println!();
}
