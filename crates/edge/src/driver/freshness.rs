//! [`Freshness`]: which catalog revision the view is at, and when that was last proved current.
//!
//! A node's confirmation proves *its* view at a moment; this edge's view is as fresh only once it has
//! acted on every change up to the revision that the node named. Refuses to trust a clock other than the
//! own: a confirmation counts from when the keepalive was sent, less the age the node states.

use tollgate_core::ids::{NodeId, Revision};
use tollgate_core::time::{Mono, Sent};

/// Confirmations of revisions that were not acted on yet; the oldest makes room.
const AHEAD_MAX: usize = 16;
/// An unanswered question for changes is asked again, elsewhere, after this.
const ASK_AGAIN_MS: u64 = 500;
/// Pause before another node is asked because one could not answer.
const ELSEWHERE_MS: u64 = 50;

/// See the module's text.
#[derive(Default)]
pub(super) struct Freshness {
    acted: Revision,
    known: Revision,
    /// Who named it first: a node that is alive and has it.
    teller: Option<NodeId>,
    /// Confirmed moments of revisions beyond `acted`.
    ahead: Vec<(Revision, Mono)>,
    fresh_at: Option<Mono>,
    asked: Option<(NodeId, Mono)>,
    /// Whether it answered, and knew nothing that was news: the next question waits as if it had not.
    answered_in_vain: bool,
    /// Revision that the refresh under way leads to.
    target: Option<Revision>,
}

impl Freshness {
    pub(super) fn acted(&self) -> Revision {
        self.acted
    }

    pub(super) fn known(&self) -> Revision {
        self.known
    }

    pub(super) fn fresh_at(&self) -> Option<Mono> {
        self.fresh_at
    }

    /// A node named a revision. Answers whether it is news.
    pub(super) fn hear(&mut self, node: NodeId, revision: Revision) -> bool {
        let news = revision > self.known;
        if news {
            self.teller = Some(node);
            if std::mem::take(&mut self.answered_in_vain) {
                self.asked = None;
            }
        }
        self.known = self.known.max(revision);
        news
    }

    /// A node's view was confirmed `age_ms` before it answered a keepalive sent at `sent`.
    pub(super) fn handle_confirmed(&mut self, sent: Sent, age_ms: u64, revision: Revision) {
        let at = Mono(sent.0.0.saturating_sub(age_ms));
        if revision <= self.acted {
            self.fresh_at = self.fresh_at.max(Some(at));
            return;
        }
        if self.ahead.len() == AHEAD_MAX {
            self.ahead.remove(0);
        }
        self.ahead.push((revision, at));
    }

    /// Whether changes are to be asked for now: whom best, and whom not.
    pub(super) fn wants_changes(&self, now: Mono) -> Option<(Option<NodeId>, Option<NodeId>)> {
        if self.target.is_some() || self.known <= self.acted {
            return None;
        }
        match self.asked {
            Some((_, at)) if now.since_ms(at) < ASK_AGAIN_MS => None,
            Some((node, _)) => Some((None, Some(node))),
            None => Some((self.teller, None)),
        }
    }

    pub(super) fn asked(&mut self, now: Mono, node: NodeId) {
        self.asked = Some((node, now));
        self.answered_in_vain = false;
    }

    /// The node that was asked cannot tell, or is gone.
    pub(super) fn handle_unable(&mut self, now: Mono, node: NodeId) {
        if let Some((asked, at)) = &mut self.asked
            && *asked == node
        {
            *at = Mono(now.0.saturating_sub(ASK_AGAIN_MS - ELSEWHERE_MS));
        }
    }

    /// Changes up to `revision` were named: once their principals are refreshed the view is there. Answers
    /// whether they are news.
    pub(super) fn begin(&mut self, revision: Revision) -> bool {
        self.known = self.known.max(revision);
        let news = self.target.is_none() && revision > self.acted;
        if news {
            self.asked = None;
            self.target = Some(revision);
        }
        self.answered_in_vain = !news;
        news
    }

    /// Everything was refreshed.
    pub(super) fn finish(&mut self) {
        let Some(target) = self.target.take() else {
            return;
        };
        self.reach(target);
    }

    /// The view holds nothing that could be older than `revision`.
    pub(super) fn reach(&mut self, revision: Revision) {
        self.acted = self.acted.max(revision);
        let acted = self.acted;
        for (revision, at) in std::mem::take(&mut self.ahead) {
            if revision <= acted {
                self.fresh_at = self.fresh_at.max(Some(at));
            } else {
                self.ahead.push((revision, at));
            }
        }
    }

    pub(super) fn is_refreshing(&self) -> bool {
        self.target.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_core::ids::Incarnation;

    fn revision(index: u64) -> Revision {
        Revision {
            incarnation: Incarnation(1),
            index,
        }
    }

    #[test]
    fn a_confirmation_counts_from_its_sending_less_its_age() {
        let mut freshness = Freshness::default();
        freshness.reach(revision(5));
        freshness.handle_confirmed(Sent(Mono(1000)), 300, revision(5));
        assert_eq!(freshness.fresh_at(), Some(Mono(700)));
        freshness.handle_confirmed(Sent(Mono(900)), 300, revision(4));
        assert_eq!(
            freshness.fresh_at(),
            Some(Mono(700)),
            "an older one takes nothing back"
        );
    }

    #[test]
    fn a_node_that_knows_nothing_new_is_not_asked_in_a_loop() {
        let mut freshness = Freshness::default();
        freshness.reach(revision(5));
        freshness.hear(NodeId(1), revision(7));
        // Its teller is gone; whoever is left has not heard of the commit.
        freshness.asked(Mono(2000), NodeId(2));
        assert!(!freshness.begin(revision(5)));
        assert_eq!(freshness.wants_changes(Mono(2001)), None);
        assert_eq!(
            freshness.wants_changes(Mono(2500)),
            Some((None, Some(NodeId(2))))
        );
        freshness.asked(Mono(2500), NodeId(3));
        assert!(!freshness.begin(revision(5)));
        // What was not known when it was asked is asked for at once.
        assert!(freshness.hear(NodeId(3), revision(8)));
        assert_eq!(
            freshness.wants_changes(Mono(2501)),
            Some((Some(NodeId(3)), None))
        );
    }

    #[test]
    fn a_view_that_lacks_changes_is_not_made_fresh_by_the_node_that_told_of_them() {
        let mut freshness = Freshness::default();
        freshness.reach(revision(5));
        assert!(freshness.hear(NodeId(1), revision(7)));
        freshness.handle_confirmed(Sent(Mono(2000)), 0, revision(7));
        assert_eq!(freshness.fresh_at(), None);
        assert_eq!(
            freshness.wants_changes(Mono(2000)),
            Some((Some(NodeId(1)), None))
        );
        freshness.asked(Mono(2000), NodeId(1));
        assert_eq!(freshness.wants_changes(Mono(2400)), None);
        assert_eq!(
            freshness.wants_changes(Mono(2500)),
            Some((None, Some(NodeId(1))))
        );
        assert!(freshness.begin(revision(7)));
        assert_eq!(
            freshness.wants_changes(Mono(9000)),
            None,
            "a refresh is under way"
        );
        assert_eq!(freshness.fresh_at(), None);
        freshness.finish();
        assert_eq!(
            (freshness.acted(), freshness.fresh_at()),
            (revision(7), Some(Mono(2000)))
        );
    }
}
