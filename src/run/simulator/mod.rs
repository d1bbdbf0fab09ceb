//! A crash simulator over the pure core: random plans, random histories of outcomes, decisions, timers,
//! crashes and take-overs, against a model of the outside world that counts acts. Every promise of the
//! design that needs no I/O is checked in every history, at every event.
//!
//! `PROPTEST_CASES=20000 cargo test --release simulator` looks harder; a failure is shrunk and printed.

mod auditor;
mod cases;
mod database;
mod forks;
mod history;
mod script;
mod worker;

use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

use history::History;
use script::script;

/// The same cases every time, unless more are asked for.
fn config() -> Config {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let rng_seed = if asked { RngSeed::Random } else { RngSeed::Fixed(2) };
    Config { rng_seed, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_history_keeps_every_promise(script in script()) {
        let mut history = History::begin(&script);
        for scene in &script.scenes {
            history.play(scene);
        }
        history.fork_everywhere(script.on_denied, script.scenes.len() * 7);
        history.play_out();
        history.fork_everywhere(script.on_denied, script.scenes.len() * 5);
    }
}
