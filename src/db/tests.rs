//! The wall and the guards, proved on a real server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::FutureExt;
use sea_orm::{ActiveValue::Set, ColumnTrait, ColumnType, EntityTrait, IdenStatic, Iterable};
use sqlx::{AssertSqlSafe, ConnectOptions};

use super::{
    Heard, Listener, SessionLock, Stale, SystemTx,
    fixture::{Fixture, connect, insert_run},
    guard, migrate,
};
use crate::kernel::{Error, Problem, RunId};

fn refusal<T: std::fmt::Debug>(outcome: sqlx::Result<T>) -> String {
    outcome.unwrap_err().as_database_error().unwrap().code().unwrap().into_owned()
}

#[tokio::test]
async fn a_tenant_is_a_wall() {
    let fixture = Fixture::start("wall").await;
    let (one, other) = (fixture.tenant("one").await, fixture.tenant("other").await);
    let theirs = fixture.live_run(other, false).await;
    const COUNT: &str = "select count(*) from runs";

    // No tenant is an error, whether never set, emptied or forged; also for the owner.
    for options in [fixture.cluster.app_options(), fixture.cluster.admin_options()] {
        let mut plain = options.connect().await.unwrap();
        assert_eq!(refusal(sqlx::query(COUNT).fetch_one(&mut plain).await), "42501");
        for forged in ["", "{}", "*", "' or true --", "not-an-id", "00000000-0000-0000-0000-000000000000,x"] {
            sqlx::query("select set_config('fermata.tenants', $1, false)")
                .bind(forged)
                .execute(&mut plain)
                .await
                .unwrap();
            let code = refusal(sqlx::query(COUNT).fetch_one(&mut plain).await);
            assert!(["42501", "22P02"].contains(&code.as_str()), "{forged}: {code}");
        }
    }
    let mut tx = fixture.database.tenants(&[]).await.unwrap();
    assert_eq!(refusal(sqlx::query(COUNT).fetch_one(tx.conn()).await), "42501");
    drop(tx);

    // Rows of another tenant are not there, to read or to write; those of the ones named are.
    let mut tx = fixture.database.tenant(one).await.unwrap();
    let seen: i64 = sqlx::query_scalar(COUNT).fetch_one(tx.conn()).await.unwrap();
    let changed = sqlx::query("update runs set status = 'failed'").execute(tx.conn()).await.unwrap().rows_affected();
    assert_eq!((seen, changed), (0, 0));
    let foreign = insert_run(tx.conn(), other, RunId::new(fixture.clock.now()), &fixture.clock).await;
    assert_eq!(refusal(foreign), "42501");
    drop(tx);
    let mut tx = fixture.database.tenant(one).await.unwrap();
    insert_run(tx.conn(), one, RunId::new(fixture.clock.now()), &fixture.clock).await.unwrap();
    // Only an append writes events, and only those of a run that is there.
    let event = "insert into run_events (tenant_id, run_id, seq, name, data) values ($1, $2, 1, 'idle', '{}')";
    let event = sqlx::query(event).bind(one.uuid()).bind(theirs.uuid());
    assert_eq!(refusal(event.execute(tx.conn()).await), "42501");
    drop(tx);
    for tenant in [one, other] {
        for head in ["", "row($1, $2, 0, 1, 'idle', false, '{}', 0, null, null, null, now())::run_head"] {
            let mut tx = fixture.database.tenant(one).await.unwrap();
            let append = format!(
                "select moved from append_events(null, array[$2], '{{}}', array[{head}]::run_head[],
                 array[row($1, $2, 1, true, 'idle', '{{}}')::run_next], '{{}}', '{{}}')"
            );
            let append = sqlx::query(AssertSqlSafe(append)).bind(tenant.uuid()).bind(theirs.uuid());
            assert_eq!(refusal(append.execute(tx.conn()).await), "23505");
        }
    }
    let mut tx = fixture.database.tenants(&[one, other]).await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i64>(COUNT).fetch_one(tx.conn()).await.unwrap(), 1);
    tx.commit().await.unwrap();

    // The setting ends with its transaction.
    let mut tx = fixture.database.system().await.unwrap();
    assert_eq!(refusal(sqlx::query(COUNT).fetch_one(tx.conn()).await), "42501");
    drop(tx);
    // And what is written once is not unwritten.
    let mut tx = fixture.database.tenant(other).await.unwrap();
    assert_eq!(refusal(sqlx::query("delete from run_events").execute(tx.conn()).await), "42501");
    drop(tx);
    fixture.stop().await;
}

#[tokio::test]
async fn claims_are_fair_bounded_and_freed_with_their_worker() {
    let fixture = Fixture::start("claims").await;
    let (busy, calm) = (fixture.tenant("busy").await, fixture.tenant("calm").await);
    for _ in 0..6 {
        fixture.live_run(busy, true).await;
    }
    fixture.live_run(calm, false).await;
    let single = fixture.live_run(calm, true).await;
    let lock = SessionLock::take(fixture.cluster.app_options(), 7).await.unwrap().unwrap();
    assert!(SessionLock::take(fixture.cluster.app_options(), 7).await.unwrap().is_none());
    let worker = fixture.worker(7).await;

    // One at a time: whoever holds fewer goes first, whatever the others' backlog.
    let first = fixture.claim(worker, 1, 3).await;
    let second = fixture.claim(worker, 1, 3).await;
    assert!([first, second].concat().contains(&(calm.uuid(), single.uuid())));
    let claimed = fixture.claim(worker, 10, 3).await;
    assert_eq!(claimed.len(), 2, "three of a tenant at most: {claimed:?}");
    assert_eq!(fixture.claim(worker, 10, 3).await, []);
    assert_eq!(fixture.number("select count(*) from next_due() due where due <= $1").await, 1);
    assert_eq!(fixture.number("select runs from count_runs() where status = 'executing' and $1 is not null").await, 8);

    assert_eq!(fixture.number("select release_dead_workers($1)").await, 0, "the worker is alive");
    let lost = lock.lost();
    lock.release().await;
    assert!(lost.is_cancelled());
    assert_eq!(fixture.number("select release_dead_workers($1)").await, 4);
    assert_eq!(fixture.number("select count(*) from workers where $1 is not null").await, 0);
    let next = fixture.worker(8).await;
    assert_eq!(fixture.claim(next, 10, 10).await.len(), 7);
    assert_eq!(fixture.number("select forget_expired($1)").await, 0);
    fixture.stop().await;
}

#[tokio::test]
async fn a_claim_that_was_not_heard_of_is_given_back() {
    let fixture = Fixture::start("strays").await;
    let tenant = fixture.tenant("one").await;
    for _ in 0..3 {
        fixture.live_run(tenant, true).await;
    }
    let (worker, neighbour) = (fixture.worker(1).await, fixture.worker(2).await);
    let (known, lost) = (fixture.claim(worker, 1, 9).await, fixture.claim(worker, 1, 9).await);
    let others = fixture.claim(neighbour, 1, 9).await;
    assert_eq!((known.len(), lost.len(), others.len()), (1, 1, 1));

    assert_eq!(fixture.release_strays(worker, &known).await, 1);
    assert_eq!(fixture.claim(neighbour, 9, 9).await, lost, "due at once, and nothing else is");
    assert_eq!(fixture.release_strays(worker, &known).await, 0);
    fixture.stop().await;
}

#[tokio::test]
async fn who_was_given_up_stays_so_while_one_of_its_runs_is_locked() {
    let fixture = Fixture::start("dead").await;
    let tenant = fixture.tenant("one").await;
    for _ in 0..2 {
        fixture.live_run(tenant, true).await;
    }
    let worker = fixture.worker(1).await;
    let held = fixture.claim(worker, 2, 9).await;
    let mut late = fixture.database.tenant(tenant).await.unwrap();
    let lock = sqlx::query("select from run_leases where run_id = $1 for update").bind(held[0].1);
    lock.execute(late.conn()).await.unwrap();

    assert_eq!(fixture.number("select release_dead_workers($1)").await, 1);
    let given_up = "select count(*) from workers where alive_until = '-infinity' and $1 is not null";
    assert_eq!(fixture.number(given_up).await, 1);
    late.commit().await.unwrap();
    assert_eq!(fixture.number("select release_dead_workers($1)").await, 1);
    assert_eq!(fixture.number("select count(*) from workers where $1 is not null").await, 0);
    fixture.stop().await;
}

#[tokio::test]
async fn migrations_run_forward_over_the_rows_of_every_version_before() {
    let fixture = Fixture::unmigrated("forward").await;
    let mut written = Vec::new();
    while !guard::version(&fixture.database).await.unwrap().is_empty() {
        migrate::advance(fixture.cluster.admin_options(), Some(1)).await.unwrap();
        let tenant = fixture.tenant(&format!("after-{}", written.len())).await;
        let begun = fixture.number("select count(to_regclass('runs')) where $1 is not null").await == 1;
        written.push((tenant, if begun { Some(fixture.run(tenant).await) } else { None }));
    }
    assert!(written.len() >= 5, "{written:?}");
    fixture.migrate_twice_at_once().await;

    assert_eq!(guard::schema(&fixture.database).await.unwrap(), []);
    for (tenant, run) in written {
        let mut tx = fixture.database.tenant(tenant).await.unwrap();
        let count = "select (select count(*) from tenants), (select count(*) from runs where status = 'executing')";
        let rows: (i64, i64) = sqlx::query_as(count).fetch_one(tx.conn()).await.unwrap();
        assert_eq!(rows, (1, i64::from(run.is_some())));
    }
    fixture.stop().await;
}

// What the table has, by name, and what the entity says it has.
async fn columns<E: EntityTrait>(tx: &mut SystemTx) -> [BTreeMap<String, (String, bool)>; 2] {
    let query = "select column_name::text, udt_name::text, is_nullable = 'YES' from information_schema.columns
                 where table_schema = 'public' and table_name = $1";
    let entity = E::default();
    let query = sqlx::query_as::<_, (String, String, bool)>(query).bind(entity.table_name());
    let table = query.fetch_all(tx.conn()).await.unwrap().into_iter().map(|(name, ty, null)| (name, (ty, null)));
    let said = E::Column::iter().map(|column| {
        let def = column.def();
        let ty = match def.get_column_type() {
            ColumnType::Uuid => "uuid",
            ColumnType::Text => "text",
            ColumnType::SmallInteger => "int2",
            ColumnType::Integer => "int4",
            ColumnType::BigInteger => "int8",
            ColumnType::Double => "float8",
            ColumnType::Boolean => "bool",
            ColumnType::Json => "json",
            ColumnType::JsonBinary => "jsonb",
            ColumnType::TimestampWithTimeZone => "timestamptz",
            ColumnType::VarBinary(_) => "bytea",
            ColumnType::Array(_) => "_uuid",
            other => panic!("{column:?} is {other:?}"),
        };
        (column.as_str().to_owned(), (ty.to_owned(), def.is_null()))
    });
    [table.collect(), said.collect()]
}

#[tokio::test]
async fn entities_say_what_the_tables_are() {
    let fixture = Fixture::start("entities").await;
    let mut tx = fixture.database.system().await.unwrap();
    macro_rules! check {
        ($($table:ident)*) => {$(
            let [table, said] = columns::<entity::$table::Entity>(&mut tx).await;
            assert_eq!(table, said, stringify!($table));
        )*};
    }
    check! {
        approval approval_decision audit_entry idempotency_key run run_event run_lease run_step stream_gap stream_ticket
        tenant worker workflow_definition
    }
    tx.commit().await.unwrap();

    // An event's bytes come back as they went in.
    let tenant = fixture.tenant("bytes").await;
    let run = fixture.live_run(tenant, false).await;
    let data = r#"{"b" : 1,  "a":2.50}"#;
    let owner = connect(fixture.cluster.admin_options()).await;
    let tx = owner.tenant(tenant).await.unwrap();
    let event = entity::run_event::ActiveModel {
        tenant_id: Set(tenant.uuid()),
        run_id: Set(run.uuid()),
        seq: Set(1),
        name: Set("idle".to_owned()),
        data: Set(data.to_owned()),
        ..Default::default()
    };
    entity::run_event::Entity::insert(event).exec_without_returning(&tx).await.unwrap();
    let read = entity::run_event::Entity::find().one(&tx).await.unwrap().unwrap();
    assert_eq!(read.data, data);
    assert!(read.xact > 0);
    tx.commit().await.unwrap();
    owner.close();
    fixture.stop().await;
}

#[tokio::test]
async fn the_guards_find_what_is_wrong_and_nothing_else() {
    let fixture = Fixture::start("guards").await;
    assert_eq!(guard::version(&fixture.database).await.unwrap(), []);
    assert_eq!(guard::schema(&fixture.database).await.unwrap(), []);
    assert_eq!(guard::login(&fixture.database).await.unwrap(), []);
    assert_eq!(guard::limits(&fixture.database).await.unwrap(), []);

    let owner = connect(fixture.cluster.admin_options()).await;
    let faults = guard::login(&owner).await.unwrap();
    assert!(faults.iter().any(|finding| finding.fault.contains("owns tables")), "{faults:?}");
    owner.close();
    let superuser = connect(fixture.cluster.admin_options().username("postgres")).await;
    let faults = guard::login(&superuser).await.unwrap();
    assert!(faults.iter().any(|finding| finding.fault.contains("superuser")), "{faults:?}");
    assert_eq!(guard::limits(&superuser).await.unwrap().len(), 3);
    superuser.close();

    let mut admin = fixture.cluster.admin_options().connect().await.unwrap();
    let careless = "create table notes (note_id uuid primary key, tenant_id uuid not null, run_id uuid);
        create unique index notes_by_run on notes (run_id);
        create table strays (id int);
        create view peek as select * from runs;
        alter table runs no force row level security;
        create policy open on approvals using (true);
        grant select on audit_log to public;
        create function everything() returns bigint language sql security definer as 'select count(*) from runs';
        delete from seaql_migrations where version like '%workers'";
    sqlx::raw_sql(careless).execute(&mut admin).await.unwrap();
    let faults = guard::schema(&fixture.database).await.unwrap();
    let faults: Vec<_> = faults.into_iter().map(|finding| finding.fault).collect();
    for wanted in [
        "row-level security is not enabled and forced on notes",
        "row-level security is not enabled and forced on runs",
        "the table notes has no policy for its tenant",
        "the primary key of notes does not lead with tenant_id",
        "the unique index notes_by_run of notes does not lead with tenant_id",
        "the table strays has no tenant",
        "the table strays has no primary key",
        "the view peek reads with its owner's rights",
        "the policy open on approvals lets rows of any tenant through",
        "audit_log may be read or written by everybody",
        "the function everything runs with its owner's rights and is not on the list",
        "the function everything runs with its owner's rights without a pinned search_path",
        "the function everything runs with its owner's rights for everybody",
    ] {
        assert!(faults.iter().any(|fault| fault == wanted), "{wanted} is missing from {faults:#?}");
    }
    let pending = guard::version(&fixture.database).await.unwrap();
    assert!(pending.iter().any(|finding| finding.fault.contains("workers")), "{pending:?}");
    fixture.stop().await;
}

#[tokio::test]
async fn a_transaction_begins_though_every_pooled_connection_is_dead() {
    let fixture = Fixture::start("dead").await;
    let begin = || fixture.database.system();
    let (one, two, three) = tokio::join!(begin(), begin(), begin());
    drop((one.unwrap(), two.unwrap(), three.unwrap()));
    cut_connections(&fixture).await;
    let (one, two, three) = tokio::join!(begin(), begin(), begin());
    drop((one.unwrap(), two.unwrap(), three.unwrap()));
    fixture.stop().await;
}

#[tokio::test]
async fn a_commit_that_the_server_answers_with_a_rollback_is_none() {
    let fixture = Fixture::start("rollback").await;
    let tenant = fixture.tenant("one").await;
    let mut tx = fixture.database.tenant(tenant).await.unwrap();
    insert_run(tx.conn(), tenant, RunId::new(fixture.clock.now()), &fixture.clock).await.unwrap();
    tx.after_commit(|| panic!("nothing was committed"));
    sqlx::query("select 1 / 0").execute(tx.conn()).await.unwrap_err();
    assert_eq!(tx.commit().await.unwrap_err().problem(), Problem::Internal);

    let mut tx = fixture.database.tenant(tenant).await.unwrap();
    let runs: i64 = sqlx::query_scalar("select count(*) from runs").fetch_one(tx.conn()).await.unwrap();
    assert_eq!(runs, 0);
    tx.commit().await.unwrap();
    fixture.stop().await;
}

#[tokio::test]
async fn who_goes_away_in_the_middle_lets_go_of_the_locks() {
    const LOCK: &str = "select pg_advisory_xact_lock(1)";
    let fixture = Fixture::start("locks").await;
    let mut holding = fixture.database.system().await.unwrap();
    sqlx::raw_sql(LOCK).execute(holding.conn()).await.unwrap();
    let mut waiting = fixture.database.system().await.unwrap();
    assert!(sqlx::raw_sql(LOCK).execute(waiting.conn()).now_or_never().is_none());
    drop((waiting, holding));

    let mut other = fixture.cluster.app_options().connect().await.unwrap();
    sqlx::raw_sql(LOCK).execute(&mut other).await.unwrap();
    fixture.stop().await;
}

#[tokio::test]
async fn a_reader_writes_nothing_but_what_follows_from_it() {
    let fixture = Fixture::start("reader").await;
    let tenant = fixture.tenant("one").await;
    fixture.live_run(tenant, false).await;
    for outcome in [Ok(()), Err(Error::unavailable(Stale))] {
        let mut tx = fixture.database.reader(tenant).await.unwrap();
        let change = sqlx::query("update runs set status = 'failed'").execute(tx.conn()).await;
        assert_eq!(refusal(change), "25006");
        let (ok, told) = (outcome.is_ok(), Arc::new(AtomicBool::new(false)));
        let tell = Arc::clone(&told);
        tx.follow_with(|| async { outcome });
        tx.after_commit(move || tell.store(true, Ordering::SeqCst));
        let stale = tx.commit().await.is_err_and(|error| Stale::is(&error));
        assert_eq!((stale, told.load(Ordering::SeqCst)), (!ok, ok));
    }
    fixture.stop().await;
}

async fn cut_connections(fixture: &Fixture) {
    let mut superuser = fixture.cluster.admin_options().username("postgres").connect().await.unwrap();
    sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fermata_app'")
        .execute(&mut superuser)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_listener_hears_and_says_when_it_may_have_missed_something() {
    let fixture = Fixture::start("listen").await;
    let mut listener = Listener::start(fixture.cluster.app_options(), "news", 2);
    assert_eq!(listener.next().await, Some(Heard::Missed));
    fixture.database.notify("news", "one").await.unwrap();
    assert_eq!(listener.next().await, Some(Heard::Payload("one".to_owned())));
    assert!(fixture.database.notify("news", &"x".repeat(8000)).await.is_err());

    // Nobody reads: what does not fit is dropped, and said.
    for _ in 0..20 {
        fixture.database.notify("news", "flood").await.unwrap();
    }
    let mut heard = Vec::new();
    while heard.last() != Some(&Heard::Missed) {
        heard.push(listener.next().await.unwrap());
    }

    // The connection is cut.
    let mut listener = Listener::start(fixture.cluster.app_options(), "news", 2);
    assert_eq!(listener.next().await, Some(Heard::Missed));
    let mut lock = SessionLock::take(fixture.cluster.app_options(), 9).await.unwrap();
    let lost = lock.as_mut().unwrap().lost();
    cut_connections(&fixture).await;
    lost.cancelled().await;
    assert_eq!(listener.next().await, Some(Heard::Missed));
    fixture.stop().await;
}
