//! Chaos on real processes: three servers, two edges, load over HTTP, faults from a seed, and a judge.
//!
//! Owns: [`plan`] (what is to happen), [`history`] and [`evidence`] (what happened), [`checker`] (whether the promises
//! held); those four know nothing of the product. [`workload`] is who asks. With the feature `chaos`: `cluster` (the
//! processes and the links between them), `clients`, `changes`, `nemesis` (who does it), `run`, `scenarios`.
//! Refuses: verdicts from inside; what counts is what clients were told and what the ledger says at the end.
//! Read next: docs/chaos.md, then `plan.rs`.

#[cfg(feature = "chaos")]
pub mod changes;
pub mod checker;
#[cfg(feature = "chaos")]
pub mod clients;
#[cfg(feature = "chaos")]
pub mod cluster;
pub mod evidence;
pub mod history;
pub mod kept;
#[cfg(feature = "chaos")]
pub mod nemesis;
pub mod plan;
#[cfg(feature = "chaos")]
pub mod run;
#[cfg(feature = "chaos")]
pub mod scenarios;
pub mod workload;
