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
    pub format: u32,
    /// With the capacity and enabledness of now.
    pub spec: ServerGroupSpec,
    pub created_at: DateTime<Utc>,
    /// The key of the operation that made it.
    pub operation: String,
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
    pub format: u32,
    pub id: String,
    pub created_at: DateTime<Utc>,
    pub port: u16,
    /// Of the latest start; 0 before the first.
    pub incarnation: u64,
    pub restarts: u32,
    /// Surplus: it is stopped and then gone.
    pub stopping: bool,
    pub last_exit: Option<String>,
}

/// `load-balancers/<name>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BalancerRecord {
    pub format: u32,
    pub spec: LoadBalancerSpec,
    pub created_at: DateTime<Utc>,
    pub operation: String,
    pub fence: i64,
    /// The port of each listener of the spec, in its order.
    pub ports: Vec<u16>,
    pub shares: Vec<Share>,
}

/// `security-groups/<name>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityRecord {
    pub format: u32,
    pub spec: SecurityGroupSpec,
    pub created_at: DateTime<Utc>,
    pub operation: String,
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
    pub fn groups(&self) -> PathBuf {
        self.0.join("groups")
    }
    pub fn group(&self, name: &str) -> PathBuf {
        self.groups().join(name)
    }
    pub fn group_spec(&self, name: &str) -> PathBuf {
        self.group(name).join("spec.json")
    }
    pub fn instances(&self, group: &str) -> PathBuf {
        self.group(group).join("instances")
    }
    pub fn instance(&self, group: &str, id: &str) -> InstanceDirectory {
        InstanceDirectory(self.instances(group).join(id))
    }
    pub fn instance_record(&self, group: &str, id: &str) -> PathBuf {
        self.instance(group, id).0.join("instance.json")
    }
    pub fn balancers(&self) -> PathBuf {
        self.0.join("load-balancers")
    }
    pub fn balancer(&self, name: &str) -> PathBuf {
        self.balancers().join(format!("{name}.json"))
    }
    pub fn security_groups(&self) -> PathBuf {
        self.0.join("security-groups")
    }
    pub fn security_group(&self, name: &str) -> PathBuf {
        self.security_groups().join(format!("{name}.json"))
    }
    pub fn artifacts(&self) -> PathBuf {
        self.0.join("artifacts")
    }
    pub fn stats(&self) -> PathBuf {
        self.0.join("stats")
    }
    pub fn fences(&self) -> PathBuf {
        self.0.join("fences.json")
    }
    pub fn host_lock(&self) -> PathBuf {
        self.0.join("host.lock")
    }
    pub fn worker_lock(&self) -> PathBuf {
        self.0.join("worker.lock")
    }
    /// Tells this directory from all others, whatever its path and machine.
    pub fn id(&self) -> PathBuf {
        self.0.join("id")
    }
    pub fn log(&self) -> PathBuf {
        self.0.join("host.log")
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
}
