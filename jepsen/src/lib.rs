//! Simulator and chaos harness.

pub mod proxy;
