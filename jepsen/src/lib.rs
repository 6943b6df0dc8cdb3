//! Simulator and chaos harness.

pub mod chaos;
pub mod proxy;
pub mod sim;
