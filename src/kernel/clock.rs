use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use tokio::sync::watch;

/// An instant in UTC; the database and the wire keep milliseconds.
pub type Timestamp = DateTime<Utc>;

/// The only source of time outside `main`. Tests move it by hand; sleepers wake when it moves.
#[derive(Clone, Debug)]
pub struct Clock {
    offset: watch::Receiver<TimeDelta>,
}

impl Clock {
    /// Follows the machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::adjustable().0
    }

    /// Follows the machine's clock plus what is sent: a test advances time by sending a larger offset.
    #[must_use]
    pub fn adjustable() -> (Self, watch::Sender<TimeDelta>) {
        let (sender, offset) = watch::channel(TimeDelta::zero());
        (Self { offset }, sender)
    }

    /// Now, to the millisecond.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn now(&self) -> Timestamp {
        (Utc::now() + *self.offset.borrow()).trunc_subsecs(3)
    }

    /// Returns once `now() >= deadline`, however the clock got there.
    pub async fn sleep_until(&self, deadline: Timestamp) {
        let mut offset = self.offset.clone();
        loop {
            let left = (deadline - self.now()).to_std().unwrap_or(Duration::ZERO);
            if left.is_zero() {
                return;
            }
            // A day at most, so that a step of the machine's clock is noticed.
            let nap = tokio::time::sleep(left.min(Duration::from_secs(86_400)));
            tokio::select! {
                () = nap => {}
                moved = offset.changed() => if moved.is_err() {
                    // The sender is gone: nothing will move this clock but time itself.
                    tokio::time::sleep(left.min(Duration::from_secs(86_400))).await;
                },
            }
        }
    }
}

/// RFC 3339 UTC with milliseconds, the wire's form of time, for `#[serde(with = "wire_time")]`.
pub mod wire_time {
    use chrono::{DateTime, SecondsFormat, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    /// As text: `2026-11-21T09:00:00.123Z`.
    #[must_use]
    pub fn format(time: &DateTime<Utc>) -> String {
        time.to_rfc3339_opts(SecondsFormat::Millis, true)
    }

    /// Writes the wire's form.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(time))
    }

    /// Reads any RFC 3339 time.
    ///
    /// # Errors
    /// When the text is no RFC 3339 time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        DateTime::deserialize(deserializer)
    }

    /// The same for an optional time.
    pub mod option {
        use super::{DateTime, Deserialize, Deserializer, Serializer, Utc, format};

        /// Writes the wire's form or null.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(time: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => serializer.serialize_some(&format(time)),
                None => serializer.serialize_none(),
            }
        }

        /// Reads any RFC 3339 time or null.
        ///
        /// # Errors
        /// When the text is no RFC 3339 time.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
            Option::deserialize(deserializer)
        }
    }
}
