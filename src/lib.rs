//! Gennaker: a continuous delivery server in one binary. `ARCHITECTURE.md` is the map.

// What is under both kinds of test names this crate as those outside do.
#[cfg(test)]
extern crate self as gennaker;

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod expression;
pub mod footprint;
pub mod housekeeping;
pub mod inventory;
pub mod listener;
pub mod measure;
pub mod model;
pub mod near;
pub mod notifiers;
pub mod outbound;
pub mod providers;
pub mod secrets;
pub mod stages;
pub mod store;
pub mod strategies;
pub mod systemd;
pub mod telemetry;
pub mod triggers;
