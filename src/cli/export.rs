//! `gennaker export`: what a server has, as documents that `gennaker apply` reads back unchanged.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::files::{self, Found, Kind, Server};
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
it is named, and the exit code is 1.

Exit status: 0 all was written, 1 something was left out or failed, 2 no such
application, or the token does not hold, 5 the server cannot be reached, or
cannot work now.

JSON: {\"documents\": [{kind, name, …}],
       \"leftOut\": [{kind, application, name, masked: [PATH]}],
       \"warnings\": [{kind, application, name, message}]},
with -o DIR {\"files\": [PATH], \"leftOut\", \"warnings\"}")]
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

async fn export(args: Args) -> Outcome {
    let server = Server::ask(args.remote.client()?).await.map_err(fault)?;
    let names = match args.application.as_slice() {
        [] => server.applications().await.map_err(fault)?,
        names => names.to_vec(),
    };
    let mut whole = Vec::new();
    let mut left_out = Vec::new();
    for name in names {
        let found = server.application(&name).await.map_err(fault)?;
        if found.is_empty() {
            return Err(Failure::Input(anyhow::anyhow!("there is no application `{name}`")));
        }
        let mut wanted: Vec<_> = found
            .into_iter()
            .filter(|found| args.kind.is_empty() || args.kind.contains(&found.identity.kind))
            .collect();
        wanted.sort_by(|a, b| a.identity.cmp(&b.identity));
        for found in wanted {
            let masked = files::masks(&Value::Object(found.fields.clone()));
            if masked.is_empty() {
                whole.push(found);
            } else {
                left_out.push((found, masked));
            }
        }
    }
    for found in &whole {
        for warning in warnings(found) {
            warn(&format!("{}: {warning}", found.identity));
        }
    }
    let complete = left_out.is_empty();
    write(&args, &whole, &left_out)?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(args: &Args, whole: &[Found], left_out: &[(Found, Vec<String>)]) -> Result<(), Failure> {
    let mut document = Map::new();
    if args.output == Path::new("-") {
        if !args.remote.json {
            let texts = whole.iter().map(|found| files::to_yaml(&found.fields)).collect::<Result<Vec<_>, _>>()?;
            print(texts.join("---\n").trim_end());
        }
        document.insert("documents".into(), whole.iter().map(|found| Value::Object(found.fields.clone())).collect());
    } else {
        let mut paths = Vec::new();
        for found in whole {
            let path = args.output.join(file_name(found));
            let text = files::to_yaml(&found.fields)?;
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
            }
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            if !args.remote.json {
                print(&path.display().to_string());
            }
            paths.push(path.display().to_string());
        }
        document.insert("files".into(), paths.into());
    }
    let with = |found: &Found, key: &str, value: Value| {
        let identity = &found.identity;
        json!({ "kind": identity.kind.as_str(), "application": identity.application, "name": identity.name, key: value })
    };
    let left = left_out.iter().map(|(found, masked)| with(found, "masked", json!(masked)));
    document.insert("leftOut".into(), left.collect());
    let warned = whole.iter().flat_map(|found| warnings(found).into_iter().map(move |said| (found, said)));
    document.insert("warnings".into(), warned.map(|(found, said)| with(found, "message", said.into())).collect());
    if args.remote.json {
        answer(&Value::Object(document));
    }
    for (found, masked) in left_out {
        warn(&format!("{} is left out: {}", found.identity, hidden(masked)));
    }
    Ok(())
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
fn file_name(found: &Found) -> PathBuf {
    let identity = &found.identity;
    let kind = match identity.kind {
        Kind::Application => "0-application",
        Kind::SecurityGroup => "1-security-group",
        Kind::LoadBalancer => "2-load-balancer",
        Kind::Pipeline => "3-pipeline",
    };
    let place = match &identity.place {
        Some((account, location)) if account != "local" || location != "local" => format!("{account}.{location}."),
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
