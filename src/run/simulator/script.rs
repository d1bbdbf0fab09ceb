//! What is played: a plan and a list of scenes, both random, both shrinkable.

use std::sync::Arc;

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};

use crate::{
    journal::{ApprovalTerms, Budget, OnDenied, OnError, Plan, Retry, Step},
    kernel::Span,
};

/// A plan and what happens while it is carried out.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) plan: Plan,
    pub(super) on_denied: OnDenied,
    pub(super) budget: Budget,
    pub(super) scenes: Vec<Scene>,
}

/// Where a worker's process dies in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// Decided, not committed.
    BeforeCommit,
    /// Committed, nothing called.
    AfterCommit,
}

/// How a pass goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    pub(super) death: Option<Death>,
    /// The news of what others wrote was missed.
    pub(super) deaf: bool,
    /// Calls that touch nothing are over within the pass, well or badly, and so are those that follow from them: what a
    /// worker decides while an earlier append is under way.
    pub(super) ahead: Option<bool>,
}

/// How a call in flight comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Return {
    /// With an output, or with a wait where the tool waits.
    Done,
    /// Certainly without effect; perhaps worth another try.
    Failed { retryable: bool },
    /// For something to be filled in.
    Asks,
    /// Nobody knows.
    Unknown,
}

/// One thing that happens. Numbers pick among what there is, modulo how much there is.
#[derive(Clone, Debug)]
pub(super) enum Scene {
    /// A worker decides, commits, calls; or dies on the way.
    Pass { worker: u8, how: How },
    /// A call in flight reaches the outside world.
    Act { call: u8 },
    /// A call comes back.
    Return { call: u8, how: Return },
    /// A tool reports progress.
    Report { call: u8 },
    /// Every process dies.
    Crash,
    /// Another worker claims the run while the first one still believes it has it.
    TakeOver,
    /// Time passes.
    Advance { seconds: u32 },
    /// Somebody decides: 0 is the run's creator.
    Decide { hold: u8, by: u8, approve: bool, instead: bool },
    /// A timer fires, in time or late.
    Expire { hold: u8 },
    /// Somebody cancels.
    Cancel,
    /// Somebody retries.
    Retry,
    /// A child run ends.
    EndChild { child: u8, completed: bool },
    /// Something that makes no sense here, most of the time.
    Nonsense { command: u8, step: u8, item: Option<u8>, attempt: u8 },
    /// The tools are another version after the next start.
    Upgrade,
}

pub(super) fn script() -> impl Strategy<Value = Script> {
    let plan = vec(step(), 1..6).prop_map(|drafts| {
        let ids: Vec<String> = (0..drafts.len()).map(|n| format!("s{n}")).collect();
        let steps = drafts.into_iter().enumerate().map(|(n, (mask, mut step))| {
            step.id = ids[n].clone();
            step.needs = (0..n).filter(|up| mask & (1 << up) != 0).map(|up| ids[up].clone()).collect();
            step
        });
        Plan { steps: steps.map(Arc::new).collect(), ..Plan::default() }
    });
    let on_denied = select(vec![OnDenied::Fail, OnDenied::Skip]);
    (plan, on_denied, budget(), vec(scene(), 0..80)).prop_map(|(plan, on_denied, budget, scenes)| Script {
        plan,
        on_denied,
        budget,
        scenes,
    })
}

fn budget() -> impl Strategy<Value = Budget> {
    let caps = (option::of(0.0..1.0), option::of(0_u64..40), option::of(0_u64..6), option::of(1_u64..1000));
    let some = caps.prop_map(|(cost, tokens, tool_calls, seconds)| Budget {
        cost,
        tokens,
        tool_calls,
        wall_time: seconds.map(Span::seconds),
    });
    prop_oneof![2 => Just(Budget::default()), 1 => some]
}

fn step() -> impl Strategy<Value = (u8, Step)> {
    let tool = prop_oneof![
        4 => Just("once"), 3 => Just("repeatable"), 2 => Just("pure"), 1 => Just("wait"), 1 => Just("child")
    ];
    let shape = (any::<u8>(), tool, any::<f64>(), option::weighted(0.2, (0_usize..4, 1_u32..3)));
    let condition = option::weighted(0.2, select(vec!["true", "false", "nothing.here"]));
    let retry = option::weighted(0.4, 1_u32..4);
    let on_denied = option::weighted(0.3, select(vec![OnDenied::Fail, OnDenied::Skip]));
    let on_error = prop_oneof![3 => Just(OnError::Fail), 1 => Just(OnError::Continue)];
    let words = (condition, retry, option::weighted(0.4, terms()), on_denied, on_error);
    (shape, words).prop_map(|((mask, tool, number, items), (condition, retry, approval, on_denied, on_error))| {
        let with = Map::from_iter([("number".to_owned(), json!(number)), ("text".to_owned(), json!("ü\n\"x\""))]);
        let step = Step {
            with,
            condition: condition.map(str::to_owned),
            for_each: items.map(|(items, _)| Value::from(vec![1; items])),
            concurrency: items.map(|(_, concurrency)| concurrency),
            retry: retry.map(|attempts| Retry { attempts, backoff: None, max_backoff: None, min_backoff: None }),
            approval,
            on_denied,
            on_error,
            ..Step::of("", tool)
        };
        (mask, step)
    })
}

fn terms() -> impl Strategy<Value = ApprovalTerms> {
    let expires = option::of((1_u64..5_000_000_000).prop_map(|micros| Span(std::time::Duration::from_micros(micros))));
    (expires, any::<bool>(), option::of(0.0..10.0)).prop_map(|(expires, self_approval, cost)| ApprovalTerms {
        expires,
        self_approval,
        cost,
        ..ApprovalTerms::default()
    })
}

fn scene() -> impl Strategy<Value = Scene> {
    let death = prop_oneof![
        8 => Just(None), 1 => Just(Some(Death::BeforeCommit)), 1 => Just(Some(Death::AfterCommit))
    ];
    let how = prop_oneof![
        4 => Just(Return::Done),
        2 => any::<bool>().prop_map(|retryable| Return::Failed { retryable }),
        1 => Just(Return::Asks),
        1 => Just(Return::Unknown),
    ];
    let decide = (any::<u8>(), 0_u8..4, any::<bool>(), prop::bool::weighted(0.2));
    let nonsense = (any::<u8>(), any::<u8>(), option::of(0_u8..4), 0_u8..4);
    prop_oneof![
        12 => (any::<u8>(), death, prop::bool::weighted(0.1), option::weighted(0.4, prop::bool::weighted(0.8)))
            .prop_map(|(worker, death, deaf, ahead)| Scene::Pass { worker, how: How { death, deaf, ahead } }),
        5 => any::<u8>().prop_map(|call| Scene::Act { call }),
        7 => (any::<u8>(), how).prop_map(|(call, how)| Scene::Return { call, how }),
        1 => any::<u8>().prop_map(|call| Scene::Report { call }),
        3 => Just(Scene::Crash),
        1 => Just(Scene::TakeOver),
        4 => prop_oneof![0_u32..3, 0_u32..100_000].prop_map(|seconds| Scene::Advance { seconds }),
        6 => decide.prop_map(|(hold, by, approve, instead)| Scene::Decide { hold, by, approve, instead }),
        2 => any::<u8>().prop_map(|hold| Scene::Expire { hold }),
        1 => Just(Scene::Cancel),
        2 => Just(Scene::Retry),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(child, completed)| Scene::EndChild { child, completed }),
        2 => nonsense.prop_map(|(command, step, item, attempt)| Scene::Nonsense { command, step, item, attempt }),
        1 => Just(Scene::Upgrade),
    ]
}
