//! Percentiles, lines of the report, and the bars that were missed.

use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bars that were missed so far.
static MISSED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The value below which the given share (0 to 1) of the sorted samples lies.
pub fn percentile(samples: &mut [Duration], share: f64) -> Duration {
    if samples.is_empty() {
        return Duration::ZERO;
    }
    samples.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = ((samples.len() - 1) as f64 * share).round() as usize;
    samples[index]
}

/// Milliseconds with two decimals.
pub fn ms(span: Duration) -> String {
    format!("{:.2} ms", span.as_secs_f64() * 1e3)
}

/// Microseconds without decimals.
pub fn us(span: Duration) -> String {
    format!("{:.0} µs", span.as_secs_f64() * 1e6)
}

/// One line: what, how much, and whether the bar is met.
pub fn line(what: &str, figure: &str, bar: &str, met: bool) {
    println!("{:<62} {:<30} {:<26} {}", what, figure, bar, if met { "ok" } else { "MISSED" });
    if !met {
        missed().push(format!("{what}: {figure}, the bar is {bar}"));
    }
}

/// One line without a bar.
pub fn note(what: &str, figure: &str) {
    println!("{what:<62} {figure}");
}

/// Names the bars that were missed, at the end of all; with `GENNAKER_BENCH_STRICT=1` they are a failure.
pub fn verdict() -> ExitCode {
    let missed = missed();
    for bar in missed.iter() {
        eprintln!("missed: {bar}");
    }
    let strict = std::env::var("GENNAKER_BENCH_STRICT").is_ok_and(|value| value == "1");
    if strict && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn missed() -> MutexGuard<'static, Vec<String>> {
    MISSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A headline.
pub fn head(text: &str) {
    println!("\n== {text}");
}
