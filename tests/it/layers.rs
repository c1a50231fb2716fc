//! Who may import whom: the table of ARCHITECTURE.md, checked against the paths in the sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;

use crate::harness::{Outcome, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("layers", "modules_import_only_what_the_map_allows", imports),
        trial("layers", "library_types_stay_where_they_belong", libraries),
    ]
}

/// A module, and what of ours it may name. `cli`, `app` and `main` may name everything.
const MAP: &[(&str, &[&str])] = &[
    (
        "api",
        &[
            "engine::commands",
            "engine::contract",
            "store",
            "inventory",
            "auth",
            "secrets",
            "providers",
            "strategies",
            "notifiers",
            "model",
            "clock",
        ],
    ),
    (
        "stages",
        &[
            "engine::contract",
            "strategies",
            "providers",
            "inventory",
            "model",
            "expression",
            "outbound",
            "secrets",
            "store::ClusterKey",
            "store::ClusterClaim",
            "clock",
        ],
    ),
    ("triggers", &["engine::commands", "engine::contract", "store", "model", "clock"]),
    ("housekeeping", &[]),
    ("strategies", &["model"]),
    ("engine", &["store", "model", "expression", "auth", "secrets", "clock"]),
    ("notifiers", &["store", "model", "secrets", "clock"]),
    ("inventory", &["providers", "store", "model", "clock"]),
    ("auth", &["store", "model", "clock"]),
    ("providers", &["model", "clock", "secrets", "outbound", "systemd", "footprint", "config::PortRange"]),
    ("store", &["model", "clock"]),
    (
        "config",
        &[
            "store::Durability",
            "store::Options",
            "outbound::Allow",
            "engine",
            "api",
            "listener::tls",
            "notifiers",
            "secrets",
        ],
    ),
    ("listener", &[]),
    ("telemetry", &["config", "engine::Ended", "inventory", "store::Intent", "model", "secrets", "clock"]),
    ("measure", &[]),
    ("near", &[]),
    ("outbound", &[]),
    ("secrets", &[]),
    ("systemd", &[]),
    ("footprint", &[]),
    ("model", &[]),
    ("expression", &[]),
    ("clock", &[]),
];

const FREE: &[&str] = &["cli", "app", "main", "lib"];

/// Files and directories below a module that are its tests.
const TESTS: &[&str] = &["tests", "simulation", "script"];

fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let mut files = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("the sources are there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root).expect("below the root").to_owned();
                let first = relative.iter().next().and_then(|part| part.to_str()).unwrap_or_default();
                let module = first.trim_end_matches(".rs").to_owned();
                let inner = relative.components().skip(1).map(|part| part.as_os_str().to_string_lossy().into_owned());
                if inner.clone().any(|part| TESTS.contains(&part.trim_end_matches(".rs"))) {
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("a source is readable");
                // Tests are last in a file and may use what they like.
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
                files.push((module, relative, text));
            }
        }
    }
    files
}

/// Paths below the crate that the text names, as `module::next`; groups in braces are taken apart.
fn paths(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        expand("", &code[at + "crate::".len()..], &mut found);
    }
    found
}

fn expand(prefix: &str, rest: &str, found: &mut BTreeSet<String>) {
    let rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        let mut depth = 1;
        let mut start = 0;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && c == ',') {
                if !group[start..at].trim().is_empty() {
                    expand(prefix, &group[start..at], found);
                }
                start = at + 1;
            }
            if depth == 0 {
                return;
            }
        }
        return;
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let name = if prefix.is_empty() { rest[..end].to_owned() } else { format!("{prefix}::{}", &rest[..end]) };
    match rest[end..].strip_prefix("::") {
        Some(next) if prefix.is_empty() => expand(&name, next, found),
        _ => {
            found.insert(name);
        }
    }
}

async fn imports() -> Outcome {
    let mut wrong = Vec::new();
    for (module, file, text) in sources() {
        if FREE.contains(&module.as_str()) {
            continue;
        }
        let Some((_, allowed)) = MAP.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: the map has no line for `{module}`", file.display()));
            continue;
        };
        for path in paths(&text) {
            let top = path.split("::").next().unwrap_or_default();
            // What everybody may name: it knows nothing of ours.
            let fits = top == module
                || ["measure", "near"].contains(&top)
                || allowed.iter().any(|allowed| *allowed == top || path.starts_with(allowed));
            if !fits {
                wrong.push(format!("{}: `{module}` may not name `crate::{path}`", file.display()));
            }
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

async fn libraries() -> Outcome {
    let mut wrong = Vec::new();
    for (module, file, text) in sources() {
        let rules = [
            ("sea_orm::", module == "store"),
            ("async_graphql::", module == "api"),
            ("nix::", ["providers", "cli", "store", "outbound", "footprint"].contains(&module.as_str())),
        ];
        // The standard library's `os::unix` is no `nix`.
        let text = text.replace("unix::", "");
        for (library, fits) in rules {
            // Not the end of `unix::`.
            if text.replace("unix::", "").contains(library) && !fits {
                wrong.push(format!("{}: `{library}` has no place in `{module}`", file.display()));
            }
        }
    }
    // A stage keeps nothing in memory between steps.
    for (module, file, text) in sources() {
        let keeps =
            ["\nstatic ", "\npub static ", "Mutex<", "RwLock<", "OnceLock<"].iter().any(|word| text.contains(word));
        if module == "stages" && keeps {
            wrong.push(format!("{}: a stage keeps something in memory", file.display()));
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}
