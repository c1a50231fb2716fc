//! The product from outside: the real binary, real processes, real HTTP and WebSockets. One file
//! per feature; `harness` has what they share.
//!
//! A trial that needs something this machine has not is reported as ignored, never as passed; with
//! `GENNAKER_TEST_REQUIRE_ALL=1` it fails instead. CI sets `except-machine`: what can be installed has
//! to be there, and what lies in the machine is left out, and named.

mod access;
mod api_errors;
mod apply;
mod backup;
mod commands;
mod config;
mod cors;
mod crash;
mod demo;
mod deploy;
mod disk;
mod engine;
mod examples;
mod faults;
mod fixed;
mod harness;
mod host;
mod idempotency;
mod layers;
mod limits;
mod location;
mod move_database;
mod notify;
mod observe;
mod packaging;
mod pages;
mod postgres;
mod problems;
mod quota;
mod readme;
mod required;
mod run;
mod schema;
mod shim;
mod shutdown;
mod store;
mod subscription;
mod tls;
mod triggers;

use libtest_mimic::{Arguments, Trial};

/// Trials at once, at most: half as many as there are slices of ports.
const THREADS_MAX: usize = 24;
/// What the names of the longest begin with: many kills one after the other, and a full minute to wait for.
const LONGEST: [&str; 4] = ["crash::", "demo::", "engine::postgres::a_call", "postgres::what_a_killed"];

fn main() {
    // An error means that a provider is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if store::killed::is_child() {
        return store::killed::child();
    }
    let mut arguments = Arguments::from_args();
    // Most of them wait for processes most of the time; each server has a slice of ports.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    arguments.test_threads.get_or_insert((cores * 3).min(THREADS_MAX));
    let mut trials: Vec<Trial> = [
        access::trials(),
        api_errors::trials(),
        apply::trials(),
        commands::trials(),
        backup::trials(),
        config::trials(),
        cors::trials(),
        crash::trials(),
        demo::trials(),
        deploy::trials(),
        disk::trials(),
        engine::trials(),
        examples::trials(),
        faults::trials(),
        fixed::trials(),
        host::trials(),
        idempotency::trials(),
        layers::trials(),
        limits::trials(),
        location::trials(),
        move_database::trials(),
        notify::trials(),
        observe::trials(),
        packaging::trials(),
        pages::trials(),
        postgres::trials(),
        problems::trials(),
        quota::trials(),
        readme::trials(),
        required::trials(),
        run::trials(),
        schema::trials(),
        store::trials(),
        shim::trials(),
        shutdown::trials(),
        subscription::trials(),
        tls::trials(),
        triggers::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    // Those that take longest begin first, or all others would wait for them at the end.
    trials.sort_by_key(|trial| !LONGEST.iter().any(|start| trial.name().starts_with(start)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    harness::times::tell();
    conclusion.exit();
}
