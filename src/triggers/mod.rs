//! What starts pipelines without anybody asking: a file per kind, and [`Dispatcher`], which acts
//! upon what is due. A kind is added by its file and one line in [`kinds`].
//!
//! A trigger is a row, kept in the commits that save its pipeline. A slot of it (an instant, or
//! the end of an execution) is a row too, and the commit that starts the execution claims it: two
//! servers, or a crash, never start a slot twice nor lose it.

mod cron;
mod dispatch;
mod pipeline;
mod restored;
#[cfg(test)]
mod tests;

pub use dispatch::Dispatcher;
pub use restored::restored;

use crate::engine::contract::Registry;

/// The registry with all kinds of triggers.
#[must_use]
pub fn kinds(registry: Registry) -> Registry {
    registry.with_trigger(cron::Cron).with_trigger(pipeline::Pipeline)
}
