//! A caller who goes on asking until there is an answer, as a good client does.

use std::{sync::Arc, time::Duration};

use futures_util::future::select_all;
use reqwest::Method;
use tokio::sync::watch;

use super::site::Server;
use crate::world::{Answer, Client, Event, Request};

/// Somebody who calls whichever server is there.
#[derive(Clone)]
pub struct Patient {
    clients: Arc<Vec<(Client, watch::Receiver<bool>)>>,
}

impl Patient {
    /// The same caller at each of the servers.
    pub fn new(client: &Client, servers: &[&Server]) -> Self {
        let clients = servers.iter().map(|server| (client.at(&server.url()), server.is_up()));
        Self { clients: Arc::new(clients.collect()) }
    }

    /// At a server that is up, any of them.
    pub async fn client(&self) -> &Client {
        let skip = rand::random_range(0..self.clients.len());
        let turned = self.clients.iter().skip(skip).chain(self.clients.iter().take(skip));
        let ups = turned.map(|(client, up)| {
            let mut up = up.clone();
            Box::pin(async move {
                // The sender is gone when the test is.
                let _ = up.wait_for(|up| *up).await;
                client
            })
        });
        select_all(ups).await.0
    }

    /// The answer, however often it takes to get one. What was asked must bear asking twice.
    pub async fn ask(&self, ask: impl Fn(&Client) -> Request) -> Answer {
        loop {
            match ask(self.client().await).attempt().await {
                Some(answer) if !is_passing(&answer) => return answer,
                // The way clients are told to do it.
                Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// What is there.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(|client| client.request(Method::GET, path)).await
    }

    /// The stream at `path`, taken up after `last` as often as it breaks, until `enough` says so at an event. Answers
    /// with all that came.
    pub async fn follow(&self, path: &str, last: Option<String>, mut enough: impl FnMut(&Event) -> bool) -> Vec<Event> {
        let (mut seen, mut last) = (Vec::new(), last);
        loop {
            let mut request = self.client().await.request(Method::GET, path);
            if let Some(last) = &last {
                request = request.header("last-event-id", last);
            }
            let Some(mut follow) = request.reach().await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            while let Some(event) = follow.next_if_any().await {
                last = Some(event.id.clone());
                let over = enough(&event);
                seen.push(event);
                if over {
                    return seen;
                }
            }
        }
    }
}

/// The database is away, or the first request with this key is still at work.
fn is_passing(answer: &Answer) -> bool {
    assert_ne!(answer.status, 500, "{}: {}", answer.to, answer.text());
    answer.status == 503 || (answer.status == 409 && answer.json()["type"] == "/docs/problems/idempotency-in-flight")
}
