use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::completed;
use crate::{
    journal::{MessageDelta, ToolProgress},
    kernel::wire_time,
    llm::{News, Turned},
    tool::Progress,
};

/// Words wait for company at most this long, or until there are so many bytes of them.
const COALESCE: Duration = Duration::from_millis(50);
const ENOUGH: usize = 1024;

/// Words that have not been told.
#[derive(Default)]
struct Spoken {
    reply: u32,
    reasoning: bool,
    text: String,
    /// Where they begin, in what is said and in what is thought.
    offsets: [u64; 2],
}

impl Spoken {
    /// Whether these words can go with those that wait.
    fn goes_with(&self, reply: u32, reasoning: bool) -> bool {
        self.text.is_empty() || (self.reply, self.reasoning) == (reply, reasoning)
    }

    fn add(&mut self, reply: u32, reasoning: bool, text: &str) {
        if self.reply != reply {
            self.offsets = [0; 2];
        }
        (self.reply, self.reasoning) = (reply, reasoning);
        self.text.push_str(text);
    }

    async fn flush(&mut self, progress: &Progress) {
        if self.text.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.text);
        let [said, thought] = &mut self.offsets;
        let offset = if self.reasoning { thought } else { said };
        let delta = MessageDelta { reply: self.reply, offset: *offset, reasoning: self.reasoning, text };
        *offset += delta.text.len() as u64;
        progress.report(delta).await;
    }
}

/// Tells what happens while a model is asked: words in company, everything else at once.
pub(super) async fn tell(mut news: mpsc::Receiver<News>, progress: &Progress, reasoning: bool) {
    let mut spoken = Spoken::default();
    let mut due = None;
    loop {
        let next = match due {
            Some(at) => match tokio::time::timeout_at(at, news.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    spoken.flush(progress).await;
                    due = None;
                    continue;
                }
            },
            None => news.recv().await,
        };
        let (reply, thought, text) = match next {
            Some(News::Words { reply, text }) => (reply, false, text),
            Some(News::Thoughts { reply, text }) if reasoning => (reply, true, text),
            Some(News::Thoughts { .. }) => continue,
            other => {
                spoken.flush(progress).await;
                due = None;
                match other {
                    Some(News::Wasted(given)) => progress.report(completed(&given, None)).await,
                    Some(News::WantsMore { total, granted }) => {
                        // Whoever asked may have been called off.
                        let _ = granted.send(progress.more(total).await);
                    }
                    Some(other) => progress.report(trouble(other)).await,
                    None => return,
                }
                continue;
            }
        };
        if !spoken.goes_with(reply, thought) {
            spoken.flush(progress).await;
        }
        spoken.add(reply, thought, &text);
        if spoken.text.len() >= ENOUGH {
            spoken.flush(progress).await;
            due = None;
        } else {
            due = due.or_else(|| Some(tokio::time::Instant::now() + COALESCE));
        }
    }
}

/// What went wrong on the way, for whoever watches.
fn trouble(news: News) -> ToolProgress {
    let (message, data) = match news {
        News::Retrying { because, at } => {
            let at = wire_time::format(&at);
            (format!("asking again: {because}"), json!({ "model": "retrying", "because": because, "at": at }))
        }
        News::AskedAgain { because } => {
            (format!("asking for another answer: {because}"), json!({ "model": "asked_again", "because": because }))
        }
        News::FellBack { because, to } => {
            (format!("asking {to} instead: {because}"), json!({ "model": "fell_back", "because": because, "to": to }))
        }
        News::Queued { of } => {
            (format!("waiting for a share of the key of {of}"), json!({ "model": "queued", "of": of }))
        }
        News::Circuit { of, turned } => {
            let until = match turned {
                Turned::Open { until } => Some(wire_time::format(&until)),
                Turned::HalfOpen | Turned::Closed => None,
            };
            let name = turned.name();
            (
                format!("the circuit breaker of {of} is {name}"),
                json!({ "model": "circuit", "of": of, "circuit": name, "until": until }),
            )
        }
        News::Words { text, .. } | News::Thoughts { text, .. } => (text, Value::Null),
        News::Wasted(_) | News::WantsMore { .. } => (String::new(), Value::Null),
    };
    ToolProgress { message: Some(message), fraction: None, data: Some(data) }
}
