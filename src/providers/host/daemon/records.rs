//! What the host remembers, as it stands in files.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{LoadBalancerSpec, SecurityGroupSpec, ServerGroupSpec, Share};
use crate::providers::host::shim::InstanceDirectory;

/// The version of all of them.
pub const FORMAT: u32 = 1;

/// `groups/<name>/spec.json`. The group exists as long as this file does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// With the capacity and enabledness of now.
    pub spec: ServerGroupSpec,
    /// When it was first written.
    pub created_at: DateTime<Utc>,
    /// The key of the operation that made it.
    pub operation: String,
    /// Of the operation that changed it last.
    pub fence: i64,
    /// The unpacked artifact.
    pub artifact: PathBuf,
    /// On its way out; it does not come back.
    pub destroying: bool,
}

/// `groups/<name>/instances/<id>/instance.json`. Written before anything of it is started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// `<server group>-<4 base-36 characters>`.
    pub id: String,
    /// When it was first written.
    pub created_at: DateTime<Utc>,
    /// The port that it has to listen on.
    pub port: u16,
    /// Of the latest start; 0 before the first.
    pub incarnation: u64,
    /// Starts after the first.
    pub restarts: u32,
    /// Surplus: it is stopped and then gone.
    pub stopping: bool,
    /// How the last process ended, for people.
    pub last_exit: Option<String>,
}

/// `load-balancers/<name>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BalancerRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// As wanted by now.
    pub spec: LoadBalancerSpec,
    /// When it was first written.
    pub created_at: DateTime<Utc>,
    /// The key of the operation that made it.
    pub operation: String,
    /// Of the operation that changed it last.
    pub fence: i64,
    /// The port of each listener of the spec, in its order.
    pub ports: Vec<u16>,
    /// Explicit shares.
    pub shares: Vec<Share>,
}

/// `security-groups/<name>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// As wanted by now.
    pub spec: SecurityGroupSpec,
    /// When it was first written.
    pub created_at: DateTime<Utc>,
    /// The key of the operation that made it.
    pub operation: String,
    /// Of the operation that changed it last.
    pub fence: i64,
}

/// Where everything lies below a host's directory.
#[derive(Debug, Clone)]
pub struct Layout(pub PathBuf);

impl Layout {
    /// Stands while the host is stopped because somebody said so: a server leaves it alone then.
    pub fn stopped(&self) -> PathBuf {
        self.0.join("stopped")
    }
    /// Stands where a service manager starts the host: a server leaves it to that one.
    pub fn service(&self) -> PathBuf {
        self.0.join("service")
    }
    /// One directory for each server group.
    pub fn groups(&self) -> PathBuf {
        self.0.join("groups")
    }
    /// Of one server group; it is still there while the group is on its way out.
    pub fn group(&self, name: &str) -> PathBuf {
        self.groups().join(name)
    }
    /// A [`GroupRecord`].
    pub fn group_spec(&self, name: &str) -> PathBuf {
        self.group(name).join("spec.json")
    }
    /// One directory for each instance of the server group.
    pub fn instances(&self, group: &str) -> PathBuf {
        self.group(group).join("instances")
    }
    /// Of one instance.
    pub fn instance(&self, group: &str, id: &str) -> InstanceDirectory {
        InstanceDirectory(self.instances(group).join(id))
    }
    /// An [`InstanceRecord`].
    pub fn instance_record(&self, group: &str, id: &str) -> PathBuf {
        self.instance(group, id).0.join("instance.json")
    }
    /// One file for each load balancer.
    pub fn balancers(&self) -> PathBuf {
        self.0.join("load-balancers")
    }
    /// A [`BalancerRecord`].
    pub fn balancer(&self, name: &str) -> PathBuf {
        self.balancers().join(format!("{name}.json"))
    }
    /// One file for each security group.
    pub fn security_groups(&self) -> PathBuf {
        self.0.join("security-groups")
    }
    /// A [`SecurityRecord`].
    pub fn security_group(&self, name: &str) -> PathBuf {
        self.security_groups().join(format!("{name}.json"))
    }
    /// Artifacts as instances find them, unpacked or copied; one directory for each.
    pub fn artifacts(&self) -> PathBuf {
        self.0.join("artifacts")
    }
    /// What passed through load balancers, by second.
    pub fn stats(&self) -> PathBuf {
        self.0.join("stats")
    }
    /// The highest fence seen of each execution.
    pub fn fences(&self) -> PathBuf {
        self.0.join("fences.json")
    }
    /// Held by the keeper as long as the host runs; has its process id.
    pub fn host_lock(&self) -> PathBuf {
        self.0.join("host.lock")
    }
    /// Held by the worker that may change what lies here.
    pub fn worker_lock(&self) -> PathBuf {
        self.0.join("worker.lock")
    }
    /// Tells this directory from all others, whatever its path and machine.
    pub fn id(&self) -> PathBuf {
        self.0.join("id")
    }
    /// What the host says, where a server has started it.
    pub fn log(&self) -> PathBuf {
        self.0.join("host.log")
    }
    /// The host's directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}
