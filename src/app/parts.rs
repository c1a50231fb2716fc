//! Parts of the server, each made from the settings.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::Error;
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::{self, Engine};
use crate::inventory::Inventory;
use crate::model::{Place, Served};
use crate::notifiers::email::Email;
use crate::notifiers::{Notifier, Notifiers};
use crate::providers::host::client::{self, HostProvider};
use crate::providers::host::daemon::LogOptions;
use crate::secrets::Secrets;
use crate::store::Store;
use crate::telemetry::traces;

/// How long an account may take for its first answer at the start.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// How often others are looked at that may live.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Connects to the host of the directory, or starts one there.
pub(super) async fn connect_host(config: &Config) -> Result<HostProvider, Error> {
    let host = &config.host;
    let failed = |message: String| Error::Host { directory: host.dir.display().to_string(), message };
    let defaults = client::Options::new(&host.dir).map_err(|error| failed(error.to_string()))?;
    let options = client::Options {
        account: host.account.clone(),
        location: host.location.clone(),
        host_name: host.host_name.clone().unwrap_or(defaults.host_name),
        artifact_roots: host.artifact_roots.clone(),
        secret_roots: config.security.secret_dirs.clone(),
        ports: host.port_range,
        max_artifact_bytes: host.max_artifact_bytes,
        max_instance_log_bytes: host.max_instance_log_bytes,
        max_instances: host.max_instances,
        log: LogOptions {
            format: Some(config.log.format.name().to_owned()),
            filter: Some(config.log.filter().to_owned()),
        },
        directory: defaults.directory,
        binary: defaults.binary,
    };
    HostProvider::connect(options).await.map_err(|error| failed(error.message))
}

/// Other servers on this database that live and reach another host at the same place: what is
/// deployed there would be on the one machine or on the other, as chance has it.
pub(super) async fn no_rivals(store: &Store, engine: &Engine, serves: &[Served], lease: Duration) -> Result<(), Error> {
    let me = engine.owner();
    let before = match store.owner_rivals(me, serves).await {
        Ok(before) => before,
        // Whatever it is, it is the engine's to meet; a database that comes back is looked at by `/readyz`.
        Err(error) => {
            warn!("whether another server has this location on another host is not known: {error}");
            return Ok(());
        }
    };
    let Some((_, _, first)) = before.first() else { return Ok(()) };
    info!("{}; looking whether it still lives", rival(first));
    let until = tokio::time::Instant::now() + lease;
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let now = store.owner_rivals(me, serves).await?;
        // One that has registered meanwhile, or has beaten.
        if let Some((_, _, lives)) = now.iter().find(|(owner, beat, _)| {
            before.iter().find(|(known, _, _)| known == owner).is_none_or(|(_, known, _)| known != beat)
        }) {
            return Err(Error::Rival(rival(lives)));
        }
        if now.is_empty() || tokio::time::Instant::now() >= until {
            return Ok(());
        }
    }
}

/// What is wrong about a server that reaches another host at the same place.
pub(super) fn rival(their: &Served) -> String {
    let Served { place: Place { account, location }, host, .. } = their;
    format!(
        "another server on this database has account {account}, location {location} on another host ({host}); give each \
         host a --location of its own, or servers of one machine the same --host-dir"
    )
}

/// Reads every account once before anybody asks: a server that has just started must not say that
/// nothing runs. An account that cannot be read does not keep the server from starting.
pub(super) async fn first_look(inventory: &Inventory) {
    for account in inventory.accounts() {
        let read = tokio::time::timeout(FIRST_LOOK, inventory.refresh(&account.name)).await;
        if !matches!(read, Ok(Ok(_))) {
            tracing::warn!(account = account.name, "account `{}` cannot be read yet", account.name);
        }
    }
}

/// The channels that the settings give.
pub(super) fn notifiers(config: &Config, secrets: &Secrets, clock: &Clock) -> Result<Notifiers, Error> {
    let email = config.smtp.email.clone();
    let email = email.map(|options| Email::new(options, secrets.clone(), clock.clone())).transpose();
    let email = email.map_err(Error::Mail)?.map(|email| Arc::new(email) as Arc<dyn Notifier>);
    Ok(Notifiers::new(email))
}

/// What sends traces, where the settings name a collector.
pub(super) fn trace_exporter(config: &Config) -> Result<Option<(engine::EndedHook, traces::Exporter)>, Error> {
    let Some(endpoint) = config.observe.otlp_endpoint.clone() else { return Ok(None) };
    let options = traces::Options { endpoint, timeout: config.observe.otlp_timeout };
    traces::start(&options).map(Some).map_err(Error::Traces)
}

/// See [`App::notes`]; each goes to the log too.
pub(super) fn notes(config: &Config, host: &HostProvider) -> Vec<String> {
    let differs = host.differences().iter().map(|difference| {
        format!(
            "{} {} does not hold: the host that runs in {} was started with {}. Its instances run on while it is \
             started anew: `gennaker host stop --dir {}`, then start the server again",
            difference.setting,
            difference.asked,
            config.host.dir.display(),
            difference.holds,
            config.host.dir.display(),
        )
    });
    let notes: Vec<String> = config.host.port_range.warning().into_iter().chain(differs).collect();
    notes.iter().for_each(|note| warn!("{note}"));
    notes
}
