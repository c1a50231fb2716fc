//! The cached view of clouds, kept fresh by the providers' change notices. What the API and the
//! stages read.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::{Account, LoadBalancer, Place, SecurityGroup, ServerGroup};
use crate::providers::{Error, Provider, Snapshot};

/// All accounts and their latest snapshots. Cheap to clone.
#[derive(Clone)]
pub struct Inventory {
    #[allow(dead_code)]
    providers: Arc<BTreeMap<String, Arc<dyn Provider>>>,
}

#[allow(unused_variables, clippy::unused_async, clippy::todo, clippy::missing_errors_doc)]
impl Inventory {
    #[must_use]
    pub fn new(providers: Vec<Arc<dyn Provider>>) -> Self {
        todo!()
    }
    /// Keeps the snapshots fresh until the token is cancelled; reads all of each account at every
    /// notice, and every 10 s without one.
    pub async fn run(&self, stop: tokio_util::sync::CancellationToken) {
        todo!()
    }
    /// Woken after each change of any snapshot; the value only counts.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        todo!()
    }
    #[must_use]
    pub fn accounts(&self) -> Vec<Account> {
        todo!()
    }
    /// The provider of an account; the error names the accounts there are.
    pub fn provider(&self, account: &str) -> Result<Arc<dyn Provider>, Error> {
        todo!()
    }
    /// Reads the account anew now and returns it.
    pub async fn refresh(&self, account: &str) -> Result<Arc<Snapshot>, Error> {
        todo!()
    }
    /// The latest snapshot of an account; an error when there never was one.
    pub fn snapshot(&self, account: &str) -> Result<Arc<Snapshot>, Error> {
        todo!()
    }
    /// From the latest snapshot.
    #[must_use]
    pub fn server_group(&self, place: &Place, name: &str) -> Option<ServerGroup> {
        todo!()
    }
    /// Of all accounts, by place and name.
    #[must_use]
    pub fn server_groups(&self) -> Vec<ServerGroup> {
        todo!()
    }
    #[must_use]
    pub fn load_balancer(&self, place: &Place, name: &str) -> Option<LoadBalancer> {
        todo!()
    }
    #[must_use]
    pub fn load_balancers(&self) -> Vec<LoadBalancer> {
        todo!()
    }
    #[must_use]
    pub fn security_group(&self, place: &Place, name: &str) -> Option<SecurityGroup> {
        todo!()
    }
    #[must_use]
    pub fn security_groups(&self) -> Vec<SecurityGroup> {
        todo!()
    }
}
