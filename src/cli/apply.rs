//! `gennaker apply`: brings what files say to a server. Everything is checked before anything is
//! changed; what is so already is left alone; running it again goes on where it broke off.

mod ports;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use similar::TextDiff;

use super::client::Error as ClientError;
use super::files::{self, By, Document, Identity, Kind, Server};
use super::remote::{RemoteArgs, answer, fault, print, span, warn};
use super::screen::Screen;
use super::view::{Paint, visible};
use super::{Failure, Outcome, block_on, told};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker apply -f shop.yaml
  gennaker apply -f deploy/ --dry-run   what would change, as a diff
  gennaker apply -f deploy/ --prune     deletes what no file mentions any more
  gennaker export --application shop | gennaker apply -f -

A file holds YAML documents, or JSON; also what `gennaker export --json`
writes. A document has `kind` (Application,
SecurityGroup, LoadBalancer, Pipeline), `name`, and the fields of the API's
input for that kind; a pipeline names its `application`. One with `leftOut`
stands for what an export could not write: that stays as the server has it.

Every document that changes something is checked first, also by the server,
and all that is wrong is told at once; then they are brought over in the order
in which one may need the other; with --prune a load balancer goes before
another that wants its port. A pipeline that somebody else has changed
meanwhile is not overwritten. What somebody else makes at the same time, just
as a document says, counts as unchanged.

--prune looks at the applications that the files name, and at the kinds that
the files have; server groups and applications are never deleted. If something
is in use that would be, nothing is done.

Exit status: 0 all is as the files say, 1 some of it failed, 2 a document or
the token does not hold (nothing was done), 5 the server cannot be reached, or
cannot work now; run the same again then.

JSON: {\"dryRun\", \"objects\": [{kind, application, name, action, diff, reason,
error}]}, action being created, changed, unchanged, deleted, failed or skipped")]
pub struct Args {
    /// A file, a directory with .yaml, .yml and .json files, or - for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE|DIR|-", required = true)]
    files: Vec<PathBuf>,
    /// Change nothing, and show what would change
    #[arg(long)]
    dry_run: bool,
    /// Delete what the server has and no file mentions
    #[arg(long)]
    prune: bool,
    /// How long one load balancer or security group may take
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "5m")]
    timeout: Duration,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// The code of a refusal because of what is there.
const CONFLICT: &str = "CONFLICT";
/// How often, and how long from one time to the next, it is looked whether what was made is shown.
const SHOWN_LOOKS: u32 = 10;
const SHOWN_AGAIN: Duration = Duration::from_millis(100);
/// Lines around a change.
const CONTEXT: usize = 3;

/// Brings it over.
///
/// # Errors
/// When a document does not hold, or the server cannot be reached.
pub fn run(args: Args) -> Outcome {
    block_on(apply(args))
}

/// What is to be done with one object.
struct Step {
    identity: Identity,
    work: Work,
    diff: String,
    /// Where the diff does not tell it all.
    why: Option<String>,
}

enum Work {
    Save { document: Box<Document>, before: Option<Box<files::Found>> },
    Keep,
    Delete(Box<files::Found>),
}

impl Step {
    const fn action(&self) -> &'static str {
        match &self.work {
            Work::Save { before: None, .. } => "created",
            Work::Save { .. } => "changed",
            Work::Keep => "unchanged",
            Work::Delete(_) => "deleted",
        }
    }
}

async fn apply(args: Args) -> Outcome {
    let files = files::find(&args.files).map_err(Failure::Input)?;
    let server = Server::ask(args.remote.client()?).await.map_err(fault)?;
    let mut documents = match files::read(&files, &server.types).map_err(Failure::Input)? {
        Ok(documents) => documents,
        Err(faults) => return Err(refuse(&faults)),
    };
    if documents.is_empty() {
        return Err(Failure::Input(anyhow::anyhow!("there is no document in what -f names")));
    }
    let names: BTreeSet<String> = documents.iter().map(|document| document.identity.application.clone()).collect();
    let mut present = BTreeMap::new();
    for name in &names {
        for found in server.application(name).await.map_err(fault)? {
            present.insert(found.identity.clone(), found);
        }
    }
    for document in documents.iter_mut().filter(|document| document.left_out.is_some()) {
        if let Some(found) = present.get(&document.identity) {
            document.fields = found.fields.clone();
        }
    }
    let documents = ordered(documents);
    let extra = if args.prune { unmentioned(&documents, &present) } else { Vec::new() };
    let doomed = extra.iter().map(|found| &found.identity).collect();
    let held = check(&server, &documents, &present, &doomed).await?;
    let mut steps = plan(documents, &present, extra)?;
    ports::free_first(&mut steps, &held);
    carry_out(&args, &server, steps).await
}

fn refuse(faults: &[String]) -> Failure {
    let count = match faults.len() {
        1 => String::new(),
        count => format!("{count} faults, nothing was done:\n  "),
    };
    Failure::Input(anyhow::anyhow!("{count}{}", faults.join("\n  ")))
}

/// By kind; a pipeline behind those whose ends start it.
fn ordered(mut documents: Vec<Document>) -> Vec<Document> {
    documents.sort_by_key(|document| document.identity.kind);
    let mut done: Vec<Document> = Vec::new();
    while !documents.is_empty() {
        let waits = |document: &Document| {
            started_by(&document.fields).any(|(_, other)| {
                documents.iter().any(|left| left.identity == other && left.identity != document.identity)
            })
        };
        // Pipelines that start each other are refused by the server.
        let next = documents.iter().position(|document| !waits(document)).unwrap_or(0);
        done.push(documents.remove(next));
    }
    done
}

/// The pipelines whose ends start this one, each with the trigger's place.
fn started_by(fields: &serde_json::Map<String, Value>) -> impl Iterator<Item = (usize, Identity)> {
    let triggers = fields.get("triggers").and_then(Value::as_array).into_iter().flatten().enumerate();
    triggers.filter(|(_, trigger)| trigger["kind"] == "pipeline").map(|(index, trigger)| {
        let text = |key: &str| trigger["config"][key].as_str().unwrap_or_default().to_owned();
        let (application, name) = (text("application"), text("pipeline"));
        (index, Identity { kind: Kind::Pipeline, application, place: None, name })
    })
}

/// That what documents refer to is there or in the documents, and stays; that nothing else uses what
/// goes; and that the server would take each that changes something. What load balancers there have.
async fn check(
    server: &Server,
    documents: &[Document],
    present: &BTreeMap<Identity, files::Found>,
    doomed: &BTreeSet<&Identity>,
) -> Result<ports::Held, Failure> {
    let there = |identity: &Identity| {
        present.contains_key(identity) || documents.iter().any(|document| document.identity == *identity)
    };
    let mut faults = Vec::new();
    for document in documents {
        let identity = &document.identity;
        let application = Identity {
            kind: Kind::Application,
            application: identity.application.clone(),
            place: None,
            name: identity.application.clone(),
        };
        if !there(&application) {
            let field = if identity.kind == Kind::Pipeline { "application" } else { "name" };
            let message =
                format!("there is no application `{}`, neither on the server nor in a file", application.name);
            faults.push(document.fault(&[field], message));
        }
        if document.left_out.is_some() && there(&application) && !present.contains_key(identity) {
            let message = "an export left it out, and this server has none: write it whole, with references \
                           (secret://…) for what was hidden, or take this document out";
            faults.push(document.fault(&["leftOut"], message));
        }
        for (path, needed) in needs(document) {
            if doomed.contains(&needed) {
                let message = format!("it needs {needed}, which --prune would delete, since no file mentions it");
                faults.push(document.fault(&path.split('.').collect::<Vec<_>>(), message));
            }
        }
    }
    let changing: Vec<&Document> =
        documents.iter().filter(|it| !present.get(&it.identity).is_some_and(|before| is_so(before, it))).collect();
    let changing: Vec<&Document> = changing.into_iter().filter(|document| document.left_out.is_none()).collect();
    let held = ports::held(server, &changing).await.map_err(fault)?;
    faults.extend(ports::faults(documents, &changing, &held, doomed));
    for identity in doomed {
        let users = server.users(identity).await.map_err(fault)?;
        // It goes before this one, or its document decides: see `needs` above.
        let goes = |user: &Identity| doomed.contains(user) || documents.iter().any(|it| it.identity == *user);
        let load_balancers = users.load_balancers.iter().filter(|user| !goes(user));
        let load_balancers = load_balancers.map(|user| format!("load balancer `{}`", user.name));
        let server_groups = users.server_groups.iter().map(|name| format!("server group `{name}`"));
        let users: Vec<_> = load_balancers.chain(server_groups).collect();
        if !users.is_empty() {
            faults.push(format!(
                "{identity}: --prune would delete it, since no file mentions it, but it is used by {}; delete these \
                 first, or mention it in a file",
                users.join(", ")
            ));
        }
    }
    for document in &changing {
        let identity = &document.identity;
        let with = beside(document, &changing);
        let checked = server.check(identity, &document.fields, present.get(identity), with).await;
        let errors = checked.map_err(|error| fault(error).context(format!("nothing was done: {identity}")))?;
        let taken = |error: &Value| error["code"] == CONFLICT || error["extensions"]["code"] == CONFLICT;
        if !present.contains_key(identity)
            && errors.iter().any(taken)
            && made_meanwhile(server, document).await.map_err(fault)?
        {
            continue;
        }
        faults.extend(errors.iter().map(|error| document.refusal(error)));
    }
    if faults.is_empty() { Ok(held) } else { Err(refuse(&faults)) }
}

/// What a document refers to, each with its path.
fn needs(document: &Document) -> Vec<(String, Identity)> {
    let sources = started_by(&document.fields);
    let mut needs: Vec<_> =
        sources.map(|(index, source)| (format!("triggers.{index}.config.pipeline"), source)).collect();
    let groups = document.fields.get("securityGroups").and_then(Value::as_array).into_iter().flatten();
    for (index, name) in groups.filter_map(Value::as_str).enumerate() {
        let application = name.split('-').next().unwrap_or_default().to_owned();
        let place = document.identity.place.clone();
        let group = Identity { kind: Kind::SecurityGroup, application, place, name: name.to_owned() };
        needs.push((format!("securityGroups.{index}"), group));
    }
    needs
}

/// What the server has to know of the others that change something to check this one: `validateWith`.
fn beside(document: &Document, changing: &[&Document]) -> Value {
    let others = changing.iter().filter(|other| other.identity != document.identity);
    match document.identity.kind {
        Kind::LoadBalancer => {
            let groups = others.filter(|other| other.identity.kind == Kind::SecurityGroup);
            groups
                .filter(|group| group.identity.place == document.identity.place)
                .map(|group| group.identity.name.as_str())
                .collect()
        }
        Kind::Pipeline if started_by(&document.fields).next().is_some() => {
            let name = |identity: &Identity| json!({ "application": identity.application, "name": identity.name });
            let pipelines = others.filter(|other| other.identity.kind == Kind::Pipeline);
            let shown = |pipeline: &&Document| {
                let mut shown = name(&pipeline.identity);
                shown["startedBy"] = started_by(&pipeline.fields).map(|(_, source)| name(&source)).collect();
                shown
            };
            pipelines.map(shown).collect()
        }
        _ => json!([]),
    }
}

/// Whether the server has it as the document says, and working.
fn is_so(before: &files::Found, document: &Document) -> bool {
    document.left_out.is_some() || (before.fields == document.fields && before.dead_triggers.is_empty())
}

/// What the server has and no document mentions, of the kinds that the documents have.
fn unmentioned(documents: &[Document], present: &BTreeMap<Identity, files::Found>) -> Vec<files::Found> {
    let kinds: BTreeSet<Kind> = documents.iter().map(|document| document.identity.kind).collect();
    let named: BTreeSet<&Identity> = documents.iter().map(|document| &document.identity).collect();
    let extra = present.values().filter(|found| {
        let kind = found.identity.kind;
        kind != Kind::Application && kinds.contains(&kind) && !named.contains(&found.identity)
    });
    extra.cloned().collect()
}

fn plan(
    documents: Vec<Document>,
    present: &BTreeMap<Identity, files::Found>,
    mut extra: Vec<files::Found>,
) -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    for document in documents {
        let before = present.get(&document.identity).cloned();
        let identity = document.identity.clone();
        if before.as_ref().is_some_and(|before| is_so(before, &document)) {
            let left_out = document.left_out.is_some();
            let why = left_out.then(|| "left out of the export, so it stays as the server has it".to_owned());
            steps.push(Step { identity, work: Work::Keep, diff: String::new(), why });
            continue;
        }
        let dead = before.iter().flat_map(|before| &before.dead_triggers).map(|key| format!("`{key}`"));
        let dead = dead.collect::<Vec<_>>().join(", ");
        let why = (!dead.is_empty()).then(|| format!("what its trigger {dead} waited for was deleted"));
        let old = before.as_ref().map(|before| files::to_yaml(&before.fields)).transpose()?.unwrap_or_default();
        let diff = diff(&old, &files::to_yaml(&document.fields)?);
        let work = Work::Save { document: Box::new(document), before: before.map(Box::new) };
        steps.push(Step { identity, work, diff, why });
    }
    // What uses something goes before it.
    extra.sort_by_key(|found| std::cmp::Reverse(found.identity.kind));
    while !extra.is_empty() {
        // A pipeline whose end starts another goes after that one.
        let starts = |found: &files::Found| {
            extra.iter().any(|left| {
                left.identity != found.identity && started_by(&left.fields).any(|(_, by)| by == found.identity)
            })
        };
        let next = extra.iter().position(|found| !starts(found)).unwrap_or(0);
        let found = extra.remove(next);
        let diff = diff(&files::to_yaml(&found.fields)?, "");
        steps.push(Step { identity: found.identity.clone(), work: Work::Delete(Box::new(found)), diff, why: None });
    }
    Ok(steps)
}

fn diff(old: &str, new: &str) -> String {
    TextDiff::from_lines(old, new).unified_diff().context_radius(CONTEXT).to_string()
}

fn coloured(diff: &str, paint: Paint) -> Vec<String> {
    let colour = |line: &str| match line.as_bytes().first() {
        Some(b'+') => paint.with("32", line),
        Some(b'-') => paint.with("31", line),
        _ => paint.dim(line),
    };
    diff.lines().map(|line| format!("    {}", colour(line))).collect()
}

async fn carry_out(args: &Args, server: &Server, steps: Vec<Step>) -> Outcome {
    let look = Screen::new(false);
    let paint = look.paint();
    // Progress is for a person who waits.
    let mut screen = if look.is_terminal() && !args.remote.json { look } else { Screen::silent() };
    let mut objects = Vec::new();
    let mut broken: Option<anyhow::Error> = None;
    if args.prune && !args.remote.json {
        let doomed: Vec<_> = steps.iter().filter(|step| matches!(step.work, Work::Delete(_))).collect();
        for step in &doomed {
            print(&visible(&format!("no file mentions {}", step.identity)));
        }
    }
    for step in &steps {
        let outcome = match &step.work {
            _ if broken.is_some() && !matches!(step.work, Work::Keep) => None,
            Work::Keep => Some(Ok(By::Us)),
            _ if args.dry_run => Some(Ok(By::Us)),
            Work::Save { document, before: Some(before) } => {
                let saved =
                    server.save(&step.identity, &document.fields, Some(before), None, args.timeout, &mut screen);
                Some(saved.await)
            }
            Work::Save { document, before: None } => Some(create(server, document, args.timeout, &mut screen).await),
            Work::Delete(found) => Some(server.delete(found, args.timeout, &mut screen).await.map(|()| By::Us)),
        };
        let (action, error) = match outcome {
            None => ("skipped", None),
            Some(Ok(By::Us)) => (step.action(), None),
            Some(Ok(By::Another)) => ("unchanged", None),
            Some(Err(error)) => ("failed", Some(error)),
        };
        let said = error.as_ref().map(told);
        if args.remote.json {
            objects.push(shown(step, action, said.as_deref()));
        } else {
            tell(step, action, said.as_deref(), args.dry_run, paint);
        }
        broken = broken.or(error);
    }
    if args.remote.json {
        answer(&json!({ "dryRun": args.dry_run, "objects": objects }));
    }
    let Some(error) = broken else { return Ok(ExitCode::SUCCESS) };
    if !args.remote.json {
        warn(&format!("not everything was done: {}", told(&error)));
        warn("what is done stays; run the same again to go on");
    }
    let away = error.downcast_ref::<ClientError>().is_some_and(ClientError::is_no_answer);
    Ok(if away { ExitCode::from(super::NO_ANSWER) } else { ExitCode::FAILURE })
}

/// Makes what was not there. Somebody else may do the same at this moment: what is there then as the
/// document says is well, and anything else stays as it is.
async fn create(server: &Server, document: &Document, timeout: Duration, screen: &mut Screen) -> anyhow::Result<By> {
    let identity = &document.identity;
    let key = creation_key(document);
    match server.save(identity, &document.fields, None, Some(&key), timeout, screen).await {
        Ok(By::Us) => Ok(By::Us),
        Ok(By::Another) if made_by_now(server, document).await? => Ok(By::Another),
        // That one failed, or what it made was deleted since.
        Ok(By::Another) => server.save(identity, &document.fields, None, None, timeout, screen).await,
        Err(error) => {
            let refused = error.downcast_ref::<ClientError>().is_some_and(|error| error.code() == Some(CONFLICT));
            // Where that cannot be told, the refusal says more.
            match refused && made_meanwhile(server, document).await.unwrap_or(false) {
                true => Ok(By::Another),
                false => Err(error),
            }
        }
    }
}

/// The same for all who make the same object of the same document.
fn creation_key(document: &Document) -> String {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    hash.update(document.identity.to_string());
    hash.update(Value::Object(document.fields.clone()).to_string());
    format!("apply-{}", hex::encode(hash.finalize()))
}

/// The same where it is to be there, or may be in a moment: what a server shows follows what it does.
async fn made_by_now(server: &Server, document: &Document) -> Result<bool, ClientError> {
    for _ in 0..SHOWN_LOOKS {
        if made_meanwhile(server, document).await? {
            return Ok(true);
        }
        tokio::time::sleep(SHOWN_AGAIN).await;
    }
    Ok(false)
}

/// Whether the server has what it had not when it was asked first, just as the document says.
async fn made_meanwhile(server: &Server, document: &Document) -> Result<bool, ClientError> {
    let found = server.application(&document.identity.application).await?;
    Ok(found.iter().any(|found| found.identity == document.identity && is_so(found, document)))
}

fn shown(step: &Step, action: &str, error: Option<&str>) -> Value {
    let identity = &step.identity;
    json!({
        "kind": identity.kind.as_str(),
        "application": identity.application,
        "account": identity.place.as_ref().map(|place| &place.0),
        "location": identity.place.as_ref().map(|place| &place.1),
        "name": identity.name,
        "action": action,
        "diff": step.diff,
        "reason": step.why,
        "error": error,
    })
}

fn tell(step: &Step, action: &str, error: Option<&str>, dry_run: bool, paint: Paint) {
    let colour = match action {
        "created" => "32",
        "changed" => "33",
        "deleted" | "failed" => "31",
        _ => "2",
    };
    let note = match (error, dry_run) {
        (Some(error), _) => format!(": {error}"),
        (None, true) if action != "unchanged" => " (dry run)".to_owned(),
        _ => String::new(),
    };
    let why = step
        .why
        .as_ref()
        .filter(|_| matches!(action, "changed" | "unchanged"))
        .map(|why| format!(": {why}"))
        .unwrap_or_default();
    print(&format!("{} {}", paint.with(colour, action), visible(&format!("{}{why}{note}", step.identity))));
    if matches!(action, "created" | "changed" | "deleted") {
        coloured(&visible(&step.diff), paint).iter().for_each(|line| print(line));
    }
}
