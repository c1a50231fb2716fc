//! What happened, at the end of the demo.

use std::collections::BTreeMap;

use serde_json::Value;

use super::setup::SmokeRun;
use crate::cli::load::Report;
use crate::cli::view::Paint;

/// Rows of the picture of versions over time at the most; more seconds share a row.
const ROWS_MAX: u64 = 24;
/// With the counts beside it, a row fits 80 columns.
const BAR_WIDTH: u64 = 30;

/// A server group as the summary shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The server group's name.
    pub name: String,
    /// Its label `version`; `?` where it has none.
    pub version: String,
    /// It takes traffic.
    pub enabled: bool,
    /// Instances that are up.
    pub healthy: usize,
    /// Instances that there are.
    pub instances: usize,
}

impl Group {
    /// From the API's answer.
    #[must_use]
    pub fn read(value: &Value) -> Self {
        let instances = value["instances"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            name: value["name"].as_str().unwrap_or("?").to_owned(),
            version: value["labels"]["version"].as_str().unwrap_or("?").to_owned(),
            enabled: value["isEnabled"].as_bool().unwrap_or_default(),
            healthy: instances.iter().filter(|instance| instance["state"] == "UP").count(),
            instances: instances.len(),
        }
    }
}

/// The lines of the summary.
#[must_use]
pub fn draw(paint: Paint, report: &Report, before: &[Group], after: &[Group], smoke: &[SmokeRun]) -> Vec<String> {
    let mut lines = vec![paint.bold("Summary")];
    let failed = format!("{} failed", report.failed);
    lines.push(format!(
        "  requests    {} sent, {}",
        report.sent,
        paint.with(if report.failed == 0 { "32" } else { "31" }, &failed)
    ));
    if let (Some(p50), Some(p99)) = (report.latency(0.5), report.latency(0.99)) {
        lines.push(format!(
            "  latency     p50 {:.1} ms, p99 {:.1} ms",
            p50.as_secs_f64() * 1e3,
            p99.as_secs_f64() * 1e3
        ));
    }
    for (at, what) in report.failures.iter().take(5) {
        lines.push(format!("    failed at {:.1} s: {what}", *at as f64 / 1e3));
    }
    let versions: Vec<_> = report.versions().into_iter().map(|(version, n)| format!("{version}: {n}")).collect();
    lines.push(format!("  answered by {}", versions.join(", ")));
    lines.push(String::new());
    lines.push(paint.bold("Versions answered over time"));
    lines.extend(over_time(paint, &report.seconds));
    lines.push(String::new());
    lines.extend(groups(paint, "Server groups before the second deploy", before));
    lines.extend(groups(paint, "Server groups after", after));
    lines.push(paint.bold("Checks that the deploys started"));
    lines.extend(smoke.iter().map(|run| {
        let colour = if run.status == "SUCCEEDED" { "32" } else { "31" };
        let status = paint.with(colour, &run.status.to_lowercase());
        format!("    {} #{} {status}: {}", super::setup::SMOKE, run.number, run.reason)
    }));
    if smoke.is_empty() {
        lines.push("    none".to_owned());
    }
    lines
}

fn over_time(paint: Paint, seconds: &BTreeMap<u64, BTreeMap<String, u64>>) -> Vec<String> {
    const SHADES: [(&str, &str); 4] = [("░", "34"), ("█", "32"), ("▒", "35"), ("▓", "36")];
    let Some((last, _)) = seconds.last_key_value() else { return vec!["  nothing was answered".to_owned()] };
    let per_row = (last / ROWS_MAX) + 1;
    let mut rows: BTreeMap<u64, BTreeMap<&str, u64>> = BTreeMap::new();
    let mut names: Vec<&str> = Vec::new();
    for (second, versions) in seconds {
        for (version, count) in versions {
            if !names.contains(&version.as_str()) {
                names.push(version);
            }
            *rows.entry(second / per_row * per_row).or_default().entry(version).or_default() += count;
        }
    }
    let shade = |index: usize| SHADES[index % SHADES.len()];
    let legend: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(index, name)| format!("{} {name}", paint.with(shade(index).1, shade(index).0)))
        .collect();
    let mut lines = vec![format!("    from second   {}", legend.join("   "))];
    for (from, versions) in rows {
        let total: u64 = versions.values().sum();
        let mut bar = String::new();
        let mut sum = 0;
        for (index, name) in names.iter().enumerate() {
            let count = versions.get(name).copied().unwrap_or_default();
            // By running sums, so that the bars are of one length; a single answer shows.
            let cells =
                ((sum + count) * BAR_WIDTH / total.max(1) - sum * BAR_WIDTH / total.max(1)).max(u64::from(count > 0));
            sum += count;
            bar.push_str(&paint.with(shade(index).1, &shade(index).0.repeat(usize::try_from(cells).unwrap_or(0))));
        }
        let counts: Vec<_> =
            names.iter().filter_map(|name| versions.get(name).map(|count| format!("{count} × {name}"))).collect();
        lines.push(format!("    {from:>6} s      {bar}  {}", counts.join(", ")));
    }
    lines
}

fn groups(paint: Paint, title: &str, groups: &[Group]) -> Vec<String> {
    let mut lines = vec![paint.bold(title)];
    if groups.is_empty() {
        lines.push("    none".to_owned());
    }
    for group in groups {
        // A group out of traffic is not asked for its health: its instances wait, ready to be enabled.
        let state = if group.enabled {
            format!("enabled   {} of {} healthy", group.healthy, group.instances)
        } else {
            paint.dim(&format!("disabled  {} instances kept, out of traffic", group.instances))
        };
        lines.push(format!("    {:<14} version {:<8} {state}", group.name, group.version));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let second = |old: u64, new: u64| {
            [("1.0.0", old), ("2.0.0", new)]
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(version, count)| (version.to_owned(), count))
                .collect()
        };
        Report {
            sent: 600,
            seconds: [(0, second(200, 0)), (1, second(100, 100)), (2, second(0, 200))].into(),
            ..Report::default()
        }
    }

    #[test]
    fn versions_over_time_show_the_change() {
        let lines = over_time(Paint(false), &report().seconds);
        assert_eq!(lines.len(), 4);
        assert!(lines[1].contains(&"░".repeat(30)) && !lines[1].contains('█'), "{}", lines[1]);
        assert!(lines[2].contains(&format!("{}{}", "░".repeat(15), "█".repeat(15))), "{}", lines[2]);
        assert!(lines[3].contains(&"█".repeat(30)) && !lines[3].contains('░'), "{}", lines[3]);
    }

    #[test]
    fn many_seconds_share_rows() {
        let mut report = report();
        for second in 3..500 {
            report.seconds.insert(second, [("2.0.0".to_owned(), 200)].into());
        }
        assert!(over_time(Paint(false), &report.seconds).len() <= 26);
    }

    #[test]
    fn a_disabled_group_does_not_look_sick() {
        let group = |enabled, healthy| Group {
            name: "hello-v000".to_owned(),
            version: "1.0.0".to_owned(),
            enabled,
            healthy,
            instances: 3,
        };
        let lines = groups(Paint(false), "Groups", &[group(true, 2), group(false, 0)]);
        assert!(lines[1].ends_with("enabled   2 of 3 healthy"), "{}", lines[1]);
        assert!(lines[2].ends_with("disabled  3 instances kept, out of traffic"), "{}", lines[2]);
    }

    #[test]
    fn a_summary_of_nothing_is_no_fault() {
        let lines = draw(Paint(false), &Report::default(), &[], &[], &[]);
        assert!(lines.iter().any(|line| line.contains("0 sent, 0 failed")), "{lines:#?}");
    }
}
