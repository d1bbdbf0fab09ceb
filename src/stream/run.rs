//! Streams of single runs: how a subscriber reads one, and how the process keeps up with the others.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    feed::News,
    filter::Filter,
    frame::{Batch, Writer, write_event},
    history::Want,
    hub::{Hub, RunKey, RunTopic},
    page::Page,
    ring::{Piece, Taken},
    store::{self, EventRow, Head},
    subscriber::Source,
    topic::Reader,
    window::Reach,
};
use crate::{
    journal::{Status, event_id},
    kernel::{Result, RunId, TenantId},
};

/// Runs whose news is read in one query.
const AT_ONCE: usize = 16;

/// Events of one run read for news at once.
const NEWS: u64 = 512;

/// Runs whose heads are looked at in one query.
const HEADS: usize = 1024;

/// How long the reader of news rests after a failure.
const REST: Duration = Duration::from_millis(250);

/// A run somebody follows.
pub(super) struct RunSource {
    hub: Arc<Hub>,
    key: RunKey,
    topic: Arc<RunTopic>,
    reader: Reader,
}

impl RunSource {
    /// Follows a run from here on: what is committed after this is not missed. The caller then says where
    /// the table stood ([`RunSource::seen`]).
    pub fn new(hub: &Arc<Hub>, tenant: TenantId, run: RunId) -> Self {
        let (topic, reader) = hub.join((tenant, run));
        Self { hub: hub.clone(), key: (tenant, run), topic, reader }
    }

    /// Whether the run is known to have events after `cursor`.
    pub fn is_beyond(&self, cursor: u64) -> bool {
        self.topic.with(|feed| feed.span()).is_some_and(|(_, head)| head > cursor)
    }

    /// The run's row says so.
    pub fn seen(&self, head: Head) {
        let news = self.topic.with(|feed| feed.seen(head.last_seq, head.ended));
        self.hub.act(self.key, &self.topic, news);
    }
}

impl Drop for RunSource {
    fn drop(&mut self) {
        self.hub.leave(self.key, &self.topic, &self.reader);
    }
}

impl Source for RunSource {
    type Place = u64;

    fn take(&self, cursor: u64, _: &Filter) -> Taken<u64> {
        if self.hub.closed() { Taken::Over } else { self.topic.with(|feed| feed.take(cursor)) }
    }

    async fn news(&mut self) {
        self.reader.news().await;
    }

    /// The pages of runs are shared, so all are of a size.
    async fn read(&mut self, cursor: u64, _: &Filter, _: &mut Reach) -> Result<Page<u64>> {
        let (tenant, run) = self.key;
        // The subscriber is behind what the ring has, so there were events up to there.
        let base = self.topic.with(|feed| feed.span()).map_or(cursor, |(base, _)| base);
        let page = self.hub.history.page(tenant, run, cursor, |want| self.hub.page(self.key, want)).await?;
        Ok(found(run, cursor, base, page))
    }

    fn reached(&self, count: u64) {
        self.reader.reached(count);
    }

    fn rest(&self, _: u64, _: &Filter) -> Bytes {
        Bytes::from_static(b":\n\n")
    }
}

/// What there is for a subscriber at `cursor`: a page, after word of what is missing before it. Where there is no
/// page, that is everything up to `base`.
fn found(run: RunId, cursor: u64, base: u64, page: Option<Arc<Batch<u64>>>) -> Page<u64> {
    let events = page.unwrap_or_else(|| Arc::new(encode(Vec::new())));
    let missing = events.first().map_or(base, |first| first - 1);
    let upto = events.last().unwrap_or(base).max(cursor);
    let gap = (missing > cursor).then(|| lost(run, cursor, missing));
    Page { gap, events, upto, count: |seq| seq }
}

/// Says that the events after `cursor` up to `last` are no longer there. Its id is that of the last one
/// missing, so that a reconnect goes on behind it.
fn lost(run: RunId, cursor: u64, last: u64) -> Piece<u64> {
    let mut bytes = Vec::new();
    let (first, id) = (event_id(cursor + 1), event_id(last));
    let payload = format!(r#"{{"firstMissing":"{first}","lastMissing":"{id}"}}"#);
    let json = format!(r#"{{"runId":"{run}","step":"gap","level":"warn","payload":{payload}}}"#);
    write_event(&mut bytes, id, "gap", json.as_bytes());
    Piece { bytes: bytes.into(), frames: 0, upto: last, count: last }
}

impl Hub {
    async fn page(&self, (tenant, run): RunKey, want: Want) -> Result<Batch<u64>> {
        let _permit = self.reads.acquire().await;
        self.gauges.pages.increment(1);
        let mut tx = self.db.tenant(tenant).await?;
        let rows = store::events(&mut tx, &[(tenant, run, want.after)], want.limit).await?;
        tx.commit().await?;
        Ok(encode(rows.into_iter().map(|(.., row)| row).collect()))
    }

    /// Reads what other processes wrote to the runs followed here: one query for several runs, one query
    /// at a time, however many follow.
    pub(super) async fn read_news(&self) {
        loop {
            self.work.notified().await;
            loop {
                let dirty = self.dirty(AT_ONCE);
                if dirty.is_empty() {
                    break;
                }
                if let Err(error) = self.read_some(&dirty).await {
                    tracing::warn!(?error, "news of runs could not be read");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    async fn read_some(&self, dirty: &[RunKey]) -> Result<()> {
        let reading = dirty
            .iter()
            .filter_map(|key| {
                let topic = self.topic(*key)?;
                let after = topic.with(|feed| feed.begin())?;
                Some((*key, topic, after))
            })
            .collect::<Vec<_>>();
        let wanted = reading.iter().map(|((tenant, run), _, after)| (*tenant, *run, *after)).collect::<Vec<_>>();
        if wanted.is_empty() {
            return Ok(());
        }
        match self.news_of(&wanted).await {
            Ok(mut found) => {
                for (key, topic, _) in &reading {
                    let rows = found.remove(key).unwrap_or_default();
                    let (more, ended) = (cut_short(&rows), rows.last().is_some_and(|row| ends(&row.name)));
                    let rows = encode(rows);
                    let news = topic.with(|feed| feed.end(&rows, ended, more, self.share()));
                    topic.announce();
                    self.act(*key, topic, news);
                }
                Ok(())
            }
            Err(error) => {
                for (key, topic, _) in &reading {
                    topic.with(|feed| feed.abandon());
                    self.act(*key, topic, News::Read);
                }
                Err(error)
            }
        }
    }

    async fn news_of(&self, wanted: &[(TenantId, RunId, u64)]) -> Result<HashMap<RunKey, Vec<EventRow>>> {
        self.gauges.fresh.increment(1);
        let mut tx = self.db.tenants(&named(wanted.iter().map(|(tenant, ..)| *tenant))).await?;
        let rows = store::events(&mut tx, wanted, NEWS).await?;
        tx.commit().await?;
        let mut found: HashMap<RunKey, Vec<EventRow>> = HashMap::new();
        for (tenant, run, row) in rows {
            found.entry((tenant, run)).or_default().push(row);
        }
        Ok(found)
    }

    /// The safety net under lost signals: looks where the followed runs stand, all at once, now and then,
    /// and takes the measures.
    pub(super) async fn look_around(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.poll) => {}
                () = self.look.notified() => {}
            }
            let topics = self.topics();
            for some in topics.chunks(HEADS) {
                if let Err(error) = self.look_at(some).await {
                    tracing::warn!(?error, "the heads of runs could not be read");
                }
            }
            self.measure(&topics);
        }
    }

    async fn look_at(&self, topics: &[(RunKey, Arc<RunTopic>)]) -> Result<()> {
        // Whose head is known had a row: where there is none now, retention has dropped it.
        let known = topics.iter().filter(|(_, topic)| topic.with(|feed| feed.span().is_some())).collect::<Vec<_>>();
        if known.is_empty() {
            return Ok(());
        }
        self.gauges.looks.increment(1);
        let keys = known.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        let mut tx = self.db.tenants(&named(keys.iter().map(|(tenant, _)| *tenant))).await?;
        let heads = store::heads(&mut tx, &keys).await?;
        tx.commit().await?;
        for (key, topic) in known {
            let news = topic.with(|feed| match heads.get(key) {
                Some(head) => feed.seen(head.last_seq, head.ended),
                None => feed.dropped(),
            });
            self.act(*key, topic, news);
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge shows a magnitude")]
    fn measure(&self, topics: &[(RunKey, Arc<RunTopic>)]) {
        let head = |topic: &RunTopic| topic.with(|feed| feed.span()).map_or(0, |(_, head)| head);
        let runs = topics.iter().map(|(_, topic)| topic.lag(head(topic))).max().unwrap_or_default();
        let (tenants, age) = self.tenants.measure();
        self.gauges.lag.set(runs.max(tenants) as f64);
        self.gauges.horizon_age.set(age.as_secs_f64());
        self.gauges.followed.set(topics.len() as f64);
    }
}

fn named(tenants: impl Iterator<Item = TenantId>) -> Vec<TenantId> {
    let mut named = tenants.collect::<Vec<_>>();
    named.sort_unstable();
    named.dedup();
    named
}

/// Whether there may be more rows than these.
fn cut_short(rows: &[EventRow]) -> bool {
    rows.len() as u64 >= NEWS || !store::fits(rows.iter().map(|row| row.data.len()).sum(), store::READ)
}

fn ends(name: &str) -> bool {
    Status::named(name).is_some_and(Status::is_terminal)
}

fn encode(rows: Vec<EventRow>) -> Batch<u64> {
    let mut writer = Writer::for_about(rows.len(), rows.iter().map(|row| row.data.len()).sum());
    for row in rows {
        writer.event(row.seq, event_id(row.seq), &row.name, row.data.as_bytes());
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunId {
        RunId::from_uuid(uuid::Uuid::from_u128(1))
    }

    fn page(first: u64, last: u64) -> Option<Arc<Batch<u64>>> {
        let row = |seq| EventRow { seq, name: "idle".to_owned(), data: "{}".to_owned() };
        Some(Arc::new(encode((first..=last).map(row).collect())))
    }

    #[test]
    fn a_page_is_sent_from_the_cursor_on() {
        let piece = found(run(), 4, 9, page(1, 6)).piece(4).expect("two events");
        assert!(piece.bytes.starts_with(b"id: evt_5\n"));
        assert_eq!((piece.frames, piece.upto, piece.count), (2, 6, 6));
    }

    #[test]
    fn what_is_missing_is_said_before_what_follows_and_resumes_behind_it() {
        let mut found_page = found(run(), 4, 9, page(9, 9));
        let gap = found_page.piece(4).expect("a gap");
        let payload = r#"{"firstMissing":"evt_5","lastMissing":"evt_8"}"#;
        let json = format!(r#"{{"runId":"{}","step":"gap","level":"warn","payload":{payload}}}"#, run());
        assert_eq!(gap.bytes, format!("id: evt_8\nevent: gap\ndata: {json}\n\n"));
        let rest = found_page.piece(gap.upto).expect("an event");
        assert!(rest.bytes.starts_with(b"id: evt_9\n"));
        assert_eq!((gap.frames, gap.upto, rest.frames, rest.upto), (0, 8, 1, 9));
    }

    #[test]
    fn where_no_event_is_left_all_up_to_the_base_is_missing() {
        let mut nothing = found(run(), 4, 7, None);
        assert_eq!(nothing.piece(4).map(|gap| gap.upto), Some(7));
        assert!(nothing.piece(7).is_none());
        assert!(found(run(), 7, 7, None).piece(7).is_none());
    }
}
