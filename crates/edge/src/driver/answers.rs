//! What nodes say, and what it changes in the view, the lessee and the waiters.

use super::nodes::Stream;
use super::resolve::Pending;
use super::{Driver, Mono};
use crate::decision::Reason;
use crate::link::Event;
use crate::principal::{Parts, Purse};
use crate::view::{Denial, PRINCIPALS_MAX};
use std::sync::Arc;
use tollgate_core::account::{AccountId, Name};
use tollgate_core::ids::{Boot, NodeId, Revision};
use tollgate_core::lessee::Cell;
use tollgate_core::message::{
    EdgeMessage, LeaseAnswer, LeaseState, NodeMessage, Principal as Who, ResolveAnswer,
    ResolveOutcome, SlotAnswer, SlotOutcome,
};
use tollgate_core::time::Sent;

impl Driver {
    pub(super) fn handle_event(&mut self, now: Mono, event: Event) {
        match event {
            Event::Up {
                node,
                boot,
                incarnation,
                outbox,
            } => {
                self.nodes.handle_up(node, boot, outbox);
                if let Some(incarnation) = incarnation {
                    self.handle_incarnation(incarnation);
                }
                self.reports.handle_up(node);
                if let Some(boot) = self.session.boot() {
                    // Ties the connection to this boot, and proves freshness. The link's own `Hello` may
                    // have gone out before the boot was known; the node ignores a repeat.
                    let hello = self.introduction.borrow().hello();
                    let hello = EdgeMessage::Hello(hello);
                    self.nodes.send(node, Stream::Control, hello);
                    self.keep_alive_at(node, boot);
                }
                tracing::info!(%node, %boot, "connected");
            }
            Event::Down { node, reason } => {
                tracing::warn!(%node, %reason, "not connected");
                self.nodes.handle_down(node, reason);
                self.resolves.handle_down(now, node);
                self.reports.handle_down(now, node);
                self.session.handle_unable(now, node);
                self.freshness.handle_unable(now, node);
            }
            Event::Message { node, message } => {
                // The link of a node that is not up any more has nothing to say.
                if let Some(boot) = self.nodes.boot(node) {
                    self.handle_message(now, (node, boot), message);
                }
            }
        }
    }

    fn handle_message(&mut self, now: Mono, from: (NodeId, Boot), message: NodeMessage) {
        match message {
            // Said once already, before the link was up.
            NodeMessage::Hello(_) => {}
            NodeMessage::Session(reply) => self.handle_session(now, &reply),
            NodeMessage::Keepalive {
                sent_mark,
                confirmed_age_ms,
                revision,
                ..
            } => {
                self.hear(from.0, revision);
                if let Some(age_ms) = confirmed_age_ms
                    && sent_mark <= now.0
                {
                    let sent = Sent(Mono(sent_mark));
                    self.freshness.handle_confirmed(sent, age_ms, revision);
                    self.tell_view();
                }
            }
            NodeMessage::Push { revision } => self.hear(from.0, revision),
            NodeMessage::Routes { routes, .. } => self.lessee.handle_routes(now, &routes),
            NodeMessage::Changes {
                revision,
                customers,
            } => {
                self.handle_changes(revision, customers.as_deref());
            }
            NodeMessage::Resolve(answer) => self.handle_resolved(now, from, answer),
            NodeMessage::Lease(answer) => self.handle_lease_answer(now, from, &answer),
            NodeMessage::Recall(recall) => self.lessee.handle_recall(now, from, &recall),
            NodeMessage::Report(answer) => self.handle_report_answer(&answer),
            NodeMessage::Closed(answer) => self.handle_closed(&answer),
            NodeMessage::Unavailable(reason) => {
                tracing::debug!(node = %from.0, %reason, "asking elsewhere");
                self.reports.handle_unable(now, from.0);
                self.session.handle_unable(now, from.0);
                self.freshness.handle_unable(now, from.0);
            }
        }
    }

    fn hear(&mut self, node: NodeId, revision: Revision) {
        if self.freshness.hear(node, revision) {
            self.lessee.handle_revision(revision);
            self.tell_view();
        }
    }

    fn handle_changes(&mut self, revision: Revision, customers: Option<&[Name]>) {
        if self.freshness.begin(revision) {
            self.lessee.handle_revision(self.freshness.known());
            self.resolves.refresh(self.known.of_customers(customers));
            self.tell_view();
        }
    }

    fn handle_lease_answer(&mut self, now: Mono, from: (NodeId, Boot), answer: &LeaseAnswer) {
        self.traffic.lease_answers += 1;
        self.lessee.handle_answer(now, from, answer);
        for part in &answer.slots {
            self.after_slot_answer(now, part);
        }
    }

    /// Estimates and wakes that follow from a slot's answer the lessee has taken in.
    fn after_slot_answer(&mut self, now: Mono, part: &SlotAnswer) {
        let SlotOutcome::Lines { lines, .. } = &part.outcome else {
            return;
        };
        for line in lines {
            if let Some(cell) = self.lessee.cell(&line.account) {
                cell.tell_remaining(line.remaining);
            }
            let under_way = matches!(line.state, LeaseState::Pending | LeaseState::Recalling);
            self.look_after(now, &line.account, !under_way);
        }
    }

    fn handle_resolved(&mut self, now: Mono, from: (NodeId, Boot), answer: ResolveAnswer) {
        let ResolveAnswer {
            nonce,
            revision,
            outcome,
            lease,
        } = answer;
        self.hear(from.0, revision);
        let usable = outcome != ResolveOutcome::Unconfirmed && revision >= self.freshness.known();
        if !usable {
            self.resolves.elsewhere(now, nonce);
        }
        let Some(pending) = usable.then(|| self.resolves.close(nonce)).flatten() else {
            // Too old, or a repeat was answered first. Units that came along are taken in all the same:
            // else they would be out with nobody to hand them back.
            if let (Some(part), ResolveOutcome::Principal(who)) = (&lease, &outcome) {
                self.take_units(now, from, revision, who, part);
            }
            return;
        };
        let reason = match outcome {
            ResolveOutcome::Principal(who) => {
                self.admit(now, from, revision, pending, who, lease.as_ref());
                return;
            }
            ResolveOutcome::Revoked => Reason::CredentialRevoked,
            ResolveOutcome::LicenseSuspended => Reason::LicenseSuspended,
            ResolveOutcome::Invalid | ResolveOutcome::Unconfirmed => Reason::CredentialInvalid,
        };
        if let (Some(source), false) = (pending.source, reason == Reason::CredentialInvalid) {
            self.view.sources.pay_back(source);
        }
        self.remember_denied(pending.hash);
        self.view.deny(
            pending.hash,
            Denial {
                reason,
                index: revision.index,
            },
        );
        self.known.remove(pending.hash);
        for (wake, _) in pending.waiting {
            // Nobody waits any more: as good.
            let _ = wake.send(());
        }
    }

    /// Takes in the units of a `Resolve` whose answer is not used.
    fn take_units(
        &mut self,
        now: Mono,
        from: (NodeId, Boot),
        revision: Revision,
        who: &Who,
        part: &SlotAnswer,
    ) {
        let SlotOutcome::Lines { lines, .. } = &part.outcome else {
            return;
        };
        let lessee = &self.lessee;
        let parts = Parts::gather(who, |account| lessee.cell(account).cloned(), &[]);
        for (account, cell) in parts.accounts {
            let line = lines.iter().find(|line| line.account == account);
            if let Some(line) = line {
                self.lessee.open(now, &account, cell, Some(line.lease_no));
            }
        }
        self.lessee.handle_slot_answer(now, from, revision, part);
        self.after_slot_answer(now, part);
    }

    /// Takes a principal into the view, with the units that came along.
    fn admit(
        &mut self,
        now: Mono,
        from: (NodeId, Boot),
        revision: Revision,
        pending: Pending,
        who: Arc<Who>,
        lease: Option<&SlotAnswer>,
    ) {
        if let Some(source) = pending.source {
            self.view.sources.pay_back(source);
        }
        let hash = pending.hash;
        self.make_room(now, &pending);
        let lessee = &self.lessee;
        let former = self.known.meters(hash);
        let parts = Parts::gather(&who, |account| lessee.cell(account).cloned(), &former);
        for (account, cell) in &parts.accounts {
            self.lessee
                .open(now, account, cell.clone(), Some(pending.lease_no));
        }
        if let Some(part) = lease {
            self.lessee.handle_slot_answer(now, from, revision, part);
        }
        let purse = Purse::new(who.clone(), &parts);
        // First: the meters that `known` retires are watched from when no later check can find them.
        self.view.admit(hash, purse);
        self.known
            .put(now, hash, who, pending.presented, parts.meters);
        if let Some(part) = lease {
            self.after_slot_answer(now, part);
        }
        let told = |account: &AccountId| match lease.map(|part| &part.outcome) {
            Some(SlotOutcome::Lines { lines, .. }) => lines.iter().any(|l| l.account == *account),
            _ => false,
        };
        for (wake, cost) in pending.waiting {
            let cell_is_short = |account: &&AccountId| {
                self.lessee
                    .cell(account)
                    .is_some_and(|cell| cell.free() < cost)
            };
            let names = parts.accounts.iter().map(|(account, _)| account);
            let short: Vec<AccountId> = names.filter(cell_is_short).cloned().collect();
            for account in short.iter().filter(|account| !told(account)) {
                self.lessee.handle_want(now, account, cost);
            }
            let cells = short.iter().filter_map(|account| self.lessee.cell(account));
            if short.is_empty()
                || cells
                    .into_iter()
                    .any(|cell| cell.refused(now, cost).is_some())
            {
                // Nobody waits any more: as good.
                let _ = wake.send(());
            } else {
                self.waiters.add(wake, cost, short);
            }
        }
    }

    /// Keeps the view within its bound.
    fn make_room(&mut self, now: Mono, pending: &Pending) {
        if self.known.presented(pending.hash).is_some() {
            return;
        }
        while self.known.len() >= PRINCIPALS_MAX {
            let Some(hash) = self.known.give_way(now) else {
                return;
            };
            self.view.forget(hash);
            self.known.remove(hash);
        }
    }

    /// Sends the end of the session to a node.
    pub(super) fn send_close(&mut self, to: NodeId, last_seq: tollgate_core::ids::Seq) -> bool {
        self.nodes
            .send(to, Stream::Report, EdgeMessage::CloseSession { last_seq })
    }
}
