//! Whether the server can work, and what it counts: asked by those who watch it. The checks and
//! what is collected come from the composition; here they get a deadline, run side by side, and
//! are remembered for a second, so that nobody can load the server by asking.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::measure::Recorder;

/// How long a check, or what collects, may take.
const WITHIN: Duration = Duration::from_secs(2);
/// How long an answer stands.
const STANDS: Duration = Duration::from_secs(1);

/// Says whether something is as it must be; if not, why. What it says is shown to everybody: no
/// paths, no addresses, no secrets.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Metrics that are read when somebody asks, in Prometheus' text form.
pub type Collector = Arc<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>;

/// What was said, and when.
type Last = (Instant, Arc<Readiness>);

/// What `/readyz` and `/metrics` answer from. Cheap to clone.
#[derive(Clone, Default)]
pub struct Probes {
    checks: Vec<(String, Check)>,
    collectors: Vec<Collector>,
    recorder: Option<Recorder>,
    metrics_public: bool,
    last: Arc<Mutex<Option<Last>>>,
    scraping: Arc<Mutex<()>>,
}

/// Whether the server can work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// All checks are well.
    pub ready: bool,
    /// Each, in the order they were added.
    pub checks: Vec<Checked>,
}

/// One check's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// What was checked: `database`.
    pub name: String,
    /// It is as it must be.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Probes {
    /// With what was counted on the way, and whether everybody may read it.
    #[must_use]
    pub fn new(recorder: Option<Recorder>, metrics_public: bool) -> Self {
        Self { recorder, metrics_public, ..Self::default() }
    }

    /// The same with one more check.
    #[must_use]
    pub fn check<F>(mut self, name: impl Into<String>, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.push((name.into(), Arc::new(move || Box::pin(check()))));
        self
    }

    /// The same with more metrics.
    #[must_use]
    pub fn collect<F>(mut self, collect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = String> + Send + 'static,
    {
        self.collectors.push(Arc::new(move || Box::pin(collect())));
        self
    }

    /// Whether `/metrics` needs no token.
    pub(super) const fn metrics_public(&self) -> bool {
        self.metrics_public
    }

    /// What all checks say, at most a second old.
    pub(super) async fn ready(&self) -> Arc<Readiness> {
        let mut last = self.last.lock().await;
        if let Some((at, readiness)) = &*last
            && at.elapsed() < STANDS
        {
            return Arc::clone(readiness);
        }
        let checks = join_all(self.checks.iter().map(async |(name, check)| {
            let said = tokio::time::timeout(WITHIN, check()).await;
            let why = said.unwrap_or_else(|_| Err(format!("no answer within {} s", WITHIN.as_secs()))).err();
            Checked { name: name.clone(), ok: why.is_none(), why }
        }))
        .await;
        let readiness = Arc::new(Readiness { ready: checks.iter().all(|check| check.ok), checks });
        tell(last.as_ref().map(|(_, before)| &**before), &readiness);
        *last = Some((Instant::now(), Arc::clone(&readiness)));
        readiness
    }

    /// All metrics in Prometheus' text form. What cannot be collected in time is left out.
    pub(super) async fn metrics(&self) -> String {
        // One after the other: who asks often waits.
        let _scraping = self.scraping.lock().await;
        let mut text = self.recorder.as_ref().map(Recorder::render).unwrap_or_default();
        let collected = join_all(self.collectors.iter().map(|collect| tokio::time::timeout(WITHIN, collect()))).await;
        for part in collected.into_iter().flatten() {
            text.push_str(&part);
        }
        text
    }
}

/// A change is worth a line of the log.
fn tell(before: Option<&Readiness>, now: &Readiness) {
    if before.is_some_and(|before| before.ready == now.ready) || (before.is_none() && now.ready) {
        return;
    }
    let bad: Vec<String> =
        now.checks.iter().filter_map(|check| Some(format!("{}: {}", check.name, check.why.as_deref()?))).collect();
    if now.ready {
        tracing::info!("the server is ready again");
    } else {
        tracing::warn!("the server is not ready: {}", bad.join("; "));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn checks_have_a_deadline_and_answers_stand_for_a_second() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let probes = Probes::default()
            .check("quick", move || {
                count.fetch_add(1, Ordering::SeqCst);
                async { Ok(()) }
            })
            .check("stuck", std::future::pending);
        let first = probes.ready().await;
        assert!(!first.ready);
        let shown: Vec<_> = first.checks.iter().map(|check| (check.name.as_str(), check.ok)).collect();
        assert_eq!(shown, [("quick", true), ("stuck", false)]);
        assert_eq!(first.checks[1].why.as_deref(), Some("no answer within 2 s"));
        assert_eq!(probes.ready().await, first);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        if let Some((at, _)) = &mut *probes.last.lock().await {
            *at = at.checked_sub(STANDS).expect("an instant");
        }
        probes.ready().await;
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
