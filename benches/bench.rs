//! What the README's figures come from. Each figure stands beside a denominator from the same run,
//! since absolute numbers differ from machine to machine.
//!
//! `cargo bench` runs all; `cargo bench -- engine` (or `start`, `proxy`) runs a part. A missed bar is named at the
//! end; with `GENNAKER_BENCH_STRICT=1` the status is 1 then.

mod engine;
mod figures;
mod proxy;
mod start;

use std::process::ExitCode;

fn main() -> ExitCode {
    let parts: Vec<String> = std::env::args().skip(1).filter(|part| !part.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|given| given == part);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a machine that can run a benchmark can start a runtime");
    if wanted("engine") {
        runtime.block_on(engine::run());
    }
    if wanted("start") {
        runtime.block_on(start::run());
    }
    if wanted("proxy") {
        runtime.block_on(proxy::run());
    }
    figures::verdict()
}
