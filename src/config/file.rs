//! The file of settings: TOML. A key is the name of a flag, whole (`data-dir = …`) or cut at a
//! hyphen into a table and a key (`[data]`, `dir = …`); `snake_case` and `camelCase` are read as the
//! same name. Its values become the defaults of the flags, so a variable stands above the file and
//! a flag above both.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::{Arg, ArgAction, Args as _, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::effective::{has_secret, is_secret};
use crate::near::nearest;

/// The variable that names the file.
pub(super) const VARIABLE: &str = "GENNAKER_CONFIG";
/// Where the file is looked for last.
const SYSTEM: &str = "/etc/gennaker/gennaker.toml";
/// The largest file, in bytes.
const BYTES_MAX: u64 = 1024 * 1024;

/// Something in the file, or in a variable, that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file's path, or the variable's name.
    pub place: String,
    /// From 1; None where it is about the whole of it.
    pub line: Option<usize>,
    /// What is wrong and what is expected. Never a secret.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.place, self.message),
            None => write!(f, "{}: {}", self.place, self.message),
        }
    }
}

/// What a file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct File {
    path: PathBuf,
    /// By the flag's name, without the hyphens before it.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    line: usize,
    values: Vec<String>,
}

/// Every setting of a server.
pub(super) fn settings() -> Command {
    super::Args::augment_args(Command::new("gennaker"))
}

/// The settings that a file may hold, with their names.
pub(super) fn known(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let args = command.get_arguments().filter(|arg| arg.get_id() != "config");
    args.filter_map(|arg| Some((arg.get_long()?, arg)))
}

impl File {
    /// The file that the environment names, or the one in its usual place.
    #[must_use]
    pub fn path_by_environment() -> Option<PathBuf> {
        std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from).or_else(Self::usual_path)
    }

    /// The file in its usual place, if there is one.
    #[must_use]
    pub fn usual_path() -> Option<PathBuf> {
        let directory = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let own = directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")));
        let own = own.map(|directory| directory.join("gennaker/gennaker.toml"));
        own.into_iter().chain([PathBuf::from(SYSTEM)]).find(|path| path.exists())
    }

    /// Reads a file. What does not hold is left out and told.
    #[must_use]
    pub fn read(path: &Path) -> (Self, Vec<Fault>) {
        let place = path.display().to_string();
        let about = |message: String| (Self::default(), vec![Fault { place: place.clone(), line: None, message }]);
        let (text, mode) = match contents(path) {
            Ok(read) => read,
            Err(message) => return about(message),
        };
        let (file, mut faults) = Self::parse(path, &text);
        // Its owner and group may read it; everybody may not.
        if mode & 0o004 != 0
            && let Some((name, entry)) = file.entries.iter().find(|(name, entry)| literal_secret(name, &entry.values))
        {
            faults.push(Fault {
                place: place.clone(),
                line: Some(entry.line),
                message: format!(
                    "`{name}` holds a secret and every user of this machine may read the file; run `chmod o-rwx {}`, or \
                     write secret://file/… or secret://env/… there",
                    path.display()
                ),
            });
        }
        (file, faults)
    }

    /// Reads a file's text.
    fn parse(path: &Path, text: &str) -> (Self, Vec<Fault>) {
        let command = settings();
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader {
            path,
            text,
            command: &command,
            file: Self { path: path.to_owned(), ..Self::default() },
            faults: Vec::new(),
        };
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            reader.fault(at, format!("this is not TOML: {}", error.message()));
        }
        // After a fault of the text itself, what else is read there may be anything.
        if reader.faults.is_empty() {
            reader.table("", table.get_ref());
        }
        reader.faults.sort_by_key(|fault| fault.line);
        (reader.file, reader.faults)
    }

    /// The path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line of a setting, by its flag's name without hyphens before it.
    #[must_use]
    pub fn line(&self, name: &str) -> Option<usize> {
        self.entries.get(name).map(|entry| entry.line)
    }

    /// A setting that is one text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.entries.get(name)?.values.first().map(String::as_str)
    }

    /// The command with the file's values as the defaults of its flags.
    #[must_use]
    pub fn apply(&self, mut command: Command) -> Command {
        let mut found = Vec::new();
        for (name, arg) in known(&command) {
            if let Some(entry) = self.entries.get(name) {
                found.push((arg.get_id().clone(), entry.values.clone(), is_secret(arg)));
            }
        }
        for (id, values, secret) in found {
            command = command.mut_arg(id, |arg| {
                // A secret is shown nowhere, so not in the help either.
                let arg = if secret { arg.hide_default_value(true) } else { arg };
                arg.default_values(values)
            });
        }
        command
    }
}

fn literal_secret(name: &str, values: &[String]) -> bool {
    let command = settings();
    known(&command).any(|(known, arg)| known == name && values.iter().any(|value| has_secret(arg, value)))
}

/// The text and the permissions.
fn contents(path: &Path) -> Result<(String, u32), String> {
    let failed = |error: std::io::Error| format!("the file of settings cannot be read: {error}");
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err("the file of settings is larger than 1 MiB".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|_| "the file of settings is not UTF-8 text".to_owned())?;
    Ok((text, mode))
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    command: &'a Command,
    file: File,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, at: usize, message: String) {
        let line = Some(self.line(at));
        self.faults.push(Fault { place: self.path.display().to_string(), line, message });
    }

    /// The line of a place in the text.
    fn line(&self, at: usize) -> usize {
        self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let key_name = kebab(key.get_ref());
            let name = if prefix.is_empty() { key_name } else { format!("{prefix}-{key_name}") };
            match value.get_ref() {
                DeValue::Table(inner) if inner.is_empty() => {
                    let start = format!("{name}-");
                    if !known(self.command).any(|(known, _)| known.starts_with(&start)) {
                        self.unknown(key.span().start, prefix, &name, key.get_ref());
                    }
                }
                DeValue::Table(inner) => self.table(&name, inner),
                _ => self.setting(prefix, &name, key, value),
            }
        }
    }

    fn setting(
        &mut self,
        prefix: &str,
        name: &str,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let at = key.span().start;
        let Some((_, arg)) = known(self.command).find(|(known, _)| *known == name) else {
            return self.unknown(at, prefix, name, key.get_ref());
        };
        if let Some(first) = self.file.line(name) {
            return self.fault(at, format!("`{name}` is set a second time; line {first} has it already"));
        }
        let (values, wrong) = values(arg, at, value);
        if wrong.is_empty() {
            let line = self.line(at);
            self.file.entries.insert(name.to_owned(), Entry { line, values });
        }
        for (at, message) in wrong {
            self.fault(at, format!("`{name}` {message}"));
        }
    }

    /// Names the nearest known key, as it would be written in the same place.
    fn unknown(&mut self, at: usize, prefix: &str, name: &str, written: &str) {
        let near = nearest(name, known(self.command).map(|(known, _)| known)).first().copied();
        let place = if prefix.is_empty() { String::new() } else { format!(" in [{prefix}]") };
        let hint = match near {
            Some(known) => {
                let short = known.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
                match short {
                    Some(short) if !prefix.is_empty() => format!("did you mean `{short}`?"),
                    _ if prefix.is_empty() => format!("did you mean `{known}`?"),
                    _ => format!("did you mean `{known}`, outside of tables?"),
                }
            }
            None => "`gennaker config show` lists all there are".to_owned(),
        };
        self.fault(at, format!("there is no setting `{written}`{place}; {hint}"));
    }
}

/// `maxBodyBytes`, `max_body_bytes` and `max-body-bytes` as the last.
fn kebab(key: &str) -> String {
    let mut name = String::with_capacity(key.len() + 4);
    for c in key.chars() {
        match c {
            '_' => name.push('-'),
            c if c.is_ascii_uppercase() => {
                if !name.is_empty() && !name.ends_with('-') {
                    name.push('-');
                }
                name.push(c.to_ascii_lowercase());
            }
            c => name.push(c),
        }
    }
    name
}

/// What a value has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Truth,
    Whole,
    Number,
    Text,
}

impl Expected {
    fn of(arg: &Arg) -> Self {
        let id = arg.get_value_parser().type_id();
        let whole = [
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
            TypeId::of::<i32>(),
            TypeId::of::<i64>(),
            TypeId::of::<u8>(),
        ];
        if matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse) || id == TypeId::of::<bool>() {
            Self::Truth
        } else if whole.iter().any(|whole| id == *whole) {
            Self::Whole
        } else if id == TypeId::of::<f64>() || id == TypeId::of::<f32>() {
            Self::Number
        } else {
            Self::Text
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Truth => "true or false",
            Self::Whole => "a whole number, without quotes",
            Self::Number => "a number, without quotes",
            Self::Text => "a text in quotes",
        }
    }

    fn read(self, value: &DeValue<'_>) -> Result<String, String> {
        let read = match (self, value) {
            (Self::Truth, DeValue::Boolean(truth)) => Some(truth.to_string()),
            (Self::Whole | Self::Number, DeValue::Integer(number)) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
            }
            (Self::Number, DeValue::Float(number)) => Some(number.as_str().to_owned()),
            (Self::Text, DeValue::String(text)) => Some(text.to_string()),
            _ => None,
        };
        read.ok_or_else(|| format!("has to be {}, and this is {}", self.words(), kind(value)))
    }
}

const fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The value as a flag would be given it, several for a list; and all that is wrong, each with its
/// place in the text. `at` is the key's.
fn values(arg: &Arg, at: usize, value: &Spanned<DeValue<'_>>) -> (Vec<String>, Vec<(usize, String)>) {
    let expected = Expected::of(arg);
    let (mut values, mut wrong) = (Vec::new(), Vec::new());
    let mut keep = |at: usize, read: Result<String, String>| match read {
        Ok(value) => values.push(value),
        Err(message) => wrong.push((at, message)),
    };
    let read = |value: &DeValue<'_>| expected.read(value).and_then(|value| holds(arg, &value).map(|()| value));
    match value.get_ref() {
        DeValue::Array(_) if !matches!(arg.get_action(), ArgAction::Append) => {
            keep(at, Err(format!("has to be {}, and this is a list", expected.words())));
        }
        DeValue::Array(items) => {
            for item in items {
                let read = expected.read(item.get_ref()).and_then(|value| {
                    match arg.get_value_delimiter().filter(|delimiter| value.contains(*delimiter)) {
                        Some(delimiter) => Err(format!("is a list whose items may not contain `{delimiter}`")),
                        None => holds(arg, &value).map(|()| value),
                    }
                });
                keep(item.span().start, read);
            }
        }
        value => keep(at, read(value)),
    }
    (values, wrong)
}

/// Whether the flag would take the value.
pub(super) fn holds(arg: &Arg, value: &str) -> Result<(), String> {
    if Expected::of(arg) == Expected::Truth {
        return Ok(());
    }
    let name = arg.get_long().unwrap_or_default();
    let command = Command::new("gennaker").no_binary_name(true).arg(arg.clone().env(Resettable::Reset));
    let Err(error) = command.try_get_matches_from([format!("--{name}={value}")]) else { return Ok(()) };
    Err(does_not_hold(&error, is_secret(arg)))
}

/// Why a value is not taken, without the value where that is a secret.
pub(super) fn does_not_hold(error: &clap::Error, secret: bool) -> String {
    match secret {
        true => "holds a value that cannot be used".to_owned(),
        false => format!("does not hold: {}", in_one_line(error)),
    }
}

/// What is wrong with a command line, and perhaps what is possible; not how the command is used.
#[must_use]
pub fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let usage = |paragraph: &&str| !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more information");
    let paragraphs = text.trim_start_matches("error: ").split("\n\n").take_while(usage);
    let lines: Vec<_> = paragraphs.flat_map(str::lines).map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (File, Vec<String>) {
        let (file, faults) = File::parse(Path::new("x.toml"), text);
        (file, faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_key_is_a_flags_name_cut_anywhere_in_any_spelling() {
        for text in [
            "max-body-bytes = 2_000_000",
            "[max]\nbody-bytes = 2000000",
            "[max.body]\nbytes = 2000000",
            "max_body_bytes = 2000000",
            "[max]\nbodyBytes = 2000000",
        ] {
            let (file, faults) = parse(text);
            assert_eq!((file.text("max-body-bytes"), faults.len()), (Some("2000000"), 0), "{text}: {faults:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line_and_the_nearest() {
        let (_, faults) = parse("listen = \"127.0.0.1:1\"\n\n[cors]\nallowed-origin = []\n");
        assert_eq!(
            faults,
            ["x.toml:4: there is no setting `allowed-origin` in [cors]; did you mean `allowed-origins`?"]
        );
        let (_, faults) = parse("lisen = \"127.0.0.1:1\"");
        assert_eq!(faults, ["x.toml:1: there is no setting `lisen`; did you mean `listen`?"]);
        assert!(parse("[nothing-like-it-at-all-anywhere]").1[0].contains("gennaker config show"));
    }

    #[test]
    fn every_fault_of_a_file_is_told() {
        let (file, faults) = parse(
            "listen = 7777\ninsecure = \"yes\"\nretention-days = \"30\"\nretention_days = 1\ndurability = \"half\"\n\
             trusted-proxies = [\"x\"]\nmax-page = -1\nlog = [\"text\"]\naudit-retention-days = 5\naudit_retentionDays = 6\n",
        );
        let expected = [
            (1, "a text in quotes"),
            (2, "true or false"),
            (3, "a whole number"),
            (5, "possible values: full, normal"),
            (6, "10.0.0.0/8"),
            (7, "max-page"),
            (8, "this is a list"),
            (10, "a second time"),
        ];
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for ((line, words), fault) in expected.iter().zip(&faults) {
            assert!(fault.starts_with(&format!("x.toml:{line}: ")) && fault.contains(words), "{fault} has not {words}");
        }
        assert_eq!(file.text("retention-days"), Some("1"), "what holds is read");
    }

    #[test]
    fn a_text_that_is_not_toml_is_told_with_its_line() {
        let (_, faults) = parse("listen = \"127.0.0.1:1\"\nlog = = 1\n");
        assert!(faults[0].starts_with("x.toml:2: this is not TOML"), "{faults:?}");
    }

    #[test]
    fn lists_are_for_flags_that_may_be_repeated() {
        let (file, faults) = parse("outbound-allow = [\"10.0.0.0/8\", \"::1\"]\nsecret-dir = \"/run/secrets\"");
        assert_eq!(faults, Vec::<String>::new());
        let command = file.apply(settings());
        let matches = command.mut_args(|arg| arg.env(Resettable::Reset)).get_matches_from(["gennaker"]);
        let allow: Vec<&String> = matches.get_many("outbound_allow").expect("given").collect();
        assert_eq!(allow, ["10.0.0.0/8", "::1"]);
        assert!(parse("artifact-root = [\"/a:b\"]").1[0].contains("may not contain `:`"));
    }

    #[test]
    fn a_file_that_everybody_may_read_holds_no_secret() {
        let path = std::env::temp_dir().join(format!("gennaker-file-{}.toml", uuid::Uuid::new_v4().simple()));
        let faults = |text: &str, mode: u32| {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            File::read(&path).1
        };
        let literal = "database-url = \"postgres://g:hidden@db/g\"";
        let said = faults(literal, 0o644);
        assert!(said[0].to_string().contains("chmod") && !said[0].to_string().contains("hidden"), "{said:?}");
        assert_eq!(faults(literal, 0o640), []);
        assert_eq!(faults("database-url = \"secret://file/run/db\"", 0o644), []);
        assert_eq!(faults("database-url = \"postgres://g@db/g\"", 0o644), []);
        std::fs::remove_file(path).expect("removed");
    }
}
