//! `gennaker export`: what a server has, as documents that `gennaker apply` reads back unchanged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::files::{self, Document, Found, Identity, Kind, Server, Types};
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

With -o DIR, a file of an object that the server has no more is named, and the
exit code is 1, since `apply` would make the object again; --prune removes it.
What is not just as an export writes it, at the path where it writes it, is
never removed.

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
    /// Remove files of a former export whose objects the server has no more
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
        text(&self.fields(), self.is_whole())
    }
}

fn text(fields: &Map<String, Value>, is_whole: bool) -> anyhow::Result<String> {
    const LEFT_OUT: &str = "# The export left it out, for what the server hides in it; `apply` leaves it as it is.\n";
    Ok(format!("{}{}", if is_whole { "" } else { LEFT_OUT }, files::to_yaml(fields)?))
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
        let files = write(&args, &server.types, &objects)?;
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
    /// Of objects that the server has no more.
    stale: Vec<PathBuf>,
}

fn write(args: &Args, types: &Types, objects: &[Exported]) -> Result<Files, Failure> {
    let mut files = Files::default();
    for object in objects {
        let path = args.output.join(file_name(&object.found.identity));
        // Somebody may have written it whole, with references.
        if !object.is_whole() && path.exists() && !stands_in(&path, types) {
            warn(&format!("{} is left as it is, and may differ from what the server has", path.display()));
            continue;
        }
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        std::fs::write(&path, object.text()?).with_context(|| format!("writing {}", path.display()))?;
        args.tell(&path.display().to_string());
        files.written.push(path);
    }
    let there: BTreeSet<PathBuf> = objects.iter().map(|object| file_name(&object.found.identity)).collect();
    for stale in stale(args, types, &there)? {
        let Stale { path, identity, is_ours } = stale;
        let gone = format!("{} is of {identity}, which the server has no more", path.display());
        match (args.prune, is_ours) {
            (true, true) => {
                std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
                // The application's directory with its last file; any other stays.
                let _ = path.parent().map(std::fs::remove_dir);
                args.tell(&format!("removed {}", path.display()));
                files.removed.push(path);
                continue;
            }
            (true, false) => {
                warn(&format!("{gone}, and is not just as an export writes it: it stays; remove it if it is to go"));
            }
            (false, _) => {
                warn(&format!("{gone}; `gennaker apply` would make it again: remove the file, or export with --prune"));
            }
        }
        files.stale.push(path);
    }
    Ok(files)
}

/// A file of an object that the server has no more.
struct Stale {
    path: PathBuf,
    identity: Identity,
    /// It is just as an export writes it.
    is_ours: bool,
}

/// Those among the files that an export of the same scope would write.
fn stale(args: &Args, types: &Types, there: &BTreeSet<PathBuf>) -> anyhow::Result<Vec<Stale>> {
    let mut stale = Vec::new();
    for directory in entries(&args.output)?.into_iter().filter(|path| path.is_dir() && !path.is_symlink()) {
        for path in entries(&directory)?.into_iter().filter(|path| path.is_file() && !path.is_symlink()) {
            let Ok(name) = path.strip_prefix(&args.output) else { continue };
            let looks_so = path.extension().is_some_and(|end| end == "yaml") && !there.contains(name);
            let Some((document, written)) = looks_so.then(|| files::only_document(&path, types)).flatten() else {
                continue;
            };
            let Document { identity, fields, left_out, .. } = document;
            if file_name(&identity) == name && args.is_wanted(&identity) {
                let ours = match &left_out {
                    Some(masked) => text(&files::stand_in(&identity, masked), false)?,
                    None => text(&fields, true)?,
                };
                stale.push(Stale { is_ours: ours == written, path, identity });
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

/// A name as part of a file's name: what is not plain is written as its number, so that no two names
/// share a file.
fn plain(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
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
}
