//! What has to be true when the fire is out.

use std::collections::{HashMap, HashSet};

use fermata::kernel::RunId;
use sqlx::{PgConnection, Row};

use super::{load::Fact, site::Site};
use crate::world::Upstream;

/// Checks the tables, the sink and everything that was said against each other; answers with how many runs, events
/// and facts there were.
pub async fn all_is_well(site: &Site, sink: &Upstream, facts: &[Fact]) -> String {
    let mut database = site.superuser().await;
    journals_are_whole(&mut database).await;
    let questions = questions(&mut database).await;
    nothing_acted_twice(sink, questions.values().sum());
    facts_are_true(&mut database, facts).await;
    let number = async |sql: &'static str, database: &mut PgConnection| -> i64 {
        sqlx::query_scalar(sql).fetch_one(database).await.unwrap()
    };
    let runs = number("select count(*) from runs", &mut database).await;
    let events = number("select count(*) from run_events", &mut database).await;
    format!(
        "{runs} runs, {events} events, {} acknowledged things, {} requests at the sink, {} questions whether to repeat",
        facts.len(),
        sink.requests().len(),
        questions.values().sum::<usize>()
    )
}

/// Every run has ended, its events have no gap, no attempt has two outcomes, and nothing holds it any more.
pub async fn journals_are_whole(database: &mut PgConnection) {
    for (what, sql) in [
        (
            "runs that have not ended",
            "select run_id::text from runs where status not in ('completed', 'failed', 'cancelled')",
        ),
        ("leases of ended runs", "select run_id::text from run_leases"),
        (
            "journals with gaps",
            "select r.run_id::text from runs r left join
               (select run_id, count(*) as many, min(seq) as first, max(seq) as last from run_events group by run_id) e
               using (run_id)
             where e.many is distinct from r.last_seq or e.first <> 1 or e.last <> r.last_seq",
        ),
        (
            "events that are not where they say",
            "select run_id::text from run_events where data->>'eventId' <> 'evt_' || seq or data->>'step' <> name",
        ),
        (
            "attempts with two outcomes",
            "select run_id || ' ' || (data->>'stepId') || ' ' || (data->>'attempt') from run_events
             where name in ('step.completed', 'step.failed', 'step.retrying', 'step.skipped')
             group by run_id, data->>'stepId', data->>'attempt' having count(*) > 1",
        ),
        (
            "runs whose last event is not their status",
            "select r.run_id::text from runs r join run_events e on (e.run_id, e.seq) = (r.run_id, r.last_seq)
             where e.name <> r.status",
        ),
    ] {
        let found: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *database).await.unwrap();
        assert!(found.is_empty(), "{what}: {found:?}");
    }
}

/// How often each run asked whether to repeat a call of unknown outcome.
async fn questions(database: &mut PgConnection) -> HashMap<String, usize> {
    let rows = sqlx::query(
        "select run_id::text, count(*) from run_events
         where name = 'awaiting_approval' and data->'payload'->>'question' = 'repeat' group by 1",
    );
    let rows = rows.fetch_all(database).await.unwrap();
    rows.iter().map(|row| (row.get(0), usize::try_from(row.get::<i64, _>(1)).unwrap())).collect()
}

/// One step is one key, and what may happen once happened once for each time somebody let it.
fn nothing_acted_twice(sink: &Upstream, questions: usize) {
    let (mut keys, mut posts) = (HashMap::new(), HashMap::<String, usize>::new());
    for request in sink.requests() {
        let key = request.header("idempotency-key").unwrap().to_owned();
        let first = keys.entry(request.path.clone()).or_insert_with(|| key.clone());
        assert_eq!(*first, key, "{} under two keys", request.path);
        if request.path.starts_with("/post/") {
            *posts.entry(request.path).or_default() += 1;
        }
    }
    let again: usize = posts.values().map(|times| times - 1).sum();
    assert!(again <= questions, "{again} repetitions, and {questions} were allowed");
    let distinct: HashSet<_> = keys.values().collect();
    assert_eq!(distinct.len(), keys.len(), "two steps under one key");
}

async fn facts_are_true(database: &mut PgConnection, facts: &[Fact]) {
    let uuid = |run: &str| run.parse::<RunId>().unwrap().uuid();
    let text = |sql: &'static str| sqlx::query_scalar::<_, String>(sql);
    // Facts know no tenant, by which the keys begin.
    let by_run = "create index on runs (run_id); create index on run_events (run_id, seq)";
    sqlx::raw_sql(by_run).execute(&mut *database).await.unwrap();
    for fact in facts {
        match fact {
            Fact::Run(run) => {
                let found = text("select status from runs where run_id = $1").bind(uuid(run));
                assert!(found.fetch_optional(&mut *database).await.unwrap().is_some(), "{run} is not there");
            }
            Fact::Cancelled(run) => {
                let status = text("select status from runs where run_id = $1").bind(uuid(run));
                assert_eq!(status.fetch_one(&mut *database).await.unwrap(), "cancelled", "{run}");
            }
            Fact::Retried(run) => {
                let names = text("select name from run_events where run_id = $1 order by seq").bind(uuid(run));
                let names = names.fetch_all(&mut *database).await.unwrap();
                let failed = names.iter().position(|name| name == "failed").unwrap();
                assert_eq!((names[failed + 1].as_str(), names.last().unwrap().as_str()), ("executing", "completed"));
            }
            Fact::Streamed(run, seen) => {
                let table = text("select data::text from run_events where run_id = $1 order by seq").bind(uuid(run));
                assert_eq!(&table.fetch_all(&mut *database).await.unwrap(), seen, "{run}");
            }
            Fact::Defined(name, version, source) => {
                let found = text("select source from workflow_definitions where name = $1 and version = $2");
                let found = found.bind(name).bind(i32::try_from(*version).unwrap());
                assert_eq!(&found.fetch_one(&mut *database).await.unwrap(), source);
            }
            Fact::Decided(..) => {}
        }
    }
    let decided =
        sqlx::query("select data->'payload'->>'approvalId', name from run_events where name in ('approved', 'denied')");
    let decided = decided.fetch_all(database).await.unwrap();
    let decided: HashSet<(String, String)> = decided.iter().map(|row| (row.get(0), row.get(1))).collect();
    for fact in facts {
        if let Fact::Decided(approval, name) = fact {
            assert!(decided.contains(&(approval.clone(), (*name).to_owned())), "{approval} was {name}");
        }
    }
}
