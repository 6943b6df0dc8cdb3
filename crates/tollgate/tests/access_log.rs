//! What the log reader takes for a request, what it counts as bad, and what ends it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by panicking"
)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tollgate::access_log::{
    AccessLog, BadLine, BadReason, KEPT_BAD_LINES, LogLine, MAX_LINE_BYTES, ReadError, Tally,
};

/// The log that the repository ships.
const FIXTURE: &[u8] = include_bytes!("../testdata/access.log.gz");

/// 17 May 2015, 10:05:03 UTC.
const T: u64 = 1_431_857_103_000;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// Every request as one line of words, and the tally.
fn read(source: &[u8]) -> (Vec<String>, Tally) {
    let mut log = AccessLog::open(source).unwrap();
    let mut lines = Vec::new();
    while let Some(line) = log.next_line().unwrap() {
        lines.push(words(&line));
    }
    (lines, log.tally().clone())
}

fn words(line: &LogLine<'_>) -> String {
    let LogLine {
        time_ms,
        client,
        method,
        path,
        status,
        bytes,
    } = line;
    format!("{time_ms} {client} {method} {path} {status} {bytes}")
}

/// The one request of a line that must be one.
fn good(line: &str) -> String {
    let (mut lines, tally) = read(line.as_bytes());
    assert_eq!(
        (lines.len(), tally.bad),
        (1, 0),
        "{line}: {:?}",
        tally.first_bad
    );
    lines.remove(0)
}

/// Why a line is none.
fn bad(line: &str) -> BadReason {
    let (lines, tally) = read(line.as_bytes());
    assert!(lines.is_empty(), "{line} passed as {lines:?}");
    assert_eq!(tally.bad, 1, "{line}");
    tally.first_bad[0].reason
}

#[test]
fn the_shipped_log_has_10000_requests_of_1753_clients_and_no_bad_line() {
    let mut log = AccessLog::open(FIXTURE).unwrap();
    let mut clients = BTreeMap::<String, u64>::new();
    let (mut bytes, mut first, mut last) = (0, None, 0);
    while let Some(line) = log.next_line().unwrap() {
        *clients.entry(line.client.to_owned()).or_default() += 1;
        bytes += line.bytes;
        first.get_or_insert_with(|| words(&line));
        last = line.time_ms;
        assert!(
            line.path.starts_with('/') || line.path == "*",
            "{}",
            words(&line)
        );
    }
    assert_eq!((log.tally().good, log.tally().bad), (10_000, 0));
    assert_eq!(clients.len(), 1_753);
    assert_eq!(clients.values().max(), Some(&482));
    assert_eq!(clients["66.249.73.135"], 482);
    assert_eq!(bytes, 2_747_282_740);
    assert_eq!(
        first.unwrap(),
        format!(
            "{T} 83.149.9.216 GET /presentations/logstash-monitorama-2013/images/kibana-search.png 200 203023"
        )
    );
    assert_eq!(last, 1_432_155_915_000);
}

#[test]
fn combined_and_common_format_give_the_same_request() {
    let common = r#"10.0.0.1 - bob [17/May/2015:10:05:03 +0000] "GET /a HTTP/1.1" 200 12"#;
    let combined = format!(r#"{common} "https://example.org/" "curl/8.5 (\"quoted\")""#);
    assert_eq!(good(common), format!("{T} 10.0.0.1 GET /a 200 12"));
    assert_eq!(good(&combined), good(common));
    assert_eq!(good(&format!("{common}\r\n")), good(common));
}

#[test]
fn the_zone_offset_is_taken_out() {
    let at = |time: &str| good(&format!(r#"h - - [{time}] "GET / HTTP/1.1" 200 1"#));
    assert_eq!(
        at("17/May/2015:10:05:03 +0000"),
        format!("{T} h GET / 200 1")
    );
    assert_eq!(
        at("17/May/2015:12:05:03 +0200"),
        format!("{T} h GET / 200 1")
    );
    assert_eq!(
        at("16/May/2015:23:35:03 -1030"),
        format!("{T} h GET / 200 1")
    );
    assert_eq!(at("01/Jan/1970:00:00:00 +0000"), "0 h GET / 200 1");
}

#[test]
fn days_count_as_the_gregorian_calendar_has_them() {
    let at = |time: &str| good(&format!(r#"h - - [{time} +0000] "GET / HTTP/1.1" 200 1"#));
    assert_eq!(at("29/Feb/2000:00:00:00"), "951782400000 h GET / 200 1");
    assert_eq!(at("28/Feb/2100:23:59:59"), "4107542399000 h GET / 200 1");
    assert_eq!(at("01/Mar/2100:00:00:00"), "4107542400000 h GET / 200 1");
    assert_eq!(at("31/Dec/2016:23:59:60"), "1483228800000 h GET / 200 1");
    for none in [
        "29/Feb/2100:00:00:00",
        "31/Apr/2020:00:00:00",
        "00/May/2020:00:00:00",
        "01/may/2020:00:00:00",
    ] {
        let line = format!(r#"h - - [{none} +0000] "GET / HTTP/1.1" 200 1"#);
        assert_eq!(bad(&line), BadReason::Time, "{none}");
    }
}

#[test]
fn unusual_requests_that_are_requests() {
    let of = |client: &str, rest: &str| {
        good(&format!("{client} - - [17/May/2015:10:05:03 +0000] {rest}"))
    };
    let t = T;
    assert_eq!(
        of("2001:db8::7", r#""GET / HTTP/2.0" 200 5"#),
        format!("{t} 2001:db8::7 GET / 200 5")
    );
    assert_eq!(
        of("a.example", r#""HEAD /a?k=v HTTP/1.1" 304 -"#),
        format!("{t} a.example HEAD /a 304 0")
    );
    assert_eq!(
        of("c", r#""GET /a\"b\\ HTTP/1.1" 200 5"#),
        format!(r#"{t} c GET /a\"b\\ 200 5"#)
    );
    assert_eq!(
        of("c", r#""GET /a" 200 5"#),
        format!("{t} c GET /a 200 5"),
        "HTTP/0.9"
    );
    assert_eq!(
        of("c", r#""GET /a b HTTP/1.0" 499 0"#),
        format!("{t} c GET /a b 499 0")
    );
    assert_eq!(
        of("c", r#""OPTIONS * HTTP/1.0" 000 0"#),
        format!("{t} c OPTIONS * 0 0")
    );
    assert_eq!(
        of("c", r#""M-SEARCH / HTTP/1.1" 200 18446744073709551615"#),
        format!("{t} c M-SEARCH / 200 {}", u64::MAX)
    );
}

#[test]
fn each_way_to_be_bad_is_named() {
    let with = |rest: &str| bad(&format!("10.0.0.1 - - [17/May/2015:10:05:03 +0000]{rest}"));
    assert_eq!(bad("\n"), BadReason::Empty);
    assert_eq!(bad("hello"), BadReason::Time);
    assert_eq!(bad("# Fields: date time c-ip"), BadReason::Time);
    assert_eq!(bad(r#"{"status":200,"path":"/a"}"#), BadReason::Time);
    // A virtual host in front: taking it for the client would be worse than refusing the line.
    let shifted = r#"www:443 10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1"#;
    assert_eq!(bad(shifted), BadReason::Fields);
    assert_eq!(
        bad("10.0.0.1 - [17/May/2015:10:05:03 +0000]"),
        BadReason::Fields
    );
    assert_eq!(bad(" - - [17/May/2015:10:05:03 +0000]"), BadReason::Client);
    assert_eq!(bad("a - - [17/May/2015 10:05:03 +0000]"), BadReason::Time);
    assert_eq!(bad("a - - [17/May/2015:10:05:03 *0000]"), BadReason::Time);
    assert_eq!(bad("a - - [17/May/2015:24:05:03 +0000]"), BadReason::Time);
    assert_eq!(bad("a - - [31/Dec/1969:23:59:59 +0000]"), BadReason::Time);
    assert_eq!(bad("a - - [01/Jan/1970:00:00:00 +0100]"), BadReason::Time);
    assert_eq!(bad("a - - [17/May/2015:10:05:03 +0000"), BadReason::Time);
    assert_eq!(with(""), BadReason::Quotes);
    assert_eq!(with(r#" "GET / HTTP/1.1 200 1"#), BadReason::Quotes);
    assert_eq!(with(r#" "GET /\"#), BadReason::Quotes);
    assert_eq!(with(r#" "-" 408 0"#), BadReason::NoRequest);
    assert_eq!(with(r#" "" 400 0"#), BadReason::NoRequest);
    assert_eq!(with(r#" "\x16\x03\x01 " 400 226"#), BadReason::Request);
    assert_eq!(with(r#" "GET" 400 226"#), BadReason::Request);
    assert_eq!(with(r#" "GET HTTP/1.1" 400 226"#), BadReason::Request);
    assert_eq!(with(r#" "GET ?a HTTP/1.1" 400 226"#), BadReason::Request);
    assert_eq!(with(r#" "GET / HTTP/1.1" 20 1"#), BadReason::Status);
    assert_eq!(with(r#" "GET / HTTP/1.1""#), BadReason::Status);
    assert_eq!(with(r#" "GET / HTTP/1.1" - 1"#), BadReason::Status);
    assert_eq!(with(r#" "GET / HTTP/1.1" 2000 1"#), BadReason::Bytes);
    assert_eq!(with(r#" "GET / HTTP/1.1" 200"#), BadReason::Bytes);
    assert_eq!(with(r#" "GET / HTTP/1.1" 200 -1"#), BadReason::Bytes);
    assert_eq!(
        with(r#" "GET / HTTP/1.1" 200 18446744073709551616"#),
        BadReason::Bytes
    );
}

#[test]
fn invalid_utf8_spoils_a_client_but_no_path() {
    let line = |client: &[u8], path: &[u8]| {
        [
            client,
            b" - - [17/May/2015:10:05:03 +0000] \"GET /",
            path,
            b" HTTP/1.1\" 200 1\n",
        ]
        .concat()
    };
    let (lines, tally) = read(&[line(b"c", b"\xff"), line(b"\xff", b"")].concat());
    assert_eq!(lines, [format!("{T} c GET /\u{FFFD} 200 1")]);
    assert_eq!(
        tally.first_bad,
        [BadLine {
            number: 2,
            reason: BadReason::Client
        }]
    );
}

#[test]
fn a_line_has_a_longest_length_and_the_next_one_is_read() {
    let line = |len: usize| {
        let rest = " - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1";
        format!("{}{rest}", "c".repeat(len - rest.len()))
    };
    for ending in ["\n", "\r\n"] {
        let longest = line(MAX_LINE_BYTES);
        let over = line(MAX_LINE_BYTES + 1);
        let far_over = line(5 * MAX_LINE_BYTES);
        let text = [&longest, &over, &far_over, &longest, ""].join(ending);
        let (lines, tally) = read(text.as_bytes());
        assert_eq!(lines.len(), 2);
        let too_long = |number| BadLine {
            number,
            reason: BadReason::TooLong,
        };
        assert_eq!(tally.first_bad, [too_long(2), too_long(3)]);
        assert_eq!(tally.text_bytes, text.len() as u64);
    }
    let (_, tally) = read(line(5 * MAX_LINE_BYTES).as_bytes());
    assert_eq!(
        (tally.good, tally.bad),
        (0, 1),
        "without a newline at the end"
    );
}

#[test]
fn all_bad_lines_are_counted_and_the_first_few_kept() {
    let text = "no\n".repeat(1_000);
    let (_, tally) = read(text.as_bytes());
    assert_eq!(
        (tally.good, tally.bad, tally.first_bad.len()),
        (0, 1_000, KEPT_BAD_LINES)
    );
    assert_eq!(
        tally.first_bad[4].to_string(),
        "line 5: expected a time such as `[17/May/2015:10:05:03 +0000]`"
    );
}

#[test]
fn an_empty_log_has_no_lines() {
    for source in [Vec::new(), gzip(b"")] {
        let (lines, tally) = read(&source);
        assert!(lines.is_empty());
        assert_eq!(tally, Tally::default());
    }
}

#[test]
fn gzip_members_follow_each_other_as_in_joined_archives() {
    let line = b"c - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1\n";
    let joined = [gzip(line), gzip(line)].concat();
    assert_eq!(read(&joined).0, vec![format!("{T} c GET / 200 1"); 2]);
}

/// What a log gives that must fail: the whole lines before, and the error.
fn fails(source: impl Read + Send) -> (u64, ReadError) {
    let mut log = AccessLog::open(source).unwrap();
    let mut good = 0;
    let error = loop {
        match log.next_line() {
            Ok(Some(_)) => good += 1,
            Ok(None) => panic!("ended without an error after {good} lines"),
            Err(error) => break error,
        }
    };
    assert!(matches!(log.next_line(), Ok(None)), "an error is the end");
    (good, error)
}

#[test]
fn a_truncated_gzip_log_ends_with_what_was_read() {
    let cut = &FIXTURE[..FIXTURE.len() / 2];
    let (good, error) = fails(cut);
    assert!((1_000..9_999).contains(&good), "{good}");
    assert_eq!((error.lines, error.gzip), (good, true));
    assert_eq!(error.source.kind(), io::ErrorKind::UnexpectedEof);
    let words = error.to_string();
    let read = format!(
        "the gzip log ended early, after {good} whole lines ({} bytes",
        error.text_bytes
    );
    assert!(words.starts_with(&read), "{words}");
    assert!(
        words.ends_with("truncated or damaged: fetch it again"),
        "{words}"
    );

    let (_, error) = fails(&FIXTURE[..4]);
    assert_eq!((error.lines, error.text_bytes), (0, 0));
}

#[test]
fn a_damaged_gzip_log_is_an_error_not_a_panic() {
    let mut damaged = FIXTURE.to_vec();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].fill(0x55);
    let (_, error) = fails(damaged.as_slice());
    assert!(error.gzip);
}

/// A disk that fails after some text.
struct FailsAfter<'a>(&'a [u8]);

impl Read for FailsAfter<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::Error::other("the disk is gone"));
        }
        // One byte at a time also shows that no size of read is relied upon.
        let (now, later) = self.0.split_at(1);
        into[..1].copy_from_slice(now);
        self.0 = later;
        Ok(1)
    }
}

#[test]
fn a_failing_source_gives_its_whole_lines_first() {
    let text = "c - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1\nbad\nc - - [17/May";
    let (good, error) = fails(FailsAfter(text.as_bytes()));
    assert_eq!(
        (good, error.lines, error.text_bytes),
        (1, 2, text.len() as u64)
    );
    assert_eq!(
        error.to_string(),
        "the log ended early, after 2 whole lines (75 bytes of text): the disk is gone; try to read it again"
    );
}

/// Text that is nearly a log: pieces of real lines, torn and mixed.
fn nearly_a_log() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"10.0.0.1 - - [17/May/2015:10:05:03 +0000] \"GET /a?b HTTP/1.1\" 200 12".to_vec()),
        Just(b"10.0.0.1 - -".to_vec()),
        Just(b" [17/May/2015:10:05:03 +0000]".to_vec()),
        Just(b" \"GET /\xc3\xa9 HTTP/1.1\"".to_vec()),
        Just(b" 200 5".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just("é\u{1F600}".as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn every_line_is_a_request_or_counted_bad(text in nearly_a_log()) {
        // A gzip header by chance is another test's matter.
        prop_assume!(!text.starts_with(&[0x1f, 0x8b]));
        let (lines, tally) = read(&text);
        let newlines = text.iter().filter(|byte| **byte == b'\n').count();
        let unfinished = usize::from(text.last().is_some_and(|byte| *byte != b'\n'));
        prop_assert_eq!(tally.good, lines.len() as u64);
        prop_assert_eq!(tally.lines(), (newlines + unfinished) as u64);
        prop_assert_eq!(tally.text_bytes, text.len() as u64);
        prop_assert_eq!(&read(&gzip(&text)), &(lines, tally));
    }

    #[test]
    fn no_bytes_panic(source in proptest::collection::vec(any::<u8>(), 0..512), gzip_head: bool) {
        let source = if gzip_head { [&[0x1f, 0x8b, 8][..], &source].concat() } else { source };
        let mut log = AccessLog::open(source.as_slice()).unwrap();
        while let Ok(Some(line)) = log.next_line() {
            prop_assert!(!line.client.is_empty() && !line.path.is_empty());
        }
    }
}

proptest! {
    // Each case reads the log twice.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_log_cut_anywhere_gives_only_whole_lines_of_the_log(cut in 0..FIXTURE.len()) {
        let mut log = AccessLog::open(&FIXTURE[..cut]).unwrap();
        let mut whole = AccessLog::open(FIXTURE).unwrap();
        while let Ok(Some(line)) = log.next_line() {
            prop_assert_eq!(Some(words(&line)), whole.next_line().unwrap().map(|line| words(&line)));
        }
        prop_assert_eq!(log.tally().bad, 0);
    }
}
