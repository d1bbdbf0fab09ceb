//! The append over a real database: what it writes, whom it keeps out, and what it leaves alone.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    db::fixture::Fixture,
    kernel::{Actor, RunId, TenantId, Timestamp},
};

/// Nobody here carries runs out.
struct Away;

impl Desk for Away {
    fn offer(&self, _: TenantId, _: RunId) -> Option<Box<dyn Place>> {
        None
    }
}

struct World {
    fixture: Fixture,
    journal: Journal,
    tenant: TenantId,
    /// When all of it happens.
    now: Timestamp,
}

impl World {
    async fn start(name: &str) -> Self {
        let fixture = Fixture::start(name).await;
        let tenant = fixture.tenant("one").await;
        let journal = Journal::start(fixture.database.clone(), vec![], vec![], Arc::new(Away), &TaskTracker::new());
        let now = fixture.clock.now();
        Self { fixture, journal, tenant, now }
    }

    /// A run of two steps that has begun.
    async fn open(&self) -> RunState {
        let (now, by) = (self.now, Actor::System);
        let mut state = RunState::new(self.tenant, RunId::new(now), by.clone(), OnDenied::Fail);
        let step = |id: &str| json!({ "id": id, "uses": "debug.echo", "with": { "a": 1 } });
        let plan: Plan = serde_json::from_value(json!({ "steps": [step("a"), step("b")] })).unwrap();
        let open = Command::Open { goal: None, workflow: None, parent: None, planner: None, budget: Budget::default() };
        let mut events = vec![];
        for command in [
            open,
            Command::Draft(Draft::Ready { plan: Arc::new(plan), forecast: vec![] }),
            Command::Execute { by: by.clone() },
        ] {
            events.extend(self.decide(&mut state, command));
        }
        let head = RunHead {
            goal: None,
            workflow: None,
            input: Arc::default(),
            budget: None,
            metadata: Arc::new(json!({})),
            created_by: by,
            parent: None,
            created_at: now,
        };
        let append = Append::new(&state, events, None, Claim::Keep, now).unwrap();
        let mut tx = self.fixture.database.tenant(self.tenant).await.unwrap();
        let run = Loaded { head, state: state.clone() };
        assert!(self.journal.open_in(&mut tx, run, append, vec![]).await.unwrap());
        tx.commit().await.unwrap();
        state
    }

    fn decide(&self, state: &mut RunState, command: Command) -> Vec<Event> {
        let events = decide(state, command, self.now).unwrap();
        events.iter().for_each(|event| state.apply(self.now, event));
        events
    }

    /// What follows from `command` as a worker appends it.
    fn append(&self, state: &mut RunState, command: Command) -> Append {
        let shown = Shown::of(state);
        let events = self.decide(state, command);
        Append::new(state, events, None, Claim::Keep, self.now).unwrap().after(&shown)
    }

    async fn load(&self, run: RunId) -> RunState {
        let mut tx = self.fixture.database.tenant(self.tenant).await.unwrap();
        load(&mut tx, &[(self.tenant, run)], Lock::Free).await.unwrap().remove(0).state
    }

    /// The transaction that wrote the run's row last.
    async fn head_of(&self, run: RunId) -> String {
        let mut tx = self.fixture.database.tenant(self.tenant).await.unwrap();
        let xmin = sqlx::query_scalar("select xmin::text from runs where run_id = $1").bind(run.uuid());
        xmin.fetch_one(tx.conn()).await.unwrap()
    }
}

fn start(step: &str) -> Command {
    let arguments: Arc<Value> = Arc::new(json!({ "a": 1 }));
    let (tool, tool_version, digest) = ("debug.echo".to_owned(), "1".to_owned(), "sha256:00".to_owned());
    let intent = Intent { tool, tool_version, effect: Effect::Repeatable, arguments, digest };
    Command::Start { step: StepKey::whole(step), intent, reserved: false, budget: None }
}

fn complete(step: &str, cost: Option<f64>) -> Command {
    Command::Complete { step: StepKey::whole(step), attempt: 1, output: Arc::default(), cost }
}

#[tokio::test]
async fn a_run_s_head_moves_only_when_it_shows_something_else() {
    let world = World::start("heads").await;
    let mut state = world.open().await;
    let opened = world.head_of(state.run_id).await;
    for command in [start("a"), complete("a", None), start("b")] {
        let append = world.append(&mut state, command);
        world.journal.append(append).await.unwrap();
        assert_eq!(world.head_of(state.run_id).await, opened);
        assert_eq!(world.load(state.run_id).await, state);
    }
    let append = world.append(&mut state, complete("b", Some(0.5)));
    world.journal.append(append).await.unwrap();
    assert_ne!(world.head_of(state.run_id).await, opened);
    assert_eq!(world.load(state.run_id).await, state);
    world.fixture.stop().await;
}

#[tokio::test]
async fn an_append_whose_run_has_gone_on_fails_alone() {
    let world = World::start("overtaken").await;
    let (mut one, mut other, mut third) = (world.open().await, world.open().await, world.open().await);
    let (late, idle) = (one.clone(), third.clone());
    let append = world.append(&mut one, start("a"));
    world.journal.append(append).await.unwrap();
    let append = world.append(&mut third, start("a"));
    world.journal.append(append).await.unwrap();

    // Asked for at once, so that they share a commit.
    let stale = world.append(&mut late.clone(), start("b"));
    let good = world.append(&mut other, start("a"));
    // Without an event, too: it lets go of a run that is elsewhere.
    let release = Append::new(&idle, vec![], None, Claim::Keep, world.now).unwrap().after(&Shown::of(&idle));
    let (stale, good, release) =
        tokio::join!(world.journal.append(stale), world.journal.append(good), world.journal.append(release));
    assert!(matches!(stale, Err(AppendError::Conflict)), "{stale:?}");
    assert!(matches!(release, Err(AppendError::Conflict)), "{release:?}");
    good.unwrap();
    for state in [one, other, third] {
        assert_eq!(world.load(state.run_id).await, state);
    }
    world.fixture.stop().await;
}

#[tokio::test]
async fn whoever_holds_a_run_s_lock_is_not_overtaken() {
    let world = World::start("held").await;
    let mut state = world.open().await;
    let mut late = state.clone();
    let mut tx = world.fixture.database.tenant(world.tenant).await.unwrap();
    let run = load(&mut tx, &[(world.tenant, state.run_id)], Lock::Held).await.unwrap().remove(0);
    let append = world.append(&mut late, start("a"));
    let journal = world.journal.clone();
    let worker = tokio::spawn(async move { journal.append(append).await });
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    while world.fixture.number(waiting).await == 0 {}

    let append = world.append(&mut state, Command::Cancel { by: Actor::System, reason: None });
    world.journal.append_in(&mut tx, Loaded { head: run.head, state: state.clone() }, append, vec![]).await.unwrap();
    tx.commit().await.unwrap();
    assert!(matches!(worker.await.unwrap(), Err(AppendError::Conflict)));
    assert_eq!(world.load(state.run_id).await, state);
    world.fixture.stop().await;
}

#[tokio::test]
async fn retention_leaves_alone_what_somebody_holds() {
    const FORGET: &str = "select forget_runs($1 + interval '1 day', 1000)";
    let world = World::start("kept").await;
    let mut state = world.open().await;
    let append = world.append(&mut state, Command::Cancel { by: Actor::System, reason: None });
    world.journal.append(append).await.unwrap();
    let mut tx = world.fixture.database.tenant(world.tenant).await.unwrap();
    assert_eq!(load(&mut tx, &[(world.tenant, state.run_id)], Lock::Held).await.unwrap().remove(0).state, state);
    assert_eq!(world.fixture.number(FORGET).await, 0);
    drop(tx);
    while world.fixture.number(FORGET).await == 0 {}
    world.fixture.stop().await;
}
