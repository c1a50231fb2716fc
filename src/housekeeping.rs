//! What has to be done now and then: retention, the sweep for triggers, the renewal of this
//! server's leases. tokio-cron-scheduler says when, in UTC and to the half second; that is right
//! for a handful of jobs like these, and wrong for people's timetables (see `triggers`).
//!
//! Every server runs its own jobs, so each must do no harm when another does the same. A job that
//! is still at work when its time comes again is left alone.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, Notify};
use tokio_cron_scheduler::{Job as Scheduled, JobScheduler, JobSchedulerError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Something to be done again and again.
#[derive(Clone)]
pub struct Job {
    name: &'static str,
    /// From one begin to the next; whole seconds.
    every: Duration,
    run: Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
    /// Held while it is at work.
    turn: Arc<Mutex<()>>,
    /// Asks for it out of its time.
    asked: Arc<Notify>,
}

impl Job {
    /// `run` answers with what went wrong; that is logged, and it is tried again in its time.
    pub fn new<F>(name: &'static str, every: Duration, run: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self { name, every, run: Arc::new(move || Box::pin(run())), turn: Arc::default(), asked: Arc::default() }
    }

    /// Done also when this is notified; after the time that is at work then, if one is.
    #[must_use]
    pub fn on(self, asked: Arc<Notify>) -> Self {
        Self { asked, ..self }
    }

    /// Once, unless it is at work already; given up when the server stops.
    async fn once(&self, stop: &CancellationToken) {
        let Ok(_turn) = self.turn.try_lock() else {
            return tracing::debug!(job = self.name, "job `{}` is still at work", self.name);
        };
        self.work(stop).await;
    }

    /// Whenever it is asked for, until the server stops.
    async fn when_asked(&self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.asked.notified() => {}
            }
            let _turn = self.turn.lock().await;
            self.work(stop).await;
        }
    }

    async fn work(&self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            result = (self.run)() => if let Err(error) = result {
                tracing::warn!(job = self.name, "job `{}` did not work out and is done again in its time: {error}", self.name);
            },
        }
    }
}

/// Runs the jobs, each at once and then in its time, until told to stop. Returns when none is at
/// work any more.
pub async fn run(jobs: Vec<Job>, stop: CancellationToken) {
    let work = TaskTracker::new();
    for job in &jobs {
        let (job, stop) = (job.clone(), stop.clone());
        work.spawn(async move {
            job.once(&stop).await;
            job.when_asked(&stop).await;
        });
    }
    match schedule(jobs, &stop, &work).await {
        Ok(mut scheduler) => {
            stop.cancelled().await;
            if let Err(error) = scheduler.shutdown().await {
                tracing::warn!("the jobs' scheduler did not end well: {error}");
            }
        }
        Err(error) => tracing::error!("jobs cannot be scheduled: {error}"),
    }
    work.close();
    work.wait().await;
}

async fn schedule(
    jobs: Vec<Job>,
    stop: &CancellationToken,
    work: &TaskTracker,
) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    // One after the other: the scheduler loses jobs that are added at once.
    for job in jobs {
        let (every, stop, work) = (job.every, stop.clone(), work.clone());
        let scheduled = Scheduled::new_repeated_async(every, move |_, _| {
            let (job, stop, work) = (job.clone(), stop.clone(), work.clone());
            Box::pin(async move {
                if !stop.is_cancelled() {
                    work.spawn(async move { job.once(&stop).await });
                }
            })
        })?;
        scheduler.add(scheduled).await?;
    }
    scheduler.start().await?;
    Ok(scheduler)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;

    async fn wait_for(what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_job_comes_again_and_is_left_alone_while_it_is_at_work() {
        let (quick, slow, at_work) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let jobs = vec![
            Job::new("quick", Duration::from_secs(1), {
                let quick = Arc::clone(&quick);
                move || {
                    let quick = Arc::clone(&quick);
                    async move {
                        quick.fetch_add(1, Ordering::SeqCst);
                        Err("a fault does not end it".to_owned())
                    }
                }
            }),
            Job::new("slow", Duration::from_secs(1), {
                let (slow, at_work) = (Arc::clone(&slow), Arc::clone(&at_work));
                move || {
                    let (slow, at_work) = (Arc::clone(&slow), Arc::clone(&at_work));
                    async move {
                        slow.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "never twice at once");
                        std::future::pending().await
                    }
                }
            }),
        ];
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(jobs, stop.clone()));
        wait_for("three runs", || quick.load(Ordering::SeqCst) >= 3).await;
        assert_eq!(slow.load(Ordering::SeqCst), 1);
        stop.cancel();
        // Also the one that would be at work for ever is given up.
        tokio::time::timeout(Duration::from_secs(5), running).await.expect("ends when told").expect("no panic");
        let count = quick.load(Ordering::SeqCst);
        // Others that come as often, to see that the time for it has come.
        let witness = Arc::<AtomicUsize>::default();
        let others = vec![Job::new("witness", Duration::from_secs(1), {
            let witness = Arc::clone(&witness);
            move || {
                witness.fetch_add(1, Ordering::SeqCst);
                async { Ok(()) }
            }
        })];
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(others, stop.clone()));
        wait_for("two runs of another", || witness.load(Ordering::SeqCst) >= 2).await;
        stop.cancel();
        running.await.expect("no panic");
        assert_eq!(quick.load(Ordering::SeqCst), count, "nothing runs after the end");
    }
}
