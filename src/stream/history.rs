use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use tokio::sync::OnceCell;

use super::{frame::Batch, held};
use crate::kernel::{Result, RunId, TenantId};

/// Pages begin at multiples of this many events, so that subscribers at different places share them.
pub(super) const PAGE: u64 = 1024;

/// Pages kept at most, whatever their size.
const PAGES: usize = 4096;

type Key = (TenantId, RunId, u64);
type Slot = Arc<OnceCell<Arc<Batch<u64>>>>;

/// Recent pages of runs' events, for subscribers that replay. Events never change, so neither does a
/// page; readers of the same page wait for one reading of it.
#[derive(Debug)]
pub(super) struct History {
    pages: Mutex<Pages>,
    budget: usize,
}

#[derive(Debug, Default)]
struct Pages {
    slots: HashMap<Key, Slot>,
    order: VecDeque<Key>,
    bytes: usize,
}

/// Which rows to read: at most `limit` after `after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub after: u64,
    pub limit: u64,
}

impl History {
    /// Keeps about `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { pages: Mutex::default(), budget }
    }

    /// The page that holds the event after `cursor`: a kept one, or what `read` finds. Its first events may
    /// lie before the cursor. None when there are no events after the cursor.
    ///
    /// # Errors
    /// Those of `read`; nothing is kept then.
    pub async fn page<F>(
        &self,
        tenant: TenantId,
        run: RunId,
        cursor: u64,
        read: impl Fn(Want) -> F,
    ) -> Result<Option<Arc<Batch<u64>>>>
    where
        F: Future<Output = Result<Batch<u64>>>,
    {
        let mut after = cursor - cursor % PAGE;
        loop {
            let key = (tenant, run, after);
            let slot = self.slot(key);
            let page = slot
                .get_or_try_init(|| async {
                    let page = Arc::new(read(Want { after, limit: PAGE - after % PAGE }).await?);
                    self.keep(key, &slot, page.bytes());
                    Ok::<_, crate::kernel::Error>(page)
                })
                .await;
            match page.map(|page| (page.last(), page)) {
                Err(error) => {
                    self.forget(key, &slot);
                    return Err(error);
                }
                Ok((None, _)) => {
                    // Not yet written: ask again next time.
                    self.forget(key, &slot);
                    return Ok(None);
                }
                Ok((Some(last), page)) if last > cursor => return Ok(Some(page.clone())),
                Ok((Some(last), _)) => after = last,
            }
        }
    }

    fn slot(&self, key: Key) -> Slot {
        let mut pages = held(&self.pages);
        if let Some(slot) = pages.slots.get(&key) {
            return slot.clone();
        }
        let slot = Slot::default();
        pages.slots.insert(key, slot.clone());
        pages.order.push_back(key);
        pages.trim(self.budget);
        slot
    }

    fn keep(&self, key: Key, slot: &Slot, bytes: usize) {
        let mut pages = held(&self.pages);
        // Trimmed meanwhile: then it is not counted either.
        if pages.slots.get(&key).is_some_and(|kept| Arc::ptr_eq(kept, slot)) {
            pages.bytes += bytes;
            pages.trim(self.budget);
        }
    }

    fn forget(&self, key: Key, slot: &Slot) {
        let mut pages = held(&self.pages);
        if pages.slots.get(&key).is_some_and(|kept| Arc::ptr_eq(kept, slot)) {
            pages.remove(key);
            pages.order.retain(|kept| *kept != key);
        }
    }
}

impl Pages {
    fn trim(&mut self, budget: usize) {
        while self.bytes > budget || self.order.len() > PAGES {
            let Some(oldest) = self.order.pop_front() else { break };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(page) = self.slots.remove(&key).and_then(|slot| slot.get().cloned()) {
            self.bytes = self.bytes.saturating_sub(page.bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use uuid::Uuid;

    use super::*;
    use crate::{kernel::Error, stream::frame::Writer};

    struct Table {
        head: AtomicU64,
        read: AtomicU64,
    }

    impl Table {
        async fn read(&self, want: Want) -> Result<Batch<u64>> {
            // Lets the others in, as a database would.
            tokio::task::yield_now().await;
            let upto = self.head.load(Ordering::Relaxed).min(want.after + want.limit);
            let mut writer = Writer::for_about(0, 0);
            for seq in want.after + 1..=upto {
                self.read.fetch_add(1, Ordering::Relaxed);
                writer.event(seq, seq, "idle", b"{}");
            }
            Ok(writer.finish())
        }
    }

    fn ids() -> (TenantId, RunId) {
        (TenantId::from_uuid(Uuid::from_u128(1)), RunId::from_uuid(Uuid::from_u128(2)))
    }

    async fn replay(history: &History, table: &Table, mut cursor: u64) -> Vec<u64> {
        let (tenant, run) = ids();
        let mut got = Vec::new();
        while let Some(page) = history.page(tenant, run, cursor, |want| table.read(want)).await.expect("a table") {
            got.extend(page.entries().map(|entry| entry.at).filter(|at| *at > cursor));
            cursor = page.last().expect("a page has events");
        }
        got
    }

    #[tokio::test]
    async fn many_who_replay_read_each_event_once() {
        let (history, table) = (History::new(usize::MAX), Table { head: 3000.into(), read: 0.into() });
        let all = futures_util::future::join_all([0, 0, 5, 1023, 1024, 1500, 2999, 3000].map(|from| {
            let (history, table) = (&history, &table);
            async move { (from, replay(history, table, from).await) }
        }));
        for (from, got) in all.await {
            assert_eq!(got, (from + 1..=3000).collect::<Vec<_>>());
        }
        assert_eq!(table.read.load(Ordering::Relaxed), 3000);
        table.head.store(3002, Ordering::Relaxed);
        assert_eq!(replay(&history, &table, 2990).await, (2991..=3002).collect::<Vec<_>>());
        assert_eq!(table.read.load(Ordering::Relaxed), 3002);
    }

    #[tokio::test]
    async fn it_keeps_to_its_budget() {
        let (history, table) = (History::new(50_000), Table { head: 9000.into(), read: 0.into() });
        assert_eq!(replay(&history, &table, 0).await.len(), 9000);
        let pages = held(&history.pages);
        let kept: usize = pages.slots.values().filter_map(|slot| slot.get()).map(|page| page.bytes()).sum();
        assert!(kept <= 50_000 && kept == pages.bytes, "{kept} {}", pages.bytes);
        assert_eq!(pages.slots.len(), pages.order.len());
    }

    #[tokio::test]
    async fn a_failed_reading_is_tried_again() {
        let (history, (tenant, run)) = (History::new(1000), ids());
        let failed = history.page(tenant, run, 0, |_| async { Err(Error::unavailable("away")) }).await;
        assert!(failed.is_err());
        let table = Table { head: 2.into(), read: 0.into() };
        assert_eq!(replay(&history, &table, 0).await, vec![1, 2]);
    }
}
