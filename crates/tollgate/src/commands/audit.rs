//! `tollgate audit verify`: reads the whole audit log of each node and checks that nothing in it was altered, removed
//! or moved.
//!
//! The check runs here, over what the nodes say: a node that altered its log cannot also vouch for it. What was cut off
//! at the end shows only against an anchor, a head that was written down elsewhere.

use crate::admin_client::AdminClient;
use crate::args::Audit;
use crate::host::HostPort;
use crate::output::{Failure, Format, number, show, table};
use serde::Serialize;
use serde_json::Value;
use std::str::FromStr;
use tollgate_core::audit::{AuditEntry, Head, verify_from};
use tollgate_core::hex;

/// Entries asked for at once.
const PAGE: usize = 1000;

/// The head of a chain that someone wrote down: `NUMBER:HASH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    seq: u64,
    hash: String,
}

impl FromStr for Anchor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(seq, hash)| {
            let seq = seq.parse().ok().filter(|seq| *seq > 0)?;
            let digits = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| Self {
                seq,
                hash: hash.to_ascii_lowercase(),
            })
        });
        parsed.ok_or_else(|| "expected NUMBER:HASH as `tollgate audit verify` prints it".to_owned())
    }
}

/// A log that holds together.
#[derive(Debug, Serialize)]
struct Verified {
    node: String,
    entries: u64,
    head: String,
}

/// Runs the command: every address is asked.
///
/// # Errors
/// [`Failure`] naming the first entry that does not fit, or the node that does not answer.
pub async fn run(format: Format, command: &Audit) -> Result<(), Failure> {
    let Audit::Verify { anchor, admin } = command;
    let client = AdminClient::from_args(admin).await?;
    let mut verified: Vec<Verified> = Vec::new();
    for host in &admin.addr {
        let one = client.at_host(host).await?;
        let (seq, hash) = verify(&one, host, anchor.as_ref()).await?;
        let head = format!("{seq}:{}", hex::encode(&hash));
        let other = verified
            .iter()
            .find(|other| other.entries == seq && other.head != head);
        if let Some(other) = other {
            return Err(Failure::failed(format!(
                "{host} and {} hold different logs of {seq} entries each: {head} and {}; \
                 compare them with an anchor, and with a third node",
                other.node, other.head
            )));
        }
        verified.push(Verified {
            node: host.to_string(),
            entries: seq,
            head,
        });
    }
    show(format, &verified, |verified| {
        let rows = verified
            .iter()
            .map(|v| vec![v.node.clone(), number(v.entries), v.head.clone()]);
        let mut text = table(&["admin", "entries", "head"], rows);
        text.push_str(
            "\n\nEvery entry follows the one before it and says what it said when it was made.",
        );
        if anchor.is_none() {
            text.push_str(
                "\nWrite a head down elsewhere: --anchor HEAD shows later that no end was cut off.",
            );
        }
        text
    })
}

/// Reads a node's log from its first entry; answers its head.
async fn verify(
    client: &AdminClient,
    host: &HostPort,
    anchor: Option<&Anchor>,
) -> Result<Head, Failure> {
    let mut head: Head = (0, [0; 32]);
    loop {
        let path = format!("/admin/v1/audit?limit={PAGE}&after={}", head.0);
        let mut page: Value = client.get(&path).await?;
        let entries: Vec<AuditEntry> = serde_json::from_value(page["entries"].take())
            .map_err(|e| Failure::failed(format!("{host}: an audit entry is none: {e}")))?;
        head =
            follow(head, &entries, anchor).map_err(|e| Failure::failed(format!("{host}: {e}")))?;
        if entries.is_empty() || page["next"].is_null() {
            break;
        }
    }
    match anchor {
        Some(anchor) if anchor.seq > head.0 => Err(Failure::failed(format!(
            "{host}: the log ends with entry {}, the anchor is entry {}: its end is missing; compare with another \
             node's log",
            head.0, anchor.seq
        ))),
        _ => Ok(head),
    }
}

/// Checks one page; answers the new head.
fn follow(head: Head, entries: &[AuditEntry], anchor: Option<&Anchor>) -> Result<Head, String> {
    let new = verify_from(head, entries).map_err(|e| e.to_string())?;
    let anchored = anchor.and_then(|a| Some((a, entries.iter().find(|entry| entry.seq == a.seq)?)));
    match anchored {
        Some((anchor, entry)) if hex::encode(&entry.hash) != anchor.hash => Err(format!(
            "entry {} has the hash {}, the anchor says {}: the log up to there was replaced",
            anchor.seq,
            hex::encode(&entry.hash),
            anchor.hash
        )),
        _ => Ok(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_core::account::Name;
    use tollgate_core::audit::Action;
    use tollgate_core::ids::Revision;
    use tollgate_core::time::LedgerTime;

    fn chain(length: u64) -> Vec<AuditEntry> {
        let mut previous = [0; 32];
        let entry = |seq| {
            let mut entry = AuditEntry {
                seq,
                time: LedgerTime(seq),
                principal: Name::new("ops").unwrap(),
                action: Action::Create,
                resource: "customer/acme".into(),
                reason: "a test".into(),
                before: None,
                after: Some("{}".into()),
                revision: Revision::default(),
                previous,
                hash: [0; 32],
            };
            entry.hash = entry.computed_hash();
            previous = entry.hash;
            entry
        };
        (1..=length).map(entry).collect()
    }

    #[test]
    fn pages_follow_each_other_and_an_anchor_holds() {
        let entries = chain(5);
        let head = follow((0, [0; 32]), &entries[..3], None).unwrap();
        let head = follow(head, &entries[3..], None).unwrap();
        assert_eq!(head, entries[4].head());
        let anchor: Anchor = format!("2:{}", hex::encode(&entries[1].hash))
            .parse()
            .unwrap();
        assert!(follow((0, [0; 32]), &entries, Some(&anchor)).is_ok());

        let mut forged = entries.clone();
        forged[3].reason = "another".into();
        let e = follow((0, [0; 32]), &forged, None).unwrap_err();
        assert!(e.contains("entry 4 does not hash"), "{e}");
        // A log that was made anew as a whole holds together, and is not the one that was anchored.
        let anchor: Anchor = format!("2:{}", hex::encode(&entries[2].hash))
            .parse()
            .unwrap();
        let e = follow((0, [0; 32]), &entries, Some(&anchor)).unwrap_err();
        assert!(e.contains("was replaced"), "{e}");
        // Entries travel as JSON.
        let there = serde_json::to_value(&entries).unwrap();
        assert_eq!(
            serde_json::from_value::<Vec<AuditEntry>>(there).unwrap(),
            entries
        );
    }

    #[test]
    fn an_anchor_is_a_number_and_a_hash() {
        for bad in ["", "7", "7:ab", "0:00", "x:y"] {
            assert!(bad.parse::<Anchor>().is_err(), "{bad}");
        }
    }
}
