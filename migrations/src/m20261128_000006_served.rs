//! What an owner reaches: accounts and locations, each with the host that is behind it.

/// A JSON text; none where an earlier version has registered.
pub const UP: &str = "ALTER TABLE owner ADD COLUMN serves text";
