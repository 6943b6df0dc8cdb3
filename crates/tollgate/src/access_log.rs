//! Reads web server access logs as a stream of requests: combined and common log format, plain or gzip.
//!
//! Owns: what counts as a log line, and the tally of those that do not. A bad line is counted and shown, never fatal;
//! only the source itself failing (a truncated gzip file, a broken disk) ends the reading with an error.
//! Refuses: to follow a growing file, to know other formats, to look at referrer and agent, to unescape anything.
//! Read next: `testdata/README.md` for the log that the demo replays, `tests/access_log.rs` for what is bad and why.

use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::ops::Range;

use flate2::bufread::MultiGzDecoder;

/// Longest line that is looked at, in bytes without its newline; a longer one is bad and skipped to its end.
/// Web servers bound a request line to 8 KiB by default, so referrer and agent together have room for seven times that.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// How many bad lines a [`Tally`] keeps by number and reason; all are counted.
pub const KEPT_BAD_LINES: usize = 5;

/// Buffer between the source and the lines, and before the decompression, in bytes each.
const BUFFER_BYTES: usize = 128 * 1024;

/// The first two bytes of every gzip file.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// One request, as the web server logged it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// When the server logged it, in milliseconds since the Unix epoch; the line's zone offset is taken out.
    pub time_ms: u64,
    /// The address (IPv4 or IPv6) or host name of who called; never empty.
    pub client: &'a str,
    /// The request's method, such as `GET`; letters, digits, `-` and `_`.
    pub method: &'a str,
    /// The request's target without its query, as logged: percent and backslash escapes stay; never empty.
    /// Bytes that are not UTF-8 are replaced by U+FFFD.
    pub path: &'a str,
    /// The response's status, 0 to 999 (nginx logs 000 and 499 for requests it never answered).
    pub status: u16,
    /// Bytes of the response's body; 0 where the log says `-`.
    pub bytes: u64,
}

/// Why a line is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BadReason {
    /// Nothing on the line.
    Empty,
    /// Longer than [`MAX_LINE_BYTES`].
    TooLong,
    /// Not exactly client, identity and user before the `[` of the time (a host name in front shifts them).
    Fields,
    /// The client is empty or not UTF-8.
    Client,
    /// No time in brackets, not in the format, no such day, or before 1970.
    Time,
    /// No quoted request after the time, or its closing quote is missing.
    Quotes,
    /// The server logged `-` or nothing: the client connected and asked for nothing.
    NoRequest,
    /// The request is not a method and a target (often a TLS handshake on a plain port).
    Request,
    /// The status is not three digits.
    Status,
    /// The number of bytes is neither digits nor `-`, or does not fit.
    Bytes,
}

impl fmt::Display for BadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty line"),
            Self::TooLong => write!(f, "longer than {MAX_LINE_BYTES} bytes"),
            Self::Fields => {
                f.write_str("expected exactly `client identity user` before the time in brackets")
            }
            Self::Client => f.write_str("the client is not UTF-8"),
            Self::Time => f.write_str("expected a time such as `[17/May/2015:10:05:03 +0000]`"),
            Self::Quotes => f.write_str("expected a request in quotes after the time"),
            Self::NoRequest => f.write_str("the client sent no request"),
            Self::Request => f.write_str("expected a request such as `GET /path HTTP/1.1`"),
            Self::Status => f.write_str("expected a status of three digits after the request"),
            Self::Bytes => f.write_str("expected a number of bytes or `-` after the status"),
        }
    }
}

/// A line that is no request, by its place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadLine {
    /// 1 for the log's first line.
    pub number: u64,
    /// What is wrong with it.
    pub reason: BadReason,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.number, self.reason)
    }
}

/// What was read so far; `good + bad` is the number of lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lines given out as requests.
    pub good: u64,
    /// Lines that were none.
    pub bad: u64,
    /// Bytes of text taken from the log, after decompression.
    pub text_bytes: u64,
    /// The first [`KEPT_BAD_LINES`] bad lines, in order.
    pub first_bad: Vec<BadLine>,
}

impl Tally {
    /// All whole lines read, good and bad.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.good + self.bad
    }

    fn count_bad(&mut self, reason: BadReason) {
        self.bad += 1;
        if self.first_bad.len() < KEPT_BAD_LINES {
            self.first_bad.push(BadLine {
                number: self.lines(),
                reason,
            });
        }
    }
}

/// The source failed before its end. What was given out until then stands; a line cut off by the failure was not.
#[derive(Debug, thiserror::Error)]
#[error("{} ended early, after {lines} whole lines ({text_bytes} bytes of text): {source}; {}",
    if *.gzip { "the gzip log" } else { "the log" },
    if *.gzip { "the file is truncated or damaged: fetch it again" } else { "try to read it again" })]
pub struct ReadError {
    /// Whole lines read before, good and bad.
    pub lines: u64,
    /// Bytes of text read before, after decompression, the cut-off line included.
    pub text_bytes: u64,
    /// Whether the source is a gzip file.
    pub gzip: bool,
    /// What reading it said.
    pub source: io::Error,
}

/// A log being read, line by line, in bounded memory.
pub struct AccessLog<'r> {
    reader: Box<dyn BufRead + Send + 'r>,
    gzip: bool,
    ended: bool,
    /// The current line as it came; kept only to reuse its memory.
    raw: Vec<u8>,
    /// The current line as text, which a [`LogLine`] borrows.
    text: String,
    tally: Tally,
}

impl fmt::Debug for AccessLog<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLog")
            .field("gzip", &self.gzip)
            .field("ended", &self.ended)
            .field("tally", &self.tally)
            .finish_non_exhaustive()
    }
}

impl<'r> AccessLog<'r> {
    /// Starts to read `source`; its first two bytes decide between gzip (of one or more members) and plain text.
    ///
    /// # Errors
    /// The source cannot be read at all.
    pub fn open(mut source: impl Read + Send + 'r) -> Result<Self, ReadError> {
        let mut head = Vec::with_capacity(GZIP_MAGIC.len());
        source
            .by_ref()
            .take(GZIP_MAGIC.len() as u64)
            .read_to_end(&mut head)
            .map_err(|source| ReadError {
                lines: 0,
                text_bytes: 0,
                gzip: false,
                source,
            })?;
        let gzip = head == GZIP_MAGIC;
        let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head).chain(source));
        let reader: Box<dyn BufRead + Send + 'r> = if gzip {
            Box::new(BufReader::with_capacity(
                BUFFER_BYTES,
                MultiGzDecoder::new(whole),
            ))
        } else {
            Box::new(whole)
        };
        Ok(Self {
            reader,
            gzip,
            ended: false,
            raw: Vec::new(),
            text: String::new(),
            tally: Tally::default(),
        })
    }

    /// The next request, past any bad lines, which are counted; `None` at the end.
    ///
    /// # Errors
    /// The source failed; the log has ended then, and later calls give `None`.
    pub fn next_line(&mut self) -> Result<Option<LogLine<'_>>, ReadError> {
        let fields = loop {
            match self.read_line()? {
                Taken::End => return Ok(None),
                Taken::TooLong => self.tally.count_bad(BadReason::TooLong),
                Taken::Line => match Fields::of(&self.text) {
                    Ok(fields) => break fields,
                    Err(reason) => self.tally.count_bad(reason),
                },
            }
        };
        self.tally.good += 1;
        Ok(Some(fields.on(&self.text)))
    }

    /// What was read so far; final once [`Self::next_line`] has given `None` or an error.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Takes one line into `self.text`, without its line ending.
    fn read_line(&mut self) -> Result<Taken, ReadError> {
        self.raw.clear();
        // Two bytes more than a line may have: room for its `\r\n`.
        if self.ended || self.read_until_newline(MAX_LINE_BYTES + 2)? == 0 {
            self.ended = true;
            return Ok(Taken::End);
        }
        let mut complete = self.raw.ends_with(b"\n");
        if complete {
            self.raw.pop();
        }
        if self.raw.ends_with(b"\r") {
            self.raw.pop();
        }
        if self.raw.len() > MAX_LINE_BYTES {
            while !complete {
                self.raw.clear();
                complete =
                    self.read_until_newline(MAX_LINE_BYTES)? == 0 || self.raw.ends_with(b"\n");
            }
            return Ok(Taken::TooLong);
        }
        self.text.clear();
        match std::str::from_utf8(&self.raw) {
            Ok(text) => self.text.push_str(text),
            Err(_) => self.text.push_str(&String::from_utf8_lossy(&self.raw)),
        }
        Ok(Taken::Line)
    }

    /// Appends to `self.raw` up to a newline, the end of the source, or `limit` bytes; returns how many.
    fn read_until_newline(&mut self, limit: usize) -> Result<usize, ReadError> {
        let before = self.raw.len();
        let outcome = self
            .reader
            .by_ref()
            .take(limit as u64)
            .read_until(b'\n', &mut self.raw);
        self.tally.text_bytes += (self.raw.len() - before) as u64;
        outcome.map_err(|source| {
            self.ended = true;
            ReadError {
                lines: self.tally.lines(),
                text_bytes: self.tally.text_bytes,
                gzip: self.gzip,
                source,
            }
        })
    }
}

/// What [`AccessLog::read_line`] found.
enum Taken {
    Line,
    TooLong,
    End,
}

/// A parsed line whose texts are places in it: unlike references, these may outlive a later bad line's turn.
struct Fields {
    time_ms: u64,
    client: Range<usize>,
    method: Range<usize>,
    path: Range<usize>,
    status: u16,
    bytes: u64,
}

impl Fields {
    /// `client identity user [time] "method target protocol" status bytes`, then nothing or a space and anything.
    fn of(text: &str) -> Result<Self, BadReason> {
        if text.is_empty() {
            return Err(BadReason::Empty);
        }
        let line = text.as_bytes();
        let bracket = text.find(" [").ok_or(BadReason::Time)?;
        // Exactly three: with a fourth, such as a host name in front, somebody else would be taken for the client.
        let mut names = text[..bracket].split(' ');
        let (Some(client), Some(_identity), Some(_user), None) =
            (names.next(), names.next(), names.next(), names.next())
        else {
            return Err(BadReason::Fields);
        };
        if client.is_empty() || client.contains(char::REPLACEMENT_CHARACTER) {
            return Err(BadReason::Client);
        }

        let time_at = bracket + 2;
        let time_end = time_at + TIME_BYTES;
        let time = line.get(time_at..time_end).ok_or(BadReason::Time)?;
        let time_ms = unix_time_ms(time).ok_or(BadReason::Time)?;
        if line.get(time_end) != Some(&b']') {
            return Err(BadReason::Time);
        }

        if line.get(time_end + 1..time_end + 3) != Some(b" \"") {
            return Err(BadReason::Quotes);
        }
        let request_at = time_end + 3;
        let request_end = closing_quote(line, request_at).ok_or(BadReason::Quotes)?;
        let (method, path) = method_and_path(text, request_at..request_end)?;

        // A space after the closing quote, three digits, a space, digits or a dash, the end or a space.
        let rest = line.get(request_end + 1..).unwrap_or_default();
        let (status, rest) = status(rest).ok_or(BadReason::Status)?;
        let bytes = body_bytes(rest).ok_or(BadReason::Bytes)?;
        Ok(Self {
            time_ms,
            client: 0..client.len(),
            method,
            path,
            status,
            bytes,
        })
    }

    /// These fields on the text they were found in.
    fn on<'a>(&self, text: &'a str) -> LogLine<'a> {
        // Every end of a range lies beside an ASCII byte of this very text, so no slice can cut a character.
        LogLine {
            time_ms: self.time_ms,
            client: &text[self.client.clone()],
            method: &text[self.method.clone()],
            path: &text[self.path.clone()],
            status: self.status,
            bytes: self.bytes,
        }
    }
}

/// The first quote from `from` on that no backslash escapes.
fn closing_quote(line: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        match line.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Where in `text` the method and the path of the request at `request` are.
fn method_and_path(
    text: &str,
    request: Range<usize>,
) -> Result<(Range<usize>, Range<usize>), BadReason> {
    let words = &text[request.clone()];
    if words.is_empty() || words == "-" {
        return Err(BadReason::NoRequest);
    }
    let (method, rest) = words.split_once(' ').ok_or(BadReason::Request)?;
    let is_method_byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if method.is_empty() || !method.bytes().all(is_method_byte) {
        return Err(BadReason::Request);
    }
    // HTTP/0.9 names no protocol; a target with spaces (some servers let it pass) keeps them.
    let target = match rest.rsplit_once(' ') {
        Some((target, protocol)) if protocol.starts_with("HTTP/") => target,
        _ if rest.starts_with("HTTP/") => return Err(BadReason::Request),
        _ => rest,
    };
    let path_len = target.find('?').unwrap_or(target.len());
    if path_len == 0 {
        return Err(BadReason::Request);
    }
    let path_at = request.start + method.len() + 1;
    Ok((
        request.start..request.start + method.len(),
        path_at..path_at + path_len,
    ))
}

/// The status at the start of `rest` (` 200 ...`), and what follows it.
fn status(rest: &[u8]) -> Option<(u16, &[u8])> {
    match rest {
        [
            b' ',
            a @ b'0'..=b'9',
            b @ b'0'..=b'9',
            c @ b'0'..=b'9',
            rest @ ..,
        ] => {
            let digit = |byte: u8| u16::from(byte - b'0');
            Some((digit(*a) * 100 + digit(*b) * 10 + digit(*c), rest))
        }
        _ => None,
    }
}

/// The number of bytes at the start of `rest` (` 5120 ...`).
fn body_bytes(rest: &[u8]) -> Option<u64> {
    let (b' ', rest) = rest.split_first()? else {
        return None;
    };
    let word = rest.split(|byte| *byte == b' ').next()?;
    if word == b"-" { Some(0) } else { number(word) }
}

/// Decimal digits, at least one, as a number that fits.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// Length of `17/May/2015:10:05:03 +0000`.
const TIME_BYTES: usize = 26;

const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// `17/May/2015:10:05:03 +0000` in milliseconds since the Unix epoch; `None` for no such time or one before 1970.
fn unix_time_ms(time: &[u8]) -> Option<u64> {
    let separators = [
        (2, b'/'),
        (6, b'/'),
        (11, b':'),
        (14, b':'),
        (17, b':'),
        (20, b' '),
    ];
    if separators
        .iter()
        .any(|(at, byte)| time.get(*at) != Some(byte))
    {
        return None;
    }
    let part = |range: Range<usize>| number(time.get(range)?);
    let (day, year) = (part(0..2)?, part(7..11)?);
    let name = time.get(3..6)?;
    let month = MONTHS.iter().position(|month| *month == name)?;
    let (hour, minute, second) = (part(12..14)?, part(15..17)?, part(18..20)?);
    let (offset_hours, offset_minutes) = (part(22..24)?, part(24..26)?);
    // Second 60 is a leap second: it counts as the next minute's first, as Unix time has it.
    let in_range =
        hour < 24 && minute < 60 && second <= 60 && offset_hours < 24 && offset_minutes < 60;
    if !in_range {
        return None;
    }
    let local_s = days_since_1970(year, month, day)? * 86_400 + hour * 3_600 + minute * 60 + second;
    let offset_s = offset_hours * 3_600 + offset_minutes * 60;
    let utc_s = match time.get(21)? {
        b'+' => local_s.checked_sub(offset_s)?,
        b'-' => local_s + offset_s,
        _ => return None,
    };
    Some(utc_s * 1_000)
}

/// Days from 1 January 1970 to a day of the Gregorian calendar; `month` counts from 0. `None` if there is no such day.
fn days_since_1970(year: u64, month: usize, day: u64) -> Option<u64> {
    const DAYS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let in_month = DAYS.get(month)? + u64::from(is_leap && month == 1);
    if year < 1970 || day < 1 || day > in_month {
        return None;
    }
    let leap_days_until = |year: u64| year / 4 - year / 100 + year / 400;
    let whole_years = (year - 1970) * 365 + leap_days_until(year - 1) - leap_days_until(1969);
    let whole_months = DAYS.iter().take(month).sum::<u64>() + u64::from(is_leap && month > 1);
    Some(whole_years + whole_months + day - 1)
}
