//! How much goes out with one key: calls at once, and tokens a minute.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::LlmSettings;

/// Whose key it is and what it is called: the operator's for a provider, or a tenant's by its name.
pub(super) type KeyId = String;

/// The shares of keys. Only keys in use are remembered, unless tokens are counted.
#[derive(Clone)]
pub(super) struct Quotas {
    calls: usize,
    tokens: Option<NonZeroU32>,
    keys: Arc<Mutex<HashMap<KeyId, Arc<Share>>>>,
}

struct Share {
    calls: Arc<Semaphore>,
    tokens: Option<DefaultDirectRateLimiter>,
    /// Tokens that calls had beyond what they entered with: the next one waits for them as well.
    owed: AtomicU32,
}

/// The right to make one call.
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    share: Arc<Share>,
    entered: u32,
}

impl Place {
    /// The call had so many tokens in all, asked and said.
    pub(super) fn took(self, tokens: u64) {
        let more = u32::try_from(tokens).unwrap_or(u32::MAX).saturating_sub(self.entered);
        let owe = |owed: u32| Some(owed.saturating_add(more));
        // It always gives one.
        let _ = self.share.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, owe);
    }
}

/// Keys that are remembered at once; those that nobody uses are forgotten first.
const REMEMBERED: usize = 4096;

impl Quotas {
    pub(super) fn new(settings: &LlmSettings) -> Self {
        let (calls, tokens) = (settings.concurrency.max(1), NonZeroU32::new(settings.tokens_per_minute));
        Self { calls, tokens, keys: Arc::default() }
    }

    /// Waits until a call of about that many tokens may be made with the key.
    pub(super) async fn enter(&self, key: &KeyId, tokens: u32) -> Place {
        let share = self.share(key);
        // The semaphore is never closed, so there is always a permit.
        let permit = Arc::clone(&share.calls).acquire_owned().await.ok();
        if let (Some(limiter), Some(most)) = (&share.tokens, self.tokens) {
            let due = tokens.saturating_add(share.owed.swap(0, Ordering::Relaxed));
            // What is more than a minute has takes all of it.
            let due = NonZeroU32::new(due.min(most.get())).unwrap_or(NonZeroU32::MIN);
            // Fails only for more than a minute has.
            let _ = limiter.until_n_ready(due).await;
        }
        Place { _permit: permit, share, entered: tokens }
    }

    fn share(&self, key: &KeyId) -> Arc<Share> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= REMEMBERED {
            keys.retain(|_, share| Arc::strong_count(share) > 1 || share.calls.available_permits() < self.calls);
        }
        let share = keys.entry(key.clone()).or_insert_with(|| {
            let tokens = self.tokens.map(|most| RateLimiter::direct(Quota::per_minute(most)));
            Arc::new(Share { calls: Arc::new(Semaphore::new(self.calls)), tokens, owed: AtomicU32::new(0) })
        });
        Arc::clone(share)
    }
}

impl std::fmt::Debug for Quotas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quotas").field("calls", &self.calls).field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn quotas(concurrency: usize, tokens_per_minute: u32) -> Quotas {
        Quotas::new(&LlmSettings { concurrency, tokens_per_minute, ..LlmSettings::default() })
    }

    #[tokio::test]
    async fn a_key_takes_so_many_calls_at_once() {
        let quotas = quotas(2, 0);
        let key = "k".to_owned();
        let first = quotas.enter(&key, 1).await;
        let second = quotas.enter(&key, 1).await;
        assert!(quotas.enter(&key, 1).now_or_never().is_none());
        assert!(quotas.enter(&"other".to_owned(), 1).now_or_never().is_some());
        drop(first);
        assert!(quotas.enter(&key, 1).now_or_never().is_some());
        drop(second);
    }

    #[tokio::test]
    async fn what_is_said_counts_for_the_next_call() {
        let quotas = quotas(8, 1000);
        let key = "k".to_owned();
        quotas.enter(&key, 100).await.took(700);
        assert!(quotas.enter(&key, 400).now_or_never().is_none(), "900 are left, and 600 of them owed");
        quotas.enter(&"other".to_owned(), 100).await.took(400);
        assert!(quotas.enter(&"other".to_owned(), 400).now_or_never().is_some(), "300 and 400 are below 900");
    }

    #[tokio::test]
    async fn a_key_takes_so_many_tokens_a_minute() {
        let quotas = quotas(8, 1000);
        let key = "k".to_owned();
        assert!(quotas.enter(&key, 600).now_or_never().is_some());
        assert!(quotas.enter(&key, 600).now_or_never().is_none());
        assert!(quotas.enter(&"other".to_owned(), 5000).now_or_never().is_some(), "more than a minute has takes all");
    }
}
