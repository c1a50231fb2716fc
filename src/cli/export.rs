//! `gennaker export`: what a server has, as documents that `gennaker apply` reads back unchanged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::files::{self, Document, Found, Identity, Kind, Server, Types, Written};
use super::remote::{RemoteArgs, answer, fault, print, warn};
use super::{Failure, Outcome, block_on};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker export                                all, to standard output
  gennaker export --application shop -o deploy/  a file per object
  gennaker export --kind Pipeline --json

A pipeline whose trigger waits for another that was deleted is written, and
named in a warning. A pipeline in which the server hides a secret or mail
addresses (`***`) is left out, because applying it would put the stars there;
it is named, and the exit code is 1. A document with `leftOut` stands for it:
`gennaker apply` leaves it as it is, with --prune too. A file of it that is
there already stays.

With -o DIR, a file of an object that the server does not have is named, and
the exit code is 1, since `apply` would make the object, or refuse a document
with `leftOut`. --prune removes it if an export wrote it and nobody changed it
since: DIR/.gennaker-export has the SHA-256 of each file that was written;
keep it with them. Any other file stays.

Exit status: 0 all was written, 1 something was left out, is stale or failed,
2 no such application, or the token does not hold, 5 the server cannot be
reached, or cannot work now.

JSON: {\"documents\": [{kind, name, …}],
       \"leftOut\": [{kind, application, name, masked: [PATH]}],
       \"warnings\": [{kind, application, name, message}]},
with -o DIR {\"files\": [PATH], \"removed\": [PATH], \"stale\": [PATH],
\"leftOut\", \"warnings\"}")]
pub struct Args {
    /// Only this application with what belongs to it; may be repeated
    #[arg(long, value_name = "NAME")]
    application: Vec<String>,
    /// Only this kind; may be repeated
    #[arg(long, value_enum, value_name = "KIND")]
    kind: Vec<Kind>,
    /// Where to write: a directory, made if it is not there, or - for standard output
    #[arg(short, long, value_name = "DIR|-", default_value = "-")]
    output: PathBuf,
    /// Remove unchanged files of former exports whose objects the server does not have
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Writes them.
///
/// # Errors
/// When the server cannot be reached, or a file not be written.
pub fn run(args: Args) -> Outcome {
    block_on(export(args))
}

/// An object of the server, and where something in it is hidden: then it cannot be written.
struct Exported {
    found: Found,
    masked: Vec<String>,
}

impl Exported {
    const fn is_whole(&self) -> bool {
        self.masked.is_empty()
    }

    fn fields(&self) -> Map<String, Value> {
        match self.is_whole() {
            true => self.found.fields.clone(),
            false => files::stand_in(&self.found.identity, &self.masked),
        }
    }

    fn text(&self) -> anyhow::Result<String> {
        const LEFT_OUT: &str =
            "# The export left it out, for what the server hides in it; `apply` leaves it as it is.\n";
        Ok(format!("{}{}", if self.is_whole() { "" } else { LEFT_OUT }, files::to_yaml(&self.fields())?))
    }
}

async fn export(args: Args) -> Outcome {
    if args.prune && args.output == Path::new("-") {
        return Err(Failure::Input(anyhow::anyhow!("--prune is for the files of a directory; name it by -o DIR")));
    }
    let server = Server::ask(args.remote.client()?).await.map_err(fault)?;
    let names = match args.application.as_slice() {
        [] => server.applications().await.map_err(fault)?,
        names => names.to_vec(),
    };
    let mut objects = Vec::new();
    for name in names {
        let found = server.application(&name).await.map_err(fault)?;
        if found.is_empty() {
            return Err(Failure::Input(anyhow::anyhow!("there is no application `{name}`")));
        }
        let wanted = found.into_iter().filter(|found| args.is_wanted(&found.identity));
        let mut wanted: Vec<_> = wanted
            .map(|found| Exported { masked: files::masks(&Value::Object(found.fields.clone())), found })
            .collect();
        wanted.sort_by(|a, b| a.found.identity.cmp(&b.found.identity));
        objects.extend(wanted);
    }
    for object in objects.iter().filter(|object| object.is_whole()) {
        for warning in warnings(&object.found) {
            warn(&format!("{}: {warning}", object.found.identity));
        }
    }
    let mut document = Map::new();
    let mut complete = objects.iter().all(Exported::is_whole);
    if args.output == Path::new("-") {
        if !args.remote.json {
            let texts = objects.iter().map(Exported::text).collect::<Result<Vec<_>, _>>()?;
            print(texts.join("---\n").trim_end());
        }
        document.insert("documents".into(), objects.iter().map(|object| Value::Object(object.fields())).collect());
    } else {
        let mut known = Written::read(&args.output)?;
        let files = write(&args, &server.types, &objects, &mut known);
        // What was written before a fault is remembered too.
        let saved = known.save();
        let files = files?;
        saved?;
        complete &= files.stale.is_empty();
        for (list, paths) in [("files", files.written), ("removed", files.removed), ("stale", files.stale)] {
            document.insert(list.into(), paths.iter().map(|path| path.display().to_string()).collect());
        }
    }
    finish(&args, document, &objects);
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Args {
    fn is_wanted(&self, identity: &Identity) -> bool {
        let all = self.application.is_empty() || self.application.contains(&identity.application);
        all && (self.kind.is_empty() || self.kind.contains(&identity.kind))
    }

    fn tell(&self, line: &str) {
        if !self.remote.json {
            print(line);
        }
    }
}

/// What became of the files of a directory.
#[derive(Default)]
struct Files {
    written: Vec<PathBuf>,
    removed: Vec<PathBuf>,
    /// Of objects that the server does not have.
    stale: Vec<PathBuf>,
}

fn write(args: &Args, types: &Types, objects: &[Exported], known: &mut Written) -> anyhow::Result<Files> {
    let mut files = Files::default();
    for object in objects {
        let name = file_name(&object.found.identity);
        let path = args.output.join(&name);
        // Somebody may have written it whole, with references.
        if !object.is_whole() && path.exists() && !stands_in(&path, types) {
            warn(&format!("{} is left as it is, and may differ from what the server has", path.display()));
            continue;
        }
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        let text = object.text()?;
        std::fs::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
        known.note(&name, &text);
        args.tell(&path.display().to_string());
        files.written.push(path);
    }
    let there: BTreeSet<PathBuf> = objects.iter().map(|object| file_name(&object.found.identity)).collect();
    for stale in stale(args, types, &there, known)? {
        let Stale { path, identity, is_ours, stands_in } = stale;
        if args.prune && is_ours {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            // The application's directory with its last file; any other stays.
            let _ = path.parent().map(std::fs::remove_dir);
            args.tell(&format!("removed {}", path.display()));
            files.removed.push(path);
            continue;
        }
        let is = format!("{} is of {identity}, which the server does not have", path.display());
        let changed = "was changed since, or was not written by an export";
        let then = match stands_in {
            true => "`gennaker apply` refuses it, since there is nothing that it could stand for",
            false => "`gennaker apply` would make it",
        };
        warn(&match (args.prune, is_ours) {
            (true, _) => format!("{is}, and {changed}: it stays; remove it if it is to go"),
            (false, true) => format!("{is}; {then}: remove the file, or export with --prune"),
            (false, false) => format!("{is}, and {changed}; {then}: remove the file if it is to go"),
        });
        files.stale.push(path);
    }
    Ok(files)
}

/// A file of an object that the server does not have.
struct Stale {
    path: PathBuf,
    identity: Identity,
    /// It is just as an export wrote it.
    is_ours: bool,
    /// It stands for an object that an export left out.
    stands_in: bool,
}

/// Those among the files that an export of the same scope would write.
fn stale(args: &Args, types: &Types, there: &BTreeSet<PathBuf>, known: &Written) -> anyhow::Result<Vec<Stale>> {
    let mut stale = Vec::new();
    for directory in entries(&args.output)?.into_iter().filter(|path| path.is_dir() && !path.is_symlink()) {
        for path in entries(&directory)?.into_iter().filter(|path| path.is_file() && !path.is_symlink()) {
            let Ok(name) = path.strip_prefix(&args.output) else { continue };
            let looks_so = path.extension().is_some_and(|end| end == "yaml") && !there.contains(name);
            let Some((document, text)) = looks_so.then(|| files::only_document(&path, types)).flatten() else {
                continue;
            };
            let Document { identity, left_out, .. } = document;
            if file_name(&identity) == name && args.is_wanted(&identity) {
                let is_ours = known.holds(name, &text);
                stale.push(Stale { path, identity, is_ours, stands_in: left_out.is_some() });
            }
        }
    }
    Ok(stale)
}

fn entries(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect()),
    };
    let mut paths: Vec<PathBuf> = read.with_context(|| format!("reading {}", directory.display()))?;
    paths.sort();
    Ok(paths)
}

fn stands_in(path: &Path, types: &Types) -> bool {
    path.is_file() && files::only_document(path, types).is_some_and(|(document, _)| document.left_out.is_some())
}

fn finish(args: &Args, mut document: Map<String, Value>, objects: &[Exported]) {
    let with = |found: &Found, key: &str, value: Value| {
        let identity = &found.identity;
        json!({ "kind": identity.kind.as_str(), "application": identity.application, "name": identity.name, key: value })
    };
    let (whole, left_out): (Vec<_>, Vec<_>) = objects.iter().partition(|object| object.is_whole());
    let left = left_out.iter().map(|object| with(&object.found, "masked", json!(object.masked)));
    document.insert("leftOut".into(), left.collect());
    let warned = whole.iter().flat_map(|it| warnings(&it.found).into_iter().map(move |said| (&it.found, said)));
    document.insert("warnings".into(), warned.map(|(found, said)| with(found, "message", said.into())).collect());
    if args.remote.json {
        answer(&Value::Object(document));
    }
    for object in left_out {
        warn(&format!("{} is left out: {}", object.found.identity, hidden(&object.masked)));
    }
}

/// What is hidden, and what to do about it.
fn hidden(masked: &[String]) -> String {
    // Addresses of mail are hidden from those who may not change pipelines, whatever stands there.
    let (addresses, secrets): (Vec<&str>, Vec<&str>) =
        masked.iter().map(String::as_str).partition(|path| is_address(path));
    let mut said = Vec::new();
    if !secrets.is_empty() {
        said.push(format!("a secret is hidden at {}; put a reference (secret://…) there", secrets.join(", ")));
    }
    if !addresses.is_empty() {
        said.push(format!(
            "the token's role may not see the mail addresses at {}; ask with one that may change pipelines",
            addresses.join(", ")
        ));
    }
    said.join("; ")
}

/// `notifications.0.email.to.1`, of the pipeline or of a stage.
fn is_address(path: &str) -> bool {
    let parts: Vec<&str> = path.split('.').collect();
    matches!(parts[..], ["notifications", _, "email", "to", _] | ["stages", _, "notifications", _, "email", "to", _])
}

/// What is written as it is and does not work.
fn warnings(found: &Found) -> Vec<String> {
    let triggers = found.fields.get("triggers").and_then(Value::as_array);
    let dead = |trigger: &&Value| found.dead_triggers.iter().any(|key| trigger["key"] == key.as_str());
    let said = |trigger: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let config = &trigger["config"];
        format!(
            "its trigger `{}` waits for pipeline {}/{}, which was deleted, and starts nothing; `gennaker apply` takes \
             the file once a pipeline of that name is there, or in a file beside it",
            text(&trigger["key"]),
            text(&config["application"]),
            text(&config["pipeline"]),
        )
    };
    triggers.into_iter().flatten().filter(dead).map(said).collect()
}

/// `shop/2-load-balancer.shop-web.yaml`: one directory per application, in the order of need.
fn file_name(identity: &Identity) -> PathBuf {
    let kind = match identity.kind {
        Kind::Application => "0-application",
        Kind::SecurityGroup => "1-security-group",
        Kind::LoadBalancer => "2-load-balancer",
        Kind::Pipeline => "3-pipeline",
    };
    let place = match &identity.place {
        Some((account, location)) if identity.is_elsewhere() => format!("{account}.{location}."),
        _ => String::new(),
    };
    PathBuf::from(plain(&identity.application))
        .join(format!("{kind}.{}.yaml", plain(&format!("{place}{}", identity.name))))
}

/// Bytes of a name in a file's name that is not shortened; a file's name may have 255.
const PLAIN_BYTES: usize = 120;

/// A name as part of a file's name: what is not plain is written as its number, so that no two names
/// share a file. A long one is its beginning and its digest.
fn plain(name: &str) -> String {
    const DIGITS: usize = 16;
    let whole = escaped(name, usize::MAX);
    if whole.len() <= PLAIN_BYTES {
        return whole;
    }
    // With the dash it is longer than any that is not shortened, so it is none of those.
    format!("{}-{}", escaped(name, PLAIN_BYTES - DIGITS), &files::digest(name)[..DIGITS])
}

/// As much of a name as makes so many bytes, with the last escape whole.
fn escaped(name: &str, bytes: usize) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if text.len() >= bytes {
            break;
        }
        match byte {
            b'.' if text.is_empty() => text.push_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(char::from(byte)),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory() {
        assert_eq!(plain("deploy web"), "deploy%20web");
        assert_eq!(plain("../x"), "%2E.%2Fx");
        assert_eq!(plain("shop-web.1"), "shop-web.1");
    }

    #[test]
    fn a_long_name_is_shortened_between_two_escapes() {
        assert_eq!(plain(&"a".repeat(120)), "a".repeat(120));
        for filled in ["a", "ab", "abc"] {
            let long = format!("{filled}{}", "ä".repeat(97));
            let short = plain(&long);
            assert!((121..=123).contains(&short.len()), "{short}");
            let (start, digest) = short.rsplit_once('-').expect("a dash");
            assert_eq!(digest.len(), 16);
            assert!(start.len() % 3 == filled.len() % 3, "{start}");
            assert!(escaped(&long, usize::MAX).starts_with(start), "{start}");
            assert_ne!(plain(&format!("{long}x")), short);
        }
    }
}
