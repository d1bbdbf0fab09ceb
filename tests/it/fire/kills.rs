//! Death of the server, and absence of its PostgreSQL, at any moment.

use std::time::{Duration, Instant};

use rand::seq::SliceRandom;

use super::{
    audit,
    load::Load,
    scale,
    site::{Server, Site},
    spread,
};
use crate::world::{Upstream, within};

#[derive(Clone, Copy, Debug)]
enum Blow {
    Kill,
    /// PostgreSQL is stopped: at once, or in good order.
    Cut {
        at_once: bool,
    },
}

/// Strikes; answers with how long the work took to go on once everything was there again.
async fn strike(site: &mut Site, server: &mut Server, blow: Blow) -> Duration {
    match blow {
        Blow::Kill => {
            server.kill().await;
            let after = site.transaction().await;
            server.start().await;
            resumed(site, after).await
        }
        Blow::Cut { at_once } => {
            site.stop_postgres(at_once).await;
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..scale(5000, 1500)))).await;
            site.start_postgres().await;
            let after = site.transaction().await;
            resumed(site, after).await
        }
    }
}

async fn resumed(site: &Site, after: i64) -> Duration {
    let ready = Instant::now();
    within("work that goes on", site.first_event(after)).await.saturating_duration_since(ready)
}

#[tokio::test]
async fn kills_and_a_lost_postgres_at_any_moment_lose_nothing() {
    let (kills, cuts, runs): (usize, usize, usize) = scale((200, 100, 5000), (6, 4, 300));
    let (mut site, sink) = (Site::new().await, Upstream::start().await);
    let mut server = site.server("all");
    server.start().await;
    let load = Load::begin(&site, &[&server], &sink, 24);
    let cuts = (0..cuts).map(|number| Blow::Cut { at_once: number % 2 == 0 });
    let mut blows: Vec<_> = std::iter::repeat_n(Blow::Kill, kills).chain(cuts).collect();
    blows.shuffle(&mut rand::rng());
    let (mut after_kills, mut after_cuts) = (Vec::new(), Vec::new());
    for (blow, number) in blows.iter().zip(1..) {
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..1500))).await;
        within("the load", load.has_begun((number * runs).div_ceil(blows.len()))).await;
        let resumed = strike(&mut site, &mut server, *blow).await;
        match blow {
            Blow::Kill => after_kills.push(resumed),
            Blow::Cut { .. } => after_cuts.push(resumed),
        }
    }
    let facts = load.finish().await;
    let found = audit::all_is_well(&site, &sink, &facts).await;
    let latest = after_kills.iter().chain(&after_cuts).max().copied().unwrap();
    assert!(latest < Duration::from_secs(10), "the work went on after {latest:?}");
    println!("kills: {kills} kills of the server, {} stops of PostgreSQL; {found}", after_cuts.len());
    println!("kills: work resumed after a kill in {}; after a stop in {}", spread(after_kills), spread(after_cuts));
}
