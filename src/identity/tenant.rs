use serde::{Deserialize, Serialize};

use super::store;
use crate::{
    db::Database,
    kernel::{Clock, Error, Problem, Result, TenantId, Timestamp},
};

/// A tenant: the wall around everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its id.
    pub tenant_id: TenantId,
    /// Its name, unique: `[a-z][a-z0-9-]{0,62}`.
    pub name: String,
    /// What it has set.
    pub settings: TenantSettings,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What a tenant may set for itself; anything absent has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TenantSettings {
    /// Where `http.request` may go besides the public internet: networks (`10.1.0.0/16`), addresses or host
    /// names.
    pub http_allow: Vec<String>,
}

/// The tenants of this installation.
#[derive(Clone, Debug)]
pub struct Tenants {
    database: Database,
    clock: Clock,
}

impl Tenants {
    /// Over this database.
    #[must_use]
    pub fn new(database: Database, clock: Clock) -> Self {
        Self { database, clock }
    }

    /// Makes a tenant.
    ///
    /// # Errors
    /// When the name is not one, or is taken.
    pub async fn create(&self, name: &str, settings: TenantSettings) -> Result<Tenant> {
        if !is_name(name) {
            let detail = "a tenant's name is 1 to 63 lower-case letters, digits or `-` and begins with a letter";
            return Err(Error::invalid("name", detail));
        }
        let created_at = self.clock.now();
        let tenant = Tenant { tenant_id: TenantId::new(created_at), name: name.to_owned(), settings, created_at };
        let tx = self.database.tenant(tenant.tenant_id).await?;
        store::insert(&tx, &tenant).await?;
        tx.commit().await?;
        Ok(tenant)
    }

    /// The id of the tenant of that name.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn find(&self, name: &str) -> Result<Option<TenantId>> {
        let mut tx = self.database.system().await?;
        let found = store::find(&mut tx, name).await?;
        tx.commit().await?;
        Ok(found)
    }

    /// The id of the tenant of that name, which is made if need be, also when another process makes it now.
    ///
    /// # Errors
    /// When the name is not one.
    pub async fn find_or_create(&self, name: &str) -> Result<TenantId> {
        if let Some(found) = self.find(name).await? {
            return Ok(found);
        }
        match self.create(name, TenantSettings::default()).await {
            Ok(tenant) => Ok(tenant.tenant_id),
            Err(error) if error.problem() == Problem::Conflict => self.find(name).await?.ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// The tenant.
    ///
    /// # Errors
    /// Not found when there is none of that id.
    pub async fn get(&self, tenant_id: TenantId) -> Result<Tenant> {
        let tx = self.database.tenant(tenant_id).await?;
        let tenant = store::get(&tx, tenant_id).await?;
        tx.commit().await?;
        tenant.ok_or_else(|| Error::not_found("tenant"))
    }
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && text.len() <= 63
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::fixture::Fixture;

    #[test]
    fn names_are_those_the_table_takes() {
        for good in ["a", "dev", "acme-2", &"x".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "2a", "-a", "Dev", "a_b", "a\n", "é", &"x".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn settings_of_another_version_are_read() {
        let read = serde_json::from_str::<TenantSettings>(r#"{"httpAllow": ["10.0.0.0/8"], "later": 1}"#).unwrap();
        assert_eq!(read.http_allow, ["10.0.0.0/8"]);
        assert_eq!(serde_json::from_str::<TenantSettings>("{}").unwrap(), TenantSettings::default());
    }

    #[tokio::test]
    async fn a_tenant_is_made_once_and_found_by_name() {
        let fixture = Fixture::start("tenants").await;
        let tenants = Tenants::new(fixture.database.clone(), fixture.clock.clone());
        let (one, other) = tokio::join!(tenants.find_or_create("dev"), tenants.find_or_create("dev"));
        assert_eq!(one.unwrap(), other.unwrap());
        let settings = TenantSettings { http_allow: vec!["10.0.0.0/8".to_owned()] };
        let acme = tenants.create("acme", settings).await.unwrap();
        assert_eq!(tenants.find("acme").await.unwrap(), Some(acme.tenant_id));
        assert_eq!(tenants.get(acme.tenant_id).await.unwrap(), acme);
        let taken = tenants.create("acme", TenantSettings::default()).await.unwrap_err();
        assert_eq!(taken.problem(), Problem::Conflict);
        let unknown = tenants.get(TenantId::new(fixture.clock.now())).await.unwrap_err();
        assert_eq!(unknown.problem(), Problem::NotFound);
        assert_eq!(tenants.find("nobody").await.unwrap(), None);
        fixture.stop().await;
    }
}
