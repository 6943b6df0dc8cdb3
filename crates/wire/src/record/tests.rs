//! Records that are whole, cut, flipped, zeroed and from the future.

use super::*;
use proptest::prelude::*;

fn file(payloads: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for payload in payloads {
        append(payload, &mut bytes).unwrap();
    }
    bytes
}

/// Every record up to the end or the first error, and where that is.
fn read_all(bytes: &[u8]) -> (Vec<Vec<u8>>, u64, Option<RecordReadError>) {
    let mut reader = RecordReader::new(bytes);
    let mut records = Vec::new();
    loop {
        match reader.next_record() {
            Ok(Some(payload)) => records.push(payload.to_vec()),
            Ok(None) => return (records, reader.offset(), None),
            Err(error) => return (records, reader.offset(), Some(error)),
        }
    }
}

fn error(bytes: &[u8]) -> String {
    read_all(bytes).2.expect("an error").to_string()
}

#[test]
fn bytes_of_records() {
    let head = [1, 3, 0, 0, 0];
    let mut expected = head.to_vec();
    expected.extend(crc32fast::hash(&head).to_le_bytes());
    expected.extend(crc32fast::hash(b"abc").to_le_bytes());
    expected.extend(b"abc");
    assert_eq!(file(&[b"abc"]), expected);
}

#[test]
fn a_newer_release_is_not_taken_for_damage() {
    let mut bytes = file(&[b"abc"]);
    bytes[0] = 2;
    assert!(
        error(&bytes).contains("damaged length"),
        "{}",
        error(&bytes)
    );
    let checksum = crc32fast::hash(&bytes[..5]).to_le_bytes();
    bytes[5..9].copy_from_slice(&checksum);
    assert_eq!(
        error(&bytes),
        "at byte 0: record version 2, this release reads 1: use the newer release"
    );
}

#[test]
fn a_torn_tail_is_told_from_damage() {
    let whole = file(&[b"first", b"second"]);
    let cut = file(&[b"first"]).len();
    assert_eq!(
        error(&whole[..cut + 4]),
        "at byte 18: the file ends inside a record, 4 bytes of at least 13"
    );
    assert_eq!(
        error(&whole[..whole.len() - 1]),
        "at byte 18: the file ends inside a record, 18 bytes of 19"
    );
    let grown = [&whole[..cut], &[0; 9000]].concat();
    assert_eq!(
        error(&grown),
        "at byte 18: the file ends inside a record, 9000 bytes of at least 13"
    );
    let (records, offset, _) = read_all(&grown);
    assert_eq!((records, offset), (vec![b"first".to_vec()], 18));

    let mut middle = whole.clone();
    middle[cut - 1] ^= 1;
    let found = error(&middle);
    assert!(
        found.contains("damaged payload, with more of the file behind it"),
        "{found}"
    );
    let mut last = whole.clone();
    let end = last.len() - 1;
    last[end] ^= 1;
    assert!(
        error(&last).contains("damaged payload of the last record"),
        "{}",
        error(&last)
    );
    // A longer length would reach beyond the end: without its own checksum it would look torn.
    let mut longer = whole;
    longer[2] = 0xff;
    let found = error(&longer);
    assert!(
        found.contains("at byte 0: damaged length, with more of the file behind it"),
        "{found}"
    );
    // Zeros in the middle are no tail.
    let hole = [&middle[..cut - 5], &[0; 40], &file(&[b"third"])].concat();
    assert!(error(&hole).contains("damaged"), "{}", error(&hole));
}

#[test]
fn a_stated_length_beyond_the_limit_allocates_nothing() {
    let mut bytes = vec![RECORD_VERSION, 0xff, 0xff, 0xff, 0xff];
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend([0; 100]);
    let mut reader = RecordReader::new(&bytes[..]);
    let found = reader.next_record().expect_err("too long").to_string();
    assert_eq!(
        found,
        "at byte 0: a record of 4294967295 bytes, expected at most 8388608"
    );
    assert_eq!(reader.payload.capacity(), 0);

    let mut buffer = vec![9];
    let error = append(&vec![0; RECORD_MAX + 1], &mut buffer).expect_err("too long");
    assert_eq!(error.found, RECORD_MAX + 1);
    assert_eq!(buffer, [9]);
}

#[test]
fn a_failing_file_is_not_an_end() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("bad sector"))
        }
    }
    let bytes = file(&[b"abc"]);
    let mut reader = RecordReader::new((&bytes[..]).chain(Failing));
    assert_eq!(reader.next_record().unwrap(), Some(&b"abc"[..]));
    assert_eq!(
        reader.next_record().expect_err("fails").to_string(),
        "at byte 16: bad sector"
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_all(&bytes);
    }

    #[test]
    fn appended_is_read(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6)) {
        let bytes = file(&payloads.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let (records, offset, error) = read_all(&bytes);
        prop_assert!(error.is_none());
        prop_assert_eq!(records, payloads);
        prop_assert_eq!(offset, bytes.len() as u64);
    }

    /// A cut gives the records before it and a torn tail (or a clean end), never damage.
    #[test]
    fn a_cut_is_never_damage(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6),
        at in any::<prop::sample::Index>(),
    ) {
        let bytes = file(&payloads.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let cut = at.index(bytes.len());
        let (records, offset, error) = read_all(&bytes[..cut]);
        prop_assert_eq!(&records[..], &payloads[..records.len()]);
        match error {
            None => prop_assert_eq!(offset, cut as u64),
            Some(RecordReadError::Torn { offset: at, found, .. }) => {
                prop_assert_eq!(at, offset);
                prop_assert_eq!(offset + found, cut as u64);
            }
            Some(other) => prop_assert!(false, "{}", other),
        }
    }

    /// A flipped bit is damage where it is, never a torn tail and never another record.
    #[test]
    fn a_flipped_bit_is_never_torn(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6),
        at in any::<prop::sample::Index>(),
    ) {
        let mut bytes = file(&payloads.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let bit = at.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (records, offset, error) = read_all(&bytes);
        prop_assert_eq!(&records[..], &payloads[..records.len()]);
        let is_damage = matches!(error, Some(RecordReadError::Damaged { offset: at, .. }) if at == offset);
        prop_assert!(is_damage, "{:?}", error);
        prop_assert!(offset <= (bit / 8) as u64);
    }
}
