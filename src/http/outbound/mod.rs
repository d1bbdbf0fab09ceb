//! The way out: requests to places that tenants name, which cannot be talked into reaching the inside. Every
//! address is vetted when it is dialled, and connections are shared only under equal rules.

mod address;
mod client;
mod retry_after;
mod rules;

use std::{path::Path, sync::Arc};

use reqwest::{Certificate, Client, Url};

use crate::{
    config::ToolSettings,
    kernel::{Error, Problem, Result, TenantId},
};
use client::Clients;
use rules::Rules;

pub use client::Refusal;
pub use retry_after::retry_after;
pub use rules::AllowList;

/// Where tenants' requests go out.
pub struct Outbound {
    allow_list: Arc<dyn AllowList>,
    loopback: bool,
    clients: Clients,
}

impl Outbound {
    /// Reaches the public internet and what a tenant's allow-list names.
    ///
    /// # Errors
    /// When the file of certificate authorities cannot be used.
    pub fn new(settings: &ToolSettings, allow_list: Arc<dyn AllowList>) -> Result<Self> {
        let authorities = settings.ca_file.as_deref().map(authorities).transpose()?.unwrap_or_default();
        Ok(Self { allow_list, loopback: settings.loopback, clients: Clients::new(authorities) })
    }

    /// The door for one tenant, as its settings are now.
    ///
    /// # Errors
    /// Unavailable, when the settings cannot be read or no client can be made.
    pub async fn door(&self, tenant: TenantId) -> Result<Door> {
        let rules = Rules::new(self.loopback, &self.allow_list.allowed(tenant).await?);
        Ok(Door { client: self.clients.under(&rules)?, rules })
    }

    /// The client for addresses that the operator names, wherever they are.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn operators(&self) -> Result<Client> {
        self.clients.under(&Rules::anywhere())
    }
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").field("loopback", &self.loopback).finish_non_exhaustive()
    }
}

/// What one tenant may reach, and the client that reaches nothing else.
#[derive(Debug)]
pub struct Door {
    rules: Rules,
    client: Client,
}

impl Door {
    /// Whether the URL itself is one to go to: an address in it goes to no resolver, so ask before every request.
    ///
    /// # Errors
    /// Why it is not.
    pub fn vet(&self, url: &Url) -> Result<(), Refusal> {
        client::vet_url(&self.rules, url)
    }

    /// Sends to what was vetted; follows no redirect and repeats nothing.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }
}

fn authorities(file: &Path) -> Result<Vec<Certificate>> {
    let unusable = |reason: String| {
        Error::new(Problem::Invalid, format!("tools.ca_file: {} cannot be used: {reason}", file.display()))
    };
    let pem = std::fs::read(file).map_err(|e| unusable(e.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|e| unusable(e.to_string()))?;
    if found.is_empty() { Err(unusable("it holds no PEM certificate".to_owned())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    #[async_trait::async_trait]
    impl AllowList for Nowhere {
        async fn allowed(&self, _: TenantId) -> Result<Vec<String>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_file_of_authorities_must_hold_some() {
        let file = std::env::temp_dir().join(format!("fermata-authorities-{}.pem", std::process::id()));
        let settings = ToolSettings { ca_file: Some(file.clone()), ..ToolSettings::default() };
        let make = || Outbound::new(&settings, Arc::new(Nowhere)).err().map(|e| e.detail().to_owned());
        assert!(make().unwrap().contains("No such file"));
        std::fs::write(&file, "nothing of the kind").unwrap();
        let detail = make();
        std::fs::remove_file(&file).unwrap();
        assert!(detail.unwrap().contains("no PEM certificate"));
    }
}
