//! How much goes out with one key: calls at once, and tokens a minute.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
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
}

/// The right to make one call.
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
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
            // What is more than a minute has takes all of it.
            let tokens = NonZeroU32::new(tokens.min(most.get())).unwrap_or(NonZeroU32::MIN);
            // Fails only for more than a minute has.
            let _ = limiter.until_n_ready(tokens).await;
        }
        Place { _permit: permit }
    }

    fn share(&self, key: &KeyId) -> Arc<Share> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= REMEMBERED {
            keys.retain(|_, share| Arc::strong_count(share) > 1 || share.calls.available_permits() < self.calls);
        }
        let share = keys.entry(key.clone()).or_insert_with(|| {
            let tokens = self.tokens.map(|most| RateLimiter::direct(Quota::per_minute(most)));
            Arc::new(Share { calls: Arc::new(Semaphore::new(self.calls)), tokens })
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
    async fn a_key_takes_so_many_tokens_a_minute() {
        let quotas = quotas(8, 1000);
        let key = "k".to_owned();
        assert!(quotas.enter(&key, 600).now_or_never().is_some());
        assert!(quotas.enter(&key, 600).now_or_never().is_none());
        assert!(quotas.enter(&"other".to_owned(), 5000).now_or_never().is_some(), "more than a minute has takes all");
    }
}
