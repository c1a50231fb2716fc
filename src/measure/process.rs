//! The process itself, from `/proc`, under the names that all programs use.

use super::text::{Kind, Text};

/// Ticks a second in `/proc/self/stat`; the same on every Linux.
const TICKS: f64 = 100.0;

/// Adds memory, files, processor time and age. What the system does not tell is left out.
pub fn write(text: &mut Text) {
    text.family("gennaker_build_info", Kind::Gauge, "The version that runs; always 1.");
    text.sample("gennaker_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    if let Some(bytes) = resident() {
        text.single("process_resident_memory_bytes", Kind::Gauge, "Memory that the process occupies.", bytes);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        let count = u32::try_from(files.count()).unwrap_or(u32::MAX);
        text.single("process_open_fds", Kind::Gauge, "Files, sockets and pipes that are open.", f64::from(count));
    }
    if let Some((cpu, started)) = stat() {
        text.single("process_cpu_seconds_total", Kind::Counter, "Processor time used, in seconds.", cpu);
        if let Some(booted) = booted() {
            let help = "When the process started, in Unix time.";
            text.single("process_start_time_seconds", Kind::Gauge, help, booted + started);
        }
    }
}

fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

/// Processor time used, and the start, both in seconds; the start counts from the system's own.
fn stat() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in brackets, which may hold anything.
    let rest = stat.rsplit_once(')')?.1;
    let field = |number: usize| rest.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
    Some(((field(14)? + field(15)?) / TICKS, field(22)? / TICKS))
}

fn booted() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_itself() {
        assert!(resident().expect("memory") > 1024.0 * 1024.0);
        let (cpu, started) = stat().expect("a line");
        assert!(cpu >= 0.0 && started > 0.0);
        let mut text = Text::default();
        write(&mut text);
        let text = text.finish();
        for name in ["process_resident_memory_bytes ", "process_open_fds ", "process_start_time_seconds "] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} in {text}");
        }
    }
}
