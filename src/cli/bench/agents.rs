//! W5, the agents: runs of a model that speaks, all at once, each held in the middle.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    course::{Course, Terms},
    figures::{Spread, Tally, Times},
    frames::Event,
    model::{Model, TOOL},
    report::{self, Report},
    vitals::{self, Meter},
    wire::Wire,
};
use crate::cli::client::failure::{Failure, Result};

/// What the agent and its model configuration are called.
const NAME: &str = "fermata-bench-w5";

/// Runs that are started at once: the model waits for all of them.
const BEGINNING: usize = 64;

/// How much longer than it speaks a model may take until all of it is heard by everybody.
const PATIENCE: Duration = Duration::from_secs(120);

/// `bench w5`
#[derive(Debug, Args)]
pub struct Agents {
    /// Runs at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=5000))]
    clients: u16,
    /// Words of each of the two answers
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    words: u32,
    /// Words a second of each model
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// How long all of them are held
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=600))]
    seconds: u64,
    #[command(flatten)]
    terms: Terms,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    /// By all models together.
    asked_words_per_second: f64,
    /// From the first words that anybody had of an answer to the last.
    heard_words_per_second: f64,
    deltas_per_second: f64,
    /// From the first words of an answer to its last; a model takes `spanMs` to speak them.
    answer_ms: Spread,
    span_ms: f64,
    /// Answers whose words are not exactly what the model said.
    wrong: u64,
    /// Events, over all runs.
    lost: u64,
    repeated: u64,
    memory: Option<Memory>,
}

/// What the server's process has, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    before: u64,
    /// The most while all models spoke, with a subscriber to each run.
    speaking: u64,
    /// With every run held, and no subscribers.
    held: u64,
    per_run_speaking: f64,
    per_run_held: f64,
}

/// What was heard of one answer.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    deltas: u64,
    /// A delta did not begin where the one before ended, or was of another reply.
    gap: bool,
    span: Option<(Instant, Instant)>,
}

/// A run and what came of it.
struct Talk {
    course: Course,
    goal: String,
    wire: Wire,
    run_id: String,
    tally: Tally,
    /// The approval it waits for.
    held: Option<String>,
    completed: bool,
    heard: [Heard; 2],
}

#[derive(Deserialize)]
struct Delta {
    #[serde(rename = "stepId")]
    step: String,
    payload: Words,
}

#[derive(Deserialize)]
struct Words {
    reply: u32,
    offset: usize,
    text: String,
}

impl Talk {
    async fn begin(course: Course, number: u16) -> Result<Self> {
        let goal = format!("talk-{number}");
        let body = json!({ "agent": NAME, "goal": goal }).to_string();
        let run = course.ask("POST /agent/execute", body.as_bytes()).await?;
        let run_id = run.get("runId").and_then(|id| id.as_str()).unwrap_or_default().to_owned();
        let (wire, tally) = (Wire::new(&course.site), Tally::default());
        Ok(Self { course, goal, wire, run_id, tally, held: None, completed: false, heard: Default::default() })
    }

    /// Reads on until the run is held or at its end.
    async fn listen(&mut self) -> Result<()> {
        let request = self.course.events(&self.run_id, self.tally.last);
        let Some(mut stream) = self.wire.open(&request).await? else { return Ok(()) };
        self.held = None;
        while self.held.is_none() {
            let Self { wire, tally, held, completed, heard, .. } = self;
            let more = wire.read(&mut stream, |event| {
                // What comes after the hold is read another time.
                if held.is_some() {
                    return;
                }
                tally.see(event.number);
                match event.name {
                    b"message.delta" => hear(heard, event),
                    b"awaiting_approval" => *held = event.text("approvalId").map(str::to_owned),
                    b"completed" => *completed = true,
                    _ => {}
                }
            });
            if !more.await? {
                break;
            }
        }
        self.wire.cut();
        Ok(())
    }

    async fn approve(&mut self) -> Result<()> {
        let Some(approval) = self.held.take() else { return Ok(()) };
        let path = format!("POST /approvals/{approval}/decision");
        self.wire.call(&self.course.decision(&path, br#"{"status":"approved"}"#)).await.map(drop)
    }

    /// Both answers, with a hold between them; `reached` hears of it, and `go` ends it.
    async fn whole(mut self, reached: mpsc::Sender<()>, mut go: watch::Receiver<bool>) -> Result<Self> {
        self.listen().await?;
        drop(reached);
        // Whoever holds the other end lets all go, or nobody waits any more.
        drop(go.wait_for(|go| *go).await);
        self.approve().await?;
        self.listen().await?;
        Ok(self)
    }
}

/// Takes in words of an answer.
fn hear(heard: &mut [Heard; 2], event: Event<'_>) {
    let Ok(Delta { step, payload }) = serde_json::from_slice::<Delta>(event.data) else { return };
    let [first, second] = heard;
    let answer = if step == "turn-1" { first } else { second };
    answer.gap |= payload.reply != 1 || payload.offset != answer.text.len();
    answer.text.push_str(&payload.text);
    answer.deltas += 1;
    let now = Instant::now();
    answer.span.get_or_insert((now, now)).1 = now;
}

impl Agents {
    pub(super) async fn run(self) -> Result<()> {
        let course = self.terms.course().await?;
        vitals::allow_files(u64::from(self.clients) * 3 + 100)?;
        let model = Model { words: self.words, rate: self.rate, crowd: self.clients };
        self.put(&course, &model.serve().await?).await?;
        let before = course.resident();
        let (peak, meter) = (course.watch_memory(), Meter::start(course.server));
        let (reached, mut waiting) = mpsc::channel(1);
        let (go, went) = watch::channel(false);
        let beginning = (0..self.clients).map(|number| Talk::begin(course.clone(), number));
        let begun: Vec<_> = stream::iter(beginning).buffer_unordered(BEGINNING).try_collect().await?;
        let mut crowd = JoinSet::new();
        begun.into_iter().for_each(|talk| drop(crowd.spawn(talk.whole(reached.clone(), went.clone()))));
        drop(reached);
        let late = |_| {
            Failure::Unreadable(
                "not every run was heard in time: has the server room for all (`llm.concurrency`, `worker.runs`, \
                 `worker.steps`, and both per tenant)?"
                    .to_owned(),
            )
        };
        let patience = model.span() + PATIENCE;
        let all_held = async {
            tokio::select! {
                _ = waiting.recv() => Ok(()),
                // Nobody is through before all are let go.
                Some(ended) = crowd.join_next() => ended.map_err(|e| Failure::Unreadable(e.to_string()))?.map(drop),
            }
        };
        timeout(patience, all_held).await.map_err(late)??;
        let speaking = peak.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        let held = course.resident();
        go.send_replace(true);
        let talks = timeout(patience, crowd.join_all()).await.map_err(late)?;
        let cost = meter.read();
        let talks = talks.into_iter().collect::<Result<Vec<_>>>()?;
        let memory = Option::zip(before, held).map(|(before, held)| {
            let each = |bytes: u64| (bytes.saturating_sub(before) as f64 / f64::from(self.clients)).round();
            Memory { before, speaking, held, per_run_speaking: each(speaking), per_run_held: each(held) }
        });
        let figures = Figures { memory, ..self.figures(talks, model) };
        Report::new("w5", self.clients, self.seconds, figures, cost).print(self.terms.json)
    }

    /// The agent, and the configuration that has it ask the bench's own model.
    async fn put(&self, course: &Course, url: &str) -> Result<()> {
        let config = json!({ "provider": "openai", "model": "bench", "endpoint": url, "timeout": "10m" });
        course.put(&format!("/llm/configs/{NAME}"), &config).await?;
        let rule = json!({ "tools": [TOOL], "terms": { "selfApproval": true } });
        let agent = json!({ "instructions": "Speak.", "config": NAME, "tools": [TOOL], "approval": [rule] });
        course.put(&format!("/agents/{NAME}"), &agent).await
    }

    fn figures(&self, talks: Vec<Talk>, model: Model) -> Figures {
        let (mut times, mut wrong, mut deltas, mut words) = (Times::default(), 0, 0, 0);
        let mut took = 0.0;
        for turn in 0..2 {
            let spans: Vec<_> = talks.iter().filter_map(|talk| talk.heard.get(turn)?.span).collect();
            let ends = Option::zip(spans.iter().map(|span| span.0).min(), spans.iter().map(|span| span.1).max());
            took += ends.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
            spans.iter().for_each(|(first, last)| times.add(*last - *first));
        }
        let mut tally = Tally::default();
        for talk in talks {
            for (heard, turn) in talk.heard.iter().zip(1..) {
                wrong += u64::from(heard.gap || !talk.completed || heard.text != model.text(&talk.goal, turn));
                deltas += heard.deltas;
                words += u64::from(self.words);
            }
            tally.lost += talk.tally.lost;
            tally.repeated += talk.tally.repeated;
        }
        let per_second = |count: u64| report::tenths(if took > 0.0 { count as f64 / took } else { 0.0 });
        Figures {
            asked_words_per_second: f64::from(self.rate) * f64::from(self.clients),
            heard_words_per_second: per_second(words),
            deltas_per_second: per_second(deltas),
            answer_ms: times.spread(),
            span_ms: model.span().as_secs_f64() * 1000.0,
            wrong,
            lost: tally.lost,
            repeated: tally.repeated,
            memory: None,
        }
    }
}

impl report::Rows for Figures {
    fn rows(&self) -> Vec<report::Row> {
        let mut rows = vec![
            report::row("words spoken", report::rate(self.asked_words_per_second)),
            report::row("words heard", report::rate(self.heard_words_per_second)),
            report::row("deltas", report::rate(self.deltas_per_second)),
            report::row("one answer", format!("{}, spoken in {:.0} ms", report::spread(&self.answer_ms), self.span_ms)),
            report::row("answers that are wrong", self.wrong.to_string()),
            report::row("events lost, repeated", format!("{}, {}", self.lost, self.repeated)),
        ];
        if let Some(memory) = &self.memory {
            let (speaking, held) = (memory.per_run_speaking / 1024.0, memory.per_run_held / 1024.0);
            rows.push(report::row("memory of a run", format!("{speaking:.1} KiB spoken to, {held:.1} KiB held")));
            rows.push(report::row("memory before", format!("{:.1} MiB", memory.before as f64 / 1_048_576.0)));
        }
        rows
    }

    fn rates(&self) -> Vec<(&'static str, f64)> {
        vec![("deltasPerSecond", self.deltas_per_second)]
    }
}
