use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::held;
use crate::kernel::{Error, Problem, Result, TenantId};

/// How many streams are open on this process, by tenant and by token.
#[derive(Debug)]
pub(super) struct Seats {
    per_tenant: usize,
    per_token: usize,
    taken: Mutex<Taken>,
    sent: metrics::Counter,
}

#[derive(Debug, Default)]
struct Taken {
    tenants: HashMap<TenantId, usize>,
    tokens: HashMap<(TenantId, Arc<str>), usize>,
}

/// One open stream's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    tenant: TenantId,
    token: Arc<str>,
    open: metrics::Gauge,
}

impl Seats {
    /// With so many streams at most, each per process.
    pub fn new(per_tenant: usize, per_token: usize) -> Arc<Self> {
        let sent = metrics::counter!("fermata_stream_events_sent_total");
        Arc::new(Self { per_tenant, per_token, taken: Mutex::default(), sent })
    }

    /// A place for one more stream, of the kind `run` or `tenant`.
    ///
    /// # Errors
    /// When the tenant's or the token's share is taken (429).
    pub fn take(self: &Arc<Self>, tenant: TenantId, token: &str, kind: &'static str) -> Result<Seat> {
        let token: Arc<str> = token.into();
        let mut taken = held(&self.taken);
        let by_tenant = taken.tenants.get(&tenant).copied().unwrap_or_default();
        let by_token = taken.tokens.get(&(tenant, token.clone())).copied().unwrap_or_default();
        if by_tenant >= self.per_tenant {
            return Err(full("tenant", self.per_tenant));
        }
        if by_token >= self.per_token {
            return Err(full("token", self.per_token));
        }
        taken.tenants.insert(tenant, by_tenant + 1);
        taken.tokens.insert((tenant, token.clone()), by_token + 1);
        let open = metrics::gauge!("fermata_streams_open", "stream" => kind);
        open.increment(1.0);
        Ok(Seat { seats: self.clone(), tenant, token, open })
    }
}

fn full(whose: &str, most: usize) -> Error {
    let detail = format!("this {whose} has {most} open streams here already: close one, or follow `/workflow/events`");
    Error::new(Problem::TooManyStreams, detail).with("limit", most)
}

impl Seat {
    /// Counts events on their way out.
    pub fn sent(&self, frames: usize) {
        self.seats.sent.increment(frames as u64);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.open.decrement(1.0);
        let mut taken = held(&self.seats.taken);
        let Taken { tenants, tokens } = &mut *taken;
        leave(tenants, self.tenant);
        leave(tokens, (self.tenant, self.token.clone()));
    }
}

fn leave<K: Eq + std::hash::Hash>(seats: &mut HashMap<K, usize>, key: K) {
    if let std::collections::hash_map::Entry::Occupied(mut seat) = seats.entry(key) {
        *seat.get_mut() -= 1;
        if *seat.get() == 0 {
            seat.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn shares_are_kept_and_given_back() {
        let seats = Seats::new(3, 2);
        let (one, two) = (TenantId::from_uuid(Uuid::from_u128(1)), TenantId::from_uuid(Uuid::from_u128(2)));
        let first = seats.take(one, "a", "run").expect("a seat");
        let _second = seats.take(one, "a", "run").expect("a seat");
        assert_eq!(seats.take(one, "a", "run").expect_err("the token's share").problem(), Problem::TooManyStreams);
        let _third = seats.take(one, "b", "tenant").expect("a seat");
        assert!(seats.take(one, "c", "run").is_err());
        assert!(seats.take(two, "a", "run").is_ok());
        drop(first);
        assert!(seats.take(one, "a", "run").is_ok());
        assert_eq!(held(&seats.taken).tenants.get(&two), None);
    }
}
