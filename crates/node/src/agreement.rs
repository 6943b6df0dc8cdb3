//! What rides on confirmations: that a boot lives, what its clock says, and whether its state is everyone's.
//!
//! The leader names a point (an index it has applied) for a second or so; every voter answers the digest of its
//! own state there. Once a majority of voters agrees on one digest, a node with another is told to stop, the
//! leader included. Pure: [`crate::overseer`] feeds it.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tollgate_core::ids::{Boot, NodeId};
use tollgate_core::time::LedgerTime;

/// What a node sends with each confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its boot; 0 before the ledger numbered it.
    pub boot: Boot,
    /// Its wall clock.
    pub wall: LedgerTime,
    /// The digest of its state at the point asked for last, if it still knows it.
    pub digest: Option<(u64, u128)>,
}

/// What the leader answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The index whose digest the next question is to carry.
    pub point: Option<u64>,
    /// What became of the digest.
    pub verdict: Verdict,
}

/// Whether a node's state is that of the majority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// As far as is known.
    Same,
    /// It is another one.
    Diverged(Diverged),
}

/// A node whose state is not that of the majority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "the state of node {node} differs from that of a majority: at index {index} its digest is {found:032x}, \
    theirs {majority:032x}; it must not serve. Keep its folder for an inquiry, remove the node from the cluster, \
    and let it join with an empty folder under a new node id"
)]
pub struct Diverged {
    /// The node.
    pub node: NodeId,
    /// The index compared at.
    pub index: u64,
    /// Its digest.
    pub found: u128,
    /// The digest of the majority.
    pub majority: u128,
}

/// The digests of one point.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    point: Option<u64>,
    digests: BTreeMap<NodeId, u128>,
}

impl Agreement {
    /// Begins a new point with the leader's own digest.
    pub fn begin(&mut self, leader: NodeId, (index, digest): (u64, u128)) {
        self.point = Some(index);
        self.digests = BTreeMap::from([(leader, digest)]);
    }

    /// The index whose digests are gathered.
    #[must_use]
    pub fn point(&self) -> Option<u64> {
        self.point
    }

    /// Takes a node's digest in.
    pub fn take(&mut self, node: NodeId, (index, digest): (u64, u128)) {
        if self.point == Some(index) {
            self.digests.insert(node, digest);
        }
    }

    /// What is known of a node's state.
    #[must_use]
    pub fn verdict(&self, node: NodeId, voters: &BTreeSet<NodeId>) -> Verdict {
        let (Some(index), Some(found)) = (self.point, self.digests.get(&node).copied()) else {
            return Verdict::Same;
        };
        let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
        for (_, digest) in self
            .digests
            .iter()
            .filter(|(node, _)| voters.contains(node))
        {
            *votes.entry(*digest).or_default() += 1;
        }
        let majority = votes
            .into_iter()
            .find(|(_, count)| *count > voters.len() / 2);
        match majority {
            Some((majority, _)) if majority != found => Verdict::Diverged(Diverged {
                node,
                index,
                found,
                majority,
            }),
            _ => Verdict::Same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_majority_condemns_and_it_may_condemn_the_leader() {
        let voters: BTreeSet<NodeId> = [1, 2, 3].map(NodeId).into();
        let [one, two, three] = [1, 2, 3].map(NodeId);
        let mut agreement = Agreement::default();
        agreement.begin(one, (7, 0xA));
        agreement.take(two, (7, 0xB));
        assert_eq!(
            agreement.verdict(two, &voters),
            Verdict::Same,
            "one against one decides nothing"
        );
        agreement.take(three, (6, 0xA));
        assert_eq!(
            agreement.verdict(two, &voters),
            Verdict::Same,
            "another point does not count"
        );
        agreement.take(three, (7, 0xA));
        let diverged = Diverged {
            node: two,
            index: 7,
            found: 0xB,
            majority: 0xA,
        };
        assert_eq!(agreement.verdict(two, &voters), Verdict::Diverged(diverged));
        assert_eq!(agreement.verdict(one, &voters), Verdict::Same);
        agreement.take(three, (7, 0xB));
        assert!(matches!(
            agreement.verdict(one, &voters),
            Verdict::Diverged(_)
        ));
        agreement.begin(one, (9, 0xC));
        assert_eq!(agreement.verdict(two, &voters), Verdict::Same);
    }
}
