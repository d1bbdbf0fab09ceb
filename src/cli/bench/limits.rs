//! What the machine and the database can do at this moment, without Fermata between: the measure for everything
//! else.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinSet;

use super::{
    course::Terms,
    report::{self, Report, Standard},
    store::{Ground, Piece},
    vitals::Meter,
};
use crate::cli::client::failure::{Failure, Result};

/// Clients of the standard that figures are compared with.
pub(super) const CLIENTS: u16 = 8;

/// How long the standard takes, before and after.
const LOOK: Duration = Duration::from_millis(1500);

/// Where the database is.
#[derive(Debug, Args)]
struct Where {
    /// The server's database, with a login that may make a schema in it [else that of `fermata dev`]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
}

/// `bench limits`
#[derive(Debug, Args)]
pub struct Limits {
    /// How long each of the four is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    terms: Terms,
}

/// Whether a workload is compared with what the database can do.
#[derive(Debug, Args)]
pub(super) struct Compare {
    /// Measure one-row commits right before and after, and give the figures as ratios to them as well
    #[arg(long)]
    limits: bool,
    #[command(flatten)]
    place: Where,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    commits_per_second: f64,
    commits_per_second_alone: f64,
    tenant_commits_per_second: f64,
    rows_per_second: f64,
}

/// A standard that has been measured once.
#[derive(Debug)]
pub(super) struct Probe(Option<(Ground, f64)>);

impl Where {
    async fn ground(&self, terms: &Terms) -> Result<Ground> {
        let noted = terms.noted_database()?;
        let wrong = |_| Failure::Usage("write the database as postgres://USER:PASSWORD@HOST/DATABASE".to_owned());
        let database: PgConnectOptions = match (&self.database_url, noted) {
            (Some(given), _) => given.parse().map_err(wrong)?,
            // The server's own login may make nothing.
            (None, Some(noted)) => noted.parse::<PgConnectOptions>().map_err(wrong)?.username("fermata_owner"),
            (None, None) => {
                return Err(Failure::Usage("the limits are the database's: give --database-url".to_owned()));
            }
        };
        // A pooler refuses start-up parameters it does not know.
        Ground::make(database.extra_float_digits(None)).await.map_err(refused)
    }
}

impl Limits {
    pub(super) async fn run(self) -> Result<()> {
        let ground = self.place.ground(&self.terms).await?;
        let meter = Meter::start(None);
        let figures = self.measure(&ground).await;
        let cost = meter.read();
        ground.remove().await.map_err(refused)?;
        Report::new("limits", CLIENTS, self.seconds, figures?, cost).print(self.terms.json)
    }

    async fn measure(&self, ground: &Ground) -> Result<Figures> {
        let length = Duration::from_secs(self.seconds);
        Ok(Figures {
            commits_per_second: rate(ground, Piece::Row, CLIENTS, length).await?,
            commits_per_second_alone: rate(ground, Piece::Row, 1, length).await?,
            tenant_commits_per_second: rate(ground, Piece::RowOfTenant, CLIENTS, length).await?,
            rows_per_second: report::tenths(100.0 * rate(ground, Piece::Hundred, CLIENTS, length).await?),
        })
    }
}

impl Compare {
    /// Measures the standard, if it is wanted.
    pub(super) async fn begin(&self, terms: &Terms) -> Result<Probe> {
        if !self.limits {
            return Ok(Probe(None));
        }
        let ground = self.place.ground(terms).await?;
        match rate(&ground, Piece::Row, CLIENTS, LOOK).await {
            Ok(before) => Ok(Probe(Some((ground, before)))),
            Err(failure) => ground.remove().await.map_err(refused).and(Err(failure)),
        }
    }
}

impl Probe {
    /// Measures it again.
    pub(super) async fn finish(self) -> Result<Option<Standard>> {
        let Some((ground, before)) = self.0 else { return Ok(None) };
        let after = rate(&ground, Piece::Row, CLIENTS, LOOK).await;
        ground.remove().await.map_err(refused)?;
        let after = after?;
        Ok(Some(Standard { before, after, commits_per_second: report::tenths(f64::midpoint(before, after)) }))
    }
}

/// Commits a second by so many clients.
async fn rate(ground: &Ground, piece: Piece, clients: u16, length: Duration) -> Result<f64> {
    let begun = Instant::now();
    let mut crew = JoinSet::new();
    (0..clients).for_each(|_| drop(crew.spawn(ground.clone().commit(piece, begun + length))));
    let done: u64 = crew.join_all().await.into_iter().sum::<sqlx::Result<u64>>().map_err(refused)?;
    Ok(report::tenths(done as f64 / begun.elapsed().as_secs_f64()))
}

fn refused(error: sqlx::Error) -> Failure {
    Failure::Usage(format!("the database cannot be measured: {error}"))
}

impl report::Rows for Figures {
    fn rows(&self) -> Vec<report::Row> {
        vec![
            report::row("one-row commits", report::rate(self.commits_per_second)),
            report::row("with one client", report::rate(self.commits_per_second_alone)),
            report::row("with a tenant set", report::rate(self.tenant_commits_per_second)),
            report::row("rows, 100 a commit", report::rate(self.rows_per_second)),
        ]
    }

    fn rates(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}
