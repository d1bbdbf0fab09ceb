//! What a turn hears while it waits: calls that ended, reports of those that go on, children that came to something.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    budget::Want,
    call::{End, Ended, LAST_WORD},
    turn::Turn,
};
use crate::{
    approval,
    journal::{Command, Draft, Form, Report, Stage, StepKey, Wait, planning_key},
    kernel::{ApprovalId, Result},
    tool::{Said, Told},
};

impl Turn {
    /// Waits for the next thing that matters, and takes in whatever else is there by then.
    pub(super) async fn wait(&mut self) {
        let shared = Arc::clone(&self.shared);
        // What is due already waits for something else: for a slot, most of the time.
        let wake_at = self.wake_at().filter(|at| *at > self.passed_at);
        let stopped = shared.stop.is_cancelled();
        let mut over = Vec::new();
        tokio::select! {
            Some(ended) = self.calls.join_next() => over.push(ended),
            Some(report) = self.reports.1.recv() => self.hear_report(report),
            () = self.news.arrived() => {}
            () = async { shared.clock.sleep_until(wake_at.unwrap_or_default()).await }, if wake_at.is_some() => {}
            slot = shared.slot(self.state.tenant_id), if self.starved && self.slot.is_none() => self.slot = slot,
            () = shared.stop.cancelled(), if !stopped => {}
            () = shared.abandon.cancelled() => self.abandon().await,
        }
        over.extend(std::iter::from_fn(|| self.calls.try_join_next()));
        self.hear_reports();
        for ended in over {
            match ended {
                Ok(ended) => self.hear(ended),
                // Called off by this turn, which knows.
                Err(fault) => tracing::debug!(%fault, run = %self.state.run_id, "a call was dropped"),
            }
        }
    }

    /// The grace is over: calls the calls off, so that those of models say what they took, and drops them. The next
    /// worker finds their intents in the journal.
    async fn abandon(&mut self) {
        self.in_flight.values().for_each(CancellationToken::cancel);
        let mut over = std::pin::pin!(tokio::time::sleep(LAST_WORD));
        loop {
            tokio::select! {
                ended = self.calls.join_next() => match ended {
                    // That they were called off is no outcome.
                    Some(Ok(Ended { end: End::Failed(_), .. }) | Err(_)) => {}
                    Some(Ok(ended)) => self.hear(ended),
                    None => break,
                },
                Some(report) = self.reports.1.recv() => self.hear_report(report),
                () = &mut over => break,
            }
        }
        self.calls.shutdown().await;
        self.in_flight.clear();
        self.hear_reports();
        std::mem::take(&mut self.last_words).into_iter().for_each(|told| self.note(told));
    }

    /// Whatever a call reported was sent before it ended, and is heard before its end.
    pub(super) fn hear_reports(&mut self) {
        while let Ok(report) = self.reports.1.try_recv() {
            self.hear_report(report);
        }
    }

    /// That a model has said all is journaled with what follows from it: what was answered is not asked for again.
    fn hear_report(&mut self, (step, attempt, said): Told) {
        match said {
            Said::Report(report @ Report::Message(_)) => self.last_words.push((step, attempt, report)),
            Said::Report(report) => self.note((step, attempt, report)),
            Said::WantsMore { total, granted } => self.wants.push(Want { step, attempt, total, granted }),
        }
    }

    fn note(&mut self, (step, attempt, report): (StepKey, u32, Report)) {
        self.heard.push(if self.is_planning(&step) {
            Command::Draft(Draft::Told(report))
        } else {
            Command::Report { step, attempt, report }
        });
    }

    /// Whether a call of that key makes the plan; once there is one, it is a step's.
    fn is_planning(&self, step: &StepKey) -> bool {
        self.state.plan.is_none() && *step == planning_key()
    }

    pub(super) fn hear(&mut self, ended: Ended) {
        let (last, others): (Vec<_>, _) =
            std::mem::take(&mut self.last_words).into_iter().partition(|(step, ..)| *step == ended.step);
        self.last_words = others;
        last.into_iter().for_each(|told| self.note(told));
        if !matches!(ended.end, End::Failed(_)) {
            self.short.remove(&ended.step);
        }
        if self.is_planning(&ended.step) {
            self.in_flight.remove(&ended.step);
            let drafted = self.drafted(&ended);
            return self.heard.extend(drafted);
        }
        let Ended { step, attempt, end } = ended;
        let tool = self.state.step(&step).map(|step| step.uses.clone()).unwrap_or_default();
        // There are as many names of tenants' tools as they like.
        let tool = if self.shared.tools.server().has(&tool) { tool } else { "tenant".to_owned() };
        metrics::counter!("fermata_steps_total", "tool" => tool, "outcome" => end.word()).increment(1);
        self.in_flight.remove(&step);
        let jitter = rand::random();
        let command = match end {
            End::Done { output, cost } => Command::Complete { step, attempt, output, cost },
            End::Wait(wait) => {
                self.look |= matches!(wait, Wait::Child { .. });
                Command::Wait { step, attempt, wait }
            }
            End::Ask(form) => match self.asks(step, attempt, form) {
                Some(command) => command,
                None => return,
            },
            End::Failed(error) => match self.lacking(&step) {
                Some(command) => command,
                None => Command::Fail { step, attempt, error, jitter },
            },
            // Left as it is in the journal: a call without an outcome, which the scheduler knows how to treat.
            End::Unknown => return,
        };
        self.heard.push(command);
    }

    /// The question whether somebody fills in a form, about exactly the call that came back.
    fn asks(&self, step: StepKey, attempt: u32, form: Form) -> Option<Command> {
        let Some(Stage::Running { tool_version, arguments, .. }) = self.state.stage(&step) else { return None };
        let tool = (self.state.step(&step)?.uses.as_str(), tool_version.as_str());
        let digest = approval::digest(&self.state, &step, attempt, tool, arguments).ok()?;
        Some(Command::Ask { step, attempt, approval_id: ApprovalId::new(self.shared.clock.now()), digest, form })
    }

    /// What became of the children that steps wait for: one may have ended before the wait was known here.
    pub(super) async fn hear_children(&mut self) -> Result<Vec<Command>> {
        let ended = self.shared.children.ended(&self.state).await?;
        self.heard.extend(ended.clone());
        self.look = false;
        Ok(ended)
    }
}
