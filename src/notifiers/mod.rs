//! What tells people. A message is a row of the outbox, written in the transaction of what it
//! tells about, so that it cannot be lost or told about something that did not happen.
//!
//! There is one channel so far, `feed`: the row itself, read through the `notifications` query and
//! subscription. A row of the feed is delivered once it is committed, so there is nothing to do
//! for it here. A channel that leaves the server (mail, chat, webhooks) will be a file beside this
//! one, with a name here, and a worker that delivers its rows with back-off, each keyed by its id.

/// The names of the channels there are.
pub const CHANNELS: &[&str] = &["feed"];
