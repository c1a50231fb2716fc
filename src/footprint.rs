//! What a process that has started holds in memory without needing it: the pages of the program that
//! only the start went through (the command line, settings, migrations, building the schema), and what
//! the kernel mapped around each of them.

/// Gives back the mapped pages of the program's own code and constants. What is used again is mapped
/// again from the page cache, sixteen pages at a time; what is not stays away. Called once, when a
/// process that stays has started.
///
/// Does nothing where the system is not Linux or does not tell its mappings.
pub fn give_back_the_start() {
    #[cfg(target_os = "linux")]
    if let (Ok(program), Ok(mappings)) = (std::fs::read_link("/proc/self/exe"), procfs()) {
        for mapping in unwritten(&mappings, &program.to_string_lossy()) {
            give_back(mapping);
        }
    }
}

#[cfg(target_os = "linux")]
fn procfs() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/self/smaps")
}

/// The program's mappings that hold nothing that is not in its file: not writable, and without a page
/// that was written before they became so (as relocated constants were).
#[cfg(target_os = "linux")]
fn unwritten(smaps: &str, program: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut last = None;
    for line in smaps.lines() {
        if let Some(kib) = line.strip_prefix("Anonymous:") {
            found.extend(last.take().filter(|_| kib.trim() == "0 kB"));
        } else if let Some((addresses, rest)) = line.split_once(' ')
            && let Some((from, to)) = addresses.split_once('-')
            && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            let (rights, file) = rest.split_once(' ').unwrap_or((rest, ""));
            last = (matches!(rights, "r--p" | "r-xp") && file.ends_with(program)).then_some(from..to);
        }
    }
    found
}

#[cfg(target_os = "linux")]
fn give_back(mapping: std::ops::Range<usize>) {
    use nix::sys::mman::{MmapAdvise, madvise};

    let Some(start) = std::ptr::NonNull::new(std::ptr::with_exposed_provenance_mut(mapping.start)) else { return };
    #[expect(unsafe_code, reason = "there is no safe call that tells the kernel so")]
    // SAFETY: the kernel has just named this range as a private mapping of the program's file that
    // cannot be written and has no page of its own. Each of its pages therefore is what the file has,
    // and is read from there again when it is next touched; nothing that a reference or the running
    // code sees changes. A failure leaves all as it is.
    let _ = unsafe { madvise(start, mapping.len(), MmapAdvise::MADV_DONTNEED) };
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// KiB of the program's own pages that are mapped.
    fn mapped(smaps: &str, program: &str) -> u64 {
        let mut ours = false;
        let mut sum = 0;
        for line in smaps.lines() {
            if let Some(kib) = line.strip_prefix("Rss:") {
                sum += kib.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * u64::from(ours);
            } else if line.split(' ').next().is_some_and(|word| word.contains('-')) {
                ours = line.ends_with(program);
            }
        }
        sum
    }

    #[test]
    fn the_program_runs_on_with_fewer_of_its_pages() {
        let program = std::fs::read_link("/proc/self/exe").expect("a program").to_string_lossy().into_owned();
        // Touches code all over.
        let _ = serde_json::to_string(&jsonschema::meta::validator_for(&serde_json::json!({})).is_ok());
        let before = mapped(&procfs().expect("smaps"), &program);
        give_back_the_start();
        let after = mapped(&procfs().expect("smaps"), &program);
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }

    #[test]
    fn written_and_foreign_mappings_stay() {
        let smaps = "\
1000-2000 r--p 00000000 fe:00 7   /bin/it
Rss:  4 kB
Anonymous:             0 kB
VmFlags: rd mr
2000-3000 r-xp 00001000 fe:00 7   /bin/it
Anonymous:             0 kB
3000-4000 r--p 00002000 fe:00 7   /bin/it
Anonymous:             4 kB
4000-5000 rw-p 00003000 fe:00 7   /bin/it
Anonymous:             0 kB
5000-6000 r-xp 00000000 fe:00 8   /lib/libc.so.6
Anonymous:             0 kB
6000-7000 rw-p 00000000 00:00 0   [heap]
Anonymous:             0 kB
";
        assert_eq!(unwritten(smaps, "/bin/it"), [0x1000..0x2000, 0x2000..0x3000]);
    }
}
