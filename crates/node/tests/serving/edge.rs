//! A small edge: speaks the frames, decides nothing.

use super::cluster::{NAME, soon};
use std::net::SocketAddr;
use tollgate_core::account::{AccountId, Environment, Name};
use tollgate_core::command::{OpenSessionReply, Report, ReportReply, SpentLine, UsageLine};
use tollgate_core::ids::{
    Boot, Incarnation, LeaseNo, NodeId, Nonce, Revision, Seq, SessionId, Slot,
};
use tollgate_core::message::{
    AnswerLine, EdgeMessage, Hello, Lease, LeaseLine, LeaseState, NodeMessage, Resolve,
    ResolveAnswer, ResolveOutcome, Route, Sender, SlotLease, SlotOutcome,
};
use tollgate_wire::codec;
use tollgate_wire::frame::Class;
use tollgate_wire::quic::{Connection, Endpoint, Framed, Protocol};
use tollgate_wire::tls::Tls;

pub(crate) struct Edge {
    pub(crate) connection: Connection,
    _endpoint: Endpoint,
    pub(crate) control: Framed,
    pub(crate) lease: Framed,
    pub(crate) reports: Framed,
    routes: Vec<Route>,
    session: SessionId,
    boot: Boot,
    /// News that came while an answer was waited for.
    pushes: usize,
    /// The newest revision told of.
    revision: Revision,
}

async fn send(framed: &mut Framed, message: &EdgeMessage) {
    framed.writer.push_value(message).unwrap();
    framed.writer.flush().await.unwrap();
}

async fn next(framed: &mut Framed) -> NodeMessage {
    let payload = soon("a frame", framed.reader.next())
        .await
        .unwrap()
        .expect("the node ended the stream");
    codec::decode::<NodeMessage, { codec::budget(1 << 20) }>(payload).unwrap()
}

impl Edge {
    pub(crate) async fn dial(tls: &Tls, node: NodeId, address: SocketAddr) -> Self {
        let endpoint = Endpoint::dialling(tls).unwrap();
        let connection = endpoint.dial(node, address, Protocol::Edge).await.unwrap();
        let control = connection.open_framed(Class::Control).await.unwrap();
        let lease = connection.open_framed(Class::Lease).await.unwrap();
        let reports = connection.open_framed(Class::Report).await.unwrap();
        Self {
            connection,
            _endpoint: endpoint,
            control,
            lease,
            reports,
            routes: Vec::new(),
            session: SessionId(0),
            boot: Boot(0),
            pushes: 0,
            revision: Revision::default(),
        }
    }

    pub(crate) async fn hello(&mut self, boot: Option<Boot>) {
        let hello = Hello {
            cluster: Name::new(NAME).unwrap(),
            incarnation: Some(Incarnation(1)),
            sender: Sender::Edge { boot },
            versions: (1, 1),
        };
        self.say(&EdgeMessage::Hello(hello)).await;
    }

    pub(crate) async fn say(&mut self, message: &EdgeMessage) {
        send(&mut self.control, message).await;
    }

    /// Takes the node's hello and its slot table.
    pub(crate) async fn greeted(&mut self) {
        let NodeMessage::Hello(hello) = next(&mut self.control).await else {
            panic!("hello comes first");
        };
        assert!(matches!(hello.sender, Sender::Node { .. }), "{hello:?}");
        let NodeMessage::Routes { routes, .. } = next(&mut self.control).await else {
            panic!("the slot table follows");
        };
        self.routes = routes;
    }

    pub(crate) fn issuer(&self, slot: Slot) -> Option<NodeId> {
        let route = self.routes.iter().find(|route| route.slot == slot)?;
        route.owner.map(|(node, _)| node)
    }

    pub(crate) fn belongs(&mut self, session: SessionId, boot: Boot) {
        (self.session, self.boot) = (session, boot);
    }

    /// The next control message that is wanted; news on the way are taken in.
    async fn control(&mut self, wanted: impl Fn(&NodeMessage) -> bool) -> NodeMessage {
        loop {
            let message = next(&mut self.control).await;
            if wanted(&message) {
                return message;
            }
            match message {
                NodeMessage::Push { revision } => {
                    self.revision = revision;
                    self.pushes += 1;
                }
                NodeMessage::Routes { routes, .. } => {
                    for route in routes {
                        self.routes[route.slot.index()] = route;
                    }
                }
                NodeMessage::Recall(_) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    pub(crate) async fn open_session(&mut self, nonce: u64) -> (SessionId, Boot) {
        self.say(&EdgeMessage::OpenSession {
            session: None,
            nonce: Nonce(nonce),
        })
        .await;
        let answer = self
            .control(|message| matches!(message, NodeMessage::Session(_)))
            .await;
        let NodeMessage::Session(OpenSessionReply::Opened { session, boot, .. }) = answer else {
            panic!("a session, not {answer:?}");
        };
        self.belongs(session, boot);
        (session, boot)
    }

    /// How old the node's confirmed view is.
    pub(crate) async fn keepalive(&mut self) -> Option<u64> {
        let revision = Revision::default();
        self.say(&EdgeMessage::Keepalive {
            boot: self.boot,
            sent_mark: 42,
            revision,
        })
        .await;
        let answer = self
            .control(|message| matches!(message, NodeMessage::Keepalive { .. }))
            .await;
        let NodeMessage::Keepalive {
            sent_mark,
            contact,
            confirmed_age_ms,
            ..
        } = answer
        else {
            unreachable!("that was waited for");
        };
        assert_eq!(sent_mark, 42);
        assert!(contact > 0);
        confirmed_age_ms
    }

    pub(crate) async fn changes_since_zero(&mut self) -> NodeMessage {
        self.say(&EdgeMessage::Changes {
            since: Revision::default(),
        })
        .await;
        self.control(|message| matches!(message, NodeMessage::Changes { .. }))
            .await
    }

    /// Waits until the node has told of a change of the catalog.
    pub(crate) async fn pushed(&mut self) {
        if self.pushes == 0 {
            let push = self
                .control(|message| matches!(message, NodeMessage::Push { .. }))
                .await;
            if let NodeMessage::Push { revision } = push {
                self.revision = revision;
            }
        } else {
            self.pushes -= 1;
        }
    }

    pub(crate) async fn resolve(
        &mut self,
        key: &str,
        secret: &str,
        lease_no: u64,
        want: u64,
    ) -> ResolveAnswer {
        use sha2::Digest;
        loop {
            let resolve = Resolve {
                boot: self.boot,
                nonce: lease_no,
                key: Name::new(key).unwrap(),
                secret_sha256: sha2::Sha256::digest(secret.as_bytes()).into(),
                lease_no: LeaseNo(lease_no),
                want,
                need: want,
            };
            send(&mut self.lease, &EdgeMessage::Resolve(resolve)).await;
            let answer = loop {
                if let NodeMessage::Resolve(answer) = next(&mut self.lease).await {
                    break answer;
                }
            };
            let is_late = match &answer.outcome {
                ResolveOutcome::Unconfirmed => true,
                // The replica of this node has not applied the key yet.
                ResolveOutcome::Invalid => answer.revision.index == 0,
                _ => false,
            };
            if !is_late {
                return answer;
            }
        }
    }

    /// What a resolve granted of an account, asking on while a position is under way.
    pub(crate) async fn granted_by(
        &mut self,
        answer: &ResolveAnswer,
        account: &AccountId,
        need: u64,
    ) -> u64 {
        let outcome = answer.lease.as_ref().map(|part| &part.outcome);
        let Some(SlotOutcome::Lines { lines, .. }) = outcome else {
            panic!("the issuer answers with lines: {answer:?}");
        };
        let line = lines
            .iter()
            .find(|line| line.account == *account)
            .expect("a line per account");
        if line.state == LeaseState::Granted {
            return line.granted_total;
        }
        self.lease_until_decided(account, line.lease_no.0, need)
            .await
            .granted_total
    }

    /// Leases until the answer is neither pending nor recalling.
    pub(crate) async fn lease_until_decided(
        &mut self,
        account: &AccountId,
        lease_no: u64,
        total: u64,
    ) -> AnswerLine {
        let slot = account.slot();
        loop {
            let epoch = self.routes[slot.index()].epoch;
            let line = LeaseLine {
                account: account.clone(),
                lease_no: LeaseNo(lease_no),
                carried: 0,
                want_total: total,
                need_total: total,
                surrendered_total: 0,
                demand: 0,
                closing: false,
            };
            let lease = Lease {
                boot: self.boot,
                slots: vec![SlotLease {
                    slot,
                    epoch,
                    lines: vec![line],
                }],
            };
            send(&mut self.lease, &EdgeMessage::Lease(lease)).await;
            let NodeMessage::Lease(answer) = next(&mut self.lease).await else {
                continue;
            };
            let SlotOutcome::Lines { lines, .. } = &answer.slots[0].outcome else {
                panic!("this node owns the slot: {answer:?}");
            };
            // Answers to earlier requests come too: they grant less, or refuse what a push lifted since.
            let decided = |line: &&AnswerLine| match line.state {
                LeaseState::Pending | LeaseState::Recalling => false,
                LeaseState::Granted => line.granted_total >= total,
                _ => answer.revision >= self.revision,
            };
            match lines.first().filter(decided) {
                Some(line) => return line.clone(),
                _ => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    }

    pub(crate) fn report(&self, seq: u64, key: &str, account: &AccountId, units: u64) -> Report {
        let name = |text| Name::new(text).unwrap();
        let spent = vec![SpentLine {
            account: account.clone(),
            leased: units,
            unleased: 0,
        }];
        let usage = vec![UsageLine {
            environment: Environment::Live,
            license: name("acme-free"),
            key: name(key),
            meter: name("requests"),
            units,
        }];
        let (session, seq) = (self.session, Seq(seq));
        let hash = Report::content_hash(session, seq, &spent, &usage);
        Report {
            session,
            boot: self.boot,
            seq,
            hash,
            spent,
            usage,
        }
    }

    pub(crate) async fn send_report(&mut self, report: &Report) -> ReportReply {
        loop {
            send(&mut self.reports, &EdgeMessage::Report(report.clone())).await;
            match next(&mut self.reports).await {
                NodeMessage::Report(answer) => return answer.reply,
                NodeMessage::Unavailable(_) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    pub(crate) async fn close_session(&mut self, last_seq: u64) -> ReportReply {
        loop {
            send(
                &mut self.reports,
                &EdgeMessage::CloseSession {
                    last_seq: Seq(last_seq),
                },
            )
            .await;
            match next(&mut self.reports).await {
                NodeMessage::Closed(answer) => return answer.reply,
                NodeMessage::Unavailable(_) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// Waits until the node closes the connection: its words.
    pub(crate) async fn closed_because(&self) -> String {
        soon("the node closes", self.connection.closed())
            .await
            .to_string()
    }
}

pub(crate) fn account_of(answer: &ResolveAnswer) -> AccountId {
    match &answer.outcome {
        ResolveOutcome::Principal(principal) => principal.limits[0].account.clone(),
        other => panic!("a principal, not {other:?}"),
    }
}
