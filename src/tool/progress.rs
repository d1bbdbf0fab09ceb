use tokio::sync::{mpsc, oneshot};

use crate::journal::{Estimate, Report, StepKey};

/// What a call says to the engine while it is at work.
#[derive(Debug)]
pub enum Said {
    /// For whoever watches.
    Report(Report),
    /// It will take more than it was expected to.
    WantsMore {
        /// How much in all.
        total: Estimate,
        /// Whether there is room for it.
        granted: oneshot::Sender<bool>,
    },
}

/// Which attempt of which step says what.
pub type Told = (StepKey, u32, Said);

/// The way a tool reports progress: bounded, so a fast tool waits for the journal.
#[derive(Clone, Debug)]
pub struct Progress {
    sender: mpsc::Sender<Told>,
    step: StepKey,
    attempt: u32,
}

impl Progress {
    /// For one attempt of one step; the engine listens at the other end.
    #[must_use]
    pub fn new(sender: mpsc::Sender<Told>, step: StepKey, attempt: u32) -> Self {
        Self { sender, step, attempt }
    }

    /// Reports; waits while the journal is behind. A report after the run ended is dropped.
    pub async fn report(&self, report: impl Into<Report>) {
        self.say(Said::Report(report.into())).await;
    }

    /// Asks whether the budget has room for so much in all, where it was expected to take less. Where there is none, the
    /// call is to fail: it is held, and made again once the budget was raised.
    pub async fn more(&self, total: Estimate) -> bool {
        let (granted, answer) = oneshot::channel();
        self.say(Said::WantsMore { total, granted }).await;
        answer.await.unwrap_or(true)
    }

    async fn say(&self, said: Said) {
        // The receiver is gone only when the run is, and then nobody wants to know.
        drop(self.sender.send((self.step.clone(), self.attempt, said)).await);
    }
}
