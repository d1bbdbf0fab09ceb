//! Watching a run: a live timeline on a terminal, one line per event on a pipe, raw events for a program.

use std::{fmt::Write as _, time::Duration};

use clap::Args;
use console::{Term, measure_text_width};
use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{
    api::Api,
    failure::{Failure, Result},
    follow::{News, Terms, follow},
    frame::{Screen, frame},
    line, output, text,
    timeline::{self, Outcome, Timeline, sequence},
};
use crate::kernel::{Clock, RunId};

/// How a run is watched.
#[derive(Debug, Args)]
pub(super) struct Watching {
    /// Print what the server sends: events one a line, or the run where it is not watched
    #[arg(long)]
    pub(super) json: bool,
    /// Give up (exit code 4) when the server stays away this long
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    patience: Duration,
}

/// Watches `run` to its end; a run that did not complete is a failure of its own kind.
pub(super) async fn watch(api: Api, run: RunId, watching: &Watching, after: u64) -> Result<()> {
    let mut view = View::new(watching.json);
    let mut news = follow(api, run, Terms { after, patience: watching.patience });
    let told = tokio::select! {
        told = tell(&mut news, &mut view) => told,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    };
    view.finish()?;
    match told {
        Err(Failure::Interrupted) => {
            output::hint(&format!("the run goes on; see it with `fermata run watch {run}`"));
            Err(Failure::Interrupted)
        }
        Err(failure) => Err(failure),
        Ok(()) => ending(view.timeline()),
    }
}

async fn tell(news: &mut mpsc::Receiver<Result<News>>, view: &mut View) -> Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            heard = news.recv() => match heard {
                Some(heard) => view.tell(heard?)?,
                None => return Ok(()),
            },
            _ = tick.tick() => view.tick()?,
        }
    }
}

fn ending(timeline: &Timeline) -> Result<()> {
    match timeline.end.as_ref().map(|end| &end.outcome) {
        Some(Outcome::Failed(_)) => Err(Failure::RunFailed),
        Some(Outcome::Cancelled { .. }) => Err(Failure::RunCancelled),
        Some(Outcome::Completed { .. }) | None => Ok(()),
    }
}

/// `evt_7`, for `--after`.
pub(super) fn event_id(text: &str) -> Result<u64, String> {
    sequence(text).ok_or_else(|| "an event id is written `evt_7`".to_owned())
}

/// Where the news goes.
struct View {
    timeline: Timeline,
    form: Form,
}

enum Form {
    Live(Painter),
    Lines,
    Json,
}

impl View {
    fn new(json: bool) -> Self {
        let term = Term::stdout();
        let form = match (json, term.is_term() && !console::is_dumb()) {
            (true, _) => Form::Json,
            (false, true) => Form::Live(Painter { term, painted: Vec::new(), notice: None }),
            (false, false) => Form::Lines,
        };
        Self { timeline: Timeline::default(), form }
    }

    fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    fn tell(&mut self, news: News) -> Result<()> {
        match news {
            News::Event(record) => {
                timeline::apply(&mut self.timeline, &record);
                match &self.form {
                    // Painted with the next tick: a burst is one picture.
                    Form::Live(_) => Ok(()),
                    Form::Lines => output::line(&line::line(&record)),
                    Form::Json => output::document(&record.raw),
                }
            }
            News::Gap { after, before, raw } => {
                if matches!(self.form, Form::Json) && !raw.is_empty() {
                    output::document(&raw)?;
                }
                self.notice(Some(format!("events {} to {} are no longer kept", after + 1, before - 1)));
                Ok(())
            }
            News::Lost { cause, pause } => {
                let again = text::duration(chrono::TimeDelta::from_std(pause).unwrap_or_default());
                self.notice(Some(format!("connection lost ({}); again in {again}", text::safe(&cause))));
                Ok(())
            }
            News::Back => {
                self.notice(None);
                Ok(())
            }
        }
    }

    /// Something about the watching, not the run: never on stdout, which belongs to the run.
    fn notice(&mut self, notice: Option<String>) {
        match &mut self.form {
            Form::Live(painter) => painter.notice = notice,
            Form::Lines | Form::Json => eprintln!("{}", notice.as_deref().unwrap_or("connected again")),
        }
    }

    fn tick(&mut self) -> Result<()> {
        match &mut self.form {
            Form::Live(painter) => painter.paint(&self.timeline),
            Form::Lines | Form::Json => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<()> {
        match &mut self.form {
            Form::Live(painter) => painter.leave(&self.timeline),
            Form::Lines | Form::Json => Ok(()),
        }
    }
}

/// Paints over what it painted before.
struct Painter {
    term: Term,
    painted: Vec<String>,
    notice: Option<String>,
}

/// A finished timeline may scroll, but not for ever.
const MOST_LINES: usize = 200;

impl Painter {
    fn paint(&mut self, timeline: &Timeline) -> Result<()> {
        let (height, width) = self.term.size();
        // A line that fills the last column leaves the cursor in doubt.
        self.show(
            timeline,
            Screen { width: usize::from(width).saturating_sub(1), height: usize::from(height).saturating_sub(2) },
        )
    }

    fn leave(&mut self, timeline: &Timeline) -> Result<()> {
        let (_, width) = self.term.size();
        self.show(timeline, Screen { width: usize::from(width).saturating_sub(1), height: MOST_LINES })
    }

    fn show(&mut self, timeline: &Timeline, screen: Screen) -> Result<()> {
        let mut lines = frame(timeline, Clock::system().now(), screen);
        lines.extend(self.notice.as_deref().map(|notice| {
            let notice = console::truncate_str(notice, screen.width, "…");
            console::style(notice).yellow().to_string()
        }));
        if lines != self.painted {
            self.term.write_str(&repaint(&self.painted, &lines, screen.width + 1))?;
            self.term.flush()?;
            self.painted = lines;
        }
        Ok(())
    }
}

/// The bytes that turn the old picture into the new one, in one write, without blanking the screen.
fn repaint(old: &[String], new: &[String], columns: usize) -> String {
    // Where the window has become narrower, an old line takes several rows.
    let rows: usize = old.iter().map(|line| measure_text_width(line).max(1).div_ceil(columns.max(1))).sum();
    let mut out = String::new();
    if rows > 0 {
        // Writing to a String does not fail.
        let _ = write!(out, "\r\u{1b}[{rows}A");
    }
    for line in new {
        let _ = writeln!(out, "{line}\u{1b}[K");
    }
    out.push_str("\u{1b}[J");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repaint_starts_where_the_last_picture_did() {
        let old = ["one".to_owned(), "a line of twenty one".to_owned()];
        assert!(repaint(&old, &[], 80).starts_with("\r\u{1b}[2A"));
        assert!(repaint(&old, &[], 10).starts_with("\r\u{1b}[3A"));
        assert_eq!(repaint(&[], &["new".to_owned()], 80), "new\u{1b}[K\n\u{1b}[J");
    }
}
