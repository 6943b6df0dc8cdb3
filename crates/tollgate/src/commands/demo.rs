//! `tollgate demo`.
pub mod story;
