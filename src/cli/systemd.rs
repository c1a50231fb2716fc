//! `gennaker systemd`: the two units that run server and host for good, printed or written.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::{Failure, Outcome};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The server's unit starts the host's before it. Stopping, restarting or
upgrading either one leaves the instances running.
`systemctl reload gennaker-host` goes over to a new binary without a dropped
request, `systemctl reload gennaker` has the server read its settings again.

Examples:
  gennaker systemd                           both units, to look at
  sudo gennaker systemd --dir /etc/systemd/system
  gennaker systemd --user --dir ~/.config/systemd/user

Files:
  /etc/gennaker/environment    GENNAKER_… variables for both, one a line
  /var/lib/gennaker            the server's data
  /var/lib/gennaker-host       the host's
  With --user they are in ~/.config and in the user's state directory.

Exit status: 0 done, 1 a file cannot be written, 2 a unit of that name with
other content is there.")]
pub struct Args {
    /// Write gennaker.service and gennaker-host.service to this directory instead of printing them
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// For a user's own service manager (`systemctl --user`), without what needs root
    #[arg(long)]
    user: bool,
    /// Replace units that are there and say something else
    #[arg(long, requires = "dir")]
    force: bool,
    /// The binary that the units start
    /// [default: this one]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

const UNITS: [(&str, &str); 2] = [
    ("gennaker-host.service", include_str!("systemd/gennaker-host.service")),
    ("gennaker.service", include_str!("systemd/gennaker.service")),
];

/// Prints or writes the units.
///
/// # Errors
/// What could not be written.
pub fn run(args: Args) -> Outcome {
    let binary = match &args.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => std::env::current_exe()?.canonicalize()?,
    };
    let units = UNITS.map(|(name, template)| (name, unit(template, &binary, args.user)));
    let Some(dir) = &args.dir else {
        let mut out = std::io::stdout().lock();
        for (index, (name, text)) in units.iter().enumerate() {
            let gap = if index > 0 { "\n" } else { "" };
            writeln!(out, "{gap}# --- {name}\n{text}")?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    for (name, text) in &units {
        let path = dir.join(name);
        match std::fs::read_to_string(&path) {
            Ok(there) if there == *text => println!("{} is there already", path.display()),
            Ok(_) if !args.force => {
                return Err(Failure::input(anyhow::anyhow!(
                    "{} is there and says something else; look at the difference, then say --force, or put changes \
                     into a drop-in (systemctl edit {name})",
                    path.display()
                )));
            }
            _ => {
                std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
                println!("{} written", path.display());
            }
        }
    }
    println!("\nNext:\n{}", next(args.user));
    Ok(ExitCode::SUCCESS)
}

/// A unit from its template: lines that begin with `system: ` or `user: ` are for that manager only.
fn unit(template: &str, binary: &Path, user: bool) -> String {
    let (ours, other) = if user { ("user: ", "system: ") } else { ("system: ", "user: ") };
    let lines = template.lines().filter(|line| !line.starts_with(other));
    let mut text: String = lines.map(|line| line.strip_prefix(ours).unwrap_or(line).to_owned() + "\n").collect();
    // systemd takes a `%` for a specifier, and a blank for the end of the path.
    let binary = binary.display().to_string().replace('%', "%%").replace(' ', "\\x20");
    text = text.replace("@BINARY@", &binary);
    text
}

const fn next(user: bool) -> &'static str {
    if user {
        "  systemctl --user daemon-reload\n  systemctl --user enable --now gennaker\n  \
         loginctl enable-linger      (so that it runs while you are not logged in)\n  \
         journalctl --user -u gennaker      (the first start says there how to make a token)"
    } else {
        "  useradd --system --home-dir /var/lib/gennaker --shell /usr/sbin/nologin gennaker\n  \
         systemctl daemon-reload\n  systemctl enable --now gennaker-host gennaker\n  \
         journalctl -u gennaker      (the first start says there how to make a token)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_holds_what_its_manager_knows() {
        for (name, template) in UNITS {
            let system = unit(template, Path::new("/opt/my app/gennaker"), false);
            let user = unit(template, Path::new("/usr/bin/gennaker"), true);
            for text in [&system, &user] {
                assert!(
                    !text.contains("system: ") && !text.contains("user: ") && !text.contains('@'),
                    "{name}: {text}"
                );
                assert!(text.contains("KillMode=process"), "{name}");
                assert!(text.contains("Type=notify"), "{name}");
            }
            assert!(system.contains("ExecStart=/opt/my\\x20app/gennaker "), "{system}");
            assert!(system.contains("WantedBy=multi-user.target") && system.contains("\nUser=gennaker\n"), "{system}");
            assert!(user.contains("WantedBy=default.target") && !user.contains("\nUser="), "{user}");
        }
    }
}
