//! Who a peer is, by its certificate: the URI `tollgate://CLUSTER/ROLE/NAME` among its alternative names.
//!
//! The certificate alone decides the role of a connection (docs/decisions/0005): nothing a peer says
//! later can raise it. Refuses certificates with no such URI, or with two. Next: [`crate::tls`].

use rustls_pki_types::CertificateDer;
use std::fmt;
use tollgate_core::account::{Name, NameError};
use tollgate_core::ids::NodeId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const SCHEME: &str = "tollgate://";

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A node of the cluster: replicates, issues, serves.
    Node,
    /// An edge: leases and reports, nothing else.
    Edge,
    /// An operator or a machine that administers.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Node, Self::Edge, Self::Admin];

    /// As it stands in the URI.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Edge => "edge",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who a certificate is for. Its text form is the URI.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    cluster: Name,
    role: Role,
    name: Name,
}

/// Why a certificate, or a text, names no peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("not an X.509 certificate: {reason}")]
    NoCertificate {
        /// What the parser said.
        reason: String,
    },
    /// No URI of ours; made for something else.
    #[error("the certificate has no {SCHEME}CLUSTER/ROLE/NAME among its alternative names{}",
        if found.is_empty() { String::new() } else { format!(", only {}", found.join(", ")) })]
    None {
        /// The URIs it has.
        found: Vec<String>,
    },
    /// More than one URI of ours: which one would decide?
    #[error("the certificate names several peers, expected one: {}", found.join(", "))]
    Several {
        /// Our URIs in it.
        found: Vec<String>,
    },
    /// A URI of ours with something wrong in it.
    #[error("`{uri}` names no peer: {reason}")]
    Malformed {
        /// The text.
        uri: String,
        /// What is wrong.
        reason: String,
    },
    /// A name that cannot be.
    #[error("the {what} {source}")]
    Name {
        /// `cluster` or the role.
        what: &'static str,
        /// What is wrong.
        source: NameError,
    },
    /// The cluster's name is part of DNS names, which allow less.
    #[error(
        "the cluster `{found}` cannot be part of a DNS name: expected 1 to 40 of a-z 0-9 -, no - at either end"
    )]
    Cluster {
        /// The name.
        found: String,
    },
    /// Signed by somebody else: another cluster's authority, or one that was replaced.
    #[error("the certificate is not issued by an authority in the CA file of this side")]
    OtherAuthority,
    /// A peer of another cluster, though its certificate is signed by an authority we trust.
    #[error("the peer belongs to cluster `{found}`, this is `{expected}`")]
    OtherCluster {
        /// The peer's.
        found: Name,
        /// Ours.
        expected: Name,
    },
    /// A peer of another role than the one asked for.
    #[error("the peer is {found}, expected the role {expected}")]
    OtherRole {
        /// The peer.
        found: PeerIdentity,
        /// The role.
        expected: Role,
    },
}

/// Longest cluster name: `node-18446744073709551615.CLUSTER` must fit DNS and certificates comfortably.
const CLUSTER_BYTES_MAX: usize = 40;

impl PeerIdentity {
    /// A peer of `cluster`; a node's `name` is its id.
    ///
    /// # Errors
    /// [`IdentityError::Name`], [`IdentityError::Cluster`], [`IdentityError::Malformed`] for a node whose
    /// name is no id.
    pub fn new(cluster: &str, role: Role, name: &str) -> Result<Self, IdentityError> {
        let bytes = cluster.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        let outer = |byte: Option<&u8>| byte.is_some_and(|byte| *byte != b'-');
        if bytes.len() > CLUSTER_BYTES_MAX
            || !bytes.iter().all(inner)
            || !outer(bytes.first())
            || !outer(bytes.last())
        {
            return Err(IdentityError::Cluster {
                found: cluster.to_owned(),
            });
        }
        let peer = Self {
            cluster: Name::new(cluster).map_err(|source| IdentityError::Name {
                what: "cluster",
                source,
            })?,
            role,
            name: Name::new(name).map_err(|source| IdentityError::Name {
                what: role.as_str(),
                source,
            })?,
        };
        if role == Role::Node && peer.node_id().is_none() {
            let reason = format!("the node id `{name}` is no number");
            return Err(IdentityError::Malformed {
                uri: peer.to_string(),
                reason,
            });
        }
        Ok(peer)
    }

    /// The node `id` of `cluster`.
    ///
    /// # Errors
    /// [`IdentityError::Name`], [`IdentityError::Cluster`].
    pub fn node(cluster: &str, id: NodeId) -> Result<Self, IdentityError> {
        Self::new(cluster, Role::Node, &id.to_string())
    }

    /// The cluster it belongs to.
    #[must_use]
    pub fn cluster(&self) -> &Name {
        &self.cluster
    }

    /// What it may do.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name; a node's id in digits.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The id of a node, `None` for others.
    #[must_use]
    pub fn node_id(&self) -> Option<NodeId> {
        let id: u64 = self.name.as_str().parse().ok()?;
        // Only the canonical digits: two spellings of one id would be two peers.
        (self.role == Role::Node && id.to_string() == self.name.as_str()).then_some(NodeId(id))
    }

    /// Who `certificate` is for. Does not verify it: TLS has done that.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let no_certificate = |reason: String| IdentityError::NoCertificate { reason };
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| no_certificate(error.to_string()))?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|error| no_certificate(error.to_string()))?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
        let (ours, others): (Vec<_>, Vec<_>) = uris.partition(|uri| uri.starts_with(SCHEME));
        match ours.as_slice() {
            [] => Err(IdentityError::None { found: others }),
            [uri] => uri.parse(),
            _ => Err(IdentityError::Several { found: ours }),
        }
    }
}

impl std::str::FromStr for PeerIdentity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let malformed = |reason: &str| IdentityError::Malformed {
            uri: uri.to_owned(),
            reason: reason.into(),
        };
        let parts: Vec<&str> = uri
            .strip_prefix(SCHEME)
            .ok_or_else(|| malformed("expected tollgate://CLUSTER/ROLE/NAME"))?
            .split('/')
            .collect();
        let &[cluster, role, name] = parts.as_slice() else {
            return Err(malformed("expected tollgate://CLUSTER/ROLE/NAME"));
        };
        let role = Role::ALL
            .into_iter()
            .find(|known| known.as_str() == role)
            .ok_or_else(|| malformed("expected the role node, edge or admin"))?;
        Self::new(cluster, role, name)
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role, self.name)
    }
}

/// The DNS name in the certificate of node `id`: what a client that wants exactly this node checks.
#[must_use]
pub fn node_server_name(cluster: &str, id: NodeId) -> String {
    format!("node-{id}.{cluster}.tollgate")
}

/// The DNS name in the certificate of every node: for a client that knows an address but not whose.
#[must_use]
pub fn any_node_server_name(cluster: &str) -> String {
    format!("nodes.{cluster}.tollgate")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(uri: &str) -> String {
        uri.parse::<PeerIdentity>()
            .expect_err("no peer")
            .to_string()
    }

    #[test]
    fn uris_and_peers_are_the_same_thing() {
        for uri in [
            "tollgate://eu-1/node/7",
            "tollgate://c/edge/gw_1.x",
            "tollgate://c/admin/ann@b",
        ] {
            assert_eq!(uri.parse::<PeerIdentity>().unwrap().to_string(), uri);
        }
        let node = PeerIdentity::node("eu-1", NodeId(7)).unwrap();
        assert_eq!(node, "tollgate://eu-1/node/7".parse().unwrap());
        assert_eq!(node.node_id(), Some(NodeId(7)));
        assert_eq!(
            PeerIdentity::new("eu-1", Role::Edge, "7")
                .unwrap()
                .node_id(),
            None
        );
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let expected = "names no peer: expected tollgate://CLUSTER/ROLE/NAME";
        assert_eq!(
            error("spiffe://c/node/1"),
            format!("`spiffe://c/node/1` {expected}")
        );
        assert_eq!(
            error("tollgate://c/node"),
            format!("`tollgate://c/node` {expected}")
        );
        assert_eq!(
            error("tollgate://c/node/1/"),
            format!("`tollgate://c/node/1/` {expected}")
        );
        assert_eq!(
            error("tollgate://c/root/1"),
            "`tollgate://c/root/1` names no peer: expected the role node, edge or admin"
        );
        for id in ["one", "01", "+1", "18446744073709551616"] {
            let uri = format!("tollgate://c/node/{id}");
            assert_eq!(
                error(&uri),
                format!("`{uri}` names no peer: the node id `{id}` is no number")
            );
        }
        assert!(error("tollgate://c/edge/").starts_with("the edge is empty"));
        for cluster in ["", "-c", "c-", "C", "a.b", &"c".repeat(41)] {
            let found = error(&format!("tollgate://{cluster}/edge/a"));
            assert!(
                found.starts_with(&format!("the cluster `{cluster}` cannot be")),
                "{found}"
            );
        }
    }

    #[test]
    fn junk_is_no_certificate() {
        let found = PeerIdentity::from_certificate(&CertificateDer::from(&b"junk"[..]));
        assert!(
            matches!(found, Err(IdentityError::NoCertificate { .. })),
            "{found:?}"
        );
    }
}
