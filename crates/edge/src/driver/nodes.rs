//! [`Nodes`]: which nodes are connected, and the queues towards them.

use crate::config::NodeConfig;
use crate::link::Outbox;
use crate::status::NodeStatus;
use tokio::sync::mpsc::error::TrySendError;
use tollgate_core::ids::{Boot, NodeId};
use tollgate_core::message::EdgeMessage;

/// The stream a message goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Control,
    Lease,
    Report,
}

struct Node {
    config: NodeConfig,
    up: Option<(Boot, Outbox)>,
    last_error: Option<String>,
}

/// See the module's text.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    /// Where the next search for any node begins.
    next: usize,
    pub(super) dropped: u64,
}

impl Nodes {
    pub(super) fn new(configs: &[NodeConfig]) -> Self {
        let node = |config: &NodeConfig| Node {
            config: config.clone(),
            up: None,
            last_error: None,
        };
        Self {
            nodes: configs.iter().map(node).collect(),
            next: 0,
            dropped: 0,
        }
    }

    fn find(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.config.id == id)
    }

    pub(super) fn handle_up(&mut self, id: NodeId, boot: Boot, outbox: Outbox) {
        if let Some(node) = self.find(id) {
            node.up = Some((boot, outbox));
            node.last_error = None;
        }
    }

    pub(super) fn handle_down(&mut self, id: NodeId, reason: String) {
        if let Some(node) = self.find(id) {
            node.up = None;
            node.last_error = Some(reason);
        }
    }

    /// The boot of a node that is connected.
    pub(super) fn boot(&self, id: NodeId) -> Option<Boot> {
        let node = self.nodes.iter().find(|node| node.config.id == id)?;
        node.up.as_ref().map(|(boot, _)| *boot)
    }

    pub(super) fn connected(&self) -> impl Iterator<Item = NodeId> {
        self.nodes
            .iter()
            .filter(|node| node.up.is_some())
            .map(|node| node.config.id)
    }

    /// Any connected node, another one each time; `except` only if there is no other.
    pub(super) fn any(&mut self, except: Option<NodeId>) -> Option<NodeId> {
        let count = self.nodes.len();
        let mut last_resort = None;
        for place in (0..count).map(|offset| (self.next + offset) % count) {
            let node = &self.nodes[place];
            if node.up.is_none() {
                continue;
            }
            if Some(node.config.id) == except {
                last_resort = except;
                continue;
            }
            self.next = (place + 1) % count;
            return Some(node.config.id);
        }
        last_resort
    }

    /// Queues a message for a node; `false` if it is not connected or its queue is full.
    pub(super) fn send(&mut self, to: NodeId, stream: Stream, message: EdgeMessage) -> bool {
        let Some(Node {
            up: Some((_, outbox)),
            ..
        }) = self.find(to)
        else {
            return false;
        };
        let queue = match stream {
            Stream::Control => &outbox.control,
            Stream::Lease => &outbox.lease,
            Stream::Report => &outbox.report,
        };
        match queue.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.dropped += 1;
                false
            }
            // The link will say that it is down.
            Err(TrySendError::Closed(_)) => false,
        }
    }

    pub(super) fn status(&self) -> Vec<NodeStatus> {
        let status = |node: &Node| NodeStatus {
            node: node.config.id,
            address: node.config.address.clone(),
            connected: node.up.is_some(),
            last_error: node.last_error.clone(),
        };
        self.nodes.iter().map(status).collect()
    }
}
