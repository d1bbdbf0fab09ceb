use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    journal::{Commit, Follower},
    kernel::{RunId, TenantId},
};

/// The most runs that are claimed at once.
const CLAIM: usize = 64;

/// Brings news of commits to the turns they concern, and wakes the search for work.
#[derive(Debug, Default)]
pub struct Waker {
    work: Notify,
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    /// The runs that have one, or a place kept for one.
    begun: HashMap<RunId, Arc<News>>,
    /// How many more may come of a claim that is under way.
    claimed: usize,
    /// How many are over.
    ended: u64,
}

/// Room for runs that are being claimed, until they have their turns.
#[derive(Debug)]
pub(super) struct Room<'a> {
    waker: &'a Waker,
    pub(super) runs: usize,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.waker.turns().claimed -= self.runs;
    }
}

/// What a turn has not looked at yet.
#[derive(Debug)]
pub(super) struct News {
    tenant: TenantId,
    /// The newest event this process committed to the run.
    head: AtomicU64,
    /// The newest event the turn itself knows of.
    known: AtomicU64,
    /// Something else happened: another process wrote, or a child ended.
    look: AtomicBool,
    arrived: Notify,
}

impl News {
    fn of(tenant: TenantId) -> Arc<Self> {
        let (head, known, look) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Self { tenant, head, known, look, arrived: Notify::new() })
    }

    /// Waits until something arrives.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Whether there is news for a turn whose state stands at `seq`; asking takes it as read.
    pub(super) fn take(&self, seq: u64) -> bool {
        let looked = self.look.swap(false, Ordering::AcqRel);
        looked || self.head.load(Ordering::Acquire) > seq
    }

    /// The turn knows all up to `seq`, or is about to write it.
    pub(super) fn stand_at(&self, seq: u64) {
        self.known.store(seq, Ordering::Release);
    }

    /// Something happened that has no number here.
    pub(super) fn look(&self) {
        self.look.store(true, Ordering::Release);
        self.arrived.notify_one();
    }
}

impl Waker {
    /// Waits until there may be work.
    pub(super) async fn work(&self) {
        self.work.notified().await;
    }

    /// There may be work.
    pub(super) fn wake(&self) {
        self.work.notify_one();
    }

    /// The turn for `run` begins and wants its news.
    pub(super) fn begin(&self, tenant: TenantId, run: RunId) -> Arc<News> {
        let news = News::of(tenant);
        self.turns().begun.insert(run, Arc::clone(&news));
        news
    }

    /// The same, unless the run has its turn, or there are so many already, of all tenants or of this one.
    pub(super) fn begin_within(
        &self,
        tenant: TenantId,
        run: RunId,
        (most, tenant_most): (usize, usize),
    ) -> Option<Arc<News>> {
        let mut turns = self.turns();
        let of_tenant = || turns.begun.values().filter(|news| news.tenant == tenant).count();
        // Those that are being claimed may all be this tenant's.
        let claimed = turns.claimed;
        if turns.begun.contains_key(&run) || turns.begun.len() + claimed >= most || of_tenant() + claimed >= tenant_most
        {
            return None;
        }
        let news = News::of(tenant);
        turns.begun.insert(run, Arc::clone(&news));
        Some(news)
    }

    /// Keeps what is left of `most` for a claim, a batch of it at the utmost.
    pub(super) fn room(&self, most: usize) -> Room<'_> {
        let mut turns = self.turns();
        let runs = most.saturating_sub(turns.begun.len() + turns.claimed).min(CLAIM);
        turns.claimed += runs;
        Room { waker: self, runs }
    }

    /// The runs that have a turn now.
    pub(super) fn having_turns(&self) -> Vec<RunId> {
        self.turns().begun.keys().copied().collect()
    }

    /// The turn ended.
    pub(super) fn end(&self, run: RunId, news: &Arc<News>) {
        let mut turns = self.turns();
        if turns.begun.get(&run).is_some_and(|current| Arc::ptr_eq(current, news)) {
            turns.begun.remove(&run);
            turns.ended += 1;
        }
    }

    /// How many turns are over; where it has not grown, nobody has made room.
    pub(super) fn turns_ended(&self) -> u64 {
        self.turns().ended
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower for Waker {
    fn committed(&self, commits: &[Commit]) {
        let turns = self.turns();
        let mut work = false;
        for commit in commits {
            match (turns.begun.get(&commit.run_id), commit.frames.last()) {
                (Some(news), Some(frame)) => {
                    news.head.fetch_max(frame.seq, Ordering::AcqRel);
                    if frame.seq > news.known.load(Ordering::Acquire) {
                        news.arrived.notify_one();
                    }
                }
                (Some(news), None) => news.look(),
                (None, _) => work |= !commit.ended(),
            }
        }
        drop(turns);
        if work {
            self.wake();
        }
    }

    fn signalled(&self, runs: &[(TenantId, RunId)]) {
        let turns = self.turns();
        for news in runs.iter().filter_map(|(_, run)| turns.begun.get(run)) {
            news.look();
        }
        drop(turns);
        self.wake();
    }

    fn resync(&self) {
        self.turns().begun.values().for_each(|news| news.look());
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Timestamp;

    #[test]
    fn what_a_claim_may_bring_is_kept_from_those_who_come_by_the_desk() {
        let (waker, tenant) = (Waker::default(), TenantId::new(Timestamp::UNIX_EPOCH));
        let come = |bounds| waker.begin_within(tenant, RunId::new(Timestamp::UNIX_EPOCH), bounds).is_some();
        let claim = waker.room(3);
        assert_eq!(claim.runs, 3);
        assert!(!come((3, 3)), "a place that the claim may need");
        assert!(!come((100, 3)), "all that is claimed may be this tenant's");
        assert!(come((4, 4)));
        assert_eq!(waker.room(5).runs, 1, "what is left beside the place and the claim");
        drop(claim);
        assert!(come((3, 3)));
        assert_eq!(waker.room(3).runs, 1);
        assert_eq!(waker.room(1000).runs, CLAIM);

        let run = RunId::new(Timestamp::UNIX_EPOCH);
        let (former, news) = (waker.begin(tenant, run), waker.begin(tenant, run));
        waker.end(run, &former);
        assert_eq!(waker.turns_ended(), 0, "another has its place");
        waker.end(run, &news);
        assert_eq!(waker.turns_ended(), 1);
    }
}
