use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::hub::{RunKey, RunTopic};

/// Runs kept at most.
const RUNS: usize = 512;

/// The runs that began on this process just now and that nobody follows yet. Who starts a run follows it at once:
/// so long its events are kept as if somebody did already, and opening its stream asks the table nothing.
#[derive(Debug, Default)]
pub(super) struct Begun {
    topics: HashMap<RunKey, Arc<RunTopic>>,
    order: VecDeque<RunKey>,
}

impl Begun {
    /// One more; the oldest goes when they are too many.
    pub fn add(&mut self, key: RunKey) -> Arc<RunTopic> {
        if self.order.len() >= RUNS
            && let Some(oldest) = self.order.pop_front()
        {
            self.topics.remove(&oldest);
        }
        self.order.push_back(key);
        self.topics.entry(key).or_default().clone()
    }

    /// The topic of a run that is kept.
    pub fn get(&self, key: RunKey) -> Option<Arc<RunTopic>> {
        self.topics.get(&key).cloned()
    }

    /// Keeps a run no longer.
    pub fn take(&mut self, key: RunKey) -> Option<Arc<RunTopic>> {
        self.topics.remove(&key)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::kernel::{RunId, TenantId};

    fn key(n: u128) -> RunKey {
        (TenantId::from_uuid(Uuid::nil()), RunId::from_uuid(Uuid::from_u128(n)))
    }

    #[test]
    fn the_latest_are_kept_until_they_are_taken() {
        let mut begun = Begun::default();
        let topics = (0..RUNS as u128 + 2).map(|n| begun.add(key(n))).collect::<Vec<_>>();
        assert!(begun.get(key(1)).is_none());
        assert!(begun.take(key(2)).is_some_and(|topic| Arc::ptr_eq(&topic, &topics[2])));
        assert!(begun.get(key(2)).is_none() && begun.get(key(3)).is_some());
        assert!(begun.topics.len() < RUNS && begun.order.len() == RUNS);
    }
}
