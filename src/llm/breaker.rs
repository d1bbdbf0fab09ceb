//! The circuit breaker: a model that fails again and again is left alone for a while. One for each provider and model,
//! in this process.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use chrono::TimeDelta;
use tokio::sync::Notify;

use crate::{config::CircuitBreakerSettings, kernel::Timestamp};

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Circuit {
    /// Calls go through; so many in a row failed.
    Closed { failures: u32 },
    /// None do before then.
    Open { until: Timestamp },
    /// One at a time does, to see; so many in a row were answered.
    HalfOpen { successes: u32, probing: bool },
}

impl Circuit {
    /// Whether a call may be made at `now`, and where the breaker stands then; else when to ask again.
    pub(super) fn admit(self, now: Timestamp) -> Result<Self, Option<Timestamp>> {
        match self {
            Self::Closed { .. } => Ok(self),
            Self::Open { until } if now < until => Err(Some(until)),
            Self::Open { .. } => Ok(Self::HalfOpen { successes: 0, probing: true }),
            Self::HalfOpen { probing: true, .. } => Err(None),
            Self::HalfOpen { successes, .. } => Ok(Self::HalfOpen { successes, probing: true }),
        }
    }

    /// Where it stands after a call: whether it was answered, or nothing is known of the provider by it.
    pub(super) fn after(self, answered: Option<bool>, settings: &CircuitBreakerSettings, now: Timestamp) -> Self {
        let opened = || {
            #[expect(clippy::cast_possible_truncation, reason = "a day of milliseconds at most")]
            let rest = TimeDelta::milliseconds((settings.timeout_seconds * 1000.0) as i64);
            Self::Open { until: now + rest }
        };
        match (self, answered) {
            (Self::Closed { .. }, Some(true)) => Self::Closed { failures: 0 },
            (Self::Closed { failures }, Some(false)) if failures + 1 >= settings.failure_threshold => opened(),
            (Self::Closed { failures }, Some(false)) => Self::Closed { failures: failures + 1 },
            (Self::HalfOpen { .. }, Some(false)) => opened(),
            (Self::HalfOpen { successes, .. }, Some(true)) if successes + 1 >= settings.success_threshold => {
                Self::Closed { failures: 0 }
            }
            (Self::HalfOpen { successes, .. }, Some(true)) => {
                Self::HalfOpen { successes: successes + 1, probing: false }
            }
            (Self::HalfOpen { successes, .. }, None) => Self::HalfOpen { successes, probing: false },
            // What was under way when it opened says nothing new.
            (Self::Open { .. }, _) | (Self::Closed { .. }, None) => self,
        }
    }

    fn turned_from(self, before: Self) -> Option<Turned> {
        match (before, self) {
            (Self::Closed { .. }, Self::Closed { .. })
            | (Self::Open { .. }, Self::Open { .. })
            | (Self::HalfOpen { .. }, Self::HalfOpen { .. }) => None,
            (_, Self::Open { until }) => Some(Turned::Open { until }),
            (_, Self::HalfOpen { .. }) => Some(Turned::HalfOpen),
            (_, Self::Closed { .. }) => Some(Turned::Closed),
        }
    }

    fn level(self) -> f64 {
        match self {
            Self::Closed { .. } => 0.0,
            Self::HalfOpen { .. } => 1.0,
            Self::Open { .. } => 2.0,
        }
    }
}

/// What a breaker is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) key_id: String,
    pub(super) url: String,
    pub(super) model: String,
    /// The provider and the model as metrics name them: many lines may have the same.
    pub(super) shown: (String, String),
}

/// What became of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// The model is left alone until then.
    Open {
        /// When one call tries it again.
        until: Timestamp,
    },
    /// One call tries it.
    HalfOpen,
    /// It is called as before.
    Closed,
}

impl Turned {
    /// A stable word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::HalfOpen => "half_open",
            Self::Closed => "closed",
        }
    }
}

/// The breakers of this process.
#[derive(Clone, Debug)]
pub(super) struct Breakers {
    settings: CircuitBreakerSettings,
    lines: Arc<Mutex<HashMap<Line, Circuit>>>,
    /// Told whenever a call that tried a model has settled.
    settled: Arc<Notify>,
}

/// Lines that are remembered at once; sound ones are forgotten first.
const REMEMBERED: usize = 4096;

impl Breakers {
    pub(super) fn new(settings: CircuitBreakerSettings) -> Self {
        Self { settings, lines: Arc::default(), settled: Arc::default() }
    }

    /// The way to make one call; what became of it is to be said.
    pub(super) fn admit(&self, line: &Line, now: Timestamp) -> Result<Passage, Option<Timestamp>> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let before = lines.get(line).copied().unwrap_or(Circuit::Closed { failures: 0 });
        let circuit = before.admit(now)?;
        if lines.len() >= REMEMBERED {
            lines.retain(|_, circuit| *circuit != Circuit::Closed { failures: 0 });
        }
        let is_new = lines.insert(line.clone(), circuit).is_none();
        let turned = circuit.turned_from(before);
        if is_new || turned.is_some() {
            report(&lines, line, turned);
        }
        Ok(Passage { breakers: self.clone(), line: line.clone(), turned, settled: false })
    }

    /// Waits until no call tries the model, which is as long as that call may take.
    pub(super) async fn untried(&self, line: &Line) {
        loop {
            let mut settled = pin!(self.settled.notified());
            // What settles from here on is heard.
            settled.as_mut().enable();
            if !self.is_tried(line) {
                return;
            }
            settled.await;
        }
    }

    fn is_tried(&self, line: &Line) -> bool {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(lines.get(line), Some(Circuit::HalfOpen { probing: true, .. }))
    }

    fn settle(&self, line: &Line, answered: Option<bool>, now: Timestamp) -> Option<Turned> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let circuit = lines.get_mut(line)?;
        let before = *circuit;
        *circuit = circuit.after(answered, &self.settings, now);
        let turned = circuit.turned_from(before);
        if turned.is_some() {
            report(&lines, line, turned);
        }
        if matches!(before, Circuit::HalfOpen { .. }) {
            self.settled.notify_waiters();
        }
        turned
    }
}

/// Tells where the line stands; of those that are shown as one, the worst.
fn report(lines: &HashMap<Line, Circuit>, line: &Line, turned: Option<Turned>) {
    let (provider, model) = line.shown.clone();
    if let Some(turned) = turned {
        let labels = [("provider", provider.clone()), ("model", model.clone()), ("to", turned.name().to_owned())];
        metrics::counter!("fermata_llm_circuit_changes_total", &labels).increment(1);
    }
    let levels = lines.iter().filter(|(other, _)| other.shown == line.shown).map(|(_, circuit)| circuit.level());
    metrics::gauge!("fermata_llm_circuit", "provider" => provider, "model" => model).set(levels.fold(0.0, f64::max));
}

/// A call that was let through. Dropped without a word, nothing is known by it.
#[derive(Debug)]
pub(super) struct Passage {
    breakers: Breakers,
    line: Line,
    turned: Option<Turned>,
    settled: bool,
}

impl Passage {
    /// Whether the call is the first to try the model again.
    pub(super) fn probes(&self) -> bool {
        self.turned.is_some()
    }

    /// What became of the call at `now`, and of the breaker by it.
    pub(super) fn settle(mut self, answered: Option<bool>, now: Timestamp) -> Option<Turned> {
        self.settled = true;
        self.breakers.settle(&self.line, answered, now)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if !self.settled {
            self.breakers.settle(&self.line, None, Timestamp::UNIX_EPOCH);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: CircuitBreakerSettings =
        CircuitBreakerSettings { failure_threshold: 3, success_threshold: 2, timeout_seconds: 10.0 };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    #[test]
    fn it_opens_waits_tries_and_closes() {
        let fail = |circuit: Circuit, now| circuit.after(Some(false), &SETTINGS, now);
        let answer = |circuit: Circuit, now| circuit.after(Some(true), &SETTINGS, now);
        let sound = Circuit::Closed { failures: 0 };
        assert_eq!(answer(fail(fail(sound, at(0)), at(0)), at(0)), sound, "failures in a row count");
        let open = fail(fail(fail(sound, at(0)), at(1)), at(2));
        assert_eq!(open, Circuit::Open { until: at(12) });
        assert_eq!(open.admit(at(11)), Err(Some(at(12))));
        let probe = open.admit(at(12)).unwrap();
        assert_eq!(probe.admit(at(12)), Err(None), "one at a time");
        assert_eq!(fail(probe, at(13)), Circuit::Open { until: at(23) });
        let once = answer(probe, at(13));
        assert_eq!(answer(once.admit(at(13)).unwrap(), at(14)), sound);
    }

    #[test]
    fn a_call_that_is_dropped_blocks_nobody() {
        let breakers = Breakers::new(SETTINGS);
        let shown = ("p".to_owned(), "m".to_owned());
        let line = Line { key_id: "k".to_owned(), url: "u".to_owned(), model: "m".to_owned(), shown };
        for _ in 0..3 {
            breakers.admit(&line, at(0)).unwrap().settle(Some(false), at(0));
        }
        assert_eq!(breakers.admit(&line, at(9)).unwrap_err(), Some(at(10)));
        let probe = breakers.admit(&line, at(10)).unwrap();
        let mut waiting = pin!(breakers.untried(&line));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(probe);
        assert!(waiting.now_or_never().is_some());
        assert!(breakers.admit(&line, at(10)).is_ok());
    }

    proptest! {
        #[test]
        fn it_never_stays_shut_for_ever(ends in proptest::collection::vec(proptest::option::of(any::<bool>()), 0..40)) {
            let (mut circuit, mut now) = (Circuit::Closed { failures: 0 }, 0);
            for answered in ends {
                now += 1;
                if let Ok(admitted) = circuit.admit(at(now)) {
                    circuit = admitted.after(answered, &SETTINGS, at(now));
                }
            }
            prop_assert!(circuit.admit(at(now + 10)).is_ok());
        }
    }
}
