//! The ledger as the log drives it: bytes in, replies out, records and audit entries for the disk.
//!
//! Each command of a batch is decoded on its own: bytes that are no command get [`Reply::Malformed`] and spoil no
//! neighbour. Decides nothing: that is [`tollgate_core::ledger`]'s. Readers ([`SharedLedger::read`]) share one lock
//! with `apply`, and an `apply` that waits for it lets no further reader in, the confirmations neither: so each holds
//! it for well under a millisecond, whatever the ledger's size, and never across an await. A panic in `apply` ends the
//! process. Next: [`crate::storage::Machine`].

use crate::batch::{Batch, UnpackError};
use crate::fatal;
use crate::storage::{Change, Machine, Records, RestoreError, SharedMachine};
use serde::Serialize;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};
use tollgate_core::audit::AuditEntry;
use tollgate_core::command::{Command, Reply};
use tollgate_core::ids::Incarnation;
use tollgate_core::ledger::records::{self, Record, RecordKey};
use tollgate_core::ledger::{Alarm, Ledger};
use tollgate_wire::codec;

/// Most bytes of one encoded command, so that it fits a log entry of 64 KiB.
pub const COMMAND_BYTES_MAX: usize = 60 * 1024;

/// Digests of the last entries kept to be compared with other nodes.
pub const DIGESTS_MAX: usize = 4096;

/// Newest audit entries kept in memory: those that the disk may not have yet, and far more than a page.
pub const AUDIT_RECENT_MAX: usize = 4096;

const COMMAND_BUDGET: usize = codec::budget(COMMAND_BYTES_MAX);
const RECORD_BUDGET: usize = codec::budget(128 * 1024);

/// How often each alarm was raised since the start; a restart replays and counts again.
#[derive(Debug, Default)]
pub struct AlarmCounts {
    counts: [AtomicU64; ALARM_KINDS.len()],
}

/// The alarms' names in metrics, in the order of [`kind`].
pub const ALARM_KINDS: [&str; 6] = [
    "returned_beyond_out",
    "excess",
    "suspense",
    "hash_mismatch",
    "overflow",
    "clock",
];

/// Raised by [`crate::overseer`], not by the ledger.
const CLOCK: usize = 5;

fn kind(alarm: &Alarm) -> usize {
    match alarm {
        Alarm::ReturnedBeyondOut { .. } => 0,
        Alarm::Excess { .. } => 1,
        Alarm::Suspense { .. } => 2,
        Alarm::HashMismatch { .. } => 3,
        Alarm::Overflow { .. } => 4,
    }
}

impl AlarmCounts {
    /// Name and count of each kind.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count =
            |(at, name): (usize, &'static str)| (name, self.counts[at].load(Ordering::Relaxed));
        ALARM_KINDS.into_iter().enumerate().map(count)
    }

    fn note(&self, alarm: &Alarm) {
        self.counts[kind(alarm)].fetch_add(1, Ordering::Relaxed);
        tracing::warn!(?alarm, "alarm of the ledger");
    }

    /// A voter's wall clock deviates from the majority's, or no majority of clocks agrees.
    pub(crate) fn note_clock(&self) {
        self.counts[CLOCK].fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module's text.
pub struct LedgerMachine {
    ledger: Ledger,
    alarms: Arc<AlarmCounts>,
    /// Entries the store has not taken yet.
    audit: Vec<(u64, Vec<u8>)>,
    audit_recent: VecDeque<AuditEntry>,
    digests: VecDeque<(u64, u128)>,
    /// Where batches are unpacked to, again and again.
    room: Vec<u8>,
}

impl LedgerMachine {
    fn new(incarnation: Incarnation) -> Self {
        Self {
            ledger: Ledger::new(incarnation),
            alarms: Arc::default(),
            audit: Vec::new(),
            audit_recent: VecDeque::new(),
            digests: VecDeque::new(),
            room: Vec::new(),
        }
    }

    /// The newest audit entries, oldest first.
    #[must_use]
    pub fn audit_recent(&self) -> &VecDeque<AuditEntry> {
        &self.audit_recent
    }

    /// Number of the newest audit entry; 0 before the first.
    #[must_use]
    pub fn audit_head(&self) -> u64 {
        match self.ledger.record(&RecordKey::Meta) {
            Some(Record::Meta(meta)) => meta.audit_head.0,
            _ => 0,
        }
    }

    /// The digest of the state after an entry, if it was applied by this process and not long ago.
    #[must_use]
    pub fn digest_at(&self, index: u64) -> Option<u128> {
        let at = self
            .digests
            .binary_search_by_key(&index, |(index, _)| *index)
            .ok()?;
        self.digests.get(at).map(|(_, digest)| *digest)
    }

    /// The newest entry applied by this process, with the digest after it.
    #[must_use]
    pub fn newest_digest(&self) -> Option<(u64, u128)> {
        self.digests.back().copied()
    }

    fn take_in(&mut self, bytes: &[u8]) -> Reply {
        match codec::decode::<Command, COMMAND_BUDGET>(bytes) {
            Ok(command) => self.ledger.apply_command(&command),
            Err(error) => Reply::Malformed(error.to_string().into()),
        }
    }

    fn apply_batch(&mut self, index: u64, batch: &[u8], mut answer: impl FnMut(Reply)) {
        let mut room = std::mem::take(&mut self.room);
        match Batch::unpack(batch, &mut room) {
            Ok(batch) => {
                self.ledger.begin(index, batch.time);
                for bytes in batch.commands {
                    answer(self.take_in(bytes));
                }
            }
            // A newer leader's: nodes that can read it go on from here, and this one would be another state.
            Err(error @ UnpackError::Form { .. }) => panic!("it {error}"),
            Err(error) => {
                // No proposer of ours writes such an entry; every replica answers it alike, with nothing.
                tracing::error!(index, %error, "a log entry is no batch of commands");
            }
        }
        self.room = room;
        self.after_apply(index);
    }

    fn after_apply(&mut self, index: u64) {
        for alarm in self.ledger.take_alarms() {
            self.alarms.note(&alarm);
        }
        for entry in self.ledger.take_audit() {
            self.audit.push((entry.seq, encode(&entry)));
            if self.audit_recent.len() == AUDIT_RECENT_MAX {
                self.audit_recent.pop_front();
            }
            self.audit_recent.push_back(entry);
        }
        if self.digests.len() == DIGESTS_MAX {
            self.digests.pop_front();
        }
        self.digests.push_back((index, self.ledger.digest()));
    }
}

impl Deref for LedgerMachine {
    type Target = Ledger;
    fn deref(&self) -> &Ledger {
        &self.ledger
    }
}

impl Machine for LedgerMachine {
    fn apply(&mut self, index: u64, batch: &[u8]) -> Vec<Vec<u8>> {
        let mut replies = Vec::new();
        let answer = |reply: Reply| replies.push(encode(&reply));
        fatal::or_exit(|| failed(index), || self.apply_batch(index, batch, answer));
        replies
    }

    fn apply_unanswered(&mut self, index: u64, batch: &[u8]) {
        fatal::or_exit(|| failed(index), || self.apply_batch(index, batch, |_| ()));
    }

    fn digest(&self) -> u128 {
        self.ledger.digest()
    }

    fn take_dirty(&mut self) -> Vec<Change> {
        let keys = self.ledger.take_dirty();
        let change = |key: &RecordKey| (encode(key), self.ledger.record(key).map(|r| encode(&r)));
        keys.iter().map(change).collect()
    }

    fn take_audit(&mut self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.audit)
    }

    fn restore(&mut self, records: Records<'_>, digest: u128) -> Result<(), RestoreError> {
        let mut failure = None;
        let decoded = records.map_while(|record| {
            record
                .map_err(RestoreError::from)
                .and_then(decode_record)
                .map_err(|error| failure = Some(error))
                .ok()
        });
        let restored = Ledger::restore(decoded);
        if let Some(error) = failure {
            return Err(error);
        }
        let ledger = restored.map_err(|error| match error {
            records::RestoreError::Newer { found, known } => RestoreError::Newer { found, known },
            error => RestoreError::Record(error.to_string()),
        })?;
        let found = ledger.digest();
        if found != digest {
            return Err(RestoreError::Digest {
                found,
                expected: digest,
            });
        }
        self.ledger = ledger;
        self.audit.clear();
        self.digests.clear();
        Ok(())
    }
}

/// The audit entry in a stored record; `None` when it is none.
#[must_use]
pub fn decode_audit(content: &[u8]) -> Option<AuditEntry> {
    codec::decode::<AuditEntry, RECORD_BUDGET>(content).ok()
}

fn decode_record((key, content): (Vec<u8>, Vec<u8>)) -> Result<(RecordKey, Record), RestoreError> {
    let damaged = |error: codec::DecodeError| RestoreError::Record(error.to_string());
    let key = codec::decode::<RecordKey, RECORD_BUDGET>(&key).map_err(damaged)?;
    let record = codec::decode::<Record, RECORD_BUDGET>(&content).map_err(damaged)?;
    Ok((key, record))
}

/// The last words of a node that cannot apply an entry.
fn failed(index: u64) -> String {
    format!(
        "applying log entry {index} failed, by a bug of Tollgate; nothing of it was acknowledged here. Every node \
         that applies the entry stops at it, after a restart too, until it runs a build in which that is mended. \
         Keep the data folder, and report the number of the entry with these words"
    )
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    match codec::encode(value) {
        Ok(bytes) => bytes,
        // Only a type without a length could fail: the golden tests of the types would show it.
        Err(error) => unreachable!("records, commands and replies have an encoding: {error}"),
    }
}

/// The machine behind its lock. Clones share it.
#[derive(Clone)]
pub struct SharedLedger {
    machine: Arc<RwLock<LedgerMachine>>,
    alarms: Arc<AlarmCounts>,
}

impl SharedLedger {
    /// The ledger of a new cluster's data, to be restored from a store.
    #[must_use]
    pub fn new(incarnation: Incarnation) -> Self {
        let machine = LedgerMachine::new(incarnation);
        let alarms = machine.alarms.clone();
        Self {
            machine: Arc::new(RwLock::new(machine)),
            alarms,
        }
    }

    /// For [`crate::storage::Store::open`].
    #[must_use]
    pub fn machine(&self) -> SharedMachine {
        self.machine.clone()
    }

    /// The alarms raised so far.
    #[must_use]
    pub fn alarms(&self) -> &Arc<AlarmCounts> {
        &self.alarms
    }

    /// The replica, to read from: briefly, never across an await.
    ///
    /// # Panics
    /// When an earlier `apply` panicked: nothing may act on a state that is half changed.
    pub fn read(&self) -> RwLockReadGuard<'_, LedgerMachine> {
        match self.machine.read() {
            Ok(guard) => guard,
            Err(_) => panic!("an apply panicked: the node must stop, its state is half changed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_bytes::Bytes;
    use tollgate_core::command::{OpenNode, OpenNodeReply};
    use tollgate_core::ids::{Boot, NodeId, Nonce};
    use tollgate_core::time::LedgerTime;

    fn batch(commands: &[Vec<u8>]) -> Vec<u8> {
        let commands = commands.iter().map(|bytes| Bytes::new(bytes)).collect();
        let batch = Batch {
            time: LedgerTime(7),
            commands,
        };
        batch.pack().unwrap()
    }

    fn open_node(nonce: u64) -> Vec<u8> {
        encode(&Command::OpenNode(OpenNode {
            node: NodeId(1),
            nonce: Nonce(nonce),
        }))
    }

    fn replies(encoded: &[Vec<u8>]) -> Vec<Reply> {
        encoded
            .iter()
            .map(|bytes| codec::decode::<_, RECORD_BUDGET>(bytes).unwrap())
            .collect()
    }

    #[test]
    fn bytes_that_are_no_command_spoil_no_neighbour() {
        let mut machine = LedgerMachine::new(Incarnation(1));
        let answered = machine.apply(3, &batch(&[open_node(1), vec![250, 1, 2], open_node(2)]));
        let [first, Reply::Malformed(_), second] = &replies(&answered)[..] else {
            panic!("three replies in order, the second malformed");
        };
        assert_eq!(*first, Reply::OpenNode(OpenNodeReply::Boot(Boot(1))));
        assert_eq!(*second, Reply::OpenNode(OpenNodeReply::Boot(Boot(2))));
        assert_eq!((machine.index(), machine.time()), (3, LedgerTime(7)));
        assert!(replies(&machine.apply(4, b"\x01 garbage")).is_empty());
        assert_eq!(
            machine.digest_at(3).is_some(),
            machine.digest_at(4).is_some()
        );
    }

    /// `apply` itself ends the process.
    #[test]
    #[should_panic(expected = "it has form 255: expected 0 or 1; a newer version wrote it")]
    fn a_batch_of_a_form_that_is_not_known_stops_the_node() {
        let mut machine = LedgerMachine::new(Incarnation(1));
        machine.apply_batch(3, b"\xff from the future", |_| ());
    }

    #[test]
    fn a_restored_machine_has_the_digest_and_the_records_of_the_one_before() {
        let mut one = LedgerMachine::new(Incarnation(1));
        one.apply(1, &batch(&[open_node(1)]));
        let records: Vec<_> = one
            .take_dirty()
            .into_iter()
            .map(|(key, content)| (key, content.unwrap()))
            .collect();
        let mut other = LedgerMachine::new(Incarnation(1));
        other
            .restore(
                &mut records.clone().into_iter().map(Ok),
                Machine::digest(&one),
            )
            .unwrap();
        assert_eq!(Machine::digest(&other), Machine::digest(&one));
        assert_eq!(other.node_boot(NodeId(1)), Some(Boot(1)));
        let wrong = other.restore(&mut records.into_iter().map(Ok), 1);
        assert!(matches!(
            wrong,
            Err(RestoreError::Digest { expected: 1, .. })
        ));
        let garbage = [(vec![99], vec![99])];
        let wrong = other.restore(&mut garbage.into_iter().map(Ok), 1);
        assert!(matches!(wrong, Err(RestoreError::Record(_))));
        assert_eq!(
            Machine::digest(&other),
            Machine::digest(&one),
            "a failed restore changes nothing"
        );
    }
}
