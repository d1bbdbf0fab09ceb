use std::time::Duration;

use clap::Args;

use super::{Beside, Result, addresses, told};
use crate::{
    config::Settings,
    db::{Database, guard},
    kernel::Clock,
};

/// A clock further off than this makes tokens and deadlines wrong.
const SKEW_MS: i64 = 2_000;

#[derive(Debug, Args)]
pub(in crate::cli) struct Doctor {
    /// Only ask the server whether it is healthy: for a container's health check
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    beside: Beside,
}

/// One thing that was looked at.
struct Check {
    name: &'static str,
    findings: Result<Vec<String>>,
}

/// Looks at everything and says what to do about what is wrong.
pub(super) async fn run(doctor: Doctor) -> Result<()> {
    let (settings, _) = doctor.beside.load()?;
    if doctor.quick {
        // From inside the container, past whatever proxy the public URL names.
        let port = settings.http.listen.port();
        return healthy(&format!("http://127.0.0.1:{port}/health/ready")).await;
    }
    let mut checks = database(&settings).await;
    let url = healthy(&format!("{}/health/ready", settings.http.base_url())).await.map(|()| vec![]);
    checks.push(Check { name: "public URL", findings: url });
    let sick = checks.iter().filter(|check| check.is_sick()).count();
    checks.iter().for_each(Check::print);
    if sick == 0 { Ok(()) } else { Err(format!("{sick} of {} checks failed", checks.len())) }
}

impl Check {
    fn is_sick(&self) -> bool {
        !matches!(&self.findings, Ok(findings) if findings.is_empty())
    }

    fn print(&self) {
        match &self.findings {
            Ok(findings) if findings.is_empty() => println!("ok    {}", self.name),
            Ok(findings) => findings.iter().for_each(|finding| println!("wrong {}: {finding}", self.name)),
            Err(reason) => println!("wrong {}: {reason}", self.name),
        }
    }
}

async fn database(settings: &Settings) -> Vec<Check> {
    let connected = match addresses(settings) {
        Ok((options, _)) => {
            let patience = settings.database.acquire_timeout.0;
            Database::connect(options, 1, patience).await.map_err(|error| told(&error))
        }
        Err(reason) => Err(reason),
    };
    let db = match connected {
        Ok(db) => db,
        Err(reason) => return vec![Check { name: "database", findings: Err(reason) }],
    };
    let read = |found: crate::kernel::Result<Vec<guard::Finding>>| match found {
        Ok(findings) => Ok(findings.iter().map(ToString::to_string).collect()),
        Err(error) => Err(told(&error)),
    };
    vec![
        Check { name: "database", findings: Ok(vec![]) },
        Check { name: "login", findings: read(guard::login(&db).await) },
        Check { name: "schema version", findings: read(guard::version(&db).await) },
        Check { name: "time-outs", findings: read(guard::limits(&db).await) },
        Check { name: "row-level security", findings: read(guard::schema(&db).await) },
        Check { name: "clock", findings: clock(&db).await },
    ]
}

async fn clock(db: &Database) -> Result<Vec<String>> {
    let theirs = db.clock().await.map_err(|error| told(&error))?;
    let skew = (Clock::system().now() - theirs).num_milliseconds();
    let off = format!("this machine's clock is {skew} ms off the database's: set both by NTP");
    Ok(if skew.abs() > SKEW_MS { vec![off] } else { vec![] })
}

/// Whether the server answers there.
async fn healthy(url: &str) -> Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build();
    let client = client.map_err(|error| error.to_string())?;
    let answer = client.get(url).send().await;
    let unreachable = |error: reqwest::Error| {
        format!("{url} does not answer ({error}): is the server running, and is FERMATA_HTTP_PUBLIC_URL right?")
    };
    let status = answer.map_err(unreachable)?.status();
    if status.is_success() { Ok(()) } else { Err(format!("{url} answers {status}")) }
}
