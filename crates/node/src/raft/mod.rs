//! Agreement: the one place that knows openraft.
//!
//! The log carries opaque batches of commands; what they mean is the [`Machine`](crate::storage::Machine)'s
//! affair. Start with [`types`], the only module that names openraft's generic types.

pub mod types;
