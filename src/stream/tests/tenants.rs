use super::process::{Process, World, last_id, problem, write};
use crate::{config::StreamSettings, journal::Follower, kernel::TenantId};

#[tokio::test]
async fn a_tenant_s_stream_follows_commits_and_loses_none() {
    let world = World::start("tenants").await;
    let (tenant, other) = (world.tenant("one").await, world.tenant("other").await);
    let process = world.process(StreamSettings::default(), true);
    let away = world.process(StreamSettings::default(), true);
    late_commits(&world, tenant, &process, &away).await;
    late_numbers(&world, other, &process).await;
    resume_and_filter(&world, tenant, &process).await;
    refusals(&world, tenant, other, &process).await;
    // Nothing of all this was the other tenant's.
    let mut open = process.open(other, "/workflow/events", &[]).await;
    let run = world.run(other).await;
    process.commit(&world, other, run, &["idle"]).await;
    assert_eq!(open.events(1).await.matches("\ndata: ").count(), 1);
    drop(open);
    world.stop(vec![process, away]).await;
}

fn names(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
}

/// A transaction that begins first and commits last: a reader of a serial number would skip it for ever.
async fn late_commits(world: &World, tenant: TenantId, here: &Process, away: &Process) {
    let (early, late) = (world.run(tenant).await, world.run(tenant).await);
    let mut open = [here.open(tenant, "/workflow/events", &[]).await, away.open(tenant, "/workflow/events", &[]).await];
    let mut slow = world.database.tenant(tenant).await.unwrap();
    let commit = write(&mut slow, tenant, late, &["idle", "planning"]).await;
    here.commit(world, tenant, early, &["executing"]).await;
    slow.commit().await.unwrap();
    here.hub.committed(std::slice::from_ref(&commit));
    here.signals.committed(&[commit]);
    here.commit(world, tenant, early, &["completed"]).await;
    for open in &mut open {
        let text = open.events(4).await;
        assert!(text.starts_with("retry: 1000\nid: "), "{text}");
        assert_eq!(names(&text), ["idle", "planning", "executing", "completed"]);
    }
}

/// A transaction that has its number before it has the run's lock, and writes after one with a higher number.
async fn late_numbers(world: &World, tenant: TenantId, process: &Process) {
    let run = world.run(tenant).await;
    let mut open = process.open(tenant, "/workflow/events", &[]).await;
    let mut early = world.database.tenant(tenant).await.unwrap();
    sqlx::query("select pg_current_xact_id()").execute(early.conn()).await.unwrap();
    process.commit(world, tenant, run, &["idle", "planning"]).await;
    let commit = write(&mut early, tenant, run, &["executing"]).await;
    early.commit().await.unwrap();
    process.hub.committed(&[commit]);
    process.commit(world, tenant, run, &["completed"]).await;
    assert_eq!(names(&open.events(4).await), ["idle", "planning", "executing", "completed"]);
}

async fn resume_and_filter(world: &World, tenant: TenantId, process: &Process) {
    let all = process.open(tenant, "/workflow/events?from=start", &[]).await.events(4).await;
    let ids = all.lines().filter_map(|line| line.strip_prefix("id: ")).collect::<Vec<_>>();
    let rest = process.open(tenant, "/workflow/events", &[("last-event-id", ids[2])]).await.events(2).await;
    assert_eq!(names(&rest), ["executing", "completed"]);
    let some = "/workflow/events?from=start&types=completed,planning";
    let mut open = process.open(tenant, some, &[]).await;
    let text = open.events(2).await;
    assert_eq!(names(&text), ["planning", "completed"]);
    let run = world.run(tenant).await;
    process.commit(world, tenant, run, &["idle", "failed", "completed"]).await;
    let live = open.events(1).await;
    assert_eq!(names(&live), ["completed"]);
    // The cursor alone remembers the filter.
    let id = last_id(&text);
    let again = process.open(tenant, "/workflow/events", &[("last-event-id", id.as_str())]).await.events(1).await;
    assert!(again.ends_with(&live), "{again}");
}

async fn refusals(world: &World, tenant: TenantId, other: TenantId, process: &Process) {
    let all = process.open(tenant, "/workflow/events?from=start", &[]).await.events(1).await;
    let some = process.open(tenant, "/workflow/events?from=start&types=idle", &[]).await.events(1).await;
    let (id, filtered) = (last_id(&all), last_id(&some));
    let future = {
        let parts = id.split('-').collect::<Vec<_>>();
        format!("{}-7fffffffffff-{}-{}", parts[0], parts[2], parts[3])
    };
    let run = world.run(tenant).await;
    for (who, path, cursor, expected) in [
        (tenant, "/workflow/events", "nonsense", (400, "malformed-cursor")),
        (tenant, "/workflow/events", "evt_1", (400, "malformed-cursor")),
        (other, "/workflow/events", &id, (400, "malformed-cursor")),
        (tenant, "/workflow/events?types=idle", &id, (400, "malformed-cursor")),
        (tenant, "/workflow/events?types=failed", &filtered, (400, "malformed-cursor")),
        (tenant, "/workflow/events", &future, (409, "cursor-beyond-head")),
        (tenant, "/workflow/events?types=nothing", "", (422, "invalid-input")),
        (tenant, "/workflow/events?from=yesterday", "", (400, "malformed-request")),
        (tenant, &format!("/workflow/runs/{run}/events"), &id, (400, "malformed-cursor")),
    ] {
        let (status, slug) = problem(process.get(who, path, &[("last-event-id", cursor)]).await).await;
        assert_eq!((status, slug.as_str()), expected, "{path} {cursor}");
    }
    let (status, _) = problem(process.get(tenant, "/workflow/events", &[("accept", "application/json")]).await).await;
    assert_eq!(status, 406);
}
