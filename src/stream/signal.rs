//! Word between processes that there is news: ids over LISTEN/NOTIFY. It may be late, doubled or lost;
//! what happened is in the tables. A process that hears of no other says nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use sqlx::postgres::PgConnectOptions;
use tokio::{
    sync::Notify,
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::held;
use crate::{
    db::{Database, Heard, Listener, NOTIFY_BYTES},
    journal::{Commit, Follower},
    kernel::{RunId, TenantId},
};

const CHANNEL: &str = "fermata_news";

/// Payloads that may wait for this process to look at them.
const QUEUE: usize = 1024;

/// How often a process lets the others know that it is there.
const BEAT: Duration = Duration::from_secs(5);

/// How long a process that was heard of counts as company.
const COMPANY: Duration = Duration::from_secs(15);

/// How long the answers to a greeting may take.
const GREETING: Duration = Duration::from_secs(1);

type News = BTreeMap<TenantId, BTreeSet<RunId>>;

/// Tells other processes of this one's commits and this one's followers of theirs. While one word is on
/// its way the next commits gather, so a busy process sends few.
#[derive(Debug)]
pub struct Signals {
    /// Tells our own words from others'.
    process: String,
    gathered: Mutex<News>,
    ready: Notify,
    /// The others, and until when they are taken to listen.
    company: Mutex<HashMap<String, Instant>>,
}

impl Signals {
    /// For this process; [`Signals::run`] must be running for anything to be sent or heard.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let process = format!("{:016x}", rand::random::<u64>());
        Arc::new(Self { process, gathered: Mutex::default(), ready: Notify::new(), company: Mutex::default() })
    }

    /// Sends through `db` and listens through `direct`, which must not be a pooler, until `stopping`.
    /// What was gathered by then is still sent.
    pub async fn run(
        self: Arc<Self>,
        db: Database,
        direct: PgConnectOptions,
        followers: Vec<Arc<dyn Follower>>,
        stopping: CancellationToken,
    ) {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = self.send_always(&db) => {}
            () = self.beat(&db) => {}
            () = self.hear(&db, direct, &followers) => {}
        }
        self.send(&db).await;
    }

    async fn send_always(&self, db: &Database) {
        loop {
            self.ready.notified().await;
            self.send(db).await;
        }
    }

    async fn send(&self, db: &Database) {
        let news = std::mem::take(&mut *held(&self.gathered));
        for payload in write(&self.process, &news) {
            self.say(db, &payload).await;
        }
    }

    async fn say(&self, db: &Database, payload: &str) {
        match db.notify(CHANNEL, payload).await {
            Ok(()) => metrics::counter!("fermata_signals_sent_total").increment(1),
            // The others look at the tables now and then.
            Err(error) => tracing::warn!(?error, "a signal was not sent"),
        }
    }

    /// Tells whoever listens that this process does.
    async fn beat(&self, db: &Database) {
        let mut beats = interval(BEAT);
        loop {
            beats.tick().await;
            self.say(db, &self.process).await;
        }
    }

    async fn hear(&self, db: &Database, direct: PgConnectOptions, followers: &[Arc<dyn Follower>]) {
        let mut listener = Listener::start(direct, CHANNEL, QUEUE);
        while let Some(heard) = listener.next().await {
            let news = match heard {
                Heard::Missed => {
                    // Until they have answered, there may be others.
                    self.expect("", GREETING);
                    self.say(db, &self.process).await;
                    None
                }
                Heard::Payload(payload) => match read(&payload) {
                    Some((process, _)) if process == self.process => continue,
                    Some((process, runs)) => {
                        if self.expect(process, COMPANY) {
                            // A newcomer hears of this one at once.
                            self.say(db, &self.process).await;
                        }
                        Some(runs)
                    }
                    None => None,
                },
            };
            for follower in followers {
                match &news {
                    Some(runs) => follower.signalled(runs),
                    None => follower.resync(),
                }
            }
        }
    }
}

impl Signals {
    /// Another process listens for that long at least; whether it is a new one.
    fn expect(&self, process: &str, time: Duration) -> bool {
        let now = Instant::now();
        let mut company = held(&self.company);
        company.retain(|_, until| *until > now);
        company.insert(process.to_owned(), now + time).is_none()
    }

    fn is_alone(&self) -> bool {
        let now = Instant::now();
        held(&self.company).values().all(|until| *until <= now)
    }
}

impl Follower for Signals {
    fn committed(&self, commits: &[Commit]) {
        if self.is_alone() {
            return;
        }
        let mut gathered = held(&self.gathered);
        for commit in commits {
            gathered.entry(commit.tenant_id).or_default().insert(commit.run_id);
        }
        drop(gathered);
        self.ready.notify_one();
    }

    fn signalled(&self, _: &[(TenantId, RunId)]) {}
}

/// `process tenant:run,run tenant:run …`, in as many payloads as Postgres' limit makes necessary.
fn write(process: &str, news: &News) -> Vec<String> {
    /// A separator, a tenant, a colon, a run.
    const LONGEST: usize = 1 + 32 + 1 + 32;
    let mut payloads = Vec::new();
    let mut payload = process.to_owned();
    for (tenant, runs) in news {
        let mut named = false;
        for run in runs {
            if payload.len() + LONGEST > NOTIFY_BYTES {
                payloads.push(std::mem::replace(&mut payload, process.to_owned()));
                named = false;
            }
            // Writing to memory does not fail.
            if named {
                let _ = write!(payload, ",{}", run.uuid().simple());
            } else {
                let _ = write!(payload, " {}:{}", tenant.uuid().simple(), run.uuid().simple());
            }
            named = true;
        }
    }
    if payload.len() > process.len() {
        payloads.push(payload);
    }
    payloads
}

/// Which process sent it, and of which runs; none when it is not ours to understand.
fn read(payload: &str) -> Option<(&str, Vec<(TenantId, RunId)>)> {
    let mut parts = payload.split(' ');
    let process = parts.next()?;
    let mut runs = Vec::new();
    for part in parts {
        let (tenant, named) = part.split_once(':')?;
        let tenant = TenantId::from_uuid(Uuid::try_parse(tenant).ok()?);
        for run in named.split(',') {
            runs.push((tenant, RunId::from_uuid(Uuid::try_parse(run).ok()?)));
        }
    }
    Some((process, runs))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_run_arrives_within_the_limit(news in proptest::collection::btree_map(
            any::<u128>(), proptest::collection::btree_set(any::<u128>(), 1..400), 0..6,
        )) {
            let news: News = news
                .into_iter()
                .map(|(tenant, runs)| {
                    let runs = runs.into_iter().map(|run| RunId::from_uuid(Uuid::from_u128(run))).collect();
                    (TenantId::from_uuid(Uuid::from_u128(tenant)), runs)
                })
                .collect();
            let mut heard = News::new();
            for payload in write("me", &news) {
                prop_assert!(payload.len() <= NOTIFY_BYTES);
                let (process, runs) = read(&payload).expect("our own words");
                prop_assert_eq!(process, "me");
                for (tenant, run) in runs {
                    prop_assert!(heard.entry(tenant).or_default().insert(run), "told twice");
                }
            }
            prop_assert_eq!(heard, news);
        }

        #[test]
        fn no_payload_makes_the_reader_panic(text in ".*") {
            drop(read(&text));
        }
    }

    #[test]
    fn what_is_not_understood_is_not_half_read() {
        assert_eq!(read("them nonsense"), None);
        assert_eq!(read("them 00000000000000000000000000000001:2"), None);
        assert_eq!(write("me", &News::new()), Vec::<String>::new());
    }
}
