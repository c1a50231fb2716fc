//! Slices of ports, so that trials beside each other (and demos) never share any: whoever listens
//! on the first port of a slice has it.

use std::net::{Ipv4Addr, TcpListener};

/// A slice, held until dropped.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    _held: TcpListener,
}

const FIRST: u16 = 20_000;
const SLICE: u16 = 200;
const SLICES: u16 = 49;

impl Ports {
    /// A free slice.
    pub fn take() -> anyhow::Result<Self> {
        for slice in (0..SLICES).rev() {
            let first = FIRST + slice * SLICE;
            let Ok(held) = TcpListener::bind((Ipv4Addr::LOCALHOST, first)) else { continue };
            let ports = Self { first, _held: held };
            // A run that was killed may have left its processes behind.
            let (balancer, _) = ports.load_balancers();
            if [ports.server(), balancer].iter().all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()) {
                return Ok(ports);
            }
        }
        anyhow::bail!("no slice of ports from {FIRST} on is free")
    }

    /// For instances: from–to.
    pub fn instances(&self) -> String {
        format!("{}-{}", self.first + 1, self.first + 149)
    }

    /// For load balancers.
    pub const fn load_balancers(&self) -> (u16, u16) {
        (self.first + 150, self.first + 198)
    }

    /// For the server, kept over its restarts.
    pub const fn server(&self) -> u16 {
        self.first + 199
    }
}
