//! What tools give may hold orders, and a model may follow them. The gate holds all the same: cases as data, each an order
//! that comes by the way such orders come, and a model that obeys it.

mod acts;
mod cases;
mod doors;
mod leaks;
mod stage;

use std::collections::HashSet;

use futures_util::future::join_all;

use self::{
    cases::{CASES, Case},
    stage::Stage,
};
use crate::world::{APIS, Provider, World};

/// By what way an order reaches a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In what the model itself computed with.
    Transform,
    /// In the body that a declared HTTP tool gives.
    Http,
    /// In what an MCP tool says.
    McpText,
    /// In what it says went wrong.
    McpError,
    /// In the error of the protocol.
    McpRefusal,
    /// In what an MCP tool says of itself.
    McpTool,
    /// In the answer of an agent that was asked.
    Child,
}

/// What a model that obeys tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A tool that it was not given, by the name that plans have for it.
    NotGiven,
    /// The same, by the engine's own tools.
    Inside,
    /// The same, by an agent that may do more.
    OtherAgent,
    /// An act that needs consent.
    Act,
    /// Another method of the kind.
    Patch,
    /// An act, vouching itself for what a repetition would do.
    Vouch,
    /// An act, with consent among its arguments.
    Smuggle,
    /// A tool of an MCP server that nobody has vouched for.
    ActMcp,
    /// To have an agent act that it may ask.
    Deputy,
    /// To have secrets rendered into what it sends.
    Render,
    /// To send a secret on that it was told.
    Tell(Leak),
    /// To decide by itself, over the server's own API.
    Decide(Door),
    /// To act otherwise than was consented to, once it has been.
    Otherwise(Change),
    /// To act otherwise than is on record.
    Stored,
    /// To act otherwise than the approver says.
    Instead,
    /// To have one consent count for two calls.
    Digests,
}

/// Where a secret stands in what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leak {
    Body,
    Query,
    Header,
    /// In a deletion, which may be repeated, and so is held by a rule of the agent's.
    Deletion,
    /// In the address of a mere read, held likewise.
    Read,
}

/// How the server's own API is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Decision,
    Versioned,
    Step,
    NoSignature,
    OwnId,
    Claimed,
    Put,
    Get,
    Begin,
}

/// What is other than in the call that was consented to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Amount,
    Place,
    Header,
    Query,
    Nothing,
}

/// So many cases at once.
const AT_ONCE: usize = 8;

async fn holds(world: &World, case: &Case) {
    let what = format!("{:?} by {:?} at {}: {}", case.attempt, case.way, case.api, case.order);
    let stage = Stage::new(world, case).await;
    let allowed = acts::attempt(&stage, &what).await;
    stage.is_as_it_should_be(&allowed, &what).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_in_what_a_tool_gave_gets_past_the_gate() {
    let provider = Provider::start().await;
    let world = World::with(|settings| settings.llm.providers = provider.settings().collect()).await;
    for cases in CASES.chunks(AT_ONCE) {
        join_all(cases.iter().map(|case| holds(&world, case))).await;
    }
}

#[test]
fn there_are_cases_of_every_kind_and_no_two_are_the_same() {
    let orders: HashSet<_> = CASES.iter().map(|case| case.order).collect();
    assert!(orders.len() == CASES.len() && CASES.len() >= 50, "{} orders, {} cases", orders.len(), CASES.len());
    for (api, _) in APIS {
        assert!(CASES.iter().filter(|case| case.api == api).count() >= 12, "{api}");
    }
    let count = |is: fn(Attempt) -> bool| CASES.iter().filter(|case| is(case.attempt)).count();
    let forbidden = count(|it| matches!(it, Attempt::NotGiven | Attempt::Inside | Attempt::OtherAgent));
    let leaks = count(|it| matches!(it, Attempt::Render | Attempt::Tell(_)));
    let decided = count(|it| matches!(it, Attempt::Decide(_) | Attempt::Smuggle));
    let otherwise =
        count(|it| matches!(it, Attempt::Otherwise(_) | Attempt::Stored | Attempt::Instead | Attempt::Digests));
    let least = [forbidden, leaks, decided, otherwise].into_iter().min().unwrap();
    assert!(least >= 12, "{forbidden} forbidden, {leaks} leaks, {decided} decided, {otherwise} otherwise");
    let ways: HashSet<_> = CASES.iter().map(|case| format!("{:?}", case.way)).collect();
    assert_eq!(ways.len(), 7, "{ways:?}");
}
