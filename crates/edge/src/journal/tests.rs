//! What a journal says after every kind of end.

use super::*;
use std::io::{Read, Seek, SeekFrom};
use tempfile::TempDir;
use tollgate_core::account::AccountId;
use tollgate_core::ids::Boot;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn open(folder: &TempDir) -> Result<Journal, JournalError> {
    Journal::open(&folder.path().join("journal"), &name("c"), &name("e"))
}

fn spent(units: u64) -> Vec<SpentLine> {
    let account = AccountId::parse("live/acme/-/customer/daily/open").unwrap();
    vec![SpentLine {
        account,
        leased: units,
        unleased: 0,
    }]
}

fn report(seq: u64) -> JournalEntry {
    let (session, seq) = (SessionId(7), Seq(seq));
    let spent = spent(seq.0);
    let hash = Report::content_hash(session, seq, &spent, &[]);
    JournalEntry::Report(Report {
        session,
        boot: Boot(1),
        seq,
        hash,
        spent,
        usage: Vec::new(),
    })
}

fn checkpoint(seq: u64, units: u64) -> JournalRecord {
    JournalRecord::Checkpoint {
        seq: Seq(seq),
        spent: spent(units),
        usage: Vec::new(),
    }
}

fn session() -> JournalEntry {
    JournalEntry::Session {
        session: SessionId(7),
        incarnation: Incarnation(1),
    }
}

/// A journal with a session, two reports (one acknowledged) and a checkpoint.
fn filled(folder: &TempDir) -> Journal {
    let mut journal = open(folder).unwrap();
    journal
        .append(&[JournalEntry::Start(Nonce(3)), session(), report(1)])
        .unwrap();
    journal.append(&entries_of(checkpoint(2, 9))).unwrap();
    journal
        .append(&[report(2), JournalEntry::Acknowledged(Seq(1))])
        .unwrap();
    journal.append(&entries_of(checkpoint(3, 5))).unwrap();
    journal
}

#[test]
fn what_was_appended_is_there_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    drop(filled(&folder));
    let journal = open(&folder).unwrap();
    let kept = journal.kept();
    assert_eq!(
        (kept.nonce, kept.session),
        (Nonce(3), Some((SessionId(7), Incarnation(1))))
    );
    let JournalEntry::Report(second) = report(2) else {
        unreachable!()
    };
    assert_eq!(
        kept.records(),
        [
            JournalRecord::Acknowledged(Seq(1)),
            JournalRecord::Report(second),
            checkpoint(3, 5)
        ],
        "report 1 is applied, the checkpoint of report 2 is void"
    );
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off_and_the_journal_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = filled(&folder);
    let (before, kept) = (journal.size_bytes, journal.kept().clone());
    journal.append(&[report(3)]).unwrap();
    let after = journal.size_bytes;
    drop(journal);
    let path = folder.path().join("journal");
    let whole = std::fs::read(&path).unwrap();
    for end in before..after {
        std::fs::write(&path, &whole[..usize::try_from(end).unwrap()]).unwrap();
        let mut journal = open(&folder).unwrap();
        assert_eq!(*journal.kept(), kept, "torn at byte {end}");
        journal.append(&[report(3)]).unwrap();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), whole, "torn at byte {end}");
    }
}

#[test]
fn damage_in_the_middle_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder).unwrap();
    let place = journal.size_bytes;
    journal
        .append(&[JournalEntry::Start(Nonce(1)), session()])
        .unwrap();
    drop(journal);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(folder.path().join("journal"))
        .unwrap();
    let at = place + record::APPEND_OVERHEAD as u64;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    let found = open(&folder).expect_err("must be refused").to_string();
    assert!(
        found.contains(&format!("is damaged at byte {place}: damaged payload")),
        "{found}"
    );
    assert!(found.contains("move the file away"), "{found}");
}

#[test]
fn a_second_process_is_refused_and_another_owner_too() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(&folder).unwrap();
    let found = open(&folder).expect_err("must be refused").to_string();
    assert!(found.contains("is in use by another process"), "{found}");
    drop(journal);
    let other = Journal::open(&folder.path().join("journal"), &name("c"), &name("f"));
    let found = other.expect_err("must be refused").to_string();
    assert!(
        found.contains("belongs to edge e of c, this is edge f of c"),
        "{found}"
    );
}

#[test]
fn a_long_journal_is_cut_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = filled(&folder);
    let many: Vec<SpentLine> = std::iter::repeat_with(|| spent(5))
        .take(100)
        .flatten()
        .collect();
    let big = |seq| JournalRecord::Checkpoint {
        seq,
        spent: many.clone(),
        usage: Vec::new(),
    };
    let mut longest = 0;
    for _ in 0..800 {
        journal.append(&entries_of(big(Seq(3)))).unwrap();
        longest = longest.max(journal.size_bytes);
    }
    assert!(longest <= CUT_BYTES + 8192, "{longest} bytes");
    let kept = journal.kept().clone();
    drop(journal);
    let mut journal = open(&folder).unwrap();
    assert_eq!(*journal.kept(), kept);
    journal.append(&[report(3)]).unwrap();
    assert_eq!(journal.kept().reports.len(), 2);
}

#[test]
fn a_checkpoint_counts_once_all_its_parts_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = filled(&folder);
    let lines = LINES_PER_PART + 1;
    let many: Vec<SpentLine> = std::iter::repeat_with(|| spent(1))
        .take(lines)
        .flatten()
        .collect();
    let big = JournalRecord::Checkpoint {
        seq: Seq(3),
        spent: many,
        usage: Vec::new(),
    };
    let parts = entries_of(big.clone());
    assert_eq!(parts.len(), 2);
    journal.append(&parts[..1]).unwrap();
    assert_eq!(
        journal.kept().records().last(),
        Some(&checkpoint(3, 5)),
        "the last whole one"
    );
    journal.append(&parts[1..]).unwrap();
    assert_eq!(journal.kept().records().last(), Some(&big));
}

#[test]
fn a_tail_torn_after_a_report_keeps_what_the_checkpoint_before_it_said_beyond_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder).unwrap();
    journal
        .append(&[JournalEntry::Start(Nonce(3)), session()])
        .unwrap();
    journal.append(&entries_of(checkpoint(1, 9))).unwrap();
    // The next checkpoint would have come with this.
    journal.append(&[report(1), report(2)]).unwrap();
    drop(journal);
    let mut journal = open(&folder).unwrap();
    let last = journal.kept().records().pop();
    assert_eq!(last, Some(checkpoint(3, 9 - 1 - 2)));
    journal
        .append(&[JournalEntry::Acknowledged(Seq(2))])
        .unwrap();
    assert_eq!(journal.kept().records().pop(), Some(checkpoint(3, 6)));
    // Everything it said is reported.
    journal.append(&[report(3), report(4)]).unwrap();
    assert_eq!(journal.kept().checkpoint, None);
}

#[test]
fn a_session_that_was_lost_is_put_aside_and_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = filled(&folder);
    let aside = journal.put_aside().unwrap();
    assert!(aside.ends_with("journal.lost-7"));
    assert_eq!(
        *journal.kept(),
        Kept {
            nonce: Nonce(3),
            ..Kept::default()
        }
    );
    journal.append(&[JournalEntry::Start(Nonce(4))]).unwrap();
    drop(journal);
    assert_eq!(open(&folder).unwrap().kept().nonce, Nonce(4));
    assert!(std::fs::metadata(aside).unwrap().len() > 0);
}

#[test]
fn what_was_put_aside_stays_when_more_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder).unwrap();
    let mut asides = Vec::new();
    for number in 1..=3 {
        // No session was opened: all three would have the same name.
        journal
            .append(&[JournalEntry::Start(Nonce(number)), report(number)])
            .unwrap();
        let written = std::fs::read(journal.path()).unwrap();
        asides.push((journal.put_aside().unwrap(), written));
    }
    for (aside, written) in asides {
        assert_eq!(std::fs::read(aside).unwrap(), written);
    }
}
