//! Settings: the file below variables below flags, what is told of faults, what a signal changes in
//! a running server, and that no secret is shown.

mod effects;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::documents::CREATE;
use crate::harness::{Options, Outcome, Server, gennaker, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("config", "a_flag_stands_above_a_variable_above_the_file_above_what_is_built_in", precedence),
        trial("config", "the_file_is_found_in_its_usual_place", usual_place),
        trial("config", "check_tells_every_fault_with_its_line_and_touches_nothing", check),
        trial("config", "a_variable_that_does_not_hold_is_told_by_its_name", variables),
        trial("config", "the_databases_own_variable_stands_above_the_one_of_all_programs", database_variables),
        trial("config", "a_variable_that_nothing_reads_is_told", misspelt),
        trial("config", "a_reference_to_a_secret_that_is_not_there_is_a_fault", dangling),
        trial("config", "secrets_are_masked_and_a_readable_file_with_one_is_refused", secrets),
        trial("config", "an_address_that_nothing_can_be_at_is_a_fault", addresses),
        trial("config", "a_server_and_the_other_commands_take_their_settings_from_the_file", from_the_file),
        trial("config", "a_host_by_itself_takes_its_settings_from_the_servers_file", host),
        trial("config", "sighup_takes_over_what_can_change_and_names_what_cannot", reload),
        trial("config", "a_page_holds_as_many_items_as_the_setting_says", large_page),
        trial("config", "sighup_has_less_kept_at_once", less_kept),
        trial("config", "sighup_takes_effect_on_what_the_server_takes_keeps_and_logs", effects::take_effect),
        trial("config", "the_readme_lists_every_limit_with_its_default", readme),
    ]
}

const MAX: Duration = Duration::from_secs(30);

/// A directory that is gone with the trial.
struct Dir(PathBuf);

impl Dir {
    fn new() -> anyhow::Result<Self> {
        let name = format!("gennaker-it-config-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let dir = std::env::temp_dir().canonicalize()?.join(name);
        std::fs::create_dir(&dir)?;
        Ok(Self(dir))
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&self.0))?;
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `gennaker config …`
fn config(dir: &Dir) -> Command {
    let mut command = bare(dir);
    command.arg("config");
    command
}

/// `gennaker …` without the settings of whoever runs the trials.
fn bare(dir: &Dir) -> Command {
    let mut command = Command::new(gennaker());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GENNAKER_") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.env("HOME", &dir.0).env("XDG_CONFIG_HOME", dir.0.join("config")).env_remove("XDG_DATA_HOME");
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The settings by name, as `config show --json` has them.
fn shown(mut command: Command) -> anyhow::Result<Value> {
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "{}: {}", output.status, stderr(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn setting<'a>(shown: &'a Value, name: &str) -> &'a Value {
    let all = shown["settings"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|setting| setting["name"] == name).unwrap_or(&Value::Null)
}

async fn precedence() -> Outcome {
    let dir = Dir::new()?;
    let file = dir.write(
        "g.toml",
        "retention-days = 5\naudit-retention-days = 6\ninsecure = true\n\n[max]\npage = 50\nbody-bytes = 2_000_000\n\n\
         [outbound]\nallow = [\"10.0.0.0/8\", \"::1\"]\n",
    )?;
    let mut command = config(&dir);
    command
        .args(["show", "--json", "--max-page", "70", "--config"])
        .arg(&file)
        .env("GENNAKER_MAX_PAGE", "60")
        .env("GENNAKER_RETENTION_DAYS", "7");
    let shown = shown(command)?;
    let from_file = |line: u64| json!({ "kind": "file", "path": file, "line": line });
    for (name, value, source) in [
        ("max-page", json!(70), json!({ "kind": "flag", "name": "--max-page" })),
        ("retention-days", json!(7), json!({ "kind": "variable", "name": "GENNAKER_RETENTION_DAYS" })),
        ("audit-retention-days", json!(6), from_file(2)),
        ("insecure", json!(true), from_file(3)),
        ("max-body-bytes", json!(2_000_000), from_file(7)),
        ("outbound-allow", json!(["10.0.0.0/8", "::1"]), from_file(10)),
        ("max-event-bytes", json!(65_536), json!({ "kind": "default" })),
        ("durability", json!("full"), json!({ "kind": "default" })),
        ("listen", json!("127.0.0.1:7777"), json!({ "kind": "default" })),
        ("data-dir", json!(dir.0.join(".local/share/gennaker")), json!({ "kind": "default" })),
        ("tls-cert", Value::Null, json!({ "kind": "default" })),
    ] {
        let setting = setting(&shown, name);
        anyhow::ensure!(setting["value"] == value && setting["source"] == source, "{name}: {setting}");
    }
    // One line each, which can be copied into a file.
    let mut command = config(&dir);
    let output = command.args(["show", "--config"]).arg(&file).output()?;
    let text = String::from_utf8(output.stdout)?;
    anyhow::ensure!(text.contains(&format!("max-page = 50  # file {}:6\n", file.display())), "{text}");
    anyhow::ensure!(text.lines().count() == shown["settings"].as_array().map_or(0, Vec::len), "{text}");
    let copy = dir.write("copy.toml", &text)?;
    let output = config(&dir).args(["check", "--config"]).arg(copy).output()?;
    anyhow::ensure!(output.status.success(), "{}", stderr(&output));
    Ok(())
}

async fn usual_place() -> Outcome {
    let dir = Dir::new()?;
    let mut command = config(&dir);
    command.args(["show", "--json"]);
    anyhow::ensure!(setting(&shown(command)?, "max-page")["value"] == 100, "no file, no fault");
    let usual = dir.write("config/gennaker/gennaker.toml", "max-page = 11\n")?;
    let mut command = config(&dir);
    command.args(["show", "--json"]);
    let all = shown(command)?;
    anyhow::ensure!(all["file"] == json!(usual) && setting(&all, "max-page")["value"] == 11, "{all}");
    // A file that is named stands for all usual places, and has to be there.
    let named = dir.write("named.toml", "max-page = 12\n")?;
    let mut command = config(&dir);
    command.args(["show", "--json"]).env("GENNAKER_CONFIG", &named);
    anyhow::ensure!(setting(&shown(command)?, "max-page")["value"] == 12);
    let output = config(&dir).args(["check", "--config", "/does/not/exist.toml"]).output()?;
    anyhow::ensure!(output.status.code() == Some(2) && stderr(&output).contains("/does/not/exist.toml"));
    Ok(())
}

async fn check() -> Outcome {
    let dir = Dir::new()?;
    let file = dir.write(
        "g.toml",
        "lisen = \"127.0.0.1:1\"\ndata-dir = \"data\"\nmax-page = 5000\n\n[tls]\ncert = \"/does/not/exist\"\n\n[cors]\nallowedOrigins = [\"*\"]\n",
    )?;
    let output = config(&dir).args(["check", "--shutdown-grace-seconds", "99999", "--config"]).arg(&file).output()?;
    let text = stderr(&output);
    anyhow::ensure!(output.status.code() == Some(2), "{}: {text}", output.status);
    let file = file.display();
    for words in [
        format!("{file}:1: there is no setting `lisen`; did you mean `listen`?"),
        format!("{file}:9: `cors-allowed-origins` does not hold"),
        format!("{file}:3: `max-page`: 5000 is not within 1 to 1000"),
        "--tls-key: is missing".to_owned(),
        format!("{file}:6: `tls-cert`: /does/not/exist: "),
    ] {
        anyhow::ensure!(text.contains(&words), "{words} is not in {text}");
    }
    // A server with such a file does not start.
    let output = config(&dir).args(["check", "--config", &file.to_string()]).output()?;
    anyhow::ensure!(output.status.code() == Some(2));
    let output = Command::new(gennaker())
        .args(["serve", "--config", &file.to_string(), "--data-dir"])
        .arg(dir.0.join("data"))
        .output()?;
    anyhow::ensure!(output.status.code() == Some(2) && stderr(&output).contains("did you mean `listen`"));

    // Nor does the first fault of a section or of a list hide the next one.
    let file = dir.write(
        "many.toml",
        "max-page = 5000\nmax-event-bytes = 1\ntrusted-proxies = [\n  \"x\",\n  \"10.0.0.0/8\",\n  \"y\",\n]\n\
         outbound-allow = [\"one\", \"::1\", \"two\"]\nartifact-root = [\"/not/here\", \"/nor/here\"]\n\
         secret-dir = [\"/not/there\", \"/nor/there\"]\nmax-artifact-bytes = 1\n[smtp]\nhost = \"mail.example.org\"\n\
         from = \"nobody\"\ntimeout-seconds = 0\n[otlp]\nendpoint = \"x\"\ntimeout-seconds = 0\n",
    )?;
    let run = |command: &mut Command| {
        command
            .arg("--config")
            .arg(&file)
            .env("GENNAKER_CORS_ALLOWED_ORIGINS", "*,https://a.example,nothing")
            .env("GENNAKER_SHUTDOWN_GRACE_SECONDS", "99999")
            .env("DATABASE_URL", "mysql://g@db/g")
            .output()
    };
    let told = |line: usize, words: &str| format!("{}:{line}: {words}", file.display());
    let all = [
        told(1, "`max-page`: 5000 is not within"),
        told(2, "`max-event-bytes`: 1 is not within"),
        told(4, "`trusted-proxies` does not hold: invalid value 'x'"),
        told(6, "`trusted-proxies` does not hold: invalid value 'y'"),
        told(8, "`outbound-allow`: `one`"),
        told(8, "`outbound-allow`: `two`"),
        told(9, "`artifact-root`: /not/here"),
        told(9, "`artifact-root`: /nor/here"),
        told(10, "`secret-dir`: /not/there"),
        told(10, "`secret-dir`: /nor/there"),
        told(11, "`max-artifact-bytes`: 1 is less"),
        told(14, "`smtp-from`: `nobody`"),
        told(15, "`smtp-timeout-seconds`: 0 is not within"),
        told(17, "`otlp-endpoint`: "),
        told(18, "`otlp-timeout-seconds`: 0 is not within"),
        "GENNAKER_CORS_ALLOWED_ORIGINS: does not hold: invalid value '*'".to_owned(),
        "GENNAKER_CORS_ALLOWED_ORIGINS: does not hold: invalid value 'nothing'".to_owned(),
        "GENNAKER_SHUTDOWN_GRACE_SECONDS: 99999 is more than 3600".to_owned(),
        "DATABASE_URL: is not a postgres:// URL".to_owned(),
    ];
    for command in [&["config", "check"][..], &["serve"]] {
        let output = run(bare(&dir).args(command))?;
        let text = stderr(&output);
        anyhow::ensure!(output.status.code() == Some(2), "{command:?}: {}: {text}", output.status);
        for words in &all {
            anyhow::ensure!(text.contains(words), "{command:?}: {words} is not in {text}");
        }
        anyhow::ensure!(text.lines().count() == all.len(), "{command:?}: {text}");
    }

    let good = dir.write("good.toml", "listen = \"127.0.0.1:0\"\n")?;
    let output =
        config(&dir).args(["check", "--config"]).arg(good).arg("--data-dir").arg(dir.0.join("data")).output()?;
    anyhow::ensure!(output.status.success(), "{}", stderr(&output));
    anyhow::ensure!(!dir.0.join("data").exists(), "nothing is made");
    Ok(())
}

async fn variables() -> Outcome {
    let dir = Dir::new()?;
    let file = dir.write("g.toml", "lisen = \"127.0.0.1:1\"\n")?;
    let bad = |command: &mut Command| {
        command
            .env("GENNAKER_MAX_EVENT_BYTES", "many")
            .env("GENNAKER_MAX_PAGE", "5000")
            .env("GENNAKER_DURABILITY", "hafl")
            .env("GENNAKER_CONFIG", &file)
            .output()
    };
    // What is read as no value at all, and what is one that does not hold: all at once.
    let output = bad(config(&dir).arg("check"))?;
    let text = stderr(&output);
    anyhow::ensure!(output.status.code() == Some(2), "{}: {text}", output.status);
    for words in [
        "GENNAKER_MAX_EVENT_BYTES: does not hold: invalid value 'many'".to_owned(),
        "GENNAKER_DURABILITY: does not hold: invalid value 'hafl'".to_owned(),
        "GENNAKER_MAX_PAGE: 5000 is not within 1 to 1000".to_owned(),
        format!("{}:1: there is no setting `lisen`", file.display()),
    ] {
        anyhow::ensure!(text.contains(&words), "{words} is not in {text}");
    }
    // A server does not start with them; what is given by a flag is the flag's.
    let output = bad(bare(&dir).arg("serve"))?;
    let text = stderr(&output);
    anyhow::ensure!(output.status.code() == Some(2) && text.contains("GENNAKER_MAX_EVENT_BYTES: "), "{text}");
    let output = bad(config(&dir).args(["check", "--max-event-bytes", "lots", "--max-page", "6000"]))?;
    let text = stderr(&output);
    anyhow::ensure!(output.status.code() == Some(2) && text.contains("'lots' for '--max-event-bytes"), "{text}");
    let output = bad(config(&dir).args(["check", "--max-event-bytes", "8192", "--max-page", "6000"]))?;
    let text = stderr(&output);
    anyhow::ensure!(text.contains("--max-page: 6000") && !text.contains("GENNAKER_MAX"), "{text}");

    // Every command that takes the settings does it alike, and nobody repeats a secret.
    for command in [&["token", "list"][..], &["backup", "x.db"], &["restore", "x.db"], &["migrate"]] {
        let output = bare(&dir).args(command).env("DATABASE_URL", "mysql://g:hidden@db/g").output()?;
        let text = stderr(&output);
        anyhow::ensure!(output.status.code() == Some(2), "{command:?}: {text}");
        anyhow::ensure!(text.contains("DATABASE_URL: is not a postgres:// URL"), "{command:?}: {text}");
        anyhow::ensure!(!text.contains("hidden"), "{text}");
    }
    let output = bare(&dir).args(["host", "status"]).env("GENNAKER_MAX_INSTANCES", "x").output()?;
    anyhow::ensure!(output.status.code() == Some(2), "{output:?}");
    anyhow::ensure!(stderr(&output).contains("GENNAKER_MAX_INSTANCES: does not hold"), "{output:?}");
    Ok(())
}

async fn database_variables() -> Outcome {
    let dir = Dir::new()?;
    let (own, all) = ("GENNAKER_DATABASE_URL", "DATABASE_URL");
    let (a, b) = ("postgres://a@db/g", "postgres://b@db/g");
    for (set, value, by) in [
        (&[(own, a)][..], a, json!({ "kind": "variable", "name": own })),
        (&[(all, b)], b, json!({ "kind": "variable", "name": all })),
        (&[(own, a), (all, b)], a, json!({ "kind": "variable", "name": own })),
    ] {
        let mut command = config(&dir);
        command.args(["show", "--json"]).envs(set.iter().copied());
        let shown = shown(command)?;
        let url = setting(&shown, "database-url");
        anyhow::ensure!(url["value"] == value && url["source"] == by, "{set:?}: {url}");
    }
    // A server takes it for its database, and one that does not hold is told by its name.
    let bad = "mysql://g:hidden@db/g";
    for command in [&["serve"][..], &["config", "check"], &["token", "list"], &["migrate"]] {
        let output = bare(&dir).args(command).env(own, bad).env(all, b).output()?;
        let text = stderr(&output);
        anyhow::ensure!(output.status.code() == Some(2) && !text.contains("hidden"), "{command:?}: {text}");
        anyhow::ensure!(text.contains("GENNAKER_DATABASE_URL: is not a postgres:// URL"), "{command:?}: {text}");
    }
    let help = String::from_utf8(bare(&dir).args(["serve", "--help"]).output()?.stdout)?;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    anyhow::ensure!(help.contains("Where GENNAKER_DATABASE_URL is not set, DATABASE_URL is read"), "{help}");
    Ok(())
}

async fn misspelt() -> Outcome {
    let dir = Dir::new()?;
    // Everything that there is, as it is named by the commands themselves.
    let mut names = std::collections::BTreeSet::new();
    for command in ["serve", "host", "run", "migrate", "token list"] {
        let help = bare(&dir).args(command.split(' ')).arg("--help").env("COLUMNS", "500").output()?;
        let text = String::from_utf8(help.stdout)?;
        let named = text.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
        names.extend(named.map(str::to_owned));
    }
    anyhow::ensure!(names.len() > 40 && names.contains("GENNAKER_CA_FILE"), "{names:?}");
    let known = config(&dir).arg("check").envs(names.iter().map(|name| (name, ""))).output()?;
    anyhow::ensure!(!stderr(&known).contains("there is no such variable"), "{}", stderr(&known));

    let set = |command: &mut Command| {
        command
            .env("GENNAKER_LISTN", "127.0.0.1:1")
            .env("GENNAKER_SECRET_HOOK", "others read it")
            .env("GENNAKER_SERVICE_HOST", "10.0.0.1")
            .env("GENNAKER_PORT_7777_TCP", "tcp://10.0.0.1:7777")
            .output()
    };
    let output = set(config(&dir).arg("check"))?;
    let text = stderr(&output);
    anyhow::ensure!(output.status.code() == Some(2), "{text}");
    let told = "GENNAKER_LISTN: there is no such variable; did you mean `GENNAKER_LISTEN`?";
    anyhow::ensure!(text.lines().collect::<Vec<_>>() == [format!("gennaker: {told}")], "{text}");
    // A server says so, and starts.
    let environment = vec![("GENNAKER_LISTN".to_owned(), "127.0.0.1:1".to_owned())];
    let server = Server::start_with(Options { environment, ..Options::default() }).await?;
    anyhow::ensure!(server.log().contains(told), "{}", server.log());
    Ok(())
}

async fn dangling() -> Outcome {
    let dir = Dir::new()?;
    let file = dir.write(
        "g.toml",
        "[smtp]\nhost = \"mail.example.org\"\nfrom = \"g@example.org\"\nusername = \"g\"\n\
         password = \"secret://env/GENNAKER_SECRET_SMTP\"\n",
    )?;
    let check = |command: &mut Command| command.args(["check", "--config"]).arg(&file).output();
    let output = check(&mut config(&dir))?;
    let text = stderr(&output);
    let told = format!("{}:5: `smtp-password`: ", file.display());
    anyhow::ensure!(output.status.code() == Some(2) && text.contains(&told), "{text}");
    anyhow::ensure!(text.contains("GENNAKER_SECRET_SMTP` is not set"), "{text}");
    let output = check(config(&dir).env("GENNAKER_SECRET_SMTP", "pw"))?;
    anyhow::ensure!(output.status.success(), "{}", stderr(&output));
    // A server would not start with it either: no mail would ever go out.
    let output = bare(&dir).args(["serve", "--config"]).arg(&file).output()?;
    anyhow::ensure!(output.status.code() == Some(2) && stderr(&output).contains("is not set"), "{output:?}");
    let output = config(&dir).arg("check").env("DATABASE_URL", "secret://env/GENNAKER_SECRET_DB").output()?;
    let text = stderr(&output);
    anyhow::ensure!(output.status.code() == Some(2) && text.contains("DATABASE_URL: "), "{text}");
    anyhow::ensure!(text.contains("GENNAKER_SECRET_DB` is not set"), "{text}");
    Ok(())
}

async fn secrets() -> Outcome {
    let dir = Dir::new()?;
    let url = "postgres://g:hidden-one@db.example/g";
    for form in [&["show"][..], &["show", "--json"]] {
        let mut command = config(&dir);
        let output = command.args(form).env("DATABASE_URL", url).output()?;
        let text = String::from_utf8(output.stdout)?;
        anyhow::ensure!(text.contains("postgres://g:***@db.example/g") && !text.contains("hidden-one"), "{text}");
    }
    let file = dir.write("g.toml", &format!("database-url = \"{url}\"\n"))?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))?;
    let output = config(&dir).args(["check", "--config"]).arg(&file).output()?;
    let text = stderr(&output);
    anyhow::ensure!(output.status.code() == Some(2) && text.contains("chmod"), "{}: {text}", output.status);
    anyhow::ensure!(!text.contains("hidden-one"), "{text}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
    let output = config(&dir).args(["check", "--config"]).arg(&file).output()?;
    anyhow::ensure!(output.status.success(), "{}", stderr(&output));
    // Nor does the help of a command show what the file holds.
    let output = Command::new(gennaker()).args(["serve", "--help"]).env("GENNAKER_CONFIG", &file).output()?;
    anyhow::ensure!(!String::from_utf8_lossy(&output.stdout).contains("hidden-one"));

    // A reference to a file is resolved below a directory of secrets only, which may stand behind it.
    let secret = dir.write("db-url", "mysql://g:hidden-two@db/g\n")?;
    let text = format!("[database]\nurl = \"secret://file{}\"\n", secret.display());
    let outside = dir.write("r.toml", &text)?;
    let allowed = dir.write("s.toml", &format!("{text}[secret]\ndir = \"{}\"\n", dir.0.display()))?;
    let commands = [&["config", "check"][..], &["serve"], &["migrate"], &["token", "list"], &["restore", "--in-place"]];
    for command in commands {
        let output = bare(&dir).args(command).arg("--config").arg(&outside).output()?;
        let text = stderr(&output);
        let told = format!("{}:2: `database-url`: `{}` is not below", outside.display(), secret.display());
        anyhow::ensure!(output.status.code() == Some(2) && text.contains(&told), "{command:?}: {text}");
        anyhow::ensure!(text.contains("--secret-dir, GENNAKER_SECRET_DIRS"), "{command:?}: {text}");
        // What is behind it is judged.
        let told = format!("{}:2: `database-url`: is not a postgres:// URL", allowed.display());
        for by_variable in [false, true] {
            let mut bare = bare(&dir);
            let file = if by_variable { &outside } else { &allowed };
            if by_variable {
                bare.env("GENNAKER_SECRET_DIRS", &dir.0);
            }
            let output = bare.args(command).arg("--config").arg(file).output()?;
            let text = stderr(&output);
            let told = told.replace(&allowed.display().to_string(), &file.display().to_string());
            anyhow::ensure!(output.status.code() == Some(2) && text.contains(&told), "{text}");
            anyhow::ensure!(!text.contains("hidden-two") && text.lines().count() == 1, "{text}");
        }
    }
    // With directories that do not hold nothing is said of what they lack.
    let output = config(&dir).args(["check", "--secret-dir", "/not/there", "--config"]).arg(&outside).output()?;
    let text = stderr(&output);
    anyhow::ensure!(text.lines().count() == 1 && text.contains("--secret-dir: /not/there"), "{text}");
    Ok(())
}

/// What can be judged without a connection is judged.
async fn addresses() -> Outcome {
    let dir = Dir::new()?;
    for (url, said) in [
        ("postgres://g:hidden@db:99999/g", "port"),
        ("postgres://g:hidden@db/g?sslmode=blah", "blah"),
        ("postgres://g:hidden@d b/g", "cannot be read as the URL of a database"),
    ] {
        let text =
            format!("[smtp]\nhost = \"mail example.org\"\nfrom = \"g@example.org\"\n[database]\nurl = \"{url}\"\n");
        let file = dir.write("g.toml", &text)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        for command in [&["config", "check"][..], &["serve"]] {
            let output = bare(&dir).args(command).arg("--config").arg(&file).output()?;
            let text = stderr(&output);
            anyhow::ensure!(output.status.code() == Some(2) && text.lines().count() == 2, "{command:?}: {text}");
            let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap_or_default();
            let (host, url) = (line("g.toml:2: `smtp-host`: "), line("g.toml:5: `database-url`: "));
            anyhow::ensure!(host.contains("`mail example.org` is neither a host's name nor an address"), "{text}");
            anyhow::ensure!(url.contains(said) && !text.contains("hidden"), "{text}");
        }
    }
    let mut migrate = bare(&dir);
    let output =
        migrate.args(["migrate", "--to", "postgres://g:hidden@db:99999/g", "--data-dir"]).arg(&dir.0).output()?;
    let text = stderr(&output);
    anyhow::ensure!(output.status.code() == Some(2) && text.contains("--to: cannot be read"), "{text}");
    Ok(())
}

const PAGE: &str = "query Page($first: Int!) { applications(first: $first) { totalCount } }";

/// Whether the server gives pages of that size.
async fn page(server: &Server, first: u32) -> Result<(), String> {
    match server.client().query(PAGE, json!({ "first": first })).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.code().unwrap_or_default().to_owned()),
    }
}

fn with_file(file: &Path) -> Options {
    Options { flags: vec!["--config".to_owned(), file.display().to_string()], ..Options::default() }
}

async fn from_the_file() -> Outcome {
    let dir = Dir::new()?;
    let file = dir.write("g.toml", "[max]\npage = 7\n")?;
    let server = Server::start_with(with_file(&file)).await?;
    anyhow::ensure!(page(&server, 7).await == Ok(()));
    anyhow::ensure!(page(&server, 8).await == Err("PAGE_LIMIT_EXCEEDED".to_owned()));
    // Another command finds the same data by the same file alone.
    let same = dir.write("same.toml", &format!("[data]\ndir = \"{}\"\n", server.data_dir().display()))?;
    let output = server
        .command()
        .env_remove("GENNAKER_DATA_DIR")
        .env("HOME", &dir.0)
        .env_remove("XDG_DATA_HOME")
        .args(["token", "list", "--config"])
        .arg(&same)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(output.status.success() && text.contains("admin"), "{text}{}", stderr(&output));
    Ok(())
}

async fn host() -> Outcome {
    let dir = Dir::new()?;
    let text = "max-instances = 7\nport-range = \"27400-27450\"\nlisten = \"127.0.0.1:17999\"\n[max]\npage = 9\n";
    let file = dir.write("g.toml", text)?;
    let at = dir.0.join("host");
    let host = |arguments: &[&str]| {
        let mut command = bare(&dir);
        command.arg("host").args(arguments).arg("--dir").arg(&at).env("GENNAKER_CONFIG", &file);
        command
    };
    let mut process = tokio::process::Command::from({
        let mut command = bare(&dir);
        command.env("GENNAKER_CONFIG", &file).arg("host").arg("--dir").arg(&at);
        command
    })
    .stderr(std::process::Stdio::null())
    .kill_on_drop(true)
    .spawn()?;
    let status = wait_for("the host's status", MAX, || async {
        let output = host(&["status"]).output().ok().filter(|output| output.status.success())?;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    })
    .await?;
    let said = (&status["maxInstances"], &status["ports"]);
    anyhow::ensure!(said == (&json!(7), &json!("27400-27450")), "{status}");
    anyhow::ensure!(host(&["stop"]).output()?.status.success());
    tokio::time::timeout(MAX, process.wait()).await??;
    Ok(())
}

async fn reload() -> Outcome {
    let dir = Dir::new()?;
    let file = dir.write("g.toml", "max-page = 7\nretention-days = 3\n")?;
    let mut server = Server::start_with(with_file(&file)).await?;
    anyhow::ensure!(page(&server, 8).await.is_err());

    dir.write(
        "g.toml",
        "max-page = 9\nretention-days = 4\nlog-filter = \"warn,gennaker=info\"\nmax-concurrent-steps = 5\n",
    )?;
    server.signal(Signal::SIGHUP)?;
    wait_for("pages of 9", MAX, || async { page(&server, 9).await.ok() }).await?;
    let log = wait_for("a word about the restart", MAX, || async {
        Some(server.log()).filter(|log| log.contains("needs a restart"))
    })
    .await?;
    let line = |log: &str, word: &str| log.lines().find(|line| line.contains(word)).unwrap_or_default().to_owned();
    let changed = line(&log, "changed: ");
    for name in ["max-page", "retention-days", "log-filter"] {
        anyhow::ensure!(changed.contains(name), "{changed}");
    }
    let left = line(&log, "needs a restart");
    anyhow::ensure!(left.contains("max-concurrent-steps") && !left.contains("max-page"), "{left}");

    // A file that does not hold leaves everything as it is, and all that is wrong is told.
    dir.write("g.toml", "max-page = 11\nmax-pages = 12\nmax-event-bytes = 1\n[otlp]\nendpoint = \"x\"\n")?;
    server.signal(Signal::SIGHUP)?;
    let log = wait_for("a word about the faulty file", MAX, || async {
        Some(server.log()).filter(|log| log.contains("all stays as it is"))
    })
    .await?;
    let line = log.lines().find(|line| line.contains("all stays as it is")).unwrap_or_default();
    for said in ["g.toml:2: ", "did you mean `max-page`", "g.toml:3: `max-event-bytes`", "g.toml:5: `otlp-endpoint`"] {
        anyhow::ensure!(line.contains(said), "{said}: {log}");
    }
    anyhow::ensure!(page(&server, 9).await.is_ok() && page(&server, 10).await.is_err());

    // And back, with what needs a restart as it was at the start: nothing is left to say.
    dir.write("g.toml", "max-page = 20\nretention-days = 4\n")?;
    server.signal(Signal::SIGHUP)?;
    wait_for("pages of 20", MAX, || async { page(&server, 20).await.ok() }).await?;
    let restarts = server.log().lines().filter(|line| line.contains("needs a restart")).count();
    anyhow::ensure!(restarts == 1, "{}", server.log());
    let status = server.stop().await?;
    anyhow::ensure!(status.success(), "{status}");
    Ok(())
}

async fn large_page() -> Outcome {
    const FIELDS: &str = "{ nodes { name } pageInfo { hasNextPage } }";

    let flags = vec!["--max-page=150".to_owned()];
    let server = Server::start_with(Options { flags, ..Options::default() }).await?;
    let client = server.client();
    for n in 0..101 {
        client.mutate(CREATE, json!({ "name": format!("app{n}") })).await?;
    }
    let data = client.query(&format!("{{ applications(first: 150) {FIELDS} }}"), json!({})).await?;
    let page = &data["applications"];
    anyhow::ensure!(page["nodes"].as_array().map(Vec::len) == Some(101), "{page}");
    anyhow::ensure!(page["pageInfo"]["hasNextPage"] == false, "{page}");
    let error = client.query(&format!("{{ applications(first: 151) {FIELDS} }}"), json!({})).await;
    let error = error.err().map(|error| error.to_string()).unwrap_or_default();
    anyhow::ensure!(error.contains("at most 150"), "{error}");
    Ok(())
}

/// What is old by the new setting goes when that is read, not at the next hourly look.
async fn less_kept() -> Outcome {
    use sea_orm::{ConnectionTrait as _, Database};

    let dir = Dir::new()?;
    let file = dir.write("g.toml", "[audit]\nretention-days = 30\n")?;
    let server = Server::start_with(with_file(&file)).await?;
    let create = "mutation($input: CreateApplicationInput!) {
        createApplication(input: $input) { application { id } userErrors { message } } }";
    server.client().mutate(create, json!({ "name": "shop" })).await?;
    let entries = async || {
        let data = server.client().query("{ auditEntries { totalCount } }", json!({})).await.ok()?;
        data["auditEntries"]["totalCount"].as_i64()
    };
    anyhow::ensure!(entries().await.is_some_and(|count| count > 0));
    let database = server.data_dir().join("gennaker.db");
    let database = Database::connect(format!("sqlite://{}?mode=rw", database.display())).await?;
    database.execute_unprepared("PRAGMA busy_timeout = 10000").await?;
    // Three days ago.
    database.execute_unprepared("UPDATE audit SET at = at - 259200000000").await?;
    database.close().await?;
    dir.write("g.toml", "[audit]\nretention-days = 2\n")?;
    server.signal(Signal::SIGHUP)?;
    wait_for("the old entries to go", MAX, || async { entries().await.filter(|count| *count == 0).map(drop) }).await
}

async fn readme() -> Outcome {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"))?;
    let table = gennaker::config::limits_table();
    anyhow::ensure!(table.lines().count() > 8, "{table}");
    anyhow::ensure!(readme.contains(&table), "the table of limits in README.md has to be\n\n{table}");
    Ok(())
}
