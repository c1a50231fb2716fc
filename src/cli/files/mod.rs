//! The documents of `gennaker apply` and `export`: `kind`, `name`, and the fields of the input that
//! the API takes for that kind.

mod server;
pub mod tree;
mod types;
mod written;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Map, Value};

pub use self::server::{By, Found, Server};
use self::tree::{Content, Node};
use self::types::Field;
pub use self::types::{Fault, Types};
pub use self::written::{Written, digest};
use crate::near::did_you_mean;

/// Bytes of one file, at the most.
const FILE_BYTES: u64 = 8 * 1024 * 1024;
/// What stands where the server hides a secret.
pub const MASK: &str = "***";
/// The field of a document that stands for an object which an export left out: where something in it
/// is hidden.
const LEFT_OUT: &str = "leftOut";

/// What a document is about, in the order in which one may need the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Kind {
    Application,
    SecurityGroup,
    LoadBalancer,
    Pipeline,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Application, Self::SecurityGroup, Self::LoadBalancer, Self::Pipeline];

    /// As documents write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Application => "Application",
            Self::SecurityGroup => "SecurityGroup",
            Self::LoadBalancer => "LoadBalancer",
            Self::Pipeline => "Pipeline",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::SecurityGroup => "security group",
            Self::LoadBalancer => "load balancer",
            Self::Pipeline => "pipeline",
        }
    }

    /// The input whose fields a document has.
    const fn input(self) -> &'static str {
        match self {
            Self::Application => "CreateApplicationInput",
            Self::SecurityGroup => "UpsertSecurityGroupInput",
            Self::LoadBalancer => "UpsertLoadBalancerInput",
            Self::Pipeline => "SavePipelineInput",
        }
    }

    /// What the server answers with.
    const fn output(self) -> &'static str {
        match self {
            Self::Application => "Application",
            Self::SecurityGroup => "SecurityGroup",
            Self::LoadBalancer => "LoadBalancer",
            Self::Pipeline => "PipelineDefinition",
        }
    }

    /// The fields that a document may have beside `kind`.
    pub fn fields(self, types: &Types) -> Vec<Field> {
        // What belongs to a call and not to the thing.
        const CALL: [&str; 4] = ["idempotencyKey", "expectedRevision", "validateOnly", "validateWith"];
        let mut fields: Vec<_> =
            types.input(self.input()).iter().filter(|field| !CALL.contains(&field.name.as_str())).cloned().collect();
        for field in fields.iter_mut().filter(|field| self == Self::Pipeline && field.name == "application") {
            // Documents name it; the input takes a selector.
            field.of = types::Type::Required(Box::new(types::Type::Named("String".to_owned())));
        }
        fields
    }
}

/// Which object a document is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    pub kind: Kind,
    /// The application; of load balancers and security groups the first part of the name.
    pub application: String,
    /// Account and location, of what has a place.
    pub place: Option<(String, String)>,
    pub name: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.title())?;
        if self.kind == Kind::Pipeline {
            write!(f, "{}/", self.application)?;
        }
        f.write_str(&self.name)?;
        match &self.place {
            Some((account, location)) if self.is_elsewhere() => write!(f, " ({account}/{location})"),
            _ => Ok(()),
        }
    }
}

impl Identity {
    /// Whether it has a place, and not the one that is meant where none is said.
    pub fn is_elsewhere(&self) -> bool {
        self.place.as_ref().is_some_and(|(account, location)| account != "local" || location != "local")
    }

    /// Read from the object's fields.
    pub fn of(kind: Kind, fields: &Map<String, Value>) -> Self {
        let text = |key: &str| fields.get(key).and_then(Value::as_str);
        let name = text("name").unwrap_or_default().to_owned();
        let placed = matches!(kind, Kind::LoadBalancer | Kind::SecurityGroup);
        let place = placed.then(|| {
            let part = |key| text(key).unwrap_or("local").to_owned();
            (part("account"), part("location"))
        });
        let application = match kind {
            Kind::Application => name.clone(),
            Kind::Pipeline => text("application").unwrap_or_default().to_owned(),
            _ => name.split('-').next().unwrap_or_default().to_owned(),
        };
        Self { kind, application, place, name }
    }
}

/// A document that was read and holds.
#[derive(Debug, Clone)]
pub struct Document {
    pub identity: Identity,
    /// In canonical form, `kind` first.
    pub fields: Map<String, Value>,
    /// It only stands for an object that an export left out, which stays as the server has it.
    pub left_out: Option<Vec<String>>,
    pub file: PathBuf,
    /// As it was written.
    pub node: Node,
}

impl Document {
    /// A fault of it, at a path from its first field inwards.
    pub fn fault(&self, path: &[&str], message: impl fmt::Display) -> String {
        let place = if path.is_empty() { String::new() } else { format!(" (at {})", path.join(".")) };
        let message = format_args!("{}: {message}{place}", self.identity);
        at(&self.file, self.node.line_at(path.iter().copied()), message)
    }

    /// The same as the server tells it.
    pub fn refusal(&self, error: &Value) -> String {
        let path: Vec<&str> = error["field"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        self.fault(&path, error["message"].as_str().unwrap_or("refused"))
    }
}

/// An object of the server, or of a document, as text.
///
/// # Errors
/// When it cannot be written, which a JSON value always can.
pub fn to_yaml(fields: &Map<String, Value>) -> anyhow::Result<String> {
    serde_saphyr::to_string(fields).context("an object cannot be written as YAML")
}

/// The document that stands for an object which cannot be written, so that whoever applies it does not
/// take the object for one that is to go. `masked`: where something is hidden.
pub fn stand_in(identity: &Identity, masked: &[String]) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("kind".to_owned(), identity.kind.as_str().into());
    if identity.kind == Kind::Pipeline {
        fields.insert("application".to_owned(), identity.application.as_str().into());
    }
    fields.insert("name".to_owned(), identity.name.as_str().into());
    if let Some((account, location)) = identity.place.as_ref().filter(|_| identity.is_elsewhere()) {
        fields.insert("account".to_owned(), account.as_str().into());
        fields.insert("location".to_owned(), location.as_str().into());
    }
    fields.insert(LEFT_OUT.to_owned(), masked.into());
    fields
}

fn at(file: &Path, line: u64, message: impl fmt::Display) -> String {
    if line == 0 { format!("{}: {message}", file.display()) } else { format!("{}:{line}: {message}", file.display()) }
}

/// The files that are meant: directories stand for their YAML and JSON files in the order of their
/// names, those below included; `-` is standard input.
///
/// # Errors
/// When one cannot be read.
pub fn find(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            find_in(path, 0, &mut files)?;
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

fn find_in(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(depth < 16, "{} lies deeper than 16 directories", directory.display());
    let entries = std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    for path in paths {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let known = path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
        if path.is_dir() && !hidden && !path.is_symlink() {
            find_in(&path, depth + 1, files)?;
        } else if known && !hidden {
            // Reading a pipe would wait for ever; leaving it out, `--prune` would delete what it stands for.
            anyhow::ensure!(path.is_file(), "{} is no regular file; take it out of the directory", path.display());
            files.push(path);
        }
    }
    Ok(())
}

/// Reads files and checks each document by itself, and that no two are about the same object. All
/// faults together, each with file and line.
///
/// # Errors
/// When a file cannot be read.
pub fn read(files: &[PathBuf], types: &Types) -> anyhow::Result<Result<Vec<Document>, Vec<String>>> {
    let mut documents: Vec<Document> = Vec::new();
    let mut faults = Vec::new();
    for file in files {
        let text = text_of(file)?;
        let nodes = match tree::read(&text) {
            Ok(nodes) => nodes,
            Err(unreadable) => {
                faults.push(at(file, unreadable.line, unreadable.message));
                continue;
            }
        };
        // An empty file of YAML is one without documents; of JSON it is none, and was perhaps to be one.
        let is_yaml = nodes.is_empty() && file.extension().is_none_or(|end| end != "json");
        let nodes: Vec<_> = nodes.into_iter().flat_map(exported).collect();
        if nodes.is_empty() && !is_yaml {
            faults.push(at(file, 0, "there is no document in it"));
        }
        for node in nodes {
            match document(file, node, types) {
                Ok(document) => documents.push(document),
                Err(found) => faults.extend(found.into_iter().map(|fault| at(file, fault.line, fault.message))),
            }
        }
    }
    for (index, document) in documents.iter().enumerate() {
        if let Some(first) = documents[..index].iter().find(|first| first.identity == document.identity) {
            let place = at(&first.file, first.node.line, "");
            faults.push(document.fault(&[], format_args!("it stands at {} already", place.trim_end_matches(": "))));
        }
        for path in masks(&Value::Object(document.fields.clone())) {
            let parts: Vec<&str> = path.split('.').collect();
            let message = format!(
                "`{MASK}` stands where a secret is hidden; write a reference such as \
                 secret://env/GENNAKER_SECRET_NAME"
            );
            faults.push(document.fault(&parts, message));
        }
    }
    Ok(if faults.is_empty() { Ok(documents) } else { Err(faults) })
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(FILE_BYTES + 1).read_to_string(&mut text))
    };
    read.with_context(|| format!("{} cannot be read", file.display()))?;
    anyhow::ensure!(text.len() as u64 <= FILE_BYTES, "{} has more than {FILE_BYTES} bytes", file.display());
    Ok(text)
}

/// The documents of what `export --json` writes, which is one object with all of them; any other is
/// itself.
fn exported(node: Node) -> Vec<Node> {
    match node.get("documents").filter(|_| node.get("kind").is_none()).map(|inner| &inner.content) {
        Some(Content::List(documents)) => documents.clone(),
        _ => vec![node],
    }
}

fn document(file: &Path, node: Node, types: &Types) -> Result<Document, Vec<Fault>> {
    let one = |line, message: String| vec![Fault { line, message }];
    let Content::Map(entries) = &node.content else {
        return Err(one(node.line, format!("a document is an object with `kind` and `name`, not {}", node.sort())));
    };
    let known = Kind::ALL.map(Kind::as_str);
    let Some(given) = node.get("kind") else {
        return Err(one(node.line, format!("a document has a `kind`: {}", known.join(", "))));
    };
    let Some(kind) = Kind::ALL.into_iter().find(|kind| given.text() == Some(kind.as_str())) else {
        let given_text = given.text().unwrap_or_default();
        let near = did_you_mean(given_text, known);
        return Err(one(given.line, format!("`kind` is one of {}, not `{given_text}`{near}", known.join(", "))));
    };
    let mut fields = kind.fields(types);
    let mut faults = Vec::new();
    let left_out = node.get(LEFT_OUT).map(|mark| match hidden_at(mark) {
        Some(paths) => paths,
        None => {
            let message =
                format!("`{LEFT_OUT}` is a list of what is hidden in the object, as `gennaker export` writes it");
            faults.push(Fault { line: mark.line, message });
            Vec::new()
        }
    });
    if left_out.is_some() {
        let names = |key: &str| ["application", "name", "account", "location"].contains(&key);
        fields.retain(|field| names(&field.name));
        for (key, line, _) in entries.iter().filter(|(key, _, _)| key != "kind" && key != LEFT_OUT && !names(key)) {
            let message = format!(
                "`{key}` stands beside `{LEFT_OUT}`, which says only that the object stays as the server has it; once the \
                 document is whole, take `{LEFT_OUT}` out"
            );
            faults.push(Fault { line: *line, message });
        }
    }
    let is_known = |key: &str| left_out.is_none() || fields.iter().any(|field| field.name == key);
    let rest = entries.iter().filter(|(key, _, _)| key != "kind" && is_known(key)).cloned().collect();
    let rest = Node { content: Content::Map(rest), line: node.line };
    types.check_fields(&fields, &rest, "", &mut faults);
    if !faults.is_empty() {
        if let Value::Object(given) = rest.to_json() {
            let identity = Identity::of(kind, &given);
            faults.iter_mut().for_each(|fault| fault.message = format!("{identity}: {}", fault.message));
        }
        return Err(faults);
    }
    let fields = whole(kind, types.canonical_fields(&fields, &rest.to_json()));
    Ok(Document { identity: Identity::of(kind, &fields), fields, left_out, file: file.to_owned(), node })
}

fn hidden_at(mark: &Node) -> Option<Vec<String>> {
    match &mark.content {
        Content::List(paths) => paths.iter().map(|path| path.text().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// The one document of a file, if that is what it holds.
pub fn only_document(file: &Path, types: &Types) -> Option<(Document, String)> {
    let text = text_of(file).ok()?;
    match <[Node; 1]>::try_from(tree::read(&text).ok()?) {
        Ok([node]) => Some((document(file, node, types).ok()?, text)),
        Err(_) => None,
    }
}

/// `kind`, `application` and `name` first, then the rest in the schema's order.
fn whole(kind: Kind, mut fields: Map<String, Value>) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("kind".to_owned(), kind.as_str().into());
    for first in ["application", "name"] {
        if let Some(value) = fields.shift_remove(first) {
            map.insert(first.to_owned(), value);
        }
    }
    map.extend(fields);
    map
}

/// Where the mask of a secret stands, as paths with dots.
pub fn masks(value: &Value) -> Vec<String> {
    fn look(value: &Value, path: &str, found: &mut Vec<String>) {
        let below = |part: &str| if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
        match value {
            Value::String(text) if text == MASK => found.push(path.to_owned()),
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(index, item)| look(item, &below(&index.to_string()), found));
            }
            Value::Object(fields) => fields.iter().for_each(|(key, value)| look(value, &below(key), found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    look(value, "", &mut found);
    found
}
