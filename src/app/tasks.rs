//! What runs for as long as the server does: each in a task whose end is noticed.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::api;
use crate::engine::Engine;
use crate::engine::contract::INVENTORY_TOPIC;
use crate::inventory::Inventory;
use crate::listener;
use crate::measure::{self, Invariant};

/// From the end of the last step to the close of sockets and streams, so that it is still told.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A part of the server that runs.
pub(super) struct Task {
    name: &'static str,
    stop: CancellationToken,
    handle: JoinHandle<()>,
    /// Given up after this long.
    pub(super) grace: Duration,
}

impl Task {
    /// Runs it in a task. When it ends without having been told to, `failed` is cancelled.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(
        name: &'static str,
        grace: Duration,
        failed: CancellationToken,
        run: impl FnOnce(CancellationToken) -> F,
    ) -> Self {
        let stop = CancellationToken::new();
        let watch = Watch { name, stop: stop.clone(), failed };
        let future = run(stop.clone());
        let handle = tokio::spawn(async move {
            let _watch = watch;
            future.await;
        });
        Self { name, stop, handle, grace }
    }

    /// Tells it to end, and waits until it has or is given up.
    pub async fn end(mut self) {
        self.stop.cancel();
        match tokio::time::timeout(self.grace, &mut self.handle).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(task = self.name, "task `{}` failed: {error}", self.name),
            Err(_) => {
                warn!(task = self.name, "task `{}` did not end in time and is given up", self.name);
                self.handle.abort();
                let _ = self.handle.await;
            }
        }
    }

    /// Ends it where it is.
    pub fn abort(&self) {
        self.stop.cancel();
        self.handle.abort();
    }
}

/// Notices the end of a task, by panic too.
struct Watch {
    name: &'static str,
    stop: CancellationToken,
    failed: CancellationToken,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            measure::violated(Invariant::PartEnded);
            error!(task = self.name, "task `{}` ended by itself; the server ends", self.name);
            self.failed.cancel();
        }
    }
}

/// Serves until asked to stop; then tells WebSockets and event streams, and waits for them and for
/// open requests.
pub(super) async fn serve(
    listener: TcpListener,
    router: axum::Router,
    options: listener::Options,
    lifecycle: api::Lifecycle,
    stop: CancellationToken,
) {
    let closing = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
        lifecycle.closing.cancel();
        lifecycle.sockets.close();
        lifecycle.sockets.wait().await;
    };
    tokio::join!(listener::serve(listener, router, options, stop.clone()), closing);
}

/// Wakes stages that wait for something to change in a cloud.
pub(super) async fn forward(inventory: Inventory, engine: Engine, stop: CancellationToken) {
    let mut changed = inventory.changed();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changed.changed() => match change {
                Ok(()) => engine.topics().notify(INVENTORY_TOPIC),
                // Cannot be while this task holds the inventory; then nothing would ever come.
                Err(_) => return stop.cancelled().await,
            },
        }
    }
}

/// Histograms keep each number until they are added up.
pub(super) async fn upkeep(stop: CancellationToken) {
    const EVERY: Duration = Duration::from_secs(2);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => if let Some(recorder) = measure::install() {
                recorder.upkeep();
            }
        }
    }
}
