//! What is proposed: positions of 64 bytes, each caller's own account, as issuers send them.
//!
//! Owns the catalog that knows the accounts, and the check that every answer is the one the ledger
//! owes: a command that was refused would be no work.

use tollgate_core::account::{AccountId, Name, Per, Window};
use tollgate_core::admin::{self, AdminCommand, Change, Item};
use tollgate_core::catalog::{Limit, Overage};
use tollgate_core::command::{
    Assign, AssignReply, Command, LineOutcome, OpenNode, OpenNodeReply, Position, PositionLine,
    PositionOutcome, Reply,
};
use tollgate_core::ids::{Epoch, NodeId, Nonce, Slot};
use tollgate_node::consensus::Proposer;

use crate::cluster::{Cluster, NODES, Node};
use crate::load::Caller;

/// Units of each account; no caller ever gets there.
const QUOTA: u64 = 1 << 40;

/// Totals begin here, so that each takes 3 bytes for the next 65,000 commands of a caller, as totals do.
const FIRST_TOTAL: u64 = 300;

/// The epoch that the first assignment of a slot brings.
const EPOCH: Epoch = Epoch(1);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The customer of a caller. As long as it makes most commands 64 bytes.
fn customer(caller: usize) -> String {
    format!("customer-{caller:017}")
}

fn account(caller: usize) -> AccountId {
    AccountId::parse(&format!("live/{}/-/customer/quota/open", customer(caller))).unwrap()
}

/// Makes the accounts of `callers` known, and every node the issuer of a third of the slots.
pub(crate) async fn prepare(cluster: &Cluster, callers: usize) {
    let leader = &cluster.nodes()[cluster.leader().await];
    for node in 1..=NODES {
        let open = OpenNode {
            node: NodeId(node),
            nonce: Nonce(1),
        };
        let opened = leader.proposer.propose(&Command::OpenNode(open)).await;
        let Ok(Reply::OpenNode(OpenNodeReply::Boot(boot))) = opened else {
            panic!("node {node} gets a boot, not {opened:?}");
        };
        let own = Slot::all().filter(|slot| issuer(*slot) as u64 + 1 == node);
        let assign = Assign {
            slots: own.map(|slot| (slot, Epoch(0))).collect(),
            node: NodeId(node),
            boot,
        };
        let assigned = leader.proposer.propose(&Command::Assign(assign)).await;
        assert!(
            matches!(&assigned, Ok(Reply::Assign(AssignReply::Assigned(slots)))
                if slots.iter().all(|(_, epoch)| *epoch == EPOCH)),
            "{assigned:?}"
        );
    }
    for items in admin::parts(catalog(callers)) {
        let command = AdminCommand {
            principal: name("bench"),
            idempotency_key: None,
            base_revision: None,
            reason: "the bench's customers".into(),
            change: Change::Apply { items },
        };
        let applied = leader
            .proposer
            .propose(&Command::Admin(Box::new(command)))
            .await;
        let Ok(Reply::Admin(reply)) = applied else {
            panic!("{applied:?}");
        };
        assert!(
            matches!(*reply, admin::AdminReply::Done { .. }),
            "{reply:?}"
        );
    }
}

fn catalog(callers: usize) -> Vec<Item> {
    let limit = Limit {
        name: name("quota"),
        meter: name("requests"),
        per: Per::Customer,
        quota: QUOTA,
        window: Window::Open,
        overage: Overage::Reject,
    };
    let plan = Item::Plan {
        id: name("plan"),
        limits: vec![limit],
    };
    let customers = (0..callers).flat_map(|caller| {
        let id = name(&customer(caller));
        let license = Item::License {
            id: id.clone(),
            customer: id.clone(),
            plan: name("plan"),
            version: None,
            status: None,
        };
        [Item::Customer { id }, license]
    });
    std::iter::once(plan).chain(customers).collect()
}

/// Which node is the issuer of a slot.
fn issuer(slot: Slot) -> usize {
    slot.index() % usize::try_from(NODES).unwrap()
}

/// An issuer's state of one account: what it acquired in all.
pub(crate) struct Issuer {
    proposer: Proposer,
    slot: Slot,
    account: AccountId,
    acquired_total: u64,
}

impl Issuer {
    /// One caller per account, each at the node that is issuer of its slot.
    pub(crate) fn all(cluster: &Cluster, callers: usize) -> Vec<Self> {
        (0..callers)
            .map(|caller| {
                let account = account(caller);
                let slot = account.slot();
                Self {
                    proposer: cluster.nodes()[issuer(slot)].proposer.clone(),
                    slot,
                    account,
                    acquired_total: FIRST_TOTAL,
                }
            })
            .collect()
    }

    /// The same account, proposed at another node.
    pub(crate) fn at(self, node: &Node) -> Self {
        Self {
            proposer: node.proposer.clone(),
            ..self
        }
    }

    fn command(&self) -> Command {
        Command::Position(Position {
            slot: self.slot,
            epoch: EPOCH,
            lines: vec![PositionLine {
                account: self.account.clone(),
                acquired_total: self.acquired_total,
                returned_total: 0,
            }],
        })
    }

    /// Bytes of its next command as the log carries it.
    pub(crate) fn command_bytes(&self) -> usize {
        tollgate_wire::codec::encode(&self.command()).unwrap().len()
    }
}

impl Caller for Issuer {
    async fn call(&mut self) -> Result<(), String> {
        self.acquired_total += 1;
        let replied = self.proposer.propose(&self.command()).await;
        match replied {
            Ok(Reply::Position(reply)) => match reply.outcome {
                PositionOutcome::Lines(lines) if stands(&lines, self.acquired_total) => Ok(()),
                other => Err(format!("{other:?}")),
            },
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn stands(lines: &[(AccountId, LineOutcome)], total: u64) -> bool {
    matches!(lines, [(_, LineOutcome::Stands { acquired_total, .. })] if *acquired_total == total)
}
