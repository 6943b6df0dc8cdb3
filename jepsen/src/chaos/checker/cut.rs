//! Whether checks of held units notice that nobody can be reached.
//!
//! Owns: the judgement of the stretches in which all links of the edges were cut. Refuses to judge by a clock: a loaded
//! machine makes everything slow, a check that waits for the network is slow *alone*. So each edge is asked, all the
//! while and by one client, something that needs neither units nor a node ([`Aside`]): a check of held units that is
//! overtaken by many answers to that client did not wait for the machine.

use super::super::history::{Operation, Outcome};
use super::Finding;

/// Answers that one client gets after each other while a check of held units is under way: so many are no accident of
/// scheduling. With the pause between them ([`ASIDE_PAUSE_US`]) they take a fifth of a second and more, longer on a
/// loaded machine; who waits for the network does so for the edge's `cold_deadline` of two seconds, or until it is healed.
pub const OVERTAKEN_MIN: usize = 100;

/// Pause of the client that asks aside, between an answer and its next question, in microseconds.
pub const ASIDE_PAUSE_US: u64 = 2_000;

/// A question that an edge answers from nothing but itself, asked beside the load. Times are those of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aside {
    /// Which edge was asked, from 1.
    pub edge: u32,
    /// Before the request was sent.
    pub invoke_us: u64,
    /// After the answer was there.
    pub complete_us: u64,
}

/// A stretch in which nothing passed between edges and nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// After every link was cut.
    pub from_us: u64,
    /// Before the first was healed.
    pub to_us: u64,
}

/// Checks of a customer whose units are held, asked while nothing reached the edges.
///
/// * `hot`: the customer's place among the subjects.
/// * `asides`: in the order in which they were asked, edge by edge.
/// * `edges`: how many edges there are.
#[must_use]
pub fn held_while_cut(
    history: &[Operation],
    asides: &[Aside],
    hot: u32,
    cuts: &[Cut],
    edges: u32,
) -> Finding {
    let mut finding = Finding::new("checks of held units do not notice that all links are cut");
    let (mut admitted, mut most_overtaken) = (0_u64, 0);
    for edge in 1..=edges {
        let own: Vec<Aside> = asides.iter().copied().filter(|a| a.edge == edge).collect();
        for (cut, round) in cuts.iter().zip(1..) {
            let answered = inside(&own, cut.from_us, cut.to_us);
            // Where hardly anybody was answered nobody can be overtaken, and a check that waits would pass unseen.
            if answered < OVERTAKEN_MIN {
                finding.violation(format!(
                    "cut {round}: edge-{edge} answered {answered} questions that need nobody, expected at least \
                     {OVERTAKEN_MIN}: these wait too, or the machine is too slow for this run to be judged"
                ));
            }
            let during = history.iter().filter(|o| {
                let asked = (cut.from_us..=cut.to_us).contains(&o.invoke_us);
                o.subject == hot && o.edge == edge && asked
            });
            let before = admitted;
            for check in during {
                let after_ms = (check.invoke_us - cut.from_us) / 1_000;
                if check.outcome == Outcome::Ok {
                    admitted += 1;
                } else {
                    finding.violation(format!(
                        "cut {round}: edge-{edge}, asked {after_ms} ms after it: {:?}",
                        check.outcome
                    ));
                }
                let overtaken = inside(&own, check.invoke_us, check.complete_us);
                most_overtaken = most_overtaken.max(overtaken);
                if overtaken >= OVERTAKEN_MIN {
                    finding.violation(format!(
                        "cut {round}: edge-{edge}, asked {after_ms} ms after it: answered after {} ms, and {overtaken} \
                         questions that need nobody were asked and answered meanwhile: it waited",
                        (check.complete_us - check.invoke_us) / 1_000
                    ));
                }
            }
            if admitted == before {
                finding.violation(format!(
                    "cut {round}: edge-{edge} admitted no check of held units"
                ));
            }
        }
    }
    finding.measured = format!(
        "{admitted} admitted while cut, none overtaken by more than {most_overtaken} of {} answers that need nobody",
        asides.len()
    );
    finding
}

/// How many of an edge's asides were asked and answered within a time.
fn inside(own: &[Aside], from_us: u64, to_us: u64) -> usize {
    // One client asked one at a time, so both ends are in order.
    let first = own.partition_point(|aside| aside.invoke_us < from_us);
    let past = own.partition_point(|aside| aside.complete_us <= to_us);
    past.saturating_sub(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    const CUT: Cut = Cut {
        from_us: 10_000 * MS,
        to_us: 13_000 * MS,
    };

    /// A check every 5 ms at each of two edges, answered after 1 ms, from a second before the cut to one after it.
    fn checks() -> Vec<Operation> {
        let at = |edge, n: u64| Operation {
            client: edge,
            edge,
            subject: 7,
            cost: 1,
            invoke_us: 9_000 * MS + n * 5 * MS,
            complete_us: 9_001 * MS + n * 5 * MS,
            outcome: Outcome::Ok,
        };
        let all = [1, 2].map(|edge| (0..1_000).map(move |n| at(edge, n)));
        all.into_iter().flatten().collect()
    }

    /// An aside every `every_ms` at each edge, answered at once.
    fn asides(every_ms: u64) -> Vec<Aside> {
        let at = |edge, n: u64| Aside {
            edge,
            invoke_us: 9_000 * MS + n * every_ms * MS,
            complete_us: 9_000 * MS + n * every_ms * MS + 100,
        };
        let all = [1, 2].map(|edge| (0..5_000 / every_ms).map(move |n| at(edge, n)));
        all.into_iter().flatten().collect()
    }

    fn violations(history: &[Operation], asides: &[Aside]) -> Vec<String> {
        held_while_cut(history, asides, 7, &[CUT], 2).violations
    }

    /// The check at edge 1 that was asked a second after the cut.
    fn one(history: &mut [Operation]) -> &mut Operation {
        let asked = CUT.from_us + 1_000 * MS;
        let found = history.iter_mut().find(|o| o.invoke_us == asked);
        found.unwrap()
    }

    #[test]
    fn checks_that_go_on_are_acquitted() {
        assert_eq!(violations(&checks(), &asides(3)), [""; 0]);
    }

    #[test]
    fn an_answer_that_never_came_or_was_no_is_seen() {
        for (outcome, word) in [
            (Outcome::Unknown, "Unknown"),
            (Outcome::Unsent, "Unsent"),
            (Outcome::refused("unavailable"), "Refused(\"unavailable\")"),
        ] {
            let mut history = checks();
            one(&mut history).outcome = outcome;
            let words = format!("cut 1: edge-1, asked 1000 ms after it: {word}");
            assert_eq!(violations(&history, &asides(3)), [words]);
            // Somebody else's is nobody's concern.
            one(&mut history).subject = 8;
            assert_eq!(violations(&history, &asides(3)), [""; 0]);
        }
    }

    #[test]
    fn one_check_that_waits_for_the_network_is_seen_although_it_is_admitted() {
        let mut history = checks();
        one(&mut history).complete_us += 1_900 * MS;
        let found = violations(&history, &asides(3));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with(
                "cut 1: edge-1, asked 1000 ms after it: answered after 1901 ms, and 634 questions"
            ),
            "{found:?}"
        );
        // Also one that was served by the healing: its answer came after the cut.
        let mut history = checks();
        let last = history
            .iter_mut()
            .find(|o| o.invoke_us == CUT.to_us - 5 * MS);
        last.unwrap().complete_us += 500 * MS;
        assert_eq!(violations(&history, &asides(3)).len(), 1);
    }

    #[test]
    fn a_machine_that_stands_still_delays_everybody_and_breaks_nothing() {
        // For 1.9 s nobody is answered: the check and the aside that were under way, and none besides.
        let (mut history, mut asides) = (checks(), asides(3));
        let (from, to) = (CUT.from_us + 1_000 * MS, CUT.from_us + 2_900 * MS);
        history.retain(|o| o.invoke_us <= from || o.invoke_us > to);
        asides.retain(|a| a.invoke_us <= from || a.invoke_us > to);
        one(&mut history).complete_us = to;
        assert_eq!(violations(&history, &asides), [""; 0]);
    }

    #[test]
    fn a_run_in_which_no_wait_could_be_seen_is_no_proof() {
        let found = violations(&checks(), &asides(100));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("cut 1: edge-1 answered 30 questions"));
        assert_eq!(violations(&[], &asides(3)).len(), 2, "none was admitted");
    }
}
