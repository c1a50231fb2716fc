//! Gennaker: a continuous delivery server in one binary. `ARCHITECTURE.md` is the map.

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod expression;
pub mod inventory;
pub mod model;
pub mod notifiers;
pub mod outbound;
pub mod providers;
pub mod secrets;
pub mod stages;
pub mod store;
pub mod strategies;
pub mod systemd;
pub mod telemetry;
