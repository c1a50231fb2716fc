//! Limits of an instance: by a cgroup (version 2) of its own where one can be made, else by
//! resource limits of the process. What cannot be enforced is said, not hidden.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, rlim_t};
use nix::unistd::User;

use crate::providers::host::launch::Limits;

/// What is to be set, made before the process is.
pub struct Plan {
    /// Set by the process itself before it becomes the command.
    pub rlimits: Vec<(Resource, rlim_t)>,
    /// Where the machine lets us make one, and something asks for it.
    pub cgroup: Option<Cgroup>,
    /// For people; none when nothing is limited.
    pub report: Option<String>,
}

/// Decides how the limits are enforced.
#[must_use]
pub fn plan(instance: &str, limits: &Limits, user: Option<&User>) -> Plan {
    let mount = Path::new("/sys/fs/cgroup");
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    plan_below(&delegated(mount, &own).unwrap_or_else(|| mount.to_owned()), instance, limits, user)
}

/// The subgroup that systemd puts the host's processes into, so that the unit's own group, which was
/// handed over to us, may have other groups below it.
const SUBGROUP: &str = "gennaker-host";

/// The group that was handed over to us, if one was: `own` is what `/proc/self/cgroup` says.
fn delegated(mount: &Path, own: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let (unit, subgroup) = path.rsplit_once('/')?;
    (subgroup == SUBGROUP).then(|| mount.join(unit))
}

fn plan_below(root: &Path, instance: &str, limits: &Limits, user: Option<&User>) -> Plan {
    if !limits.any() {
        return Plan { rlimits: Vec::new(), cgroup: None, report: None };
    }
    let by_group = limits.memory_bytes.is_some() || limits.cpu_millis.is_some() || limits.processes.is_some();
    let cgroup = if by_group { Cgroup::make(root, instance, limits) } else { None };
    let mut rlimits = Vec::new();
    let mut report = Vec::new();
    if let Some(files) = limits.open_files {
        rlimits.push((Resource::RLIMIT_NOFILE, files));
        report.push("open files by rlimit".to_owned());
    }
    if cgroup.is_some() {
        let limited = [
            ("memory", limits.memory_bytes.is_some()),
            ("CPU", limits.cpu_millis.is_some()),
            ("processes", limits.processes.is_some()),
        ];
        let limited: Vec<&str> = limited.into_iter().filter(|(_, limited)| *limited).map(|(name, _)| name).collect();
        report.push(format!("{} by cgroup", limited.join(", ")));
    } else {
        if let Some(bytes) = limits.memory_bytes {
            rlimits.push((Resource::RLIMIT_AS, bytes));
            report.push("memory by rlimit (address space of each process)".to_owned());
        }
        if let Some(processes) = limits.processes {
            rlimits.push((Resource::RLIMIT_NPROC, processes));
            let root = user.map_or_else(|| nix::unistd::geteuid().is_root(), |user| user.uid.is_root());
            report.push(if root {
                "processes not enforced (root is exempt; set runAs)".to_owned()
            } else {
                "processes by rlimit (all of the user's)".to_owned()
            });
        }
        if limits.cpu_millis.is_some() {
            report.push("CPU not enforced (no writable cgroup v2)".to_owned());
        }
    }
    Plan { rlimits, cgroup, report: Some(report.join("; ")) }
}

/// A control group that one instance lives in.
pub struct Cgroup {
    path: PathBuf,
    /// Written `0` to by the process that enters. Opened before anything is promised.
    entry: Option<File>,
}

impl Cgroup {
    /// None where the machine does not let us.
    fn make(root: &Path, instance: &str, limits: &Limits) -> Option<Self> {
        if !cfg!(target_os = "linux") || !root.join("cgroup.controllers").exists() {
            return None;
        }
        let parent = root.join("gennaker");
        fs::create_dir_all(&parent).ok()?;
        for level in [root, parent.as_path()] {
            fs::write(level.join("cgroup.subtree_control"), "+memory +cpu +pids").ok()?;
        }
        let mut group = Self { path: parent.join(instance), entry: None };
        fs::create_dir_all(&group.path).ok()?;
        group.entry = OpenOptions::new().write(true).open(group.path.join("cgroup.procs")).ok();
        if group.entry.is_none() || group.set(limits).is_none() {
            group.remove();
            return None;
        }
        Some(group)
    }

    fn set(&self, limits: &Limits) -> Option<()> {
        let write = |file: &str, value: String| fs::write(self.path.join(file), value).ok();
        if let Some(bytes) = limits.memory_bytes {
            write("memory.max", bytes.to_string())?;
        }
        if let Some(millis) = limits.cpu_millis {
            write("cpu.max", format!("{} 100000", millis * 100))?;
        }
        if let Some(processes) = limits.processes {
            write("pids.max", processes.to_string())?;
        }
        Some(())
    }

    /// The way in, once: the process that enters writes `0` to it.
    #[must_use]
    pub fn take_entry(&mut self) -> Option<File> {
        self.entry.take()
    }

    /// Its directory below `/sys/fs/cgroup`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills all that live in it.
    pub fn kill(&self) {
        kill(&self.path);
    }

    /// Whether the kernel has ended something in it because it took more than its memory.
    #[must_use]
    pub fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        events.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count != "0")
    }

    /// Removes the empty group.
    pub fn remove(&self) {
        let _ = fs::remove_dir(&self.path);
    }
}

fn kill(path: &Path) {
    // Never made: where there is no such group, there is nothing to write to.
    if let Ok(mut file) = OpenOptions::new().write(true).open(path.join("cgroup.kill")) {
        let _ = file.write_all(b"1");
    }
}

/// Kills all that live in a group that another process made, and removes it once it is empty.
pub fn kill_and_remove(path: &Path) {
    kill(path);
    let _ = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_limited_is_nothing_reported() {
        let plan = plan("x", &Limits::default(), None);
        assert!(plan.report.is_none() && plan.rlimits.is_empty() && plan.cgroup.is_none());
    }

    #[test]
    fn open_files_are_limited_by_rlimit_everywhere() {
        let plan = plan("x", &Limits { open_files: Some(64), ..Limits::default() }, None);
        assert_eq!(plan.rlimits, [(Resource::RLIMIT_NOFILE, 64)]);
        assert_eq!(plan.report.as_deref(), Some("open files by rlimit"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_cgroup_that_cannot_be_entered_is_not_said_to_enforce_anything() {
        let scratch = super::super::files::scratch::Scratch::new();
        let root = scratch.path();
        fs::write(root.join("cgroup.controllers"), "memory cpu pids").expect("written");
        let limits = Limits { memory_bytes: Some(1_000_000), ..Limits::default() };
        let plan = plan_below(root, "x", &limits, None);
        assert!(plan.cgroup.is_none());
        assert_eq!(plan.report.as_deref(), Some("memory by rlimit (address space of each process)"));
        let group = root.join("gennaker/y");
        fs::create_dir_all(&group).expect("made");
        fs::write(group.join("cgroup.procs"), "").expect("written");
        let mut plan = plan_below(root, "y", &limits, None);
        assert_eq!(plan.report.as_deref(), Some("memory by cgroup"));
        assert!(plan.cgroup.as_mut().is_some_and(|cgroup| cgroup.take_entry().is_some()));
        assert!(plan.rlimits.is_empty());
    }

    #[test]
    fn instances_live_below_the_group_that_was_handed_over() {
        let of = |own: &str| delegated(Path::new("/cg"), own);
        let unit = "0::/system.slice/gennaker-host.service/gennaker-host\n";
        assert_eq!(of(unit), Some("/cg/system.slice/gennaker-host.service".into()));
        for other in ["0::/", "0::/user.slice/session-1.scope", "0::/system.slice/gennaker-host.service", ""] {
            assert_eq!(of(other), None, "{other}");
        }
        let template = include_str!("../../../cli/systemd/gennaker-host.service");
        assert!(template.contains(&format!("DelegateSubgroup={SUBGROUP}\n")));
    }

    #[test]
    fn a_machine_without_cgroups_makes_none() {
        let scratch = super::super::files::scratch::Scratch::new();
        assert!(Cgroup::make(scratch.path(), "x", &Limits::default()).is_none());
    }
}
