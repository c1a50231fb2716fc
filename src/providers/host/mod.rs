//! The `host` provider: server groups are processes on a machine, load balancers are listeners of
//! its proxy. Control and data plane live in a process of their own (`gennaker host`); [`client`]
//! is the provider that drives it over a Unix socket.

pub mod client;
pub mod control;
pub mod daemon;
pub mod launch;
pub mod protocol;
pub mod proxy;
pub mod shim;
