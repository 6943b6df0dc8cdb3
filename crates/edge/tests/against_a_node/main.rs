//! The whole edge against nodes that speak the real protocol over real QUIC on loopback.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as such"
)]

mod bounds;
mod leases;
mod lost_sessions;
mod sessions;
mod world;
