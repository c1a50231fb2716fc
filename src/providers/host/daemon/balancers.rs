//! What the server may ask of load balancers and security groups, and the opening of listeners.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::files;
use super::groups::known;
use super::handoff::listener_name;
use super::hub::{BalancerCell, GroupCell, Hub, Reply, check_name, refuse, unavailable};
use super::records::{BalancerRecord, FORMAT, SecurityRecord};
use crate::model::{
    Listener, LoadBalancer, LoadBalancerProblem, LoadBalancerProblemKind, LoadBalancerSpec, SecurityGroup,
    SecurityGroupSpec, Share, addresses_meet,
};
use crate::providers::{ErrorKind, Operation};

/// Listeners of one load balancer, at most.
const MAX_LISTENERS: usize = 20;
/// Rules of one security group, at most.
const MAX_RULES: usize = 1_000;

impl Hub {
    /// Makes or changes a load balancer. Its ports are open when this comes back.
    pub async fn ensure_load_balancer(self: &Arc<Self>, op: &Operation, spec: LoadBalancerSpec) -> Reply<LoadBalancer> {
        self.check_place(&spec.place)?;
        check_name("load balancer", &spec.name)?;
        let name = spec.name.clone();
        let _exclusive = self.exclusive("network".to_owned()).await;
        self.fences.admit(op, self.clock.now())?;
        self.check_balancer(&spec)?;
        let before = self.read(|inner| inner.balancers.get(&name).map(|cell| cell.record.clone()));
        // What was bound for a change that is not made goes again; what was there before stays.
        let ports =
            self.open_ports(&spec, before.as_ref()).inspect_err(|_| self.close_unused(&name, before.as_ref()))?;
        let record = BalancerRecord {
            format: FORMAT,
            created_at: before.as_ref().map_or_else(|| self.clock.now(), |before| before.created_at),
            operation: before.as_ref().map_or_else(|| op.key.clone(), |before| before.operation.clone()),
            fence: op.fence,
            shares: before.as_ref().map(|before| before.shares.clone()).unwrap_or_default(),
            ports,
            spec,
        };
        let written = files::make_directory(&self.layout.balancers())
            .and_then(|()| files::write_json(&self.layout.balancer(&name), &record));
        if let Err(error) = written {
            self.close_unused(&name, before.as_ref());
            return Err(unavailable(&error));
        }
        self.update(|inner| match inner.balancers.get_mut(&name) {
            Some(cell) => cell.record = record.clone(),
            None => drop(inner.balancers.insert(name.clone(), BalancerCell::new(record.clone()))),
        });
        self.open_balancer(&name);
        self.close_unused(&name, Some(&record));
        self.wake_groups_of(&name);
        self.balancer(&name)
    }

    fn check_balancer(&self, spec: &LoadBalancerSpec) -> Reply<()> {
        let invalid = |message: String| Err(refuse(ErrorKind::Invalid, message));
        let name = &spec.name;
        if spec.listeners.is_empty() || spec.listeners.len() > MAX_LISTENERS {
            return invalid(format!("load balancer {name} needs 1 to {MAX_LISTENERS} listeners"));
        }
        for listener in &spec.listeners {
            if listener.port == 0 || listener.port_to.is_some_and(|last| last < listener.port) {
                return invalid(format!("load balancer {name}: a listener's port is above 0 and portTo not below it"));
            }
        }
        self.read(|inner| {
            for group in &spec.security_groups {
                if !inner.security_groups.contains_key(group) {
                    let known = known(inner.security_groups.keys());
                    return Err(refuse(
                        ErrorKind::NotFound,
                        format!("there is no security group {group} on this host ({known}); create it first"),
                    ));
                }
            }
            Ok(())
        })
    }

    /// A port for each listener: the one it had if it still fits, else the first free one.
    fn open_ports(&self, spec: &LoadBalancerSpec, before: Option<&BalancerRecord>) -> Reply<Vec<u16>> {
        let mut had: Vec<SocketAddr> = before.map(addresses).unwrap_or_default();
        let mut own: Vec<SocketAddr> = Vec::new();
        let taken = self.read(super::hub::Inner::ports);
        for listener in &spec.listeners {
            let range = listener.port..=listener.port_to.unwrap_or(listener.port);
            let fits = |had: &SocketAddr| had.ip() == listener.address && range.contains(&had.port());
            let kept = had.iter().position(|had| fits(had) && !own.iter().any(|own| meet(had, own)));
            let port = match kept {
                Some(index) => had.remove(index).port(),
                None => self.open_first(spec, listener, &taken, &own)?,
            };
            own.push(SocketAddr::new(listener.address, port));
        }
        Ok(own.iter().map(SocketAddr::port).collect())
    }

    /// `taken`: by instances; `own`: where the listeners before this one are.
    fn open_first(
        &self,
        spec: &LoadBalancerSpec,
        listener: &Listener,
        taken: &BTreeSet<u16>,
        own: &[SocketAddr],
    ) -> Reply<u16> {
        let last = listener.port_to.unwrap_or(listener.port);
        let (mut holders, mut why) = (Vec::new(), None);
        for port in listener.port..=last {
            let address = SocketAddr::new(listener.address, port);
            if let Some(other) = own.iter().find(|other| meet(other, &address)) {
                let holder = format!("another of its listeners ({other})");
                if !holders.contains(&holder) {
                    holders.push(holder);
                }
                continue;
            }
            if !taken.contains(&port) {
                match self.sockets.listener(&spec.name, address) {
                    Ok(_) => return Ok(port),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                    Err(error) => {
                        why = Some(error);
                        continue;
                    }
                }
            }
            let holder = self.holder(spec, address);
            if !holders.contains(&holder) {
                holders.push(holder);
            }
        }
        let holders = holders.join(" and ");
        let (what, taken) = if last == listener.port {
            (format!("port {last}"), format!("{holders} has it"))
        } else {
            (format!("any port of {}-{last}", listener.port), format!("they are taken by {holders}"))
        };
        let (kind, why, advice) = match &why {
            None => (ErrorKind::Exhausted, taken, FREE_IT),
            Some(error) => not_bound(error),
        };
        Err(refuse(
            kind,
            format!("load balancer {} cannot listen on {} {what}: {why}; {advice}", spec.name, listener.address),
        ))
    }

    /// Who keeps a load balancer from listening there.
    fn holder(&self, spec: &LoadBalancerSpec, address: SocketAddr) -> String {
        self.read(|inner| {
            let of_group = |(_, cell): &(&String, &GroupCell)| {
                cell.instances.values().any(|instance| instance.record.port == address.port())
            };
            let balancer =
                inner.balancers.values().find(|cell| addresses(&cell.record).iter().any(|other| meet(other, &address)));
            match (balancer.map(|cell| &cell.record.spec.name), inner.groups.iter().find(of_group)) {
                (Some(name), _) if *name == spec.name => "its own listener of before".to_owned(),
                (Some(name), _) => format!("load balancer {name} of this host"),
                (None, Some((name, _))) => format!("an instance of server group {name} of this host"),
                (None, None) => "another process".to_owned(),
            }
        })
    }

    /// Opens the listeners of a load balancer in the data plane, as recorded. A port that is taken
    /// is the load balancer's `problem`.
    pub fn open_balancer(&self, name: &str) {
        let Some((record, config)) =
            self.read(|inner| inner.balancers.get(name).map(|cell| cell.record.clone())).zip(self.proxy_config(name))
        else {
            return;
        };
        // First who stands behind it, so that no share is missed at the start of a host.
        self.read(|inner| self.proxy.set_backends(name, inner.backends_of(name)));
        let opened = addresses(&record)
            .into_iter()
            .map(|address| {
                self.sockets
                    .listener(name, address)
                    .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
            })
            .collect::<io::Result<Vec<_>>>()
            .and_then(|listeners| self.proxy.apply(config, listeners));
        self.update(|inner| {
            if let Some(cell) = inner.balancers.get_mut(name) {
                cell.open = opened.is_ok();
                let since = cell.closed.take().map_or_else(|| self.clock.now(), |closed| closed.since);
                cell.closed = opened.err().map(|error| LoadBalancerProblem {
                    kind: LoadBalancerProblemKind::Listener,
                    about: String::new(),
                    message: format!("{error}; it is tried again"),
                    since,
                });
                cell.problems = self.proxy.problems(name);
                // Told anew: the data plane may have started from nothing.
                cell.told = Vec::new();
            }
        });
    }

    /// What the data plane says is in the load balancers' way, as of now.
    pub fn take_problems(&self) {
        let changed =
            self.read(|inner| inner.balancers.iter().any(|(name, cell)| cell.problems != self.proxy.problems(name)));
        if changed {
            self.update(|inner| {
                for (name, cell) in &mut inner.balancers {
                    cell.problems = self.proxy.problems(name);
                }
            });
        }
    }

    /// Lets go of listeners of this load balancer that its record does not name.
    pub fn close_unused(&self, name: &str, record: Option<&BalancerRecord>) {
        let used: BTreeSet<String> =
            record.map(addresses).unwrap_or_default().into_iter().map(|address| listener_name(name, address)).collect();
        let own = format!("lb/{name}/");
        for held in self.sockets.names() {
            if held.starts_with(&own) && !used.contains(&held) {
                self.sockets.release(&held);
            }
        }
    }

    fn balancer(&self, name: &str) -> Reply<LoadBalancer> {
        self.read(|inner| inner.balancers.get(name).map(|cell| inner.balancer_view(cell)))
            .ok_or_else(|| refuse(ErrorKind::NotFound, format!("there is no load balancer {name} on this host")))
    }

    fn wake_groups_of(&self, balancer: &str) {
        self.read(|inner| {
            for group in inner.groups.values() {
                if group.record.spec.load_balancers.iter().any(|name| name == balancer) {
                    group.wake.notify_one();
                    group.instances.values().for_each(|cell| cell.wake.notify_one());
                }
            }
        });
    }

    /// All shares at once.
    pub async fn ensure_shares(
        self: &Arc<Self>,
        op: &Operation,
        name: &str,
        shares: Vec<Share>,
    ) -> Reply<LoadBalancer> {
        let _exclusive = self.exclusive("network".to_owned()).await;
        self.fences.admit(op, self.clock.now())?;
        let current = self.balancer(name)?;
        let invalid = |message: String| Err(refuse(ErrorKind::Invalid, message));
        let mut seen = BTreeSet::new();
        let mut sum = 0_u64;
        for share in &shares {
            sum += u64::from(share.basis_points);
            if !seen.insert(&share.server_group) {
                return invalid(format!("server group {} has two shares of load balancer {name}", share.server_group));
            }
            if !current.server_groups.contains(&share.server_group) {
                let known = known(current.server_groups.iter());
                return invalid(format!(
                    "server group {} is not registered with load balancer {name} ({known})",
                    share.server_group
                ));
            }
        }
        if sum > 10_000 {
            return invalid(format!("the shares of load balancer {name} come to {sum} basis points; 10000 is all"));
        }
        let Some(mut record) = self.read(|inner| inner.balancers.get(name).map(|cell| cell.record.clone())) else {
            return self.balancer(name);
        };
        record.shares = shares;
        record.fence = op.fence;
        self.put_shares(record).map_err(|error| unavailable(&error))?;
        self.balancer(name)
    }

    /// Who holds the lock of the network has changed the shares of this record.
    fn put_shares(&self, record: BalancerRecord) -> io::Result<()> {
        let name = record.spec.name.clone();
        files::write_json(&self.layout.balancer(&name), &record)?;
        self.update(|inner| {
            if let Some(cell) = inner.balancers.get_mut(&name) {
                cell.record = record;
            }
        });
        if let Some(config) = self.proxy_config(&name) {
            self.proxy.update(config);
        }
        Ok(())
    }

    /// A server group that goes has no share of any load balancer any more: what it had would be
    /// missed for ever.
    pub async fn drop_shares_of(&self, group: &str) -> io::Result<()> {
        let _exclusive = self.exclusive("network".to_owned()).await;
        let is_its = |share: &Share| share.server_group == group;
        let records: Vec<BalancerRecord> = self.read(|inner| {
            let with = inner.balancers.values().filter(|cell| cell.record.shares.iter().any(is_its));
            with.map(|cell| cell.record.clone()).collect()
        });
        for mut record in records {
            record.shares.retain(|share| !is_its(share));
            self.put_shares(record)?;
        }
        Ok(())
    }

    /// Closes a load balancer's ports and forgets it.
    pub async fn ensure_load_balancer_deleted(self: &Arc<Self>, op: &Operation, name: &str) -> Reply<()> {
        let _exclusive = self.exclusive("network".to_owned()).await;
        self.fences.admit(op, self.clock.now())?;
        let Ok(current) = self.balancer(name) else { return Ok(()) };
        if !current.server_groups.is_empty() {
            return Err(refuse(
                ErrorKind::Conflict,
                format!(
                    "load balancer {name} is used by server groups ({}); destroy them first",
                    current.server_groups.join(", ")
                ),
            ));
        }
        files::remove(&self.layout.balancer(name)).map_err(|error| unavailable(&error))?;
        self.update(|inner| inner.balancers.remove(name));
        self.proxy.remove(name);
        self.close_unused(name, None);
        Ok(())
    }

    /// Makes or changes a security group; its rules hold from now on.
    pub async fn ensure_security_group(
        self: &Arc<Self>,
        op: &Operation,
        spec: SecurityGroupSpec,
    ) -> Reply<SecurityGroup> {
        self.check_place(&spec.place)?;
        check_name("security group", &spec.name)?;
        let name = spec.name.clone();
        let _exclusive = self.exclusive("network".to_owned()).await;
        self.fences.admit(op, self.clock.now())?;
        if spec.inbound.len() > MAX_RULES {
            return Err(refuse(ErrorKind::Invalid, format!("security group {name} has more than {MAX_RULES} rules")));
        }
        if let Some(rule) = spec.inbound.iter().find(|rule| rule.port_from > rule.port_to) {
            return Err(refuse(
                ErrorKind::Invalid,
                format!(
                    "security group {name}: a rule's ports {}-{} are in the wrong order",
                    rule.port_from, rule.port_to
                ),
            ));
        }
        let before = self.read(|inner| inner.security_groups.get(&name).cloned());
        let record = SecurityRecord {
            format: FORMAT,
            created_at: before.as_ref().map_or_else(|| self.clock.now(), |before| before.created_at),
            operation: before.map_or_else(|| op.key.clone(), |before| before.operation),
            fence: op.fence,
            spec,
        };
        files::make_directory(&self.layout.security_groups())
            .and_then(|()| files::write_json(&self.layout.security_group(&name), &record))
            .map_err(|error| unavailable(&error))?;
        let view = self.update(|inner| {
            let view = inner.security_view(&record);
            inner.security_groups.insert(name, record);
            view
        });
        for balancer in &view.load_balancers {
            if let Some(config) = self.proxy_config(balancer) {
                self.proxy.update(config);
            }
        }
        Ok(view)
    }

    /// Forgets a security group that nothing uses.
    pub async fn ensure_security_group_deleted(self: &Arc<Self>, op: &Operation, name: &str) -> Reply<()> {
        let _exclusive = self.exclusive("network".to_owned()).await;
        self.fences.admit(op, self.clock.now())?;
        let view = self.read(|inner| inner.security_groups.get(name).map(|record| inner.security_view(record)));
        let Some(view) = view else { return Ok(()) };
        let users: Vec<String> = view.load_balancers.into_iter().chain(view.server_groups).collect();
        if !users.is_empty() {
            return Err(refuse(
                ErrorKind::Conflict,
                format!("security group {name} is used by {}; take it out of them first", users.join(", ")),
            ));
        }
        files::remove(&self.layout.security_group(name)).map_err(|error| unavailable(&error))?;
        self.update(|inner| inner.security_groups.remove(name));
        Ok(())
    }
}

const FREE_IT: &str = "free it, or give another port or a range of ports (portTo)";

/// Why a listener could not be opened: whose fault it is, in which words, and what to do.
fn not_bound(error: &io::Error) -> (ErrorKind, String, &'static str) {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => (
            ErrorKind::Invalid,
            "this machine has no such address".to_owned(),
            "give one that it has: 127.0.0.1, an address of its network cards, or 0.0.0.0 for all of them",
        ),
        io::ErrorKind::PermissionDenied => (
            ErrorKind::Invalid,
            "the host may not open it".to_owned(),
            "give a port from 1024 on, or let the host's user open lower ones (CAP_NET_BIND_SERVICE)",
        ),
        _ => (ErrorKind::Exhausted, error.to_string(), FREE_IT),
    }
}

/// Whether nobody can listen at both.
fn meet(one: &SocketAddr, other: &SocketAddr) -> bool {
    one.port() == other.port() && addresses_meet(one.ip(), other.ip())
}

/// Where a load balancer listens.
fn addresses(record: &BalancerRecord) -> Vec<SocketAddr> {
    record
        .spec
        .listeners
        .iter()
        .zip(&record.ports)
        .map(|(listener, port)| SocketAddr::new(listener.address, *port))
        .collect()
}
