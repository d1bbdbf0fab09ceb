//! API and worker in processes of their own, two of each, killed in turn.

use super::{audit, load::Load, scale, site::Site};
use crate::world::{Upstream, within};

#[tokio::test]
async fn replicas_killed_in_turn_lose_nothing_and_streams_move_between_them() {
    let rounds = scale(100, 4);
    let (site, sink) = (Site::new().await, Upstream::start().await);
    let mut servers = [site.server("api"), site.server("worker"), site.server("api"), site.server("worker")];
    for server in &mut servers {
        server.start().await;
    }
    let load = Load::begin(&site, &[&servers[0], &servers[2]], &sink, 24);
    for _ in 0..rounds {
        for server in &mut servers {
            // Work and streams go on without it meanwhile.
            let begun = load.begun();
            server.kill().await;
            within("work without it", load.has_begun(begun + 5)).await;
            server.start().await;
        }
    }
    let facts = load.finish().await;
    let found = audit::all_is_well(&site, &sink, &facts).await;
    println!("replicas: {rounds} kills of each of two APIs and two workers; {found}");
}
