//! Tollgate's pure core: what the ledger, an issuer and an edge's lessee decide, as state machines that
//! are fed with inputs and time.
//!
//! Nothing here reads a clock, draws a random number, opens a socket or a file, or depends on the order
//! of a hash map. The same code runs in servers, in the simulator and in the property tests. Read
//! [`ledger`] first (the book), then [`issuer`] (who leases from it), then [`lessee`] (who leases to checks).

pub mod account;
pub mod admin;
pub mod audit;
pub mod catalog;
pub mod command;
pub mod credential;
pub mod digest;
pub mod file;
pub mod hex;
pub mod ids;
pub mod issuer;
pub mod ledger;
pub mod lessee;
pub mod message;
pub mod placement;
pub mod planted;
pub mod reporter;
pub mod table;
pub mod time;
