//! Streams of whole tenants, in the order of commits. One reader of the table per tenant and process
//! stays just below the horizon, where no transaction can commit any more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

use super::{
    cursor::Place,
    filter::Filter,
    frame::{Batch, Writer, write_event},
    held,
    hub::Hub,
    page::Page,
    ring::{Piece, Ring, Taken},
    store::{self, EventRow, READ, Stretch},
    subscriber::Source,
    topic::{Reader, Topic},
    window::Reach,
};
use crate::kernel::{Result, TenantId};

/// Events read at once.
const AT_ONCE: i64 = 512;

/// The shortest and longest wait for a horizon that hides committed events.
const HIDDEN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

type TenantTopic = Topic<TenantFeed>;

/// What this process knows of the end of one tenant's stream.
#[derive(Debug, Default)]
struct TenantFeed {
    /// None until the horizon is known.
    ring: Option<Ring<Place>>,
    /// The horizon that hides committed events, and since when it stands there.
    hidden: Option<(u64, Instant)>,
}

/// The tenants followed on this process.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    followed: Mutex<HashMap<TenantId, Followed>>,
}

#[derive(Debug)]
struct Followed {
    topic: Arc<TenantTopic>,
    stir: Arc<Notify>,
    pump: AbortHandle,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Tenants {
    /// There may be news of these tenants.
    pub fn stir(&self, tenants: impl Iterator<Item = TenantId>) {
        let followed = held(&self.followed);
        if !followed.is_empty() {
            tenants.filter_map(|tenant| followed.get(&tenant)).for_each(|one| one.stir.notify_one());
        }
    }

    /// There may be news of any tenant.
    pub fn stir_all(&self) {
        held(&self.followed).values().for_each(|one| one.stir.notify_one());
    }

    /// Wakes every subscriber, to find that the hub is closed.
    pub fn close(&self) {
        held(&self.followed).values().for_each(|one| one.topic.wake());
    }

    /// The slowest subscriber's lag in events, and the age of the oldest horizon that hides some.
    pub fn measure(&self) -> (u64, Duration) {
        let topics = held(&self.followed).values().map(|one| one.topic.clone()).collect::<Vec<_>>();
        let measure = |topic: &Arc<TenantTopic>| {
            let (count, age) = topic.with(|feed| {
                let age = feed.hidden.map_or(Duration::ZERO, |(_, since)| since.elapsed());
                (feed.ring.as_ref().map_or(0, Ring::count), age)
            });
            (topic.lag(count), age)
        };
        topics.iter().map(measure).fold((0, Duration::ZERO), |(lag, age), (l, a)| (lag.max(l), age.max(a)))
    }
}

/// A tenant's stream somebody follows.
pub(super) struct TenantSource {
    hub: Arc<Hub>,
    tenant: TenantId,
    topic: Arc<TenantTopic>,
    stir: Arc<Notify>,
    reader: Reader,
    /// Up to where the subscriber knows of events that are missing.
    told: Place,
}

impl TenantSource {
    /// Follows a tenant from here on. The caller then says where the horizon stood
    /// ([`TenantSource::seen`]).
    pub fn new(hub: &Arc<Hub>, tenant: TenantId) -> Self {
        let mut followed = held(&hub.tenants.followed);
        let one = followed.entry(tenant).or_insert_with(|| {
            let (topic, stir) = (Arc::<TenantTopic>::default(), Arc::<Notify>::default());
            let pump = tokio::spawn(pump(hub.clone(), tenant, topic.clone(), stir.clone())).abort_handle();
            Followed { topic, stir, pump }
        });
        let reader = one.topic.join();
        Self { hub: hub.clone(), tenant, topic: one.topic.clone(), stir: one.stir.clone(), reader, told: Place::START }
    }

    /// The place up to which the process has read, if it reads already.
    pub fn present(&self) -> Option<Place> {
        let (head, count) = self.topic.with(|feed| feed.ring.as_ref().map(|ring| (ring.head(), ring.count())))?;
        self.reader.reached(count);
        Some(head)
    }

    /// The horizon stood there after this source was made.
    pub fn seen(&self, horizon: u64) {
        self.topic.with(|feed| {
            feed.ring.get_or_insert_with(|| Ring::new(Place::below(horizon), 0));
        });
        self.stir.notify_one();
    }
}

impl Drop for TenantSource {
    fn drop(&mut self) {
        let mut followed = held(&self.hub.tenants.followed);
        if self.topic.leave(&self.reader) {
            followed.remove(&self.tenant);
        }
    }
}

impl Source for TenantSource {
    type Place = Place;

    fn take(&self, cursor: Place, filter: &Filter) -> Taken<Place> {
        if self.hub.closed() {
            return Taken::Over;
        }
        self.topic.with(|feed| match &mut feed.ring {
            Some(ring) => ring.take(cursor, filter),
            None => Taken::Current { upto: cursor, count: 0 },
        })
    }

    async fn news(&mut self) {
        self.reader.news().await;
    }

    async fn read(&mut self, cursor: Place, filter: &Filter, reach: &mut Reach) -> Result<Page<Place>> {
        let _permit = self.hub.reads.acquire().await;
        let stretch = self.hub.stretch(self.tenant, cursor, filter, reach.grow()).await?;
        let (upto, gap) = (end_of(&stretch, cursor), stretch.gap.filter(|gap| *gap > cursor.max(self.told)));
        let events = Arc::new(encode(self.tenant, stretch.rows, filter));
        let gap = gap.map(|gap| {
            self.told = gap;
            missing(self.tenant, gap.min(events.first().map_or(upto, Place::before)), gap, filter)
        });
        // How many events lie behind is not known here; until it has caught up it counts as having none.
        Ok(Page { gap, events, upto, count: |_| 0 })
    }

    fn reached(&self, count: u64) {
        self.reader.reached(count);
    }

    /// An event of only an id moves the client's place without being an event: a reconnect after a long
    /// time without one goes on from here.
    fn rest(&self, cursor: Place, filter: &Filter) -> Bytes {
        format!(":\nid: {}{}\n\n", cursor.of(self.tenant), filter.suffix()).into()
    }
}

/// What a reading of the table came to.
enum Reading {
    /// There is more to read.
    More,
    /// The horizon hides committed events; whether it has moved since the last reading.
    Hidden(bool),
    /// That was all.
    Done,
}

/// Keeps a followed tenant's ring at the horizon, until it is aborted with the last subscriber.
async fn pump(hub: Arc<Hub>, tenant: TenantId, topic: Arc<TenantTopic>, stir: Arc<Notify>) {
    let mut wait = HIDDEN.0;
    loop {
        match hub.advance(tenant, &topic).await {
            Ok(Reading::More) => {}
            Ok(Reading::Hidden(moved)) => {
                wait = if moved { HIDDEN.0 } else { (wait * 2).min(HIDDEN.1) };
                tokio::time::sleep(wait).await;
            }
            Ok(Reading::Done) => {
                wait = HIDDEN.0;
                drop(tokio::time::timeout(hub.poll, stir.notified()).await);
            }
            Err(error) => {
                tracing::warn!(?error, %tenant, "a tenant's events could not be read");
                tokio::time::sleep(hub.poll).await;
            }
        }
    }
}

impl Hub {
    async fn advance(&self, tenant: TenantId, topic: &Arc<TenantTopic>) -> Result<Reading> {
        let Some(after) = topic.with(|feed| feed.ring.as_ref().map(Ring::head)) else { return Ok(Reading::Done) };
        let stretch = self.stretch(tenant, after, &Filter::all(), READ).await?;
        let (horizon, more, hidden) = (stretch.horizon, stretch.more, stretch.hidden);
        let (upto, hole) = (end_of(&stretch, after), stretch.gap.is_some_and(|gap| gap > after));
        let batch = encode(tenant, stretch.rows, &Filter::all());
        let moved = topic.with(|feed| {
            match &mut feed.ring {
                // Who needs what lies between reads the table, and is told what is missing there.
                Some(ring) if hole => *ring = Ring::new(upto, ring.count()),
                Some(ring) => {
                    ring.push(batch.entries(), self.share());
                    ring.advance(upto);
                }
                None => {}
            }
            feed.look(horizon, hidden)
        });
        if batch.len() > 0 || hole {
            topic.announce();
        }
        Ok(if more {
            Reading::More
        } else if hidden {
            Reading::Hidden(moved)
        } else {
            Reading::Done
        })
    }

    async fn stretch(&self, tenant: TenantId, after: Place, filter: &Filter, most: usize) -> Result<Stretch> {
        self.gauges.stretches.increment(1);
        let mut tx = self.db.tenant(tenant).await?;
        let stretch = store::stretch(&mut tx, tenant, after, filter, AT_ONCE, most).await?;
        tx.commit().await?;
        Ok(stretch)
    }
}

impl TenantFeed {
    /// Notes where the horizon stands; whether it has moved since it last hid something.
    fn look(&mut self, horizon: u64, hidden: bool) -> bool {
        let stood = self.hidden.filter(|(stood, _)| *stood == horizon);
        self.hidden = hidden.then(|| stood.unwrap_or_else(|| (horizon, Instant::now())));
        stood.is_none()
    }
}

/// The place a reader of the stretch is at: the horizon, when nothing was cut off.
fn end_of(stretch: &Stretch, after: Place) -> Place {
    let last = stretch.rows.last().map_or(after, |(place, _)| *place);
    if stretch.more { last } else { last.max(Place::below(stretch.horizon)) }
}

/// Says that events up to `until` are no longer there. What is left of them still comes, so its id is that of the
/// last place before the rest: a reconnect goes on from there, and is told again while there is more to miss.
fn missing(tenant: TenantId, at: Place, until: Place, filter: &Filter) -> Piece<Place> {
    let id = |place: Place| format!("{}{}", place.of(tenant), filter.suffix());
    let payload = format!(r#"{{"until":"{}"}}"#, id(until));
    let json = format!(r#"{{"tenantId":"{tenant}","step":"gap","level":"warn","payload":{payload}}}"#);
    let mut bytes = Vec::new();
    write_event(&mut bytes, id(at), "gap", json.as_bytes());
    Piece { bytes: bytes.into(), frames: 0, upto: at, count: 0 }
}

fn encode(tenant: TenantId, rows: Vec<(Place, EventRow)>, filter: &Filter) -> Batch<Place> {
    let json = rows.iter().map(|(_, row)| row.data.len() + 64).sum();
    let mut writer = Writer::for_about(rows.len(), json);
    for (place, row) in rows {
        let id = format_args!("{}{}", place.of(tenant), filter.suffix()).to_string();
        writer.event(place, id, &row.name, row.data.as_bytes());
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn stretch(rows: &[u64], horizon: u64, more: bool) -> Stretch {
        let row = |xact: &u64| {
            let event = EventRow { seq: 1, name: "idle".to_owned(), data: "{}".to_owned() };
            (Place { xact: *xact, run: Uuid::from_u128(7), seq: 1 }, event)
        };
        Stretch { rows: rows.iter().map(row).collect(), horizon, more, hidden: false, gap: None }
    }

    #[test]
    fn a_reader_stands_at_the_horizon_only_when_it_has_everything_below() {
        let after = Place::below(3);
        assert_eq!(end_of(&stretch(&[4, 5], 9, false), after), Place::below(9));
        assert_eq!(end_of(&stretch(&[4, 5], 9, true), after).xact, 5);
        assert_eq!(end_of(&stretch(&[], 9, false), after), Place::below(9));
        // Another replica's horizon was further on.
        assert_eq!(end_of(&stretch(&[], 2, false), after), after);
    }

    #[test]
    fn a_horizon_that_stands_still_ages() {
        let mut feed = TenantFeed::default();
        assert!(feed.look(5, true));
        let since = feed.hidden.map(|(_, since)| since);
        assert!(!feed.look(5, true));
        assert_eq!(feed.hidden.map(|(_, since)| since), since);
        assert!(feed.look(6, true));
        feed.look(6, false);
        assert_eq!(feed.hidden, None);
    }

    #[test]
    fn the_id_of_an_event_is_its_cursor_with_the_filter() {
        let tenant = TenantId::from_uuid(Uuid::from_u128(1));
        let filter = Filter::parse("idle").expect("known");
        let batch = encode(tenant, stretch(&[4], 9, false).rows, &filter);
        let text = String::from_utf8(batch.after(Place::START, usize::MAX).0.to_vec()).expect("text");
        let id = text.lines().next().and_then(|line| line.strip_prefix("id: ")).expect("an id");
        let (place, same) = super::super::cursor::parse_place(id, tenant).expect("a cursor");
        assert_eq!((place.xact, same), (4, filter));
    }
}
