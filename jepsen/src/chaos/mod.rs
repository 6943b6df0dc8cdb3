//! Chaos on real processes: three servers, two edges, load over HTTP, faults from a seed, and a judge.
//!
//! Owns: [`plan`] (what is to happen), [`history`] and [`evidence`] (what happened), [`checker`] (whether the promises
//! held). Those four know nothing of the product. Refuses: verdicts from inside; what counts is what
//! clients were told and what the ledger says at the end. Read next: docs/chaos.md, then `plan.rs`.

pub mod checker;
pub mod evidence;
pub mod history;
pub mod plan;
