use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::kernel::TenantId;

/// Whose requests, and where to.
type Key = (TenantId, String);

/// Keeps a tenant from crowding a host. Only hosts in use are remembered.
#[derive(Clone)]
pub(in crate::tool) struct Hosts {
    per_host: usize,
    open: Arc<Mutex<HashMap<Key, Arc<Semaphore>>>>,
}

/// A place at a host; free again when dropped.
pub(in crate::tool) struct Place {
    hosts: Hosts,
    key: Key,
    permit: Option<OwnedSemaphorePermit>,
}

impl Hosts {
    pub(in crate::tool) fn new(per_host: usize) -> Self {
        Self { per_host: per_host.max(1), open: Arc::default() }
    }

    /// Waits for a place at `origin` (scheme, host and port).
    pub(in crate::tool) async fn enter(&self, tenant: TenantId, origin: String) -> Place {
        let key = (tenant, origin);
        let semaphore = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(open.entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.per_host))))
        };
        // Made before the wait, so that who gives up waiting also leaves nothing behind.
        let mut place = Place { hosts: self.clone(), key, permit: None };
        // The semaphore is never closed, so there is always a permit.
        place.permit = semaphore.acquire_owned().await.ok();
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut open = self.hosts.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever holds or awaits a permit holds the semaphore too; alone in the map it is idle.
        if open.get(&self.key).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            open.remove(&self.key);
        }
    }
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosts").field("per_host", &self.per_host).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, poll};

    use super::*;

    fn remembered(hosts: &Hosts) -> usize {
        hosts.open.lock().unwrap().len()
    }

    #[tokio::test]
    async fn a_host_takes_so_many_of_one_tenant_and_is_forgotten_after() {
        let hosts = Hosts::new(2);
        let (a, b) = (TenantId::new(chrono::DateTime::UNIX_EPOCH), TenantId::new(chrono::DateTime::UNIX_EPOCH));
        let enter = |tenant| hosts.enter(tenant, "https://a.example".to_owned());
        let first = enter(a).await;
        let second = enter(a).await;
        assert!(enter(b).now_or_never().is_some(), "another tenant has its own places");
        let mut third = Box::pin(enter(a));
        assert!(poll!(&mut third).is_pending());
        drop(first);
        let third = third.await;
        drop((second, third));
        assert_eq!(remembered(&hosts), 0);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_nothing_behind() {
        let hosts = Hosts::new(1);
        let tenant = TenantId::new(chrono::DateTime::UNIX_EPOCH);
        let first = hosts.enter(tenant, "h".to_owned()).await;
        let mut second = Box::pin(hosts.enter(tenant, "h".to_owned()));
        assert!(poll!(&mut second).is_pending());
        drop(first);
        drop(second);
        assert_eq!(remembered(&hosts), 0);
    }
}
