//! `gennaker config`: looks at the settings that a server would have, and touches nothing.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::Outcome;
use super::settings::Settings;
use crate::config::{self, Setting, Source};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker config check
  gennaker config check --config /etc/gennaker/gennaker.toml
  gennaker config show --json

A flag stands above its variable, a variable above the file, the file above
what is built in. A key of the file is a flag's name, whole or cut at a hyphen
into a table and a key:

  listen = \"127.0.0.1:7777\"
  [tls]
  cert = \"/etc/gennaker/cert.pem\"
  key = \"/etc/gennaker/key.pem\"

A list is for what may be repeated. A secret is better written as
secret://file/PATH or secret://env/GENNAKER_SECRET_…; as it is, only in a file
that others cannot read.

`check` looks at the variables as well: a GENNAKER_… that nothing reads is a
fault to it, and so is a reference to a secret that is not there. A server
warns of the former and goes on, and does not start with the latter.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say everything that does not hold in file, variables and flags; status 0 or 2
    Check(Check),
    /// List every setting with its value and where it comes from; secrets are masked
    Show(Show),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker config check
  gennaker config check --config ./gennaker.toml

Exit status: 0 all settings hold, 2 they do not.")]
struct Check {
    #[command(flatten)]
    config: config::Args,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker config show
  gennaker config show --json | jq '.settings'")]
struct Show {
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: config::Args,
}

/// Commands that are run although the file has faults, since they tell them with all others.
#[must_use]
pub fn tolerates(path: &[String]) -> bool {
    path == ["config", "check"] || path == ["serve"]
}

/// Looks.
///
/// # Errors
/// When a setting does not hold, or standard output is closed.
pub fn run(args: Args, mut settings: Settings) -> Outcome {
    match args.command {
        Command::Check(args) => check(args.config, &settings),
        Command::Show(args) => {
            if let Ok(config) = args.config.clone().validate() {
                for setting in &mut settings.all {
                    match setting.name.as_str() {
                        "data-dir" => setting.derived(&config.data.dir),
                        "host-dir" => setting.derived(&config.host.dir),
                        _ => {}
                    }
                }
            }
            if args.json { show_json(&settings) } else { show(&settings) }
        }
    }
}

fn check(args: config::Args, settings: &Settings) -> Outcome {
    let mut faults: Vec<_> = super::unknown_variables().iter().map(ToString::to_string).collect();
    if let Err(others) = settings.validate(args) {
        faults.extend(others);
    }
    if faults.is_empty() {
        match settings.path() {
            Some(path) => println!("{}: all settings hold", path.display()),
            None => println!("all settings hold; there is no file of settings"),
        }
        return Ok(ExitCode::SUCCESS);
    }
    for fault in &faults {
        eprintln!("gennaker: {fault}");
    }
    Ok(ExitCode::from(2))
}

fn show(settings: &Settings) -> Outcome {
    let mut out = std::io::stdout().lock();
    for setting in &settings.all {
        match setting.value() {
            Some(value) => writeln!(out, "{} = {value}  # {}", setting.name, setting.source)?,
            None => writeln!(out, "# {} is not set", setting.name)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_json(settings: &Settings) -> Outcome {
    let of = |setting: &Setting| {
        let source = match &setting.source {
            Source::Flag(name) => json!({ "kind": "flag", "name": name }),
            Source::Variable(name) => json!({ "kind": "variable", "name": name }),
            Source::File { path, line } => json!({ "kind": "file", "path": path, "line": line }),
            Source::Default => json!({ "kind": "default" }),
        };
        json!({ "name": setting.name, "value": setting.value(), "source": source })
    };
    let all: Vec<_> = settings.all.iter().map(of).collect();
    let text = serde_json::to_string_pretty(&json!({ "file": settings.path(), "settings": all }))?;
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
