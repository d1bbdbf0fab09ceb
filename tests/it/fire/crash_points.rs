//! Death at every commit and every outbound call.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    audit,
    load::Load,
    scale,
    site::{Server, Site},
    spread,
};
use crate::world::Upstream;

/// How long a life may last that has not come to its crash point; then it is told to stop, which passes the rest.
const LIFE: Duration = Duration::from_secs(8);

/// Every point that a life under load passes, with how often.
async fn all_points(site: &Site, server: &mut Server, load: &Load) -> BTreeMap<String, usize> {
    let list = site.file("points");
    assert!(server.start_with(Some(&format!("list:{}", list.display()))).await);
    let begun = load.begun();
    tokio::time::sleep(LIFE).await;
    assert!(load.begun() > begun + 20, "hardly any load");
    server.stop().await;
    let mut points = BTreeMap::new();
    for name in std::fs::read_to_string(list).unwrap().lines() {
        *points.entry(name.to_owned()).or_default() += 1;
    }
    points
}

#[tokio::test]
#[cfg_attr(not(debug_assertions), ignore = "a release build has no crash points")]
async fn a_server_killed_at_any_point_loses_nothing_and_goes_on_at_once() {
    let (site, sink) = (Site::new().await, Upstream::start().await);
    let mut server = site.server("all");
    let load = Load::begin(&site, &[&server], &sink, 12);
    let company = tokio::spawn(site.company());
    let points = all_points(&site, &mut server, &load).await;
    assert!(points.len() >= 40, "{} points: {points:#?}", points.len());
    let (mut resumed, mut starts, mut missed, mut kills) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..scale(25, 1) {
        for (name, passings) in &points {
            let latest = (passings / 8).clamp(1, 16);
            let order = format!("{name}#{}", rand::random_range(1..=latest));
            let after = site.transaction().await;
            let begun = Instant::now();
            let serving = server.start_with(Some(&order)).await;
            let served = Instant::now();
            let news = tokio::spawn(site.first_event(after));
            let ended = match tokio::time::timeout(LIFE, server.ended()).await {
                Ok(ended) => ended,
                Err(_) => {
                    server.signal(Signal::TERM);
                    server.ended().await
                }
            };
            if ended.signal() == Some(9) {
                kills += 1
            } else {
                missed.push(order)
            }
            if serving {
                starts.push(served - begun);
                if news.is_finished() {
                    resumed.push(news.await.unwrap().saturating_duration_since(served));
                    continue;
                }
            }
            news.abort();
        }
    }
    company.abort();
    server.start().await;
    let facts = load.finish().await;
    let found = audit::all_is_well(&site, &sink, &facts).await;
    // What a life passes once in a blue moon, this life may not have passed.
    let unreached = missed.iter().filter(|order| points[order.rsplit_once('#').unwrap().0] >= 10).collect::<Vec<_>>();
    assert!(unreached.is_empty() && missed.len() * 10 < kills, "{kills} kills, not reached: {missed:#?}");
    let latest = resumed.iter().max().copied().unwrap();
    assert!(latest < Duration::from_secs(10), "the work went on after {latest:?}");
    println!("crash points: {} points, {kills} kills, {} orders not come to; {found}", points.len(), missed.len());
    println!("crash points: ready after {}; work resumed after {}", spread(starts), spread(resumed));
}
