//! `fermata workflow …`: definitions.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Deserialize;

use super::{
    api::{Api, Reply},
    connection::{Connection, Role},
    failure::{Failure, Result},
    input, output, text,
};
use crate::kernel::{Clock, Page, Timestamp};

/// What can be done with definitions.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put a definition; the same content makes no new version
    Put(Put),
    /// List definitions
    List(List),
    /// Print a definition
    Get(Get),
}

/// `workflow put`
#[derive(Debug, Args)]
pub struct Put {
    /// A YAML or JSON file
    file: PathBuf,
    /// Its name [else the one in the file]
    #[arg(long)]
    name: Option<String>,
    /// Print the definition as the server sends it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `workflow list`
#[derive(Debug, Args)]
pub struct List {
    /// The most definitions to list
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=200))]
    limit: u16,
    /// Print the page as the server sends it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `workflow get`
#[derive(Debug, Args)]
pub struct Get {
    #[arg(value_name = "NAME[@VERSION]")]
    name: String,
    /// Print all of it as the server sends it, not only the source
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// A definition, as far as it is shown.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Definition {
    name: String,
    version: u32,
    created_at: Option<Timestamp>,
    created_by: Option<String>,
    description: Option<String>,
}

/// A definition as it was put.
#[derive(Debug, Deserialize)]
struct Source {
    source: String,
}

impl Definition {
    /// `crm-sync@3`.
    pub(super) fn reference(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            text::safe(&self.reference()),
            self.created_at.map(|at| format!("{} ago", text::whole_duration(now - at))).unwrap_or_default(),
            text::safe(self.created_by.as_deref().unwrap_or_default()),
            text::cut(&text::safe(self.description.as_deref().unwrap_or_default()), 80),
        ]
    }
}

/// Puts a definition and says which version it is now.
pub(super) async fn put(api: &Api, name: &str, document: input::Document) -> Result<Definition> {
    sent(api, name, document).await?.json()
}

async fn sent(api: &Api, name: &str, document: input::Document) -> Result<Reply> {
    api.put(&["workflow", "definitions", name], document.media.as_str(), document.source).await
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        match self {
            Self::Put(put) => put.run().await,
            Self::List(list) => list.run().await,
            Self::Get(get) => get.run().await,
        }
    }
}

impl Put {
    async fn run(self) -> Result<()> {
        let document = input::document(&self.file)?;
        let Some(name) = self.name.as_deref().or(document.name()).map(str::to_owned) else {
            return Err(Failure::Usage(format!("{}: it has no `name`; give --name", self.file.display())));
        };
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let reply = sent(&api, &name, document).await?;
        if self.json { reply.print() } else { output::line(&text::safe(&reply.json::<Definition>()?.reference())) }
    }
}

impl List {
    async fn run(self) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let reply = api.list(&["workflow", "definitions"], &[("limit", self.limit.to_string())]).await?;
        if self.json {
            return reply.print();
        }
        let page: Page<Definition> = reply.json()?;
        let now = Clock::system().now();
        output::lines(text::table(&page.items.iter().map(|definition| definition.cells(now)).collect::<Vec<_>>()))?;
        if page.items.is_empty() {
            output::hint("no definitions; put one with `fermata workflow put FILE`");
        }
        Ok(())
    }
}

impl Get {
    async fn run(self) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let (name, version) = match self.name.split_once('@') {
            Some((name, version)) => (name, vec![("version", version.to_owned())]),
            None => (self.name.as_str(), Vec::new()),
        };
        let reply = api.list(&["workflow", "definitions", name], &version).await?;
        if self.json {
            return reply.print();
        }
        output::document(reply.json::<Source>()?.source.trim_end())
    }
}
