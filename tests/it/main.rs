//! The product from outside: the real binary, real processes, real HTTP and WebSockets. One file
//! per feature; `harness` has what they share.
//!
//! A trial that needs something this machine has not is reported as ignored, never as passed; with
//! `GENNAKER_TEST_REQUIRE_ALL=1`, which CI sets, it fails instead.

mod access;
mod api_errors;
mod apply;
mod commands;
mod crash;
mod demo;
mod deploy;
mod engine;
mod examples;
mod harness;
mod host;
mod idempotency;
mod layers;
mod postgres;
mod readme;
mod run;
mod schema;
mod shim;
mod store;
mod subscription;

use libtest_mimic::{Arguments, Trial};

fn main() {
    // An error means that a provider is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if store::killed::is_child() {
        return store::killed::child();
    }
    let arguments = Arguments::from_args();
    let trials: Vec<Trial> = [
        access::trials(),
        api_errors::trials(),
        apply::trials(),
        commands::trials(),
        crash::trials(),
        demo::trials(),
        deploy::trials(),
        engine::trials(),
        examples::trials(),
        host::trials(),
        idempotency::trials(),
        layers::trials(),
        postgres::trials(),
        readme::trials(),
        run::trials(),
        schema::trials(),
        store::trials(),
        shim::trials(),
        subscription::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
