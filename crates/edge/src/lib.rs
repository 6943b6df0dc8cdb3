//! See Cargo.toml's description; modules follow.
