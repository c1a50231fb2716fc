//! What the server may ask of server groups.

use std::sync::Arc;
use std::time::Duration;

use super::artifact;
use super::files;
use super::hub::{GroupCell, Hub, Reply, check_name, refuse, unavailable};
use super::records::{FORMAT, GroupRecord};
use super::supervisor;
use crate::model::{Capacity, Place, ServerGroup, ServerGroupSpec};
use crate::providers::host::launch::Launch;
use crate::providers::host::shim;
use crate::providers::{ErrorKind, Operation};

impl Hub {
    /// Makes a group, or finds it made by the same operation.
    pub async fn ensure_server_group(self: &Arc<Self>, op: &Operation, spec: ServerGroupSpec) -> Reply<ServerGroup> {
        self.check_place(&spec.place)?;
        check_name("server group", &spec.name)?;
        let _exclusive = self.exclusive(format!("group/{}", spec.name)).await;
        self.fences.admit(op, self.clock.now())?;
        if let Some(found) = self.found(op, &spec.name)? {
            return Ok(found);
        }
        let launch = self.check_spec(&spec)?;
        // Held until the group is there: a sweep in between would take the artifact away.
        let _kept = self.artifacts_in_use.read().await;
        let within = (op.deadline - self.clock.now()).to_std().unwrap_or_default();
        let artifact = self.artifacts().fetch(&launch.artifact, within).await?;
        let record = GroupRecord {
            format: FORMAT,
            created_at: self.clock.now(),
            operation: op.key.clone(),
            fence: op.fence,
            artifact,
            destroying: false,
            spec,
        };
        let name = record.spec.name.clone();
        files::make_directory(&self.layout.group(&name))
            .and_then(|()| files::sync_parent(&self.layout.group(&name)))
            .and_then(|()| files::write_json(&self.layout.group_spec(&name), &record))
            .map_err(|error| {
                // A directory without its file is no server group; it goes if it can.
                let _ = std::fs::remove_dir(self.layout.group(&name));
                unavailable(&error)
            })?;
        let cell = GroupCell::new(record, launch);
        let view = self.group_view(&cell);
        self.update(|inner| inner.groups.insert(name.clone(), cell));
        supervisor::start(self, name);
        Ok(view)
    }

    fn found(&self, op: &Operation, name: &str) -> Reply<Option<ServerGroup>> {
        self.read(|inner| match inner.groups.get(name) {
            None => Ok(None),
            Some(cell) if cell.record.destroying => {
                Err(refuse(ErrorKind::Conflict, format!("server group {name} is being destroyed; take another name")))
            }
            Some(cell) if cell.record.operation == op.key => Ok(Some(self.group_view(cell))),
            Some(cell) => Err(refuse(
                ErrorKind::Conflict,
                format!(
                    "server group {name} was made by another operation ({}); take another name",
                    cell.record.operation
                ),
            )),
        })
    }

    fn check_spec(&self, spec: &ServerGroupSpec) -> Reply<Launch> {
        let capacity = check_capacity(spec.capacity)?;
        let launch = Launch::read_new(&spec.launch)
            .map_err(|(pointer, message)| refuse(ErrorKind::Invalid, format!("launch{pointer}: {message}")))?;
        shim::user(launch.run_as.as_deref())
            .map_err(|error| refuse(ErrorKind::Invalid, format!("launch/runAs: {error:#}")))?;
        self.read(|inner| {
            for name in &spec.load_balancers {
                if !inner.balancers.contains_key(name) {
                    let known = known(inner.balancers.keys());
                    return Err(refuse(
                        ErrorKind::NotFound,
                        format!("there is no load balancer {name} on this host ({known}); create it first"),
                    ));
                }
            }
            for name in &spec.security_groups {
                if !inner.security_groups.contains_key(name) {
                    let known = known(inner.security_groups.keys());
                    return Err(refuse(
                        ErrorKind::NotFound,
                        format!("there is no security group {name} on this host ({known}); create it first"),
                    ));
                }
            }
            self.check_room(inner.desired() + capacity.desired as usize)
        })?;
        Ok(launch)
    }

    fn check_room(&self, desired: usize) -> Reply<()> {
        let ports = self.options.ports.usable().count();
        let limit = self.options.max_instances.min(ports);
        if desired <= limit {
            return Ok(());
        }
        Err(refuse(
            ErrorKind::Exhausted,
            format!(
                "this host would have {desired} instances, but takes at most {limit}; destroy old server groups, or \
                 restart the host with more (--max-instances, and --port-range where ports are what is short)"
            ),
        ))
    }

    /// Changes how many instances there are to be.
    pub async fn ensure_capacity(
        self: &Arc<Self>,
        op: &Operation,
        name: &str,
        capacity: Capacity,
    ) -> Reply<ServerGroup> {
        let capacity = check_capacity(capacity)?;
        self.change_group(op, name, |inner_desired, record| {
            let others = inner_desired - record.spec.capacity.desired as usize;
            self.check_room(others + capacity.desired as usize)?;
            record.spec.capacity = capacity;
            Ok(())
        })
        .await
    }

    /// Puts the group into its load balancers or takes it out.
    pub async fn ensure_enabled(self: &Arc<Self>, op: &Operation, name: &str, enabled: bool) -> Reply<ServerGroup> {
        self.change_group(op, name, |_, record| {
            record.spec.enabled = enabled;
            Ok(())
        })
        .await
    }

    async fn change_group(
        self: &Arc<Self>,
        op: &Operation,
        name: &str,
        change: impl FnOnce(usize, &mut GroupRecord) -> Reply<()>,
    ) -> Reply<ServerGroup> {
        let _exclusive = self.exclusive(format!("group/{name}")).await;
        self.fences.admit(op, self.clock.now())?;
        let absent = || refuse(ErrorKind::NotFound, format!("there is no server group {name} on this host"));
        let (mut record, desired) =
            self.read(|inner| Some((inner.groups.get(name)?.record.clone(), inner.desired()))).ok_or_else(absent)?;
        if record.destroying {
            return Err(refuse(ErrorKind::NotFound, format!("server group {name} is being destroyed")));
        }
        let before = record.clone();
        change(desired, &mut record)?;
        if record != before {
            record.fence = op.fence;
            files::write_json(&self.layout.group_spec(name), &record).map_err(|error| unavailable(&error))?;
        }
        let view = self.update(|inner| {
            let cell = inner.groups.get_mut(name)?;
            cell.record = record;
            Some(Arc::clone(&cell.wake))
        });
        let wake = view.ok_or_else(absent)?;
        // After the data plane was told, so that what is open now is what has to drain.
        let open = self.proxy.open_to(name) > 0;
        let view = self.update(|inner| {
            let cell = inner.groups.get_mut(name)?;
            cell.draining = !cell.record.spec.enabled && open;
            Some(self.group_view(cell))
        });
        wake.notify_one();
        view.ok_or_else(absent)
    }

    /// Takes the group out of traffic and records that it goes: from then on its instances are
    /// stopped, by the next worker too, and the group is forgotten. Comes back before that is done.
    pub async fn ensure_group_destroyed(self: &Arc<Self>, op: &Operation, name: &str) -> Reply<()> {
        let _exclusive = self.exclusive(format!("group/{name}")).await;
        self.fences.admit(op, self.clock.now())?;
        let Some(mut record) = self.read(|inner| inner.groups.get(name).map(|cell| cell.record.clone())) else {
            return Ok(());
        };
        if !record.destroying {
            record.destroying = true;
            record.fence = op.fence;
            files::write_json(&self.layout.group_spec(name), &record).map_err(|error| unavailable(&error))?;
        }
        // Before it leaves traffic, so that nobody is told of a share that is missed. What cannot be
        // written here is at the group's end.
        if let Err(error) = self.drop_shares_of(name).await {
            tracing::warn!(group = name, %error, "the shares of a server group that goes are not dropped yet");
        }
        self.update(|inner| {
            if let Some(cell) = inner.groups.get_mut(name) {
                cell.record = record;
                cell.wake.notify_one();
            }
        });
        Ok(())
    }

    /// Everything in the place that this host is.
    pub fn check_place(&self, place: &Place) -> Reply<()> {
        if *place == self.place() {
            return Ok(());
        }
        Err(refuse(
            ErrorKind::Invalid,
            format!(
                "this host is {}/{}, not {}/{}",
                self.options.account, self.options.location, place.account, place.location
            ),
        ))
    }

    /// Where artifacts are kept.
    pub fn artifacts(&self) -> artifact::Store {
        artifact::Store {
            directory: self.layout.artifacts(),
            roots: self.options.artifact_roots.clone(),
            bounds: artifact::BOUNDS,
            outbound: self.outbound.clone(),
            shelf: self.shelf.clone(),
            used: self.read(|inner| inner.groups.values().map(|cell| cell.record.artifact.clone()).collect()),
            now: self.clock.now(),
        }
    }

    /// Removes artifacts that no group has used for a while, unless one is just being fetched.
    pub fn sweep_artifacts(&self) {
        let Ok(_alone) = self.artifacts_in_use.try_write() else { return };
        self.artifacts().sweep(Duration::from_secs(self.options.artifact_keep_seconds));
    }
}

fn check_capacity(capacity: Capacity) -> Reply<Capacity> {
    capacity.checked().map_err(|error| refuse(ErrorKind::Invalid, error.to_string()))
}

/// Names for people, a few of them.
pub fn known<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.take(10).map(String::as_str).collect();
    if names.is_empty() { "there are none".to_owned() } else { format!("known: {}", names.join(", ")) }
}
