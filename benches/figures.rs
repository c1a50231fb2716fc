//! Percentiles and lines of the report.

use std::time::Duration;

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
}

/// A headline.
pub fn head(text: &str) {
    println!("\n== {text}");
}
