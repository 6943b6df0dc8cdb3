//! One module per command; each takes its parsed options and a [`Format`](crate::output::Format).

pub mod certs;
pub mod demo;
pub mod replay;
