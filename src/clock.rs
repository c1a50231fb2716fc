//! The only place that asks what time it is, so that tests own time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

/// Wall-clock time and waiting for it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock(Inner);

#[derive(Debug, Clone)]
enum Inner {
    System,
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    micros: AtomicI64,
    moved: watch::Sender<i64>,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub const fn system() -> Self {
        Self(Inner::System)
    }

    /// A clock that stands until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual(start: DateTime<Utc>) -> Self {
        let micros = start.timestamp_micros();
        Self(Inner::Manual(Arc::new(Manual { micros: AtomicI64::new(micros), moved: watch::channel(micros).0 })))
    }

    /// Now, to the microsecond (what both databases keep).
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    pub fn now(&self) -> DateTime<Utc> {
        let micros = match &self.0 {
            Inner::System => Utc::now().timestamp_micros(),
            Inner::Manual(manual) => manual.micros.load(Ordering::SeqCst),
        };
        DateTime::from_timestamp_micros(micros).unwrap_or_default()
    }

    /// Moves a manual clock forward and wakes those who wait; the machine's clock stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Inner::Manual(manual) = &self.0 {
            let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            let now = manual.micros.fetch_add(by, Ordering::SeqCst) + by;
            manual.moved.send_replace(now);
        }
    }

    /// Waits until the instant has come.
    pub async fn sleep_until(&self, at: DateTime<Utc>) {
        match &self.0 {
            Inner::System => loop {
                let left = at - self.now();
                let Ok(left) = left.to_std() else { return };
                if left.is_zero() {
                    return;
                }
                // In slices, since the machine's clock may be set while we wait.
                tokio::time::sleep(left.min(Duration::from_secs(10))).await;
            },
            Inner::Manual(manual) => {
                let mut moved = manual.moved.subscribe();
                let at = at.timestamp_micros();
                let _ = moved.wait_for(|now| *now >= at).await;
            }
        }
    }

    /// Waits for a span of time.
    pub async fn sleep(&self, span: Duration) {
        let span = chrono::TimeDelta::from_std(span).unwrap_or(chrono::TimeDelta::MAX);
        let at = self.now().checked_add_signed(span).unwrap_or(DateTime::<Utc>::MAX_UTC);
        self.sleep_until(at).await;
    }
}
