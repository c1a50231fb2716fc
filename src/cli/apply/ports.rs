//! Who has which port: of what documents ask for, and of what the server has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Step, Work};
use crate::cli::client::Error;
use crate::cli::files::{Document, Identity, Kind, Server};
use crate::cli::remote::{PAGE, all_pages};

/// Where one load balancer alone can listen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    place: Option<(String, String)>,
    address: String,
    port: u64,
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, port, .. } = self;
        if address.contains(':') { write!(f, "[{address}]:{port}") } else { write!(f, "{address}:{port}") }
    }
}

/// The load balancers of the server, each with the ports that it has.
pub(super) type Held = BTreeMap<Identity, BTreeSet<Port>>;

/// The ports that a document asks for, and only them, each with its listener's place in the list. Of a
/// range the server takes another.
fn fixed(document: &Document) -> impl Iterator<Item = (usize, Port)> {
    let listeners = (document.identity.kind == Kind::LoadBalancer).then(|| document.fields.get("listeners"));
    let listeners = listeners.flatten().and_then(Value::as_array).into_iter().flatten().enumerate();
    listeners.filter_map(|(index, listener)| Some((index, one(&document.identity, listener)?)))
}

fn one(identity: &Identity, listener: &Value) -> Option<Port> {
    let (port, last) = (&listener["port"], &listener["portTo"]);
    let port = port.as_u64().filter(|port| last.is_null() || last.as_u64() == Some(*port))?;
    // The API's default is left out of canonical form.
    let address = listener["address"].as_str().unwrap_or("127.0.0.1").to_owned();
    Some(Port { place: identity.place.clone(), address, port })
}

/// What the server's load balancers have; not asked where no document wants a port of its own.
pub(super) async fn held(server: &Server, changing: &[&Document]) -> Result<Held, Error> {
    if !changing.iter().any(|document| fixed(document).next().is_some()) {
        return Ok(Held::new());
    }
    let document = format!(
        "query Held($after: String) {{
           loadBalancers(after: $after) {{
             {PAGE} nodes {{ account location name listeners {{ address port portTo }} urls }}
           }}
         }}"
    );
    let nodes = all_pages(&server.client, &document, serde_json::json!({}), "/loadBalancers").await?;
    let ports = |node: &Value| {
        let identity = Identity::of(Kind::LoadBalancer, node.as_object()?);
        let listeners = node["listeners"].as_array().into_iter().flatten();
        let asked = listeners.filter_map(|listener| one(&identity, listener));
        let urls = node["urls"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let open = urls.filter_map(|url| {
            let url = reqwest::Url::parse(url).ok()?;
            let address = url.host_str()?.trim_matches(['[', ']']).to_owned();
            // A URL leaves out the port that its scheme says.
            let port = url.port_or_known_default()?.into();
            Some(Port { place: identity.place.clone(), address, port })
        });
        let all = asked.chain(open).collect();
        Some((identity, all))
    };
    Ok(nodes.iter().filter_map(ports).collect())
}

/// Ports that more than one load balancer is to have, or that one has which stays as it is.
pub(super) fn faults(
    documents: &[Document],
    changing: &[&Document],
    held: &Held,
    doomed: &BTreeSet<&Identity>,
) -> Vec<String> {
    let mut faults = Vec::new();
    let mut taken: BTreeMap<Port, &Document> = BTreeMap::new();
    for document in documents {
        for (index, port) in fixed(document) {
            let at = port.to_string();
            let first = *taken.entry(port).or_insert(document);
            if first.identity != document.identity {
                let message = format!(
                    "{} in {} is to listen at {at} too; give one of them another port",
                    first.identity,
                    first.file.display()
                );
                faults.push(document.fault(&["listeners", &index.to_string(), "port"], message));
            }
        }
    }
    let stays = |identity: &Identity| {
        !doomed.contains(identity) && !documents.iter().any(|document| document.identity == *identity)
    };
    for document in changing {
        for (index, port) in fixed(document) {
            let holder = held.iter().find(|(identity, ports)| stays(identity) && ports.contains(&port));
            if let Some((holder, _)) = holder {
                let message = format!("{holder} listens at {port}, and stays; give one of them another port");
                faults.push(document.fault(&["listeners", &index.to_string(), "port"], message));
            }
        }
    }
    faults
}

/// What goes and has a port that is wanted goes before what wants it. Nothing uses it: that was checked.
pub(super) fn free_first(steps: &mut Vec<Step>, held: &Held) {
    let mut at = 0;
    while at < steps.len() {
        let wanted: BTreeSet<Port> = match &steps[at].work {
            Work::Save { document, .. } => fixed(document).map(|(_, port)| port).collect(),
            _ => BTreeSet::new(),
        };
        let goes = |step: &Step| {
            matches!(step.work, Work::Delete(_))
                && held.get(&step.identity).is_some_and(|ports| !ports.is_disjoint(&wanted))
        };
        while let Some(behind) = steps[at..].iter().position(goes) {
            let step = steps.remove(at + behind);
            steps.insert(at, step);
            at += 1;
        }
        at += 1;
    }
}
