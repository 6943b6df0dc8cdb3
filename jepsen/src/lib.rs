//! Simulator and chaos harness.
