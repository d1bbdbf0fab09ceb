use std::pin::Pin;

use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use serde_json::Value;

use super::within;

/// One event as a stream brought it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The `id:` line: `evt_7`, or a tenant's cursor.
    pub id: String,
    /// The `event:` line.
    pub name: String,
    /// The `data:` line, to the byte.
    pub raw: String,
    /// The same, read.
    pub data: Value,
}

/// An open stream, read by a stock client.
pub struct Follow {
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    /// All that has come so far.
    pub seen: Vec<Event>,
}

impl Follow {
    pub fn new(response: reqwest::Response) -> Self {
        let events = response.bytes_stream().eventsource();
        // A connection that breaks ends the stream, as the end of the run does.
        let events = events.take_while(|event| std::future::ready(event.is_ok())).filter_map(async |event| {
            let event = event.ok().filter(|event| !event.data.is_empty())?;
            let data = serde_json::from_str(&event.data).unwrap();
            Some(Event { id: event.id, name: event.event, raw: event.data, data })
        });
        Self { events: Box::pin(events), seen: Vec::new() }
    }

    /// The next event; none when the stream has ended.
    pub async fn next(&mut self) -> Option<Event> {
        let what = format!("another event after {:?}", self.names());
        let event = within(what, self.events.next()).await?;
        self.seen.push(event.clone());
        Some(event)
    }

    /// The next event, however long it takes; none when the stream has ended. Nothing is kept.
    pub async fn next_if_any(&mut self) -> Option<Event> {
        self.events.next().await
    }

    /// The first event, unless the stream breaks before.
    pub async fn into_first(mut self) -> Option<Event> {
        self.events.next().await
    }

    /// Reads on until an event of that name comes.
    pub async fn until(&mut self, name: &str) -> Event {
        loop {
            match self.next().await {
                Some(event) if event.name == name => return event,
                Some(_) => {}
                None => panic!("the stream ended without `{name}`: {:#?}", self.seen),
            }
        }
    }

    /// Reads on to the end; answers with all that ever came.
    pub async fn rest(mut self) -> Vec<Event> {
        while self.next().await.is_some() {}
        self.seen
    }

    /// The names of the events so far.
    pub fn names(&self) -> Vec<&str> {
        self.seen.iter().map(|event| event.name.as_str()).collect()
    }
}
