//! What the features share: trials with a runtime, a real server, the application `hello` on it,
//! waiting with a deadline, and following executions.

mod calls;
mod cut;
mod database;
pub mod documents;
mod exposition;
mod follow;
mod hello;
pub mod mail;
mod ports;
mod probes;
mod server;
pub mod times;
mod two;

use std::future::Future;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

pub use calls::Calls;
pub use cut::{Cut, Fate};
pub use database::{Schema, postgres};
pub use exposition::Exposition;
pub use follow::{Followed, follow, follow_with};
pub use hello::{DEPLOY_MAX, Hello};
pub use ports::Ports;
pub use probes::{get, ready, scrape};
pub use server::{Done, Options, Server, gennaker, processes_of};
pub use two::Two;

/// What a trial ends with.
pub type Outcome = anyhow::Result<()>;

/// A trial on a runtime of its own. The name is a sentence.
pub fn trial<F>(feature: &str, name: &str, run: impl FnOnce() -> F + Send + 'static) -> Trial
where
    F: Future<Output = Outcome>,
{
    let name = format!("{feature}::{name}");
    Trial::test(name.clone(), move || {
        let begin = Instant::now();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let outcome = runtime.block_on(run());
        runtime.shutdown_timeout(Duration::from_secs(1));
        times::took(name, begin.elapsed());
        outcome.map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// The same, for a trial that needs something that may be missing: ignored then, or failed where
/// everything has to be there.
pub fn trial_with<F>(
    feature: &str,
    name: &str,
    needed: Result<(), String>,
    run: impl FnOnce() -> F + Send + 'static,
) -> Trial
where
    F: Future<Output = Outcome>,
{
    match needed {
        Ok(()) => trial(feature, name, run),
        Err(missing) if required().is_some() => {
            Trial::test(format!("{feature}::{name}"), move || Err(Failed::from(format!("needs {missing}"))))
        }
        Err(missing) => {
            eprintln!("{feature}::{name} is ignored: it needs {missing}");
            Trial::test(format!("{feature}::{name}"), || Ok(())).with_ignored_flag(true)
        }
    }
}

/// The same for what lies in the nature of a machine, and cannot be installed: where it is not given
/// the trial is ignored, failed where everything has to be there, and left out (which is said) where
/// that is asked for.
pub fn trial_where<F>(
    feature: &str,
    name: &str,
    given: Result<(), String>,
    run: impl FnOnce() -> F + Send + 'static,
) -> Option<Trial>
where
    F: Future<Output = Outcome>,
{
    match given {
        Err(missing) if required() == Some(Required::ExceptMachine) => {
            eprintln!("{feature}::{name} is left out: this machine has not {missing}");
            None
        }
        given => Some(trial_with(feature, name, given, run)),
    }
}

/// The variable that turns ignored into failed: `1` for all trials, `except-machine` leaves out those
/// that lie in the machine.
pub const REQUIRE_ALL: &str = "GENNAKER_TEST_REQUIRE_ALL";

/// What has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Required {
    All,
    ExceptMachine,
}

fn required() -> Option<Required> {
    match std::env::var(REQUIRE_ALL).ok()?.as_str() {
        "" | "0" => None,
        "except-machine" => Some(Required::ExceptMachine),
        // A slip demands too much rather than too little.
        _ => Some(Required::All),
    }
}

/// A number that the environment may raise.
pub fn times(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Asks again and again until there is an answer.
pub async fn wait_for<T, F>(what: &str, within: Duration, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        anyhow::ensure!(start.elapsed() < within, "waited {} s in vain for {what}", within.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A token made on the command line, beside the running server.
pub fn as_principal(server: &Server, principal: &str, role: &str) -> anyhow::Result<String> {
    let made = server.command().args(["token", "create", "--principal", principal, "--role", role]).output()?;
    anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(String::from_utf8(made.stdout)?.trim().to_owned())
}

/// Random numbers without a dependency; printed seeds make a failure repeatable.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let seed = std::env::var("GENNAKER_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 | 1);
        eprintln!("GENNAKER_TEST_SEED={seed}");
        Self(seed)
    }

    /// 0 to `below`, exclusive (xorshift64*).
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % below.max(1)
    }
}
