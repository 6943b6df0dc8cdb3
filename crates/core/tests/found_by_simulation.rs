//! What the simulator found in issuer and lessee, each as the few steps that show it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell as Number;
use std::rc::Rc;
use tollgate_core::account::{AccountId, AccountParts, Environment, Name, Per, Subject, Window};
use tollgate_core::admin::{AdminCommand, Change, Item};
use tollgate_core::catalog::{Limit, Overage};
use tollgate_core::command::{
    Assign, Command, Entry, OpenNode, OpenSession, Position, PositionReply, Reply,
};
use tollgate_core::ids::{Boot, Epoch, Incarnation, LeaseNo, NodeId, Nonce, Revision, Slot, Units};
use tollgate_core::issuer::{Issuer, Output, ResolveLease};
use tollgate_core::ledger::Ledger;
use tollgate_core::lessee::{self, Cell as _, Lessee, Refusal};
use tollgate_core::message::{
    AnswerLine, Held, Lease, LeaseAnswer, LeaseLine, LeaseState, Recall, Route, SlotAnswer,
    SlotLease, SlotOutcome,
};
use tollgate_core::time::{LedgerTime, Mono};

const NODE: NodeId = NodeId(1);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn account() -> AccountId {
    AccountId::new(&AccountParts {
        environment: Environment::Live,
        customer: "acme",
        license: None,
        subject: Subject::Customer,
        limit: "calls",
        window: Window::Open,
    })
    .unwrap()
}

fn slot() -> Slot {
    account().slot()
}

/// One node that owns the slot, a ledger with one limit, sessions of some edges.
struct Cluster {
    ledger: Ledger,
    issuer: Issuer,
    edges: Vec<Boot>,
}

impl Cluster {
    fn new(quota: Units, edges: usize) -> Self {
        let mut ledger = Ledger::new(Incarnation(1));
        let limit = Limit {
            name: name("calls"),
            meter: name("requests"),
            per: Per::Customer,
            quota,
            window: Window::Open,
            overage: Overage::Reject,
        };
        let license = Item::License {
            id: name("acme-l"),
            customer: name("acme"),
            plan: name("p"),
            version: None,
            status: None,
        };
        let items = vec![
            Item::Plan {
                id: name("p"),
                limits: vec![limit],
            },
            Item::Customer { id: name("acme") },
            license,
        ];
        let setup = AdminCommand {
            principal: name("test"),
            idempotency_key: None,
            base_revision: None,
            reason: "setup".into(),
            change: Change::Apply { items },
        };
        let open = OpenNode {
            node: NODE,
            nonce: Nonce(1),
        };
        apply(
            &mut ledger,
            vec![Command::Admin(Box::new(setup)), Command::OpenNode(open)],
        );
        let boot = ledger.node_boot(NODE).unwrap();
        let assign = Assign {
            slots: vec![(slot(), Epoch(0))],
            node: NODE,
            boot,
        };
        apply(&mut ledger, vec![Command::Assign(assign)]);
        let mut issuer = Issuer::new(NODE, boot);
        let edges = (0..edges)
            .map(|edge| open_session(&mut ledger, edge))
            .collect::<Vec<_>>();
        edges.iter().for_each(|edge| issuer.handle_connected(*edge));
        Self {
            ledger,
            issuer,
            edges,
        }
    }

    /// Takes what the issuer wants done: positions and the rest.
    fn outputs(&mut self) -> (Vec<Position>, Vec<Output>) {
        let (mut positions, mut others) = (Vec::new(), Vec::new());
        while let Some(output) = self.issuer.poll() {
            match output {
                Output::Propose(position) => positions.push(position),
                other => others.push(other),
            }
        }
        (positions, others)
    }

    fn commit(&mut self, position: Position) -> PositionReply {
        match apply(&mut self.ledger, vec![Command::Position(position)]).remove(0) {
            Reply::Position(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Commits positions and hands the answers in until nothing is asked of the ledger any more.
    fn settle(&mut self, now: Mono) -> Vec<Output> {
        let mut seen = Vec::new();
        loop {
            let (positions, others) = self.outputs();
            seen.extend(others);
            if positions.is_empty() {
                return seen;
            }
            for position in positions {
                let reply = self.commit(position);
                self.issuer.handle_position(now, &self.ledger, &reply);
            }
        }
    }

    fn lease(&mut self, now: Mono, edge: usize, line: LeaseLine) -> AnswerLine {
        let part = SlotLease {
            slot: slot(),
            epoch: Epoch(1),
            lines: vec![line],
        };
        let lease = Lease {
            boot: self.edges[edge],
            slots: vec![part],
        };
        let answer = self.issuer.handle_lease(now, &self.ledger, &lease).unwrap();
        match &answer.slots[0].outcome {
            SlotOutcome::Lines { lines, .. } => lines[0].clone(),
            other => panic!("{other:?}"),
        }
    }
}

fn apply(ledger: &mut Ledger, commands: Vec<Command>) -> Vec<Reply> {
    let index = ledger.index() + 1;
    ledger.apply(
        index,
        &Entry {
            time: LedgerTime(index),
            commands,
        },
    )
}

fn open_session(ledger: &mut Ledger, edge: usize) -> Boot {
    let open = OpenSession {
        session: None,
        nonce: Nonce(1),
        identity: name(&format!("edge-{edge}")),
        incarnation: Incarnation(1),
    };
    let sessions = ledger.sessions().count();
    apply(ledger, vec![Command::OpenSession(open)]);
    ledger.sessions().nth(sessions).unwrap().1.boot
}

fn line(lease_no: u64, want: Units, need: Units, surrendered: Units) -> LeaseLine {
    LeaseLine {
        account: account(),
        lease_no: LeaseNo(lease_no),
        carried: 0,
        want_total: want,
        need_total: need,
        surrendered_total: surrendered,
        demand: 0,
        closing: false,
    }
}

#[test]
fn a_late_copy_of_a_positions_answer_brings_no_position_of_its_own() {
    let mut cluster = Cluster::new(1000, 1);
    cluster.lease(Mono(0), 0, line(1, 1, 1, 0));
    let first = cluster.outputs().0.remove(0);
    let old = cluster.commit(first);
    cluster
        .issuer
        .handle_position(Mono(1), &cluster.ledger, &old);
    cluster.lease(Mono(2), 0, line(1, 2, 2, 0));
    assert_eq!(
        cluster.outputs().0.len(),
        1,
        "the second unit is asked for once"
    );
    for _ in 0..5 {
        cluster
            .issuer
            .handle_position(Mono(3), &cluster.ledger, &old);
    }
    assert!(
        cluster.outputs().0.is_empty(),
        "a copy of an old answer asks for nothing again"
    );
}

#[test]
fn units_recalled_for_a_check_do_not_go_back_to_who_handed_them_in() {
    let mut cluster = Cluster::new(3, 2);
    // The first edge got all three and still wishes for many.
    cluster.lease(Mono(0), 0, line(1, 50, 3, 0));
    cluster.settle(Mono(1));
    let answer = cluster.lease(Mono(2), 1, line(1, 2, 2, 0));
    assert_eq!(answer.state, LeaseState::Recalling);
    cluster.settle(Mono(2));
    // It hands in one unit: too little for the check that waits, and not for its own stock.
    cluster.lease(Mono(3), 0, line(1, 3, 3, 1));
    assert_eq!(cluster.issuer.pool(&account()), 1);
    // The second unit meets the need.
    cluster.lease(Mono(4), 0, line(1, 3, 3, 2));
    let news = cluster.settle(Mono(4));
    let served = news.iter().any(|output| match output {
        Output::Answer(answer) => answer.boot == cluster.edges[1],
        _ => false,
    });
    assert!(served, "{news:?}");
    assert_eq!(cluster.issuer.pool(&account()), 0);
}

#[test]
fn a_surrender_that_comes_after_its_recall_ended_stays_for_who_asks_next() {
    let mut cluster = Cluster::new(1, 2);
    cluster.lease(Mono(0), 0, line(1, 20, 1, 0));
    cluster.settle(Mono(1));
    cluster.lease(Mono(2), 1, line(1, 1, 1, 0));
    let recalls = cluster.settle(Mono(2));
    let Some(Output::Recall { recall, .. }) = recalls.first() else {
        panic!("{recalls:?}")
    };
    // The answer to the recall overtakes the unit.
    let held = Held {
        boot: cluster.edges[0],
        number: recall.number,
        account: account(),
        held: 0,
        lease_no: LeaseNo(1),
        granted_seen: 1,
    };
    cluster.issuer.handle_held(Mono(3), &cluster.ledger, &held);
    cluster.lease(Mono(4), 0, line(1, 1, 1, 1));
    assert_eq!(
        cluster.issuer.pool(&account()),
        1,
        "its old wish for 20 is over"
    );
    let answer = cluster.lease(Mono(5), 1, line(1, 1, 1, 0));
    assert_eq!(
        (answer.granted_total, answer.state),
        (1, LeaseState::Granted)
    );
}

#[test]
fn an_edge_below_the_number_that_a_resolve_opened_is_told_to_draw_another() {
    let mut cluster = Cluster::new(100, 1);
    let resolve = ResolveLease {
        boot: cluster.edges[0],
        lease_no: LeaseNo(9),
        want: 0,
        need: 0,
        accounts: &[account()],
    };
    cluster
        .issuer
        .handle_resolve(Mono(0), &cluster.ledger, &resolve)
        .unwrap();
    let answer = cluster.lease(Mono(1), 0, line(6, 1, 1, 0));
    assert_eq!(
        (answer.lease_no, answer.state),
        (LeaseNo(6), LeaseState::Stale)
    );
}

#[derive(Clone, Default)]
struct TestCell(Rc<[Number<Units>; 2]>);

impl lessee::Cell for TestCell {
    fn deposit(&self, units: Units) {
        self.0[0].set(self.0[0].get() + units);
    }
    fn withdraw(&self, at_most: Units) -> Units {
        let units = at_most.min(self.0[0].get());
        self.0[0].set(self.0[0].get() - units);
        units
    }
    fn free(&self) -> Units {
        self.0[0].get()
    }
    fn used(&self) -> Units {
        self.0[1].get()
    }
    fn set_refusal(&self, _: Option<Refusal>) {}
}

fn lessee_at(epoch: u64) -> (Lessee<TestCell>, (NodeId, Boot)) {
    lessee_of(Boot(5), epoch)
}

fn lessee_of(boot: Boot, epoch: u64) -> (Lessee<TestCell>, (NodeId, Boot)) {
    let mut lessee = Lessee::new(boot);
    let owner = (NODE, Boot(1));
    let route = Route {
        slot: slot(),
        epoch: Epoch(epoch),
        owner: Some(owner),
    };
    lessee.handle_routes(Mono(0), &[route]);
    (lessee, owner)
}

fn granted(epoch: u64, lease_no: u64, units: Units, state: LeaseState) -> SlotAnswer {
    let line = AnswerLine {
        account: account(),
        lease_no: LeaseNo(lease_no),
        granted_total: units,
        surrendered_total: 0,
        need_total: 1,
        remaining: 100,
        state,
    };
    SlotAnswer {
        slot: slot(),
        outcome: SlotOutcome::Lines {
            epoch: Epoch(epoch),
            lines: vec![line],
        },
    }
}

/// The next `Lease` line it sends, if it sends one.
fn sent(lessee: &mut Lessee<TestCell>, now: Mono) -> Option<LeaseLine> {
    match lessee.poll(now)? {
        lessee::Output::Lease { lease, .. } => Some(lease.slots[0].lines[0].clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_row_without_an_answer_takes_what_a_later_resolve_granted_once() {
    let (mut lessee, owner) = lessee_at(1);
    let cell = TestCell::default();
    lessee.open(Mono(0), &account(), cell.clone(), None);
    lessee.handle_want(Mono(0), &account(), 1);
    let own = sent(&mut lessee, Mono(0)).unwrap().lease_no;
    let resolve = lessee.draw();
    assert!(resolve > own);
    for _ in 0..2 {
        // Twice: a late copy of the answer must not count again.
        lessee.open(Mono(1), &account(), TestCell::default(), Some(resolve));
        let part = granted(1, resolve.0, 4, LeaseState::Granted);
        lessee.handle_slot_answer(Mono(1), owner, Revision::default(), &part);
        assert_eq!(cell.free(), 4);
    }
}

#[test]
fn a_late_answer_of_a_former_issuer_does_not_bind_a_row_to_its_epoch() {
    let (mut lessee, owner) = lessee_at(2);
    let resolve = lessee.draw();
    lessee.open(Mono(0), &account(), TestCell::default(), Some(resolve));
    let part = granted(1, resolve.0, 0, LeaseState::Pending);
    lessee.handle_slot_answer(Mono(0), owner, Revision::default(), &part);
    lessee.handle_want(Mono(1), &account(), 1);
    assert!(
        sent(&mut lessee, Mono(1)).is_some(),
        "the row asks the issuer of today"
    );
}

#[test]
fn a_refusal_of_an_older_catalog_is_waited_out_with_back_off() {
    let (mut lessee, owner) = lessee_at(1);
    lessee.open(Mono(0), &account(), TestCell::default(), None);
    let newer = Revision {
        incarnation: Incarnation(1),
        index: 9,
    };
    lessee.handle_revision(newer);
    let mut sendings = 0;
    for now in (0..1000).map(Mono) {
        // A check that waits looks again at every turn.
        lessee.handle_want(now, &account(), 1);
        if let Some(line) = sent(&mut lessee, now) {
            sendings += 1;
            let part = granted(1, line.lease_no.0, 0, LeaseState::NoneNow);
            let answer = LeaseAnswer {
                boot: Boot(5),
                revision: Revision::default(),
                slots: vec![part],
            };
            lessee.handle_answer(now, owner, &answer);
        }
    }
    assert!(
        (2..10).contains(&sendings),
        "asked {sendings} times in a second"
    );
}

/// A unit is on its way to the first edge when the second one's check makes the issuer recall it.
struct Overtaken {
    cluster: Cluster,
    holder: Lessee<TestCell>,
    cell: TestCell,
    owner: (NodeId, Boot),
    /// What was granted to the first edge, not there yet.
    grant: Vec<Output>,
    recall: Recall,
}

impl Overtaken {
    fn new() -> Self {
        let mut cluster = Cluster::new(1, 2);
        let (mut holder, owner) = lessee_of(cluster.edges[0], 1);
        let cell = TestCell::default();
        holder.open(Mono(0), &account(), cell.clone(), None);
        holder.handle_want(Mono(0), &account(), 1);
        let asked = sent(&mut holder, Mono(0)).unwrap();
        cluster.lease(Mono(0), 0, asked);
        let grant = cluster.settle(Mono(1));
        let answer = cluster.lease(Mono(2), 1, line(1, 1, 1, 0));
        assert_eq!(answer.state, LeaseState::Recalling);
        let recall = recalls(cluster.settle(Mono(2))).remove(0);
        Self {
            cluster,
            holder,
            cell,
            owner,
            grant,
            recall,
        }
    }

    /// The first edge's word on a recall reaches the issuer, after what it hands in.
    fn answer_recall(&mut self, now: Mono, recall: &Recall) -> Vec<Output> {
        self.holder.handle_recall(now, self.owner, recall);
        while let Some(output) = self.holder.poll(now) {
            match output {
                lessee::Output::Lease { lease, .. } => {
                    let Cluster { issuer, ledger, .. } = &mut self.cluster;
                    issuer.handle_lease(now, ledger, &lease).unwrap();
                }
                lessee::Output::Held { held, .. } => {
                    let Cluster { issuer, ledger, .. } = &mut self.cluster;
                    issuer.handle_held(now, ledger, &held);
                }
                lessee::Output::Fenced => panic!("nobody is fenced"),
            }
        }
        self.cluster.settle(now)
    }

    /// Answers among `outputs` to the first edge arrive.
    fn arrive(&mut self, now: Mono, outputs: Vec<Output>) {
        for output in outputs {
            if let Output::Answer(answer) = output {
                self.holder.handle_answer(now, self.owner, &answer);
            }
        }
    }

    fn time(&mut self, now: Mono) -> Vec<Output> {
        let Cluster { issuer, ledger, .. } = &mut self.cluster;
        issuer.handle_timeout(now, ledger);
        self.cluster.settle(now)
    }

    /// What the issuer told the second edge last.
    fn told(&self, outputs: &[Output]) -> Option<(Units, LeaseState)> {
        let mut told = outputs.iter().filter_map(|output| match output {
            Output::Answer(answer) if answer.boot == self.cluster.edges[1] => {
                match &answer.slots[0].outcome {
                    SlotOutcome::Lines { lines, .. } => {
                        Some((lines[0].granted_total, lines[0].state))
                    }
                    other => panic!("{other:?}"),
                }
            }
            _ => None,
        });
        told.next_back()
    }
}

fn recalls(outputs: Vec<Output>) -> Vec<Recall> {
    let recall = |output| match output {
        Output::Recall { recall, .. } => Some(recall),
        _ => None,
    };
    outputs.into_iter().filter_map(recall).collect()
}

#[test]
fn a_recall_that_overtakes_a_grant_refuses_nobody() {
    let mut run = Overtaken::new();
    let recall = run.recall.clone();
    let outputs = run.answer_recall(Mono(3), &recall);
    assert_eq!(run.told(&outputs), None, "the unit is on its way");
    let grant = std::mem::take(&mut run.grant);
    run.arrive(Mono(4), grant);
    assert_eq!(run.cell.free(), 1);
    let answer = run.cluster.lease(Mono(5), 1, line(1, 1, 1, 0));
    assert_eq!(answer.state, LeaseState::Recalling);
    assert_eq!(recalls(run.time(Mono(301))), []);
    let next = recalls(run.time(Mono(302))).remove(0);
    let outputs = run.answer_recall(Mono(303), &next);
    assert_eq!(run.told(&outputs), Some((1, LeaseState::Granted)));
}

#[test]
fn a_grant_that_was_lost_is_said_again_where_its_recall_was_answered() {
    let mut run = Overtaken::new();
    let recall = run.recall.clone();
    let outputs = run.answer_recall(Mono(3), &recall);
    run.arrive(Mono(4), outputs);
    assert_eq!(run.cell.free(), 1);
}

#[test]
fn an_edge_that_never_sees_a_grant_makes_others_wait_for_one_more_recall() {
    let mut run = Overtaken::new();
    let recall = run.recall.clone();
    let outputs = run.answer_recall(Mono(3), &recall);
    assert_eq!(run.told(&outputs), None);
    let next = recalls(run.time(Mono(302))).remove(0);
    let outputs = run.answer_recall(Mono(303), &next);
    assert_eq!(run.told(&outputs), Some((0, LeaseState::NoneNow)));
}

#[test]
fn a_late_word_of_a_grant_not_seen_brings_the_next_recall_sooner() {
    let mut run = Overtaken::new();
    let recall = run.recall.clone();
    let outputs = run.time(Mono(302));
    assert_eq!(
        run.told(&outputs),
        Some((0, LeaseState::NoneNow)),
        "nobody answered in time"
    );
    run.answer_recall(Mono(310), &recall);
    let grant = std::mem::take(&mut run.grant);
    run.arrive(Mono(311), grant);
    let answer = run.cluster.lease(Mono(320), 1, line(1, 1, 1, 0));
    assert_eq!(answer.state, LeaseState::Recalling);
    let next = recalls(run.cluster.settle(Mono(320))).remove(0);
    let outputs = run.answer_recall(Mono(321), &next);
    assert_eq!(run.told(&outputs), Some((1, LeaseState::Granted)));
}

#[test]
fn a_late_copy_of_a_refusal_does_not_answer_a_smaller_need() {
    let mut cluster = Cluster::new(5, 1);
    let (mut lessee, owner) = lessee_of(cluster.edges[0], 1);
    lessee.open(Mono(0), &account(), TestCell::default(), None);
    lessee.handle_want(Mono(0), &account(), 10);
    let ten = sent(&mut lessee, Mono(0)).unwrap();
    cluster.lease(Mono(0), 0, ten);
    let Some(Output::Answer(refused)) = cluster.settle(Mono(1)).pop() else {
        panic!("five units are all there are")
    };
    lessee.handle_answer(Mono(2), owner, &refused);
    assert!(!lessee.is_waiting());
    lessee.handle_want(Mono(3), &account(), 1);
    let one = sent(&mut lessee, Mono(3)).unwrap();
    lessee.handle_answer(Mono(4), owner, &refused);
    assert!(lessee.is_waiting(), "one unit was not refused");
    let answer = cluster.lease(Mono(5), 0, one);
    assert_eq!(
        (answer.granted_total, answer.state),
        (1, LeaseState::Granted)
    );
}

/// Ten units, six with the first edge and four with the second; the first one's check needs four more, which
/// the second one has spent.
fn spent_by_the_second() -> Cluster {
    let mut cluster = Cluster::new(10, 2);
    cluster.lease(Mono(0), 0, line(1, 6, 6, 0));
    cluster.lease(Mono(0), 1, line(1, 4, 4, 0));
    cluster.settle(Mono(1));
    let answer = cluster.lease(Mono(2), 0, line(1, 10, 10, 0));
    assert_eq!(answer.state, LeaseState::Recalling);
    cluster
}

/// An edge with nothing to hand in answers the recall that went out.
fn nothing_held(cluster: &mut Cluster, now: Mono, edge: usize, granted_seen: Units) -> Vec<Output> {
    let recall = recalls(cluster.settle(now)).remove(0);
    let held = Held {
        boot: cluster.edges[edge],
        number: recall.number,
        account: account(),
        held: 0,
        lease_no: LeaseNo(1),
        granted_seen,
    };
    cluster.issuer.handle_held(now, &cluster.ledger, &held);
    cluster.settle(now)
}

#[test]
fn an_edge_that_a_recall_spared_is_asked_before_another_is_refused() {
    let mut cluster = spent_by_the_second();
    nothing_held(&mut cluster, Mono(3), 1, 4);
    // The first edge was refused and holds its six. The pause after a recall that brought nothing is not over.
    let answer = cluster.lease(Mono(400), 1, line(1, 5, 5, 0));
    assert_eq!(answer.state, LeaseState::Recalling);
    let asked = recalls(cluster.settle(Mono(400)));
    assert_eq!(asked.len(), 1);
    cluster.lease(Mono(401), 0, line(1, 6, 6, 6));
    let answer = cluster.lease(Mono(402), 1, line(1, 5, 5, 0));
    assert_eq!(
        (answer.granted_total, answer.state),
        (5, LeaseState::Granted)
    );
}

#[test]
fn of_two_that_wait_the_second_is_refused_when_the_first_has_been_asked() {
    let mut cluster = spent_by_the_second();
    cluster.lease(Mono(3), 1, line(1, 5, 5, 0));
    let told = nothing_held(&mut cluster, Mono(4), 1, 4);
    let told: Vec<Boot> = told
        .iter()
        .map(|output| match output {
            Output::Answer(answer) => answer.boot,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, [cluster.edges[0]], "the second waits on");
    cluster.issuer.handle_timeout(Mono(302), &cluster.ledger);
    nothing_held(&mut cluster, Mono(302), 0, 6);
    let answer = cluster.lease(Mono(303), 1, line(1, 5, 5, 0));
    assert_eq!(answer.state, LeaseState::NoneNow);
}
