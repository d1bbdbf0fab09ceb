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

    /// Tells them, no more at once than are enough: some providers say a lot in one piece.
    async fn flush(&mut self, progress: &Progress) {
        let mut left = std::mem::take(&mut self.text);
        while !left.is_empty() {
            let rest = left.split_off(left.floor_char_boundary(ENOUGH));
            let text = std::mem::replace(&mut left, rest);
            let [said, thought] = &mut self.offsets;
            let offset = if self.reasoning { thought } else { said };
            let delta = MessageDelta { reply: self.reply, offset: *offset, reasoning: self.reasoning, text };
            *offset += delta.text.len() as u64;
            progress.report(delta).await;
        }
    }
}

/// Tells what happens while a model is asked: words in company, everything else at once. The step may be one that is
/// retried later.
pub(super) async fn tell(mut news: mpsc::Receiver<News>, progress: &Progress, is_retried: bool) {
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
            Some(News::Thoughts { reply, text }) => (reply, true, text),
            other => {
                spoken.flush(progress).await;
                due = None;
                match other {
                    Some(News::Wasted(given)) => progress.report(completed(&given, None, usize::MAX)).await,
                    Some(News::WantsMore { total, granted }) => {
                        // Whoever asked may have been called off.
                        let _ = granted.send(progress.more(total).await);
                    }
                    Some(News::WantsTime { granted }) => {
                        let _ = granted.send(!is_retried);
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
        News::Queued { of } => (format!("waiting until {of} can be asked"), json!({ "model": "queued", "of": of })),
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
        News::Wasted(_) | News::WantsMore { .. } | News::WantsTime { .. } => (String::new(), Value::Null),
    };
    ToolProgress { message: Some(message), fraction: None, data: Some(data) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{Report, StepKey},
        tool::Said,
    };

    /// What is told of these words, as offsets and texts.
    async fn told(words: Vec<(u32, String)>) -> Vec<(u32, u64, String)> {
        let (sender, mut heard) = mpsc::channel(64);
        let (teller, news) = mpsc::channel(64);
        for (reply, text) in words {
            teller.send(News::Words { reply, text }).await.unwrap();
        }
        drop(teller);
        tell(news, &Progress::new(sender, StepKey::whole("s"), 1), false).await;
        let mut told = vec![];
        while let Some((_, _, said)) = heard.recv().await {
            let Said::Report(Report::Delta(delta)) = said else { panic!("{said:?}") };
            told.push((delta.reply, delta.offset, delta.text));
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn words_are_told_in_company_and_never_more_than_are_enough_at_once() {
        let small = told(vec![(1, "a ".into()), (1, "b".into()), (2, "c".into())]).await;
        assert_eq!(small, [(1, 0, "a b".into()), (2, 0, "c".into())]);
        // Two bytes a letter, so that a kibibyte ends between two letters and not within one.
        let large = format!("x{}", "\u{e9}".repeat(2000));
        let told = told(vec![(1, large.clone())]).await;
        assert!(told.iter().all(|(_, _, text)| text.len() <= ENOUGH) && told.len() == 4, "{told:?}");
        assert_eq!(told.iter().map(|(_, _, text)| text.as_str()).collect::<String>(), large);
        let mut at = 0;
        for (_, offset, text) in &told {
            assert_eq!(*offset, at);
            at += text.len() as u64;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn words_wait_no_longer_than_is_said() {
        let (sender, mut heard) = mpsc::channel(64);
        let (teller, news) = mpsc::channel(64);
        let progress = Progress::new(sender, StepKey::whole("s"), 1);
        let telling = tokio::spawn(async move { tell(news, &progress, false).await });
        let begun = tokio::time::Instant::now();
        teller.send(News::Words { reply: 1, text: "one".into() }).await.unwrap();
        assert!(heard.recv().await.is_some());
        // The timer has a resolution of a millisecond.
        assert!(begun.elapsed() <= COALESCE + Duration::from_millis(1), "{:?}", begun.elapsed());
        drop(teller);
        telling.await.unwrap();
    }
}
