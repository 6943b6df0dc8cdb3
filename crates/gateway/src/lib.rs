//! Doors on an edge: HTTP (`POST /v1/check`, health, metrics). Envoy's `ext_authz`, RLS and the tower layer
//! will stand beside it.
//!
//! Owns sockets, bodies, status codes and their limits. Refuses to decide anything: what is asked goes to
//! the edge as it is, and whatever the edge decides is a 200. Read [`Door`] first, then `check.rs`.

mod check;
mod health;
mod metrics;
mod problem;
mod server;

pub use server::{Door, DoorError, HttpConfig, serve};
