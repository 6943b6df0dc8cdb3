//! What a run keeps in its folder, and judging it again from there.

use super::checker::{self, Finding};
use super::evidence::Evidence;
use super::history::{self, Operation};
use std::io;
use std::path::Path;

/// File of the raw history in the run's folder.
pub const HISTORY_FILE: &str = "history.tsv";

/// File of the evidence in the run's folder.
pub const EVIDENCE_FILE: &str = "evidence.json";

/// Keeps a run.
///
/// # Errors
/// A file cannot be written.
pub fn keep(dir: &Path, evidence: &Evidence, history: &[Operation]) -> io::Result<()> {
    history::write(&dir.join(HISTORY_FILE), history)?;
    std::fs::write(
        dir.join(EVIDENCE_FILE),
        serde_json::to_vec_pretty(evidence)?,
    )
}

/// Judges a kept run again.
///
/// # Errors
/// Its files cannot be read.
pub fn judge_again(dir: &Path) -> io::Result<Vec<Finding>> {
    let history = history::read(&dir.join(HISTORY_FILE))?;
    let evidence: Evidence = serde_json::from_slice(&std::fs::read(dir.join(EVIDENCE_FILE))?)?;
    Ok(checker::judge(&evidence, &history))
}
