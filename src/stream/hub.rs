use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    begun::Begun,
    feed::{News, RunFeed},
    held,
    history::History,
    tenant::Tenants,
    topic::Topic,
};
use crate::{
    config::StreamSettings,
    db::Database,
    journal::{Commit, Follower},
    kernel::{Error, Problem, Result, RunId, TenantId},
};

/// Pages of the table read at once for subscribers that are behind.
const READS: usize = 4;

/// Bounds of what one stream's recent events may take, in bytes.
const SHARE: (usize, usize) = (16 * 1024, 1024 * 1024);

pub(super) type RunKey = (TenantId, RunId);
pub(super) type RunTopic = Topic<RunFeed>;

/// The streams followed on this process. It hears of commits and signals, keeps the recent events of
/// what is followed, and wakes the subscribers.
#[derive(Debug)]
pub struct Hub {
    pub(super) db: Database,
    pub(super) history: History,
    pub(super) reads: Semaphore,
    pub(super) poll: Duration,
    pub(super) tenants: Tenants,
    runs: Mutex<Runs>,
    dirty: Mutex<HashSet<RunKey>>,
    pub(super) work: Notify,
    pub(super) look: Notify,
    closed: AtomicBool,
    budget: usize,
    share: AtomicUsize,
    pub(super) gauges: Gauges,
}

/// The runs whose events are kept: those somebody follows, and those that began here just now.
#[derive(Debug, Default)]
struct Runs {
    followed: HashMap<RunKey, Arc<RunTopic>>,
    begun: Begun,
}

/// What is measured.
#[derive(Debug)]
pub(super) struct Gauges {
    pub lag: metrics::Gauge,
    pub horizon_age: metrics::Gauge,
    pub followed: metrics::Gauge,
    /// Readings of the table: for the end of streams, for those behind, for the tenants' streams, for the
    /// look at the heads.
    pub fresh: metrics::Counter,
    pub pages: metrics::Counter,
    pub stretches: metrics::Counter,
    pub looks: metrics::Counter,
}

impl Gauges {
    fn new() -> Self {
        let reads = |of: &'static str| metrics::counter!("fermata_stream_reads_total", "of" => of);
        Self {
            lag: metrics::gauge!("fermata_stream_lag_events"),
            horizon_age: metrics::gauge!("fermata_stream_horizon_age_seconds"),
            followed: metrics::gauge!("fermata_streams_followed"),
            fresh: reads("news"),
            pages: reads("page"),
            stretches: reads("tenant"),
            looks: reads("heads"),
        }
    }
}

impl Runs {
    fn get(&self, key: RunKey) -> Option<Arc<RunTopic>> {
        self.followed.get(&key).cloned().or_else(|| self.begun.get(key))
    }
}

impl Hub {
    /// An empty hub; [`Hub::run`] must be running for it to hear of other processes.
    #[must_use]
    pub fn new(db: Database, settings: &StreamSettings) -> Arc<Self> {
        Arc::new(Self {
            db,
            history: History::new(settings.buffer / 2),
            reads: Semaphore::new(READS),
            poll: settings.poll.0,
            tenants: Tenants::default(),
            runs: Mutex::default(),
            dirty: Mutex::default(),
            work: Notify::new(),
            look: Notify::new(),
            closed: AtomicBool::new(false),
            budget: settings.buffer / 2,
            share: AtomicUsize::new(SHARE.1),
            gauges: Gauges::new(),
        })
    }

    /// Reads what other processes wrote and looks after lost signals, until `stopping`; then ends every
    /// stream.
    pub async fn run(self: Arc<Self>, stopping: CancellationToken) {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = self.read_news() => {}
            () = self.look_around() => {}
        }
        self.close();
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let runs = held(&self.runs).followed.values().cloned().collect::<Vec<_>>();
        runs.iter().for_each(|topic| topic.wake());
        self.tenants.close();
    }

    /// The process is stopping: streams end.
    pub(super) fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn open(&self) -> Result<()> {
        if self.closed() {
            return Err(Error::new(Problem::Unavailable, "the server is stopping: connect again"));
        }
        Ok(())
    }

    /// The topic of a run, made when it is the first time, with one more reader. What it was told of while nobody
    /// followed is read now.
    pub(super) fn join(&self, key: RunKey) -> (Arc<RunTopic>, super::topic::Reader) {
        let mut runs = held(&self.runs);
        let Runs { followed, begun } = &mut *runs;
        let topic = followed.entry(key).or_insert_with(|| begun.take(key).unwrap_or_default()).clone();
        let reader = topic.join();
        self.divide(followed.len());
        drop(runs);
        self.act(key, &topic, topic.with(|feed| feed.due()));
        (topic, reader)
    }

    /// One reader fewer; the last one takes the topic along.
    pub(super) fn leave(&self, key: RunKey, topic: &RunTopic, reader: &super::topic::Reader) {
        let mut runs = held(&self.runs);
        if topic.leave(reader) {
            runs.followed.remove(&key);
        }
        self.divide(runs.followed.len());
    }

    /// Half the buffer is for the recent events of all that is followed, in equal shares.
    fn divide(&self, streams: usize) {
        let share = self.budget / streams.max(1);
        self.share.store(share.clamp(SHARE.0, SHARE.1), Ordering::Relaxed);
    }

    /// Bytes of recent events one stream may keep.
    pub(super) fn share(&self) -> usize {
        self.share.load(Ordering::Relaxed)
    }

    pub(super) fn topic(&self, key: RunKey) -> Option<Arc<RunTopic>> {
        held(&self.runs).get(key)
    }

    /// The topic of a run that begins with this commit.
    fn begin(&self, key: RunKey) -> Arc<RunTopic> {
        let mut runs = held(&self.runs);
        runs.get(key).unwrap_or_else(|| runs.begun.add(key))
    }

    pub(super) fn topics(&self) -> Vec<(RunKey, Arc<RunTopic>)> {
        held(&self.runs).followed.iter().map(|(key, topic)| (*key, topic.clone())).collect()
    }

    /// Does what follows from news about a run.
    pub(super) fn act(&self, key: RunKey, topic: &Arc<RunTopic>, news: News) {
        match news {
            News::None => {}
            News::Frames => topic.announce(),
            // Where nobody follows, whoever comes has it read.
            News::Read if !topic.is_followed() => {}
            News::Read => {
                held(&self.dirty).insert(key);
                self.work.notify_one();
            }
        }
    }

    /// Some of the runs whose table is to be read.
    pub(super) fn dirty(&self, most: usize) -> Vec<RunKey> {
        let mut dirty = held(&self.dirty);
        let some = dirty.iter().take(most).copied().collect::<Vec<_>>();
        dirty.retain(|key| !some.contains(key));
        some
    }
}

impl Follower for Hub {
    fn committed(&self, commits: &[Commit]) {
        for commit in commits {
            let key = (commit.tenant_id, commit.run_id);
            let begins = commit.frames.first().is_some_and(|frame| frame.seq == 1);
            let topic = if begins { Some(self.begin(key)) } else { self.topic(key) };
            if let Some(topic) = topic {
                let cap = if topic.is_followed() { self.share() } else { SHARE.0 };
                let news = topic.with(|feed| feed.committed(&commit.frames, commit.ended(), cap));
                self.act(key, &topic, news);
                if !topic.is_followed() && topic.with(|feed| !feed.is_whole()) {
                    // Too much is kept for somebody who may never come.
                    held(&self.runs).begun.take(key);
                }
            }
        }
        self.tenants.stir(commits.iter().map(|commit| commit.tenant_id));
    }

    fn signalled(&self, runs: &[RunKey]) {
        for key in runs {
            if let Some(topic) = self.topic(*key) {
                let news = topic.with(RunFeed::signalled);
                self.act(*key, &topic, news);
            }
        }
        self.tenants.stir(runs.iter().map(|(tenant, _)| *tenant));
    }

    fn resync(&self) {
        // Nobody looks at them, so what was missed of them would be missed by who comes.
        held(&self.runs).begun = Begun::default();
        self.look.notify_one();
        self.tenants.stir_all();
    }
}
